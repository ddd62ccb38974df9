"""Hotelling's test that the mean of random vectors has a given value, its power, and the number of draws it takes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Draw = Callable[[int], Floats]  # from a number of draws to as many new vectors (draws, d)

DIRECTIONS = 8  # along which the mean is tested, at most
PILOT = 24  # draws
MOST = 1024  # draws
POWER = 0.999
EARLY = 0.1  # share of alpha for the test of the pilot itself
ROUNDING = 1e-6  # of the scale: smaller deviations are rounding errors


@dataclass(frozen=True)
class MeanTest:
    """The mean of `draws` vectors compared with the true mean. All but p_value, power and draws are relative to the scale.

    p_value       of Hotelling's T^2 on the span of the noise; 0 if the mean deviates along a direction without noise
    power         probability of rejection for a deviation of size `margin` along the noisiest of the tested directions;
                  of a deviation outside of their span, only its projection counts
    share, error  deviation along the true mean, and half the length of its confidence interval at the test's level
    size          norm of the deviation's projection on the directions; noise is not subtracted
    largest       the largest deviation along any single direction that its confidence interval leaves possible
    """

    p_value: float
    power: float
    share: float
    error: float
    size: float
    largest: float
    draws: int


def mean_test(draw: Draw, truth: Floats, scale: float, alpha: float, margin: float) -> MeanTest:
    """Test E draw = truth (d,) at level alpha, with enough draws to detect a deviation of `margin` times `scale`.

    A pilot sample gives the number of draws, and the direction in which its own mean deviates; the test uses new draws.
    If the pilot deviates significantly along directions that don't depend on it, its own test is the answer.
    """
    pilot = draw(PILOT)
    blind = _directions(truth)
    early = _hotelling(pilot @ blind, truth @ blind, scale, alpha, margin)
    if early.p_value < EARLY * alpha:
        return early
    directions = _directions(truth, pilot.mean(0) - truth)
    noisiest = float(np.linalg.eigvalsh(np.atleast_2d(np.cov((pilot @ directions).T)))[-1])
    signal = (
        (margin * scale) ** 2 / (1.5 * noisiest) if noisiest > 0 else math.inf
    )  # 1.5, because the pilot's covariance is imprecise
    draws = PILOT
    while draws < MOST and _power(draws, directions.shape[1], alpha, draws * signal) < POWER:
        draws = min(MOST, math.ceil(1.2 * draws))
    return _hotelling(draw(draws) @ directions, truth @ directions, scale, (1 - EARLY) * alpha, margin)


def _directions(truth: Floats, *others: Floats) -> Floats:
    """Orthonormal columns (d, up to DIRECTIONS): along the truth, along the others, then random ones."""
    noise = np.random.default_rng(0).standard_normal((len(truth), DIRECTIONS))
    given = [vector / np.linalg.norm(vector) for vector in (truth, *others) if np.linalg.norm(vector) > 0]
    columns = np.column_stack([*given, noise])[:, : min(len(truth), DIRECTIONS)]
    basis, triangle = np.linalg.qr(columns)
    return np.asarray(basis * np.where(np.diag(triangle) < 0, -1.0, 1.0))


def _power(draws: int, rank: int, alpha: float, noncentrality: float) -> float:
    """Probability of p < alpha for means that are this far apart, in squared standard errors."""
    if noncentrality > 500:
        return 1.0  # up to rounding; scipy's distribution is inaccurate there
    threshold = scipy.stats.f.isf(alpha, rank, draws - rank)
    return float(scipy.stats.ncf.sf(threshold, rank, draws - rank, noncentrality))


def _hotelling(vectors: Floats, truth: Floats, scale: float, alpha: float, margin: float) -> MeanTest:
    """T^2 of vectors (draws, k) against truth (k,), on the span of their covariance; column 0 is along the truth."""
    draws, directions = vectors.shape
    bias = vectors.mean(0) - truth
    values, axes = np.linalg.eigh(np.atleast_2d(np.cov(vectors.T)))
    spans = values > max(1e-10 * values[-1], (ROUNDING * scale) ** 2)
    rank = int(spans.sum())
    p_value = power = 1.0
    if rank:
        freedom = rank, draws - rank
        per_error = (
            freedom[1] / (rank * (draws - 1)) * draws
        )  # factor from the squared whitened deviation to the F statistic
        whitened = axes[:, spans].T @ bias / np.sqrt(values[spans])
        p_value = float(scipy.stats.f.sf(per_error * whitened @ whitened, *freedom))
        power = _power(draws, rank, alpha, draws * (margin * scale) ** 2 / values[-1])
    if np.linalg.norm(axes[:, ~spans].T @ bias) > ROUNDING * scale:
        p_value = 0.0
    errors = scipy.stats.t.isf(alpha / 2 / directions, draws - 1) * vectors.std(0, ddof=1) / math.sqrt(draws)
    largest = float((np.abs(bias) + errors).max())
    size = float(np.linalg.norm(bias))
    return MeanTest(p_value, power, bias[0] / scale, errors[0] / scale, size / scale, largest / scale, draws)
