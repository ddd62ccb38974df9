"""Draws of gradients at frozen parameters: many in one pass where they leave each other alone.

Where several calls share a batch, the policy moves between them as in training, and back after the last. Draws come in pairs that share their prompts and nothing else. The spread within pairs is sampling variance, that of
the pairs' means holds the rest, so both parts of the variance are known.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradebench.core.estimator import Estimate, Estimator
from gradebench.core.global_state import put_back
from gradebench.core.problem import Ledger, Problem
from gradebench.core.view import Guarded, View
from gradebench.measurement.moments import BLOCKS, Moments, flatten

COPIES = 256  # draws in one pass, at most
COPIED_ENTRIES = 2**22  # draws in one pass times parameters, at most: larger models gain nothing and fill the memory
MAPPED_ENTRIES = 2**19  # the same where weights are copied too, not their gradients alone
COPIED_ROWS = 2**14  # draws in one pass times sequences of one draw, at most
FEWEST_COPIES = 8  # below, one pass of many draws isn't quicker than one a draw
FEWEST_DRAWS = 32  # below, finding out costs more than it saves


Moving = Callable[[], AbstractContextManager[Callable[[Sequence[Tensor]], object]]]


def _at_rest() -> AbstractContextManager[Callable[[Sequence[Tensor]], object]]:
    return nullcontext(lambda gradient: None)


@dataclass(frozen=True)
class Source:
    """Where draws come from: everything that is fixed while an estimator's gradients are measured.

    contexts   number of a pair of draws to the indices (B,) of its contexts
    problem    indices (N,) and a ledger to the problem on them
    generator  number of a draw to its generator
    moving     a context whose function updates the policy along a gradient, between the calls that share a batch; at its
               end the policy is what it was. Left out, all calls are at the same parameters.
    """

    contexts: Callable[[int], Tensor]
    problem: Callable[[Tensor, Ledger | None], Problem]
    generator: Callable[[int], torch.Generator]
    moving: Moving = _at_rest


def one_estimate(estimator: Estimator, problem: Problem, rng: torch.Generator, moving: Moving = _at_rest) -> Tensor:
    """One fresh estimate (d,): the mean over the calls that share a batch."""
    return torch.stack([flatten(estimate.grad) for estimate in calls(estimator, problem, rng, moving)]).mean(0)


def calls(estimator: Estimator, problem: Problem, rng: torch.Generator, moving: Moving = _at_rest) -> list[Estimate]:
    """The estimates of all calls that share one fresh batch, with an update of the policy between them."""
    estimator.reset()
    guarded = Guarded(problem, estimator.needs)
    found: list[Estimate] = []
    with moving() as update:
        for number in range(estimator.period):
            if number:
                update(found[-1].grad)
            with put_back(type(estimator).__name__):
                found.append(estimator.gradient(guarded, rng))  # type: ignore[arg-type]
    return found


def _mean_gradient(estimator: Estimator, problem: Problem, rng: torch.Generator) -> list[Tensor]:
    """With all calls at the same parameters."""
    gradients = [estimate.grad for estimate in calls(estimator, problem, rng)]
    return [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]


def moments_of(estimator: Estimator, source: Source, pairs: int, centre: Tensor, sizes: Sequence[int]) -> Moments:
    """Moments of `pairs` pairs of draws: many in one pass where draws don't read each other, else one by one.

    An estimate without noise of its own is drawn for BLOCKS choices of prompts, and once each.
    """
    first, noisy = _first_pair(estimator, source)
    if not noisy:
        pairs, drawn, at_once = min(pairs, BLOCKS), _same_twice, 1
    elif 2 * pairs >= FEWEST_DRAWS and (at_once := _pairs_at_once(estimator, source, sum(sizes))):
        drawn = _many_estimates
    else:
        drawn, at_once = _one_by_one, 1
    moments = Moments(centre, sizes, min(BLOCKS, pairs))
    moments.add(*first)
    for start in range(1, pairs, at_once):
        numbers = range(start, min(start + at_once, pairs))
        moments.add(*drawn(estimator, source, numbers))
    return moments


def _first_pair(estimator: Estimator, source: Source) -> tuple[tuple[Tensor, Tensor], bool]:
    """The two draws (1, d) of pair 0, and whether they took anything from their generators.

    An estimate that doesn't is the same twice: only the choice of prompts varies it.
    """
    problem, rng = source.problem(source.contexts(0), None), source.generator(0)
    before = rng.get_state()
    first = one_estimate(estimator, problem, rng, source.moving)[None]
    if torch.equal(before, rng.get_state()):
        return (first, first), False
    return (first, one_estimate(estimator, problem, source.generator(1), source.moving)[None]), True


def _one_by_one(estimator: Estimator, source: Source, numbers: range) -> tuple[Tensor, Tensor]:
    """The two draws (1, d) of one pair."""
    (number,) = numbers
    problem = source.problem(source.contexts(number), None)
    rngs = (source.generator(2 * number + i) for i in (0, 1))
    first, second = (one_estimate(estimator, problem, rng, source.moving)[None] for rng in rngs)
    return first, second


def _same_twice(estimator: Estimator, source: Source, numbers: range) -> tuple[Tensor, Tensor]:
    """A pair (1, d) whose draws are equal."""
    (number,) = numbers
    problem = source.problem(source.contexts(number), None)
    only = one_estimate(estimator, problem, source.generator(2 * number), source.moving)[None]
    return only, only


def _many_estimates(estimator: Estimator, source: Source, numbers: range) -> tuple[Tensor, Tensor]:
    """The first draws of these pairs, and the second ones, (pairs, d) each, in one pass."""
    contexts = torch.stack([source.contexts(number) for number in numbers], 1)  # (B, pairs)
    copies = 2 * len(numbers)
    problem = source.problem(contexts.repeat(1, 2).reshape(-1), None).replicated(copies)
    gradient = _mean_gradient(estimator, problem, source.generator(2 * numbers.start))
    drawn = torch.cat([g.detach().reshape(copies, -1).double() for g in gradient], 1) * copies
    return drawn[: len(numbers)], drawn[len(numbers) :]


def _pairs_at_once(estimator: Estimator, source: Source, size: int) -> int:
    """How many pairs fit into one pass; 0 where draws have to come one by one."""
    if estimator.period > 1:  # the policy moves in between, each draw's its own way
        return 0
    rows = len(source.contexts(0)) * estimator.n
    copies = min(COPIES, COPIED_ENTRIES // size, COPIED_ROWS // rows)
    if copies >= FEWEST_COPIES:
        copies = min(copies, entries_at_once(estimator, source) // size)
    return copies // 2 if copies >= FEWEST_COPIES else 0


def entries_at_once(estimator: Estimator, source: Source) -> int:
    """Draws in one pass times parameters, at most; 0 where draws have to come one by one.

    Copies in one pass must leave each other alone: found by changing the rewards of one and watching the other.
    Advantages that are whitened over the batch, or contexts that are shuffled, tie draws together, and some problems
    can't be replicated.
    """
    index = source.contexts(0)
    problem = source.problem(index.repeat_interleave(2), None)

    def watched(factor: float) -> tuple[list[Tensor], bool]:
        copies = problem.replicated(2)
        rewarded: Any = _Rewarded(copies, factor)
        return [g[0] for g in _mean_gradient(estimator, rewarded, source.generator(0))], copies.mapped

    try:
        (plain, mapped), (changed, _) = watched(1.0), watched(3.0)
    except Exception:  # noqa: BLE001 - models and estimators fail in their own ways when batched; one by one always works
        return 0
    apart = all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(plain, changed, strict=True))
    return 0 if not apart else MAPPED_ENTRIES if mapped else COPIED_ENTRIES


class _Rewarded(View):
    """A problem whose odd contexts have their reward multiplied."""

    def __init__(self, problem: Problem, factor: float):
        super().__init__(problem)
        self._factor = factor

    def reward(self, z: Tensor) -> Tensor:
        return self._changed(self._problem.reward(z))

    def soft_reward(self, y: Tensor) -> Tensor:
        return self._changed(self._problem.soft_reward(y))

    def _changed(self, reward: Tensor) -> Tensor:
        odd = torch.arange(reward.shape[1], device=reward.device) % 2
        return reward * (1 + (self._factor - 1) * odd)


def by_call(
    estimator: Estimator, source: Source, pairs: int, centre: Tensor, sizes: Sequence[int]
) -> tuple[list[Moments], list[dict[str, float]]]:
    """Of each call that shares a batch with others, the moments of `pairs` pairs of draws, and the means of `info`."""
    moments = [Moments(centre, sizes, min(BLOCKS, pairs)) for _ in range(estimator.period)]
    info: list[dict[str, float]] = [{} for _ in range(estimator.period)]
    for number in range(pairs):
        problem = source.problem(source.contexts(number), None)
        both = [calls(estimator, problem, source.generator(2 * number + i), source.moving) for i in (0, 1)]
        for place, (one, other) in enumerate(zip(*both, strict=True)):
            moments[place].add(flatten(one.grad)[None], flatten(other.grad)[None])
            for estimate in (one, other):
                for name, value in estimate.info.items():
                    info[place][name] = info[place].get(name, 0.0) + value / (2 * pairs)
    return moments, info


def costs_of(estimator: Estimator, source: Source, repeats: int = 3) -> dict[str, float]:
    """What one draw uses, by the ledger, and its seconds (the least of a few)."""
    ledger = Ledger()
    problem = source.problem(source.contexts(0), ledger)
    seconds = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        one_estimate(estimator, problem, source.generator(0), source.moving)
        seconds = min(seconds, time.perf_counter() - started)
    return {name: count / repeats for name, count in asdict(ledger).items()} | {"seconds": seconds}
