"""An estimator under test: how the checks build it, and on which problems."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradebench.core.estimator import Estimate, Estimator
from gradebench.core.global_state import put_back
from gradebench.core.sampling import generator
from gradebench.core.view import Guarded
from gradebench.measurement.probes import one_estimate
from gradebench.problems.enumerable import random_sequence_problem
from gradebench.problems.sequence import SequenceProblem

SEQUENCES = 256  # sampled in one draw, so that a draw is nearly normal
BETA = 0.1  # of the KL penalty, through which f depends on the parameters
INSTANCE = {2: 1, 3: 0}  # vocabulary size to the seed of a policy under which most sequences have some probability
ONE_DECISION = {2: 91, 3: 29}  # vocabulary size to the seed of a policy with a large gradient for horizon 1
LEARNING = 40  # steps that an estimator's own parameters learn before it is checked

Make = Callable[..., Estimator]  # from options to a new estimator


@dataclass(frozen=True)
class Finding:
    """One line of a report. `status`: pass, fail, info (a value that isn't tested) or skip (the check doesn't apply)."""

    check: str
    status: str
    detail: str
    advice: str = ""  # on failure: what to look at


class Failed(Exception):
    """A check failed: what was found, and what to look at in the code."""

    def __init__(self, detail: str, advice: str):
        super().__init__(detail)
        self.advice = advice


class Skipped(Exception):
    """The check doesn't apply; the message says why."""


@dataclass
class Subject:
    """The estimator under test. Every check builds a new one."""

    make: Make
    seed: int

    def __post_init__(self) -> None:
        self.learned: dict[str, Estimator] = {}
        sample = self.make()
        self.needs, self.n, self.period = sample.needs, sample.n, sample.period
        self.unbiased, self.unbiased_if, self.pathwise = sample.unbiased, sample.unbiased_if, sample.pathwise
        self.corrects = sample.corrects

    def rng(self, *names: object) -> torch.Generator:
        return generator("cpu", "check", self.seed, *names)

    def sequences(self, copies: int = 1, beta: float | None = None, horizon: int = 3) -> SequenceProblem:
        """Four prompts, each `copies` times; binary tokens for estimators that need them."""
        if beta is None:
            beta = 0.0 if "fixed_reward" in self.needs else BETA
        copies = 1 if "exact" in self.needs else copies  # all of its estimates are the same
        vocabulary = 2 if "binary" in self.needs else 3
        instance = (ONE_DECISION if horizon == 1 else INSTANCE)[vocabulary]
        problem = random_sequence_problem(vocabulary, horizon, 4, beta, instance)
        lacking = self.needs - problem.offers
        if lacking:
            raise Skipped(f"needs {', '.join(sorted(lacking))}, which no problem here offers")
        return problem.select(torch.arange(4).repeat(copies)) if copies > 1 else problem

    def ready(self, problem: Any, **options: Any) -> Estimator:
        """An estimator in eval(), with its own parameters half-way between their initial and their learned values.

        Initially a wrong baseline is often zero, and a wrong control variate may have learned to switch itself off.
        """
        key = f"{sorted(options.items())} {problem.horizon} {problem.categories} {problem.feature_size}"
        if key not in self.learned:
            self.learned[key] = self._learned(problem, options)
        return copy.deepcopy(self.learned[key])

    def _learned(self, problem: Any, options: dict[str, Any]) -> Estimator:
        estimator = self.make(**options)
        estimator.init(problem)
        own = [p for p in estimator.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in own]
        optimizer = torch.optim.Adam(own, lr=estimator.own_learning_rate) if own else None
        rng = self.rng("own state")
        for _ in range(LEARNING if own else 4 * estimator.period):
            estimate = self.estimate(estimator, problem, rng)
            if optimizer and estimate.own_loss is not None:
                for p, g in zip(own, torch.autograd.grad(estimate.own_loss, own, allow_unused=True), strict=True):
                    p.grad = g
                optimizer.step()
        with torch.no_grad():
            for p, before in zip(own, start, strict=True):
                p.lerp_(before, 0.5)
        estimator.reset()
        return estimator.eval()

    def estimate(self, estimator: Estimator, problem: Any, rng: torch.Generator) -> Estimate:
        """One estimate, through the guard that enforces `needs`. Settings of the process that it changes are restored."""
        with put_back(type(estimator).__name__):
            return estimator.gradient(Guarded(problem, estimator.needs), rng)  # type: ignore[arg-type]

    def gradient(self, estimator: Estimator, problem: Any, rng: torch.Generator) -> Tensor:
        """The gradient (d,) of one new estimate, through the guard that enforces `needs`."""
        return one_estimate(estimator, problem, rng)
