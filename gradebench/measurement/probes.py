"""Many gradient estimates (draws) at frozen parameters, computed in one pass if they don't affect each other.

If several calls share a batch, the policy is updated between them as in training, and restored after the last.
Draws come in pairs that share only their prompts. The spread within pairs gives the sampling variance, and the spread
of the pairs' means the rest, so both parts of the variance can be estimated.
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
COPIED_ENTRIES = 2**22  # draws in one pass times parameters, at most: larger models gain no speed and fill the memory
MAPPED_ENTRIES = 2**19  # the same if weights are copied too, not only their gradients
COPIED_ROWS = 2**14  # draws in one pass times sequences of one draw, at most
FEWEST_COPIES = 8  # below this, one pass of many draws isn't faster than one pass per draw
FEWEST_DRAWS = 32  # below this, testing for independence costs more than it saves


Moving = Callable[[], AbstractContextManager[Callable[[Sequence[Tensor]], object]]]


def _at_rest() -> AbstractContextManager[Callable[[Sequence[Tensor]], object]]:
    return nullcontext(lambda gradient: None)


@dataclass(frozen=True)
class Source:
    """Where draws come from: everything that is fixed while an estimator's gradients are measured.

    contexts   maps the number of a pair of draws to the indices (B,) of its contexts
    problem    maps indices (N,) and a ledger to the problem on them
    generator  maps the number of a draw to its generator
    moving     a context manager that gives a function, which updates the policy along a gradient between the calls that
               share a batch; on exit the policy is restored. By default all calls use the same parameters.
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
    """The mean over calls, all at the same parameters."""
    gradients = [estimate.grad for estimate in calls(estimator, problem, rng)]
    return [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]


def moments_of(estimator: Estimator, source: Source, pairs: int, centre: Tensor, sizes: Sequence[int]) -> Moments:
    """Moments of `pairs` pairs of draws: many in one pass if draws don't affect each other, else one by one.

    A deterministic estimate is computed once for each of BLOCKS choices of prompts.
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
    """The two draws (1, d) of pair 0, and whether they used their generators.

    An estimate that doesn't is deterministic: only the choice of prompts changes it.
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
    """A pair (1, d) of a deterministic estimate, whose draws are equal."""
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
    """How many pairs fit into one pass; 0 if draws have to be computed one by one."""
    if estimator.period > 1:  # the policy moves in between, differently for each draw
        return 0
    rows = len(source.contexts(0)) * estimator.n
    copies = min(COPIES, COPIED_ENTRIES // size, COPIED_ROWS // rows)
    if copies >= FEWEST_COPIES:
        copies = min(copies, entries_at_once(estimator, source) // size)
    return copies // 2 if copies >= FEWEST_COPIES else 0


def entries_at_once(estimator: Estimator, source: Source) -> int:
    """The largest number of draws in one pass times parameters; 0 if draws have to be computed one by one.

    Copies in one pass must not affect each other. This is tested by changing the rewards of one and comparing the
    gradient of the other. Draws do affect each other if advantages are whitened over the batch or contexts are
    shuffled, and some problems can't be replicated.
    """
    index = source.contexts(0)
    problem = source.problem(index.repeat_interleave(2), None)

    def watched(factor: float) -> tuple[list[Tensor], bool]:
        copies = problem.replicated(2)
        rewarded: Any = _Rewarded(copies, factor)
        return [g[0] for g in _mean_gradient(estimator, rewarded, source.generator(0))], copies.mapped

    try:
        (plain, mapped), (changed, _) = watched(1.0), watched(3.0)
    except Exception:  # noqa: BLE001 - batched, models and estimators may raise anything; one by one always works
        return 0
    apart = all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(plain, changed, strict=True))
    return 0 if not apart else MAPPED_ENTRIES if mapped else COPIED_ENTRIES


class _Rewarded(View):
    """A problem in which the rewards of odd contexts are multiplied by a factor."""

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
    """For each of the calls that share a batch: the moments of `pairs` pairs of draws, and the means of `info`."""
    moments = [Moments(centre, sizes, min(BLOCKS, pairs)) for _ in range(estimator.period)]
    info: list[dict[str, float]] = [{} for _ in range(estimator.period)]
    for number in range(pairs):
        problem = source.problem(source.contexts(number), None)
        both = [calls(estimator, problem, source.generator(2 * number + i), source.moving) for i in (0, 1)]
        for place, (one, other) in enumerate(zip(*both, strict=True)):
            moments[place].add(flatten(one.grad)[None], flatten(other.grad)[None])
            for estimate in (one, other):
                for name, value in estimate.info.items():
                    info[place][name] = info[place].get(name, 0.0) + float(value) / (2 * pairs)
    return moments, info


def costs_of(estimator: Estimator, source: Source, repeats: int = 3) -> dict[str, float]:
    """The ledger of one draw, and its seconds (the minimum of a few repeats)."""
    ledger = Ledger()
    problem = source.problem(source.contexts(0), ledger)
    seconds = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        one_estimate(estimator, problem, source.generator(0), source.moving)
        seconds = min(seconds, time.perf_counter() - started)
    return {name: count / repeats for name, count in asdict(ledger).items()} | {"seconds": seconds}
