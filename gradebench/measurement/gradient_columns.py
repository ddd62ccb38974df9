"""The gradient columns of the leaderboard: moments pooled over seeds, relative to one norm that all estimators share.

Every seed has its own draws and reference gradient, so seeds are independent, and a jackknife over seeds gives
intervals that include the error of both.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.special
from numpy.typing import NDArray

LEVEL = 0.95  # confidence level of all intervals
# The limits of quantities that have them, to which their debiased values are clipped.
LIMITS = {"gradient_cosine": (-1.0, 1.0), "gradient_direction_error": (0.0, 1.0)}
WIDEST_COSINE = 0.5  # a cosine or direction error with a longer interval is not reported
WIDEST_RATIO = 10.0  # the same for a relative variance: the upper end of its interval over the lower one
SHARED = 1e-3  # norms that differ by less, relatively, are of one reference gradient: rounding
# names of the columns
COLUMNS = (
    "gradient_mse_relative",
    "gradient_direction_error",
    "gradient_variance_relative",
    "gradient_bias_squared",
    "gradient_cosine",
)
Floats = NDArray[np.float64]
_RAW = ("variance", "bias_squared", "norm_squared", "reference_dot", "reference_norm_squared")


def limits_of(metric: str) -> tuple[float, float]:
    """The smallest and the largest value that a metric can have."""
    return LIMITS.get(metric, (-np.inf, np.inf))


@dataclass(frozen=True)
class _Probes:
    """The measurements of one estimator and the squared norms of its reference, (seeds, checkpoints); NaN if missing."""

    variance: Floats
    bias_squared: Floats
    own: Floats
    dot: Floats
    truth: Floats

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def measured(self) -> int:
        """The number of seeds that have draws."""
        return int(np.isfinite(self.variance).any(1).sum())

    def without(self, seed: int) -> "_Probes":
        return _Probes(**{name: np.delete(values, seed, 0) for name, values in vars(self).items()})


def gradient_columns(probe: pd.DataFrame) -> pd.DataFrame:
    """COLUMNS for each estimator, each with `_ci_low` and `_ci_high`, from metrics by (estimator, seed, step).

    |grad J|^2 is the mean over all seeds of the reference's debiased squared norm at a checkpoint. It is the same for
    all estimators, unless each was probed along its own trajectory and has its own references.

    gradient_mse_relative       (variance + squared bias) / |grad J|^2, geometric mean over checkpoints
    gradient_variance_relative  variance / |grad J|^2, geometric mean over checkpoints
    gradient_direction_error    1 - (E g . grad J)^2 / (E |g|^2 |grad J|^2), mean over checkpoints; needs three seeds
    gradient_bias_squared       squared bias / |grad J|^2, mean over checkpoints; may be negative
    gradient_cosine             between E g and grad J, mean over checkpoints

    Intervals     jackknife over seeds, t quantiles; on a log scale for the first two. None for one seed.
    Unresolved    NaN. All columns, if the interval of |grad J|^2 contains zero at a checkpoint, or a checkpoint is
                  missing. A cosine or direction error whose interval is longer than WIDEST_COSINE. A relative variance
                  or mean squared error whose interval spans more than a factor of WIDEST_RATIO. A squared bias whose
                  interval has a half-width above 1 and above its value.
    """
    raw = probe.reindex(columns=pd.Index([f"gradient_{name}" for name in _RAW]))
    steps = raw.index.unique("step").sort_values()
    seeds = raw.index.unique("seed").sort_values()
    wide = {str(name): _aligned(rows, seeds, steps) for name, rows in raw.groupby("estimator")}
    shared = _shared([one.truth for one in wide.values()])
    rows = {}
    for name, one in wide.items():
        if shared is not None:
            one = _Probes(one.variance, one.bias_squared, one.own, one.dot, shared)
        rows[name] = _row(one)
    ends = [f"{column}{end}" for column in COLUMNS for end in ("", "_ci_low", "_ci_high")]
    return pd.DataFrame.from_dict(rows, orient="index", columns=ends, dtype=float)


def _aligned(rows: pd.DataFrame, seeds: pd.Index, steps: pd.Index) -> _Probes:
    wide = pd.DataFrame(rows.droplevel("estimator").unstack("step")).reindex(index=seeds)
    columns = (pd.MultiIndex.from_product([[f"gradient_{name}"], steps]) for name in _RAW)
    return _Probes(*(wide.reindex(columns=one).to_numpy() for one in columns))


def _shared(truths: list[Floats]) -> Floats | None:
    """The squared norms (seeds, checkpoints) of the references; None if estimators don't share them."""
    stacked = np.stack(truths) if truths else np.empty((0, 0, 0))
    known = np.isfinite(stacked)
    first = np.take_along_axis(stacked, known.argmax(0)[None], 0)[0] if len(stacked) else stacked
    apart = np.abs(stacked - first) > SHARED * np.abs(first)
    return None if bool((apart & known).any()) else first


