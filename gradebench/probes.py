"""Gradients at frozen parameters: streaming moments of many independent estimates, and their distance to the truth."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradebench.estimator import Estimator
from gradebench.problem import Guarded, Problem

DrawProblem = Callable[[int], Problem]  # the number of a draw to its problem, with that draw's contexts


def flatten(gradient: Sequence[Tensor]) -> Tensor:
    """All entries as one vector (d,), float64."""
    return torch.cat([g.detach().reshape(-1).double() for g in gradient])


class Moments:
    """Mean and trace of the covariance of vectors that stream by, in memory O(d) (Welford 1962)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None  # (d,)
        self.squared_deviation = 0.0

    def add(self, vector: Tensor) -> None:
        self.count += 1
        if self.mean is None:
            self.mean = torch.zeros_like(vector)
        delta = vector - self.mean
        self.mean += delta / self.count
        self.squared_deviation += float(delta @ (vector - self.mean))

    @property
    def trace(self) -> float:
        """Unbiased estimate of tr Cov; NaN below two vectors."""
        return self.squared_deviation / (self.count - 1) if self.count > 1 else float("nan")

    @property
    def norm_squared(self) -> float:
        """Unbiased estimate of |E g|^2; may be negative where the signal is below the noise."""
        return float(self.vector @ self.vector) - self.trace / self.count

    @property
    def vector(self) -> Tensor:
        if self.mean is None:
            raise ValueError("no vector was added")
        return self.mean


@dataclass(frozen=True)
class Reference:
    """A long-run unbiased estimate of grad J: its mean (d,), and the expected squared error of that mean."""

    mean: Tensor
    squared_error: float

    @property
    def norm_squared(self) -> float:
        """Unbiased estimate of |grad J|^2."""
        return float(self.mean @ self.mean) - self.squared_error


def one_estimate(estimator: Estimator, problem: Problem, rng: torch.Generator) -> Tensor:
    """One fresh estimate (d,) at fixed parameters: the mean over the calls that share a batch."""
    estimator.reset()
    guarded = Guarded(problem, estimator.needs)
    total: Tensor | None = None
    for _ in range(estimator.period):
        vector = flatten(estimator.gradient(guarded, rng).grad)  # type: ignore[arg-type]
        total = vector if total is None else total + vector
    assert total is not None
    return total / estimator.period


def moments_of(
    estimator: Estimator, draw_problem: DrawProblem, draws: int, rng: Callable[[int], torch.Generator]
) -> Moments:
    """Moments of `draws` independent estimates, each with contexts and a generator of its own."""
    moments = Moments()
    for draw in range(draws):
        moments.add(one_estimate(estimator, draw_problem(draw), rng(draw)))
    return moments


def gradient_metrics(moments: Moments, reference: Reference) -> dict[str, float]:
    """The probe's metrics. Squared quantities are debiased, so noise may turn a small one negative.

    gradient_variance      trace of the covariance of one estimate
    gradient_variance_relative, gradient_snr   that over |E g|^2, and |E g|^2 over that
    gradient_cosine        between E g and the reference, both norms debiased
    gradient_bias_squared  |E g - grad J|^2, less what the noise of both means adds
    """
    mean, variance, norm_squared = moments.vector, moments.trace, moments.norm_squared
    dot = float(mean @ reference.mean)
    distance = float((mean - reference.mean).square().sum())
    resolved = norm_squared > 0 and reference.norm_squared > 0
    cosine = dot / (norm_squared * reference.norm_squared) ** 0.5 if resolved else float("nan")
    return {
        "gradient_variance": variance,
        "gradient_variance_relative": variance / norm_squared if norm_squared > 0 else float("nan"),
        "gradient_snr": norm_squared / variance if variance > 0 else float("nan"),
        "gradient_cosine": max(-1.0, min(1.0, cosine)) if resolved else cosine,
        "gradient_bias_squared": distance - variance / moments.count - reference.squared_error,
        "gradient_norm_squared": norm_squared,
        "gradient_reference_dot": dot,
        "gradient_reference_norm_squared": reference.norm_squared,
    }
