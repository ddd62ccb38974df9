"""From moments to metrics: variance, bias and quantities derived from them, each with an interval.

Every quantity is a smooth function of the Gram matrix of the blocks of draws, so a delete-one-block jackknife gives its
interval.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.special
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradebench.measurement.gradient_columns import LEVEL, LIMITS, WIDEST_COSINE, WIDEST_RATIO, limits_of
from gradebench.measurement.moments import Moments, Reference

Floats = NDArray[np.float64]


ROUNDING = 1e-13  # relative to the sum of squares: the spread that rounding gives to identical draws


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval; NaN if there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The numbers that all metrics are computed from, for one group of parameters, K blocks of draws and R of reference.

    gram  (K + R + 1, K + R + 1): inner products of the blocks' sums and, in the last row and column, of their centre.
    """

    gram: Floats
    counts: Floats  # (K,)
    squares: Floats  # (K,)
    halves: Floats | None  # (K,); None if units aren't pairs
    reference_counts: Floats  # (R,)
    reference_squares: Floats  # (R,)
    exact: bool


def group_of(name: str) -> str:
    """The part of the model that a parameter belongs to: "blocks.0.query.weight" to "blocks.0", "norm.bias" to "norm"."""
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else name.rpartition(".")[0] or name


def summaries(moments: Moments, reference: Reference, names: Sequence[str]) -> dict[str, Summary]:
    """The summary of all parameters, under the key "", and of every group of them."""
    run = reference.moments
    if not torch.equal(run.centre.nan_to_num(), moments.centre.nan_to_num()):
        raise ValueError("draws and reference must have the same centre")
    rows = torch.cat([moments.sums, run.sums, moments.centre[None]])
    grams = torch.stack([part @ part.T for part in rows.split(moments.sizes, 1)]).cpu().numpy()  # (parameters, ., .)
    groups = [group_of(name) for name in names]
    chosen = {"": np.ones(len(groups), bool)}
    chosen |= {group: np.array([g == group for g in groups]) for group in dict.fromkeys(groups)}

    def total(by_parameter: Tensor, which: NDArray[np.bool_]) -> Floats:
        return np.asarray(by_parameter.cpu().numpy()[:, which].sum(1))

    return {
        group: Summary(
            gram=grams[which].sum(0),
            counts=moments.counts.cpu().numpy(),
            squares=total(moments.squares, which),
            halves=total(moments.halves, which) if moments.paired else None,
            reference_counts=run.counts.cpu().numpy(),
            reference_squares=total(run.squares, which),
            exact=reference.exact,
        )
        for group, which in chosen.items()
    }