def _row(one: _Probes) -> list[float]:
    """The value and both ends of the interval of each column."""
    if not _told(one.truth):
        return [np.nan] * (3 * len(COLUMNS))
    found: list[float] = []
    for name in COLUMNS:  # a value that can't be computed is empty, not an error
        statistic, logarithmic = _STATISTICS[name]
        value, half = _jackknife(one, statistic)
        ends = np.array([value, value - half, value + half])
        with np.errstate(over="ignore"):
            ends = np.exp(ends) if logarithmic else np.clip(ends, *limits_of(name))
        alone = one.measured < 2  # no interval
        shown = np.isfinite(ends[0]) and (alone or _resolved(name, *ends))
        found += ends.tolist() if shown else [np.nan] * 3
    return found


def _told(truth: Floats) -> bool:
    """Whether |grad J|^2 is significantly above zero at every checkpoint."""
    for column in truth.T:
        known = column[np.isfinite(column)]
        low = known.mean() if len(known) else 0.0
        if len(known) > 1:
            low -= _quantile(len(known)) * known.std(ddof=1) / np.sqrt(len(known))
        if not low > 0:
            return False
    return truth.size > 0


@functools.cache
def _quantile(seeds: int) -> float:
    return -float(scipy.special.stdtrit(seeds - 1, (1 - LEVEL) / 2))


def _resolved(name: str, value: float, low: float, high: float) -> bool:
    if value == low == high:
        return True
    if not np.isfinite([value, low, high]).all():
        return False
    if name in LIMITS:
        return high - low <= WIDEST_COSINE
    if name == "gradient_bias_squared":
        return (high - low) / 2 <= max(1.0, value)
    return high <= WIDEST_RATIO * low


def _jackknife(one: _Probes, statistic: Callable[[_Probes], float]) -> tuple[float, float]:
    """The statistic, and half the length of its interval, which is NaN for one seed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        value = statistic(one)
        if one.measured < 2:
            return value, np.nan
        left = np.array([statistic(one.without(seed)) for seed in range(len(one))])
        if (left == value).all():  # also if all are minus infinity, the logarithm of a zero variance
            return value, 0.0
        variance = (len(left) - 1) / len(left) * np.square(left - left.mean()).sum()
    return value, float(_quantile(one.measured) * np.sqrt(variance))


def _mean(values: Floats) -> Floats:
    """The mean over the seeds that have a value, at each checkpoint; NaN if none has one."""
    known = np.isfinite(values) | np.isinf(values)
    return np.asarray(np.where(known, values, 0.0).sum(0) / known.sum(0))


def _log_variance(one: _Probes) -> float:
    return float(np.log(_mean(one.variance) / _mean(one.truth)).mean())


def _log_mse(one: _Probes) -> float:
    return float(np.log(_mean(one.variance + one.bias_squared) / _mean(one.truth)).mean())


def _bias(one: _Probes) -> float:
    return float((_mean(one.bias_squared) / _mean(one.truth)).mean())


def _cosine(one: _Probes) -> float:
    own = _mean(one.own)
    lengths = np.sqrt(np.where(own > 0, own, np.nan) * _mean(one.truth))
    return float(np.clip(_mean(one.dot) / lengths, *limits_of("gradient_cosine")).mean())


def _direction_error(one: _Probes) -> float:
    """Uses the square of the mean of E g . grad J, debiased by the error variance of that mean."""
    count = np.isfinite(one.dot).sum(0)
    error = np.square(one.dot - _mean(one.dot))
    squared = np.square(_mean(one.dot)) - np.nansum(error, 0) / (count - 1) / count
    return float((1 - squared / (_mean(one.variance + one.own) * _mean(one.truth))).mean())


# the function, and whether it returns a logarithm
_STATISTICS: dict[str, tuple[Callable[[_Probes], float], bool]] = {
    "gradient_mse_relative": (_log_mse, True),
    "gradient_direction_error": (_direction_error, False),
    "gradient_variance_relative": (_log_variance, True),
    "gradient_bias_squared": (_bias, False),
    "gradient_cosine": (_cosine, False),
}
