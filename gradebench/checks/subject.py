"""An estimator under test: how the checks build it, and the problems that they try it on."""

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

SEQUENCES = 256  # in one draw, so that draws are near normal
BETA = 0.1  # of the KL penalty, through which f depends on the parameters
INSTANCE = {2: 1, 3: 0}  # vocabulary to the random weights of a policy that draws most sequences now and then
ONE_DECISION = {2: 91, 3: 29}  # vocabulary to the random weights at which one decision has a large gradient
LEARNING = 40  # steps of the estimator's own parts before it is judged

Make = Callable[..., Estimator]  # options to a fresh estimator


@dataclass(frozen=True)
class Finding:
    """One line of the answer. `status`: pass, fail, info (a number without a promise) or skip (does not apply)."""

    check: str
    status: str
    detail: str
    advice: str = ""  # on failure: what to look at


class Failed(Exception):
    """A broken promise: what was found, and what to look at."""

    def __init__(self, detail: str, advice: str):
        super().__init__(detail)
        self.advice = advice


class Skipped(Exception):
    """The check doesn't apply, and why."""


@dataclass
class Subject:
    """The estimator under test; every check builds it anew."""

    make: Make
    seed: int

    def __post_init__(self) -> None:
        self.learned: dict[str, Estimator] = {}
        sample = self.make()
        self.needs, self.n, self.period = sample.needs, sample.n, sample.period
        self.unbiased, self.unbiased_if, self.pathwise = sample.unbiased, sample.unbiased_if, sample.pathwise

    def rng(self, *names: object) -> torch.Generator:
        return generator("cpu", "check", self.seed, *names)

    def sequences(self, copies: int = 1, beta: float | None = None, horizon: int = 3) -> SequenceProblem:
        """Four prompts, each `copies` times; binary tokens for estimators that need them."""
        if beta is None:
            beta = 0.0 if "fixed_reward" in self.needs else BETA
        copies = 1 if "exact" in self.needs else copies  # its draws are all alike
        vocabulary = 2 if "binary" in self.needs else 3
        instance = (ONE_DECISION if horizon == 1 else INSTANCE)[vocabulary]
        problem = random_sequence_problem(vocabulary, horizon, 4, beta, instance)
        lacking = self.needs - problem.offers
        if lacking:
            raise Skipped(f"needs {', '.join(sorted(lacking))}, which no problem here offers")
        return problem.select(torch.arange(4).repeat(copies)) if copies > 1 else problem

    def ready(self, problem: Any, **options: Any) -> Estimator:
        """Built for the problem and frozen, half-way between its start and what it then learns: a wrong baseline is
        often zero at the start, and a wrong control variate switched off in the end."""
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
        """One call, through the guard that enforces `needs`; what it changes for the whole process is put back."""
        with put_back(type(estimator).__name__):
            return estimator.gradient(Guarded(problem, estimator.needs), rng)  # type: ignore[arg-type]

    def gradient(self, estimator: Estimator, problem: Any, rng: torch.Generator) -> Tensor:
        """One fresh estimate (d,), through the guard that enforces `needs`."""
        return one_estimate(estimator, problem, rng)