def _metrics(summary: Summary, kept: Floats, reference_kept: Floats) -> dict[str, np.float64]:
    """All metrics from the blocks that are kept; `kept` (K,) and `reference_kept` (R,) are 1 or 0."""
    n, m = float(summary.counts @ kept), float(summary.reference_counts @ reference_kept)
    draws = np.concatenate([kept / n, np.zeros(len(reference_kept)), [0.0]])  # the mean draw, minus the centre
    truth = np.concatenate([np.zeros(len(kept)), reference_kept / m, [0.0]])  # the mean reference
    centre = np.eye(len(draws))[-1]

    # np.float64 throughout: on overflow it gives nan or inf, where Python's floats may raise.
    def product(a: Floats, b: Floats) -> np.float64:
        return np.float64(a @ summary.gram @ b)

    squares = np.float64(summary.squares @ kept)
    spread = squares - n * product(draws, draws)
    spread = np.float64(0.0) if abs(spread) < ROUNDING * squares else spread
    unit_variance = spread / (n - 1 if n > 1 else math.nan)
    halves = np.float64(0.0 if summary.halves is None else summary.halves @ kept) / n
    variance = unit_variance + halves
    reference_error = np.float64(0.0)
    if not summary.exact:
        spread = np.float64(summary.reference_squares @ reference_kept - m * product(truth, truth))
        reference_error = spread / (m - 1 if m > 1 else math.nan) / m
    norm_squared = product(draws + centre, draws + centre) - unit_variance / n
    reference_norm_squared = np.float64(product(truth + centre, truth + centre) - reference_error)
    dot = product(draws + centre, truth + centre)
    bias_squared = product(draws - truth, draws - truth) - unit_variance / n - reference_error
    resolved = norm_squared > 0 and reference_norm_squared > 0
    known = reference_norm_squared if reference_norm_squared > 0 else math.nan
    answer = {
        "gradient_variance": variance,
        "gradient_variance_relative": variance / known,
        "gradient_variance_relative_own": variance / norm_squared if norm_squared > 0 else math.nan,
        "gradient_snr": known / variance if variance > 0 else math.nan,
        "gradient_cosine": dot / np.sqrt(norm_squared * reference_norm_squared) if resolved else math.nan,
        "gradient_bias_squared": bias_squared,
        "gradient_bias_relative": bias_squared / known,
        "gradient_mse": variance + bias_squared,
        "gradient_mse_relative": (variance + bias_squared) / known,
        "gradient_direction_error": _direction_error(
            _squared_dot(summary, kept, reference_kept), norm_squared + variance, known
        ),
        "gradient_norm_squared": norm_squared,
        "gradient_reference_dot": dot,
        "gradient_reference_norm_squared": reference_norm_squared,
    }
    if summary.halves is not None:
        answer["gradient_variance_sampling"] = 2 * halves
        answer["gradient_variance_prompts"] = unit_variance - halves
    return {name: np.float64(value) for name, value in answer.items()}


def _direction_error(squared_dot: np.float64, square: np.float64, reference_norm_squared: float) -> float:
    """1 - (E g . grad J)^2 / (E |g|^2 |grad J|^2); NaN if E |g|^2 isn't positive."""
    return 1 - squared_dot / (square * reference_norm_squared) if square > 0 else math.nan


def _squared_dot(summary: Summary, kept: Floats, reference_kept: Floats) -> np.float64:
    """(E g . grad J)^2 without bias: the mean of products over two different blocks of draws and two of the reference.

    NaN with fewer than two blocks of draws, or fewer than two of a reference that isn't exact.
    """
    blocks, runs = np.flatnonzero(kept), np.flatnonzero(reference_kept)
    means = np.zeros((len(blocks), len(summary.gram)))
    truths = np.zeros((len(runs), len(summary.gram)))
    means[np.arange(len(blocks)), blocks] = 1 / summary.counts[blocks]
    truths[np.arange(len(runs)), len(kept) + runs] = 1 / summary.reference_counts[runs]
    means[:, -1] = truths[:, -1] = 1.0  # adds the centre back
    dots = means @ summary.gram @ truths.T  # (blocks, runs)
    own = summary.counts[blocks] / summary.counts[blocks].sum()
    weights = summary.reference_counts[runs] / summary.reference_counts[runs].sum()
    by_block, by_run = np.square(own * (dots @ weights)).sum(), np.square(weights * (own @ dots)).sum()
    total, pairs = np.square(own @ dots @ weights) - by_block, 1 - np.square(own).sum()
    if not summary.exact:
        total += np.square(np.outer(own, weights) * dots).sum() - by_run
        pairs *= 1 - np.square(weights).sum()
    return np.float64(total / pairs if pairs > ROUNDING else math.nan)


_POSITIVE = {
    "gradient_variance",
    "gradient_variance_relative",
    "gradient_variance_relative_own",
    "gradient_snr",
    "gradient_variance_sampling",
}
_RELATIVE = {
    "gradient_variance_relative",
    "gradient_snr",
    "gradient_bias_relative",
    "gradient_mse_relative",
    "gradient_cosine",
    "gradient_direction_error",
}


