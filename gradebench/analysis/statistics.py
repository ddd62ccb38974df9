"""Paired tests and intervals: plain arrays in, plain numbers out.

Nothing here knows of runs, files or estimators; the random generator is always an argument. The unit of replication is
the pair (one seed, two estimators), so every test works on one number per pair: the difference.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from gradebench.core.shown import counted

ALPHA = 0.05
EXACT_PAIRS = 30  # up to 2^30 sign assignments are counted, as 2^15 times 2^15
MONTE_CARLO_DRAWS = 100_000
SUBSETS_DRAWN = 20_000  # for an interval; its tail probabilities are then 2.5 % to within 0.1 %

# Sums that differ by less than this share of sum |d| are treated as equal: the difference is rounding in a - b.
_TIE_TOLERANCE = 1e-10
_TAIL_SUBSETS, _MOST_SUBSETS = 40, 400_000  # both tails of a narrow level together have so many; more take too long
_ALL_SUBSETS = 14  # differences: up to 2^14 subsets are enumerated
FEWEST_RESAMPLED = 5  # values: fewer give too few distinct resamples
_SIGNS_AT_ONCE = 2_000_000  # keeps one block of Monte-Carlo signs at 16 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """The comparison of two paired samples, in the units of the values; differences are a - b."""

    n_pairs: int
    mean_difference: float
    ci_low: float
    ci_high: float
    effect_size: float
    test: str
    p_value: float
    smallest_attainable_p: float


def paired_permutation_p(
    differences: ArrayLike, generator: np.random.Generator | None = None, draws: int = MONTE_CARLO_DRAWS
) -> float:
    """Two-sided p-value of the sign-flip permutation test of mean zero; NaN without any pair.

    With          p = P(|sum_i s_i d_i| >= |sum_i d_i|),  s uniform on {-1, +1}^n
    Shapes        differences (n,): finite.
    Exact         up to n = 30; above, Monte-Carlo with p = (1 + count) / (1 + draws), which keeps the false-positive
                  rate at or below the level.
    Raises        ValueError for values that are not finite, and for n > 30 without a generator.
    Source        Fisher 1935, section 21; the +1 is Phipson and Smyth 2010.

    This is not scipy.stats.permutation_test, whose tolerance for ties is relative to the observed sum: it vanishes if
    that sum cancels to about zero (0.1, 0.2, -0.3), and the p-value is then too small.
    """
    values = _finite_vector(differences)
    if values.size == 0:
        return math.nan
    threshold = abs(values.sum()) - _TIE_TOLERANCE * np.abs(values).sum()
    if threshold <= 0:
        return 1.0
    if values.size <= EXACT_PAIRS:
        # Each assignment combines one of the first half and one of the second; the null distribution is symmetric.
        first, second = values[: values.size // 2], values[values.size // 2 :]
        ends = np.sort(_all_signs(second.size) @ second)
        below = np.searchsorted(ends, threshold - _all_signs(first.size) @ first)
        return float(2 * (ends.size - below).sum() / 2**values.size)
    if generator is None:
        raise ValueError(
            f"{counted(values.size, 'pair')}, above {EXACT_PAIRS}: pass a generator for the Monte-Carlo test"
        )
    return (1 + _count_extreme(values, threshold, generator, draws)) / (1 + draws)


def _finite_vector(values: ArrayLike) -> Floats:
    """The values as a float vector (n,). Raises ValueError for other shapes and for values that are not finite."""
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise ValueError(f"expected one axis, got shape {vector.shape}")
    if not np.isfinite(vector).all():
        raise ValueError("values must be finite: drop the pairs that are not before the test")
    return vector


@functools.cache
def _all_signs(n: int) -> Floats:
    """Every assignment of n signs, (2^n, n), entries -1 and +1; not to be written to."""
    bits = np.arange(2**n)[:, None] >> np.arange(n) & 1
    return np.asarray(1.0 - 2.0 * bits, dtype=np.float64)


def _count_extreme(values: Floats, threshold: float, generator: np.random.Generator, draws: int) -> int:
    """How many of `draws` random sign assignments give |sum| >= threshold."""
    block = max(1, _SIGNS_AT_ONCE // values.size)
    count = 0
    for start in range(0, draws, block):
        shape = (min(block, draws - start), values.size)
        signs = 1.0 - 2.0 * generator.integers(0, 2, size=shape)
        count += int(np.count_nonzero(np.abs(signs @ values) >= threshold))
    return count


def smallest_attainable_p(n_pairs: int) -> float:
    """The smallest p of the two-sided sign-flip test with n pairs: 2 / 2^n, or 1 without any pair."""
    return min(1.0, math.ldexp(2.0, -n_pairs))


def seeds_needed(n_comparisons: int, alpha: float = ALPHA) -> int:
    """The smallest number of pairs n with n_comparisons * 2 / 2^n < alpha, so that a Holm family can be significant.

    Raises        ValueError for a negative count, or an alpha that is not above 0.
    """
    if n_comparisons < 0 or not alpha > 0:
        raise ValueError(f"need n_comparisons >= 0 and alpha > 0, got {n_comparisons} and {alpha}")
    n = 0
    while n_comparisons * math.ldexp(2.0, -n) >= alpha:
        n += 1
    return n


def holm(p_values: ArrayLike) -> Floats:
    """Holm's adjusted p-values (m,), in the order given; NaN stays NaN and does not count in the family.

    With          max over j <= i of (m - j + 1) p_(j), at most 1, p_(1) <= ... <= p_(m)
    Source        Holm 1979.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    factors = np.arange(order.size, 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    return adjusted


def mean_interval(
    values: ArrayLike, generator: np.random.Generator, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Interval (low, high) of the mean of the values (n,), in their units: the bootstrap-t, or Student's t for n < 5.

    With          mean - q s,  s the standard error,  q the quantiles of (mean* - mean) / s* over resamples
    Degenerate    n < 2 or a value that is not finite: (nan, nan). All values equal (up to rounding): (v, v).
                  If so many resamples have zero spread that they could determine an end: Student's t.
    Coverage      93 to 97 % at level 95 % for 5 to 14 values that are normal, mildly skewed, heavy-tailed or bimodal
                  (benchmarks/verdict_study.py).
    Source        Efron 1982, section 10.10; Hall 1988.
    """
    data = np.asarray(values, dtype=np.float64)
    if data.size < 2 or not np.isfinite(data).all():
        return math.nan, math.nan
    mean, error = float(data.mean()), float(data.std(ddof=1)) / math.sqrt(data.size)
    least = _TIE_TOLERANCE * float(np.abs(data).max())
    if error <= least:
        return mean, mean
    half_width = _student((1 - level) / 2, data.size - 1) * error
    if data.size < FEWEST_RESAMPLED:
        return mean - half_width, mean + half_width
    resampled = data[generator.integers(0, data.size, (resamples, data.size))]
    errors = resampled.std(axis=1, ddof=1) / math.sqrt(data.size)
    spread = errors > least
    if np.mean(~spread) > (1 - level) / 2:
        return mean - half_width, mean + half_width
    ratios = (resampled.mean(axis=1)[spread] - mean) / errors[spread]
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return mean - float(high) * error, mean - float(low) * error


@functools.lru_cache(maxsize=4096)
def _student(tail: float, freedom: float) -> float:
    """The upper quantile of Student's t."""
    return float(scipy.stats.t.isf(tail, freedom))


def difference_interval(
    differences: ArrayLike, generator: np.random.Generator, level: float = 0.95, draws: int = SUBSETS_DRAWN
) -> tuple[float, float]:
    """Interval (low, high) of the mean of paired differences (n,): the shifts that the sign-flip test doesn't reject.

    With          order statistics of the means of all subsets of the differences: they divide the line into 2^n
                  intervals that are equally likely to contain the centre of a symmetric distribution
    Exact         for symmetric differences, such as those of two distributions of the same shape; up to n = 14 by
                  enumeration, above by random subsets. 0 is outside if the sign-flip test has p < 1 - level.
    Degenerate    n < 2 or a value that is not finite: (nan, nan). If 2^n is too small for the level (n < 6 at 95 %):
                  Student's t.
    Source        Hartigan 1969.
    """
    data = np.asarray(differences, dtype=np.float64)
    if data.size < 2 or not np.isfinite(data).all():
        return math.nan, math.nan
    if smallest_attainable_p(data.size) > 1 - level + 1e-12:
        half_width = _student((1 - level) / 2, data.size - 1) * data.std(ddof=1) / math.sqrt(data.size)
        return float(data.mean() - half_width), float(data.mean() + half_width)
    if data.size <= _ALL_SUBSETS:
        chosen = (_all_signs(data.size)[:-1] + 1.0) / 2.0  # the last subset is empty
    else:
        bits = np.frombuffer(generator.bytes(draws * -(-data.size // 8)), dtype=np.uint8).reshape(draws, -1)
        chosen = np.unpackbits(bits, axis=1)[:, : data.size].astype(np.float64)
    counts = chosen @ np.ones(data.size)
    means = (chosen @ data)[counts > 0] / counts[counts > 0]
    rank = math.floor((1 - level) / 2 * (means.size + 1) + 1e-9)
    means.partition([rank - 1, means.size - rank])
    return float(means[rank - 1]), float(means[-rank])


def simultaneous_interval(differences: ArrayLike, generator: np.random.Generator, pairs: int) -> tuple[float, float]:
    """`difference_interval` at the level at which the intervals of this many pairs hold together in 95 % (Bonferroni).

    Where random subsets would be too many, Student's t.
    """
    tail = ALPHA / max(pairs, 1)
    data = np.asarray(differences, dtype=np.float64)
    draws = max(SUBSETS_DRAWN, math.ceil(_TAIL_SUBSETS / tail))
    if data.size <= _ALL_SUBSETS or draws <= _MOST_SUBSETS or not np.isfinite(data).all():
        return difference_interval(data, generator, 1 - tail, draws)
    half_width = float(scipy.stats.t.isf(tail / 2, data.size - 1)) * data.std(ddof=1) / math.sqrt(data.size)
    return float(data.mean() - half_width), float(data.mean() + half_width)


def ratio_interval(values_a: ArrayLike, values_b: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval (low, high) of mean a / mean b from pairs (n,) and (n,): the ratios r at which a - r b has mean 0 by t.

    With          (mean a - r mean b)^2 <= t^2 / n (var a - 2 r cov + r^2 var b)
    Degenerate    n < 2: (nan, nan). If mean b isn't significantly different from 0, the ratio is unbounded: (nan, nan).
    Source        Fieller 1954.
    """
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.size < 2 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan, math.nan
    scale = _student((1 - level) / 2, a.size - 1) ** 2 / a.size
    (var_a, cov), (_, var_b) = scale * np.cov(a, b)
    leading = b.mean() ** 2 - var_b
    if leading <= 0:
        return math.nan, math.nan
    middle = (a.mean() * b.mean() - cov) / leading
    root = math.sqrt(max(0.0, middle**2 - (a.mean() ** 2 - var_a) / leading))
    return float(middle - root), float(middle + root)


def interquartile_mean(groups: Sequence[ArrayLike]) -> float:
    """The mean of the middle half of all values: a quarter of them, rounded down, is dropped at either end."""
    return float(scipy.stats.trim_mean(np.concatenate([np.asarray(values, float) for values in groups]), 0.25))


def interquartile_interval(
    groups: Sequence[ArrayLike], generator: np.random.Generator, level: float = 0.95, resamples: int = 2_000
) -> tuple[float, float]:
    """Interval (low, high) of the interquartile mean of all groups' values by a bootstrap within each group.

    With          mean -+ t s,  s the standard deviation of the resampled means,  t Student's with half of the groups'
                  sum of n - 1 degrees of freedom, since half of the values count
    Each resample's distance from its group's mean is widened by sqrt(n / (n - 1)), n the group's size: resamples of few
    values spread less than those values do.

    Degenerate    a group of one value: (nan, nan), since its spread is unknown.
    Coverage      94 to 96 % at level 95 %; percentiles, as in the source, have 88 to 95 (3 to 14 values per group).
    Source        Agarwal et al. 2021 (NeurIPS), section 4.3; the factor is Efron 1982, section 5.8.
    """
    arrays = [np.asarray(values, dtype=np.float64) for values in groups]
    if any(values.size < 2 for values in arrays):
        return math.nan, math.nan
    parts = []
    for values in arrays:
        centre, factor = values.mean(), math.sqrt(values.size / (values.size - 1))
        drawn = values[generator.integers(0, values.size, (resamples, values.size))]
        parts.append(centre + factor * (drawn - centre))
    spread = float(scipy.stats.trim_mean(np.concatenate(parts, axis=1), 0.25, axis=1).std(ddof=1))
    freedom = sum(values.size - 1 for values in arrays) / 2
    half_width = _student((1 - level) / 2, freedom) * spread
    mean = interquartile_mean(arrays)
    return mean - half_width, mean + half_width


def nemenyi(scores: ArrayLike, alpha: float = ALPHA) -> tuple[float, float, Floats]:
    """Friedman's p that all columns of scores (tasks, names) rank alike, the critical difference of mean ranks at alpha,
    and the mean ranks (names,), 1 being the largest score.

    Source        Demsar 2006, sections 3.2.2 and 3.2.4.
    """
    values = np.asarray(scores, dtype=np.float64)
    tasks, k = values.shape
    ranks = scipy.stats.rankdata(-values, axis=1).mean(axis=0)
    critical = _range_quantile(k, alpha) * math.sqrt(k * (k + 1) / (12 * tasks))
    if (values == values[:, :1]).all():  # all tied: Friedman's statistic would be 0 / 0
        return 1.0, critical, ranks
    return float(scipy.stats.friedmanchisquare(*values.T).pvalue), critical, ranks


@functools.cache
def _range_quantile(k: int, alpha: float) -> float:
    """The upper quantile of the studentized range of k means, with infinite degrees of freedom."""
    return float(scipy.stats.studentized_range.isf(alpha, k, math.inf))


def effect_size(differences: ArrayLike) -> float:
    """Paired standardised mean difference: Cohen's d_z with Hedges' small-sample correction; no unit.

    With          J(n - 1) mean(d) / sd(d),  J(m) = Gamma(m/2) / (sqrt(m/2) Gamma((m-1)/2))
    Degenerate    n < 3: NaN, because J(1) = 0. No spread (up to rounding): 0 if the mean is 0, else +inf or -inf;
                  in CSV that is written inf, which pandas, R and DuckDB read as a number.
    Raises        ValueError for values that are not finite.
    Source        Hedges 1981, eq. 6e.
    """
    values = _finite_vector(differences)
    if values.size < 3:
        return math.nan
    mean, spread = float(values.mean()), float(values.std(ddof=1))
    if spread <= _TIE_TOLERANCE * np.abs(values).max():
        return math.copysign(math.inf, mean) if mean != 0 else 0.0
    half = (values.size - 1) / 2.0
    log_correction = scipy.special.gammaln(half) - scipy.special.gammaln(half - 0.5) - 0.5 * math.log(half)
    return math.exp(log_correction) * mean / spread


def compare(values_a: ArrayLike, values_b: ArrayLike, generator: np.random.Generator) -> Comparison:
    """The comparison of two paired samples (n,) and (n,); pairs without a finite value on both sides are dropped.

    The smallest attainable p is that of the test that ran: above 30 pairs, the resolution of Monte-Carlo.

    Raises        ValueError if the shapes differ.
    """
    a, b = np.asarray(values_a, dtype=np.float64), np.asarray(values_b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(f"paired samples need one axis and equal lengths, got {a.shape} and {b.shape}")
    complete = np.isfinite(a) & np.isfinite(b)
    differences = a[complete] - b[complete]
    low, high = difference_interval(differences, generator)
    return Comparison(
        n_pairs=differences.size,
        mean_difference=float(differences.mean()) if differences.size else math.nan,
        ci_low=low,
        ci_high=high,
        effect_size=effect_size(differences),
        test=_test_name(differences.size),
        p_value=paired_permutation_p(differences, generator),
        smallest_attainable_p=max(smallest_attainable_p(differences.size), _resolution(differences.size)),
    )


def _test_name(n_pairs: int) -> str:
    """The name of the test that `paired_permutation_p` runs with this many pairs."""
    if n_pairs == 0:
        return "none (no complete pair)"
    how = "exact" if n_pairs <= EXACT_PAIRS else f"Monte-Carlo, {MONTE_CARLO_DRAWS} draws"
    return f"paired sign-flip permutation ({how})"


def _resolution(n_pairs: int) -> float:
    """The smallest p that the number of draws allows; 0 if all assignments are enumerated."""
    return 0.0 if n_pairs <= EXACT_PAIRS else 1.0 / (1 + MONTE_CARLO_DRAWS)


def verdict(p_holm: float, smallest_attainable_p_corrected: float, mean_difference: float, alpha: float = ALPHA) -> str:
    """What a comparison supports: "a higher", "b higher", "not distinguishable" or "underpowered".

    "underpowered" means that no outcome could have been significant: the smallest attainable p times the size of the
    family is not below alpha, or there was no test (p is NaN). Significance is checked first, because in a Holm family
    of unequal sample sizes a small sample can still be significant at one of the later, milder steps.
    """
    if p_holm < alpha:
        return "a higher" if mean_difference > 0 else "b higher"
    if math.isnan(p_holm) or smallest_attainable_p_corrected >= alpha:
        return "underpowered"
    return "not distinguishable"