@np.errstate(all="ignore")
def gradient_metrics(summary: Summary) -> dict[str, Interval]:
    """The metrics of one group, each with its interval. It never raises, whatever the draws are.

    Squared quantities are debiased, so noise may make a small one negative; variances are those of one draw.

    gradient_variance           trace of the covariance
    gradient_variance_sampling  the part of it with prompts fixed
    gradient_variance_prompts   the part of it from the choice of prompts
    gradient_variance_relative  variance / |grad J|^2
    gradient_snr                |grad J|^2 / variance
    gradient_variance_relative_own  variance / |E g|^2, a denominator that differs between estimators
    gradient_cosine             between E g and the reference, both norms debiased
    gradient_bias_squared       |E g - grad J|^2, minus what the noise of both means adds
    gradient_bias_relative      squared bias / |grad J|^2
    gradient_mse                E |g - grad J|^2
    gradient_mse_relative       mean squared error / |grad J|^2
    gradient_direction_error    1 - (E g . grad J)^2 / (E |g|^2 |grad J|^2): the smallest relative mean squared error
                                that g times any constant can have; for a g of constant length the mean of 1 - cos^2

    Intervals     delete-one-block jackknife over draws and over reference, t quantiles with Satterthwaite's degrees
                  of freedom; on a log scale for positive quantities. Near a bias of zero they are too wide, not too
                  narrow. NaN with fewer than two blocks.
    Unresolved    NaN. Values that aren't finite, because draws aren't or their squares overflow. All quantities relative
                  to |grad J|^2, if its interval contains zero. A cosine or direction error whose interval is longer than
                  WIDEST_COSINE, and a relative variance whose interval spans more than a factor of WIDEST_RATIO.
    """
    kept, reference_kept = np.ones(len(summary.counts)), np.ones(len(summary.reference_counts))
    values = _metrics(summary, kept, reference_kept)
    without = [_metrics(summary, row, reference_kept) for row in kept - np.eye(len(kept))] if len(kept) > 1 else []
    varies = not summary.exact and len(reference_kept) > 1
    without_reference = (
        [_metrics(summary, kept, row) for row in reference_kept - np.eye(len(reference_kept))] if varies else []
    )
    own, truth = values["gradient_norm_squared"], values["gradient_reference_norm_squared"]
    noise = _variance_of_squared_noise(summary)
    floors = {"gradient_bias_squared": noise, "gradient_mse": noise}
    if values["gradient_variance"] > 0:
        # Relative error from estimating the mean; the only error if all draws are equally far from it.
        floors["gradient_variance"] = _variance_of_squared_noise(summary, 1.0, 0.0) / values["gradient_variance"] ** 2
    if truth > 0:
        floors["gradient_bias_relative"] = floors["gradient_mse_relative"] = noise / truth**2
    if own > 0 and truth > 0:  # 1 - cosine is half the squared distance between the unit vectors
        floors["gradient_cosine"] = _variance_of_squared_noise(summary, own**-0.5, truth**-0.5) / 4
    found = {
        name: _jackknife(
            name, value, [[w[name] for w in without], [w[name] for w in without_reference]], floors.get(name, 0.0)
        )
        for name, value in values.items()
    }
    told = summary.exact or found["gradient_reference_norm_squared"].low > 0
    return {name: _resolved(name, interval, told) for name, interval in found.items()}


def _resolved(name: str, interval: Interval, told: bool) -> Interval:
    """The interval, or NaN if it is too wide to report; `told`: whether |grad J|^2 is significantly above zero."""
    width, ratio = interval.high - interval.low, interval.high / interval.low if interval.low > 0 else 1.0
    narrow = name not in LIMITS or not width > WIDEST_COSINE
    narrow &= name not in ("gradient_variance_relative", "gradient_snr") or not ratio > WIDEST_RATIO
    return interval if narrow and (told or name not in _RELATIVE) else Interval(math.nan, math.nan, math.nan)


def _variance_of_squared_noise(summary: Summary, scale: float = 1.0, reference_scale: float = 1.0) -> np.float64:
    """2 tr S^2, where S is the covariance of mean draw minus reference: the variance of |noise|^2.

    If the true bias is zero, this is the whole variance of the squared bias. The jackknife doesn't see it, because it
    linearizes around the noise that was found, which may be small.

    tr S^2 comes from products of Helmert contrasts of the blocks' means, which are independent of each other.
    """
    parts = [scale * _contrasts(summary.counts)]
    if not summary.exact:
        parts.append(reference_scale * _contrasts(summary.reference_counts))
    total, offset = np.float64(0.0), 0
    placed = []
    for part in parts:
        place = np.zeros((len(part), len(summary.gram)))
        place[:, offset : offset + part.shape[1]] = part
        placed.append(place)
        offset += part.shape[1]
    for i, a in enumerate(placed):
        for j, b in enumerate(placed):
            products = np.square(a @ summary.gram @ b.T)
            if i == j:
                products = products[~np.eye(len(products), dtype=bool)]
            total += products.mean() if products.size else 0.0
    return np.float64(2 * total)


def _contrasts(counts: Floats) -> Floats:
    """(K - 1, K): maps the blocks' sums to vectors with mean zero and the covariance of the overall mean."""
    blocks = len(counts)
    return np.asarray(scipy.linalg.helmert(blocks) / counts / math.sqrt(blocks))


def _jackknife(name: str, value: np.float64, parts: Sequence[Sequence[float]], floor: float) -> Interval:
    """The interval from the values without each block, one list for each independent source of noise.

    `floor` is a variance, added because the jackknife doesn't see it.
    """
    if not math.isfinite(value):
        return Interval(math.nan, math.nan, math.nan)
    logarithmic = name in _POSITIVE
    least, most = limits_of(name)
    variance, shares = np.float64(floor), list[tuple[np.float64, int]]()
    for part in parts:
        left = np.asarray(part, dtype=np.float64)
        if len(left) < 2 or np.ptp(left) == 0:  # all are equal, perhaps zero, which has no logarithm
            continue
        left = np.log(left) if logarithmic else left
        share = np.float64((len(left) - 1) / len(left) * np.square(left - left.mean()).sum())
        variance += share
        shares.append((share, len(left) - 1))
    shown = max(least, min(most, float(value)))
    if not math.isfinite(variance) or len(parts[0]) < 2:
        return Interval(shown, math.nan, math.nan)
    if variance == 0:
        return Interval(shown, shown, shown)
    # Shares of the variance, because squares of variances may overflow.
    freedom = sum((share / variance) ** 2 / count for share, count in shares)
    degrees = 1 / freedom if freedom else len(parts[0]) - 1.0
    width = -scipy.special.stdtrit(degrees, (1 - LEVEL) / 2) * np.sqrt(variance)
    if logarithmic:
        return Interval(shown, float(value * np.exp(-width)), float(value * np.exp(width)))
    return Interval(shown, float(max(least, min(most, value - width))), float(max(least, min(most, value + width))))


def slope_of_log_variance(samples: Sequence[int], variances: Sequence[Interval]) -> Interval:
    """Slope of ln variance against ln samples by least squares, weighted by the intervals; -1 for a plain mean.

    The variances must come from separate draws. NaN with fewer than two positive ones whose interval has a length.
    """
    paired = [(k, v) for k, v in zip(samples, variances, strict=True) if v.value > 0 and v.high > v.low > 0]
    points = [(k, v, math.log(v.high) - math.log(v.low)) for k, v in paired if math.isfinite(v.high)]
    points = [(k, v, length) for k, v, length in points if length > 0]
    if len({k for k, *_ in points}) < 2:
        return Interval(math.nan, math.nan, math.nan)
    x = np.log([k for k, *_ in points])
    y = np.log([v.value for _, v, _ in points])
    normal = -float(scipy.special.ndtri((1 - LEVEL) / 2))
    weights = np.array([(2 * normal / length) ** 2 for *_, length in points])
    x = x - np.average(x, weights=weights)
    information = float(weights @ x**2)
    slope = float(weights @ (x * y)) / information
    width = normal / math.sqrt(information)
    return Interval(slope, slope - width, slope + width)
