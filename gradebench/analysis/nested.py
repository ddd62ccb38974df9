"""Seeds nested in instances of a kind of task: the mean over instances of paired differences, and its test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

FEWEST_INSTANCES = 3  # with two, Student's t has one degree of freedom and almost no power

# A spread below this share of the values is rounding in a - b.
_TIE_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Nested:
    """The mean difference a - b over instances, in the units of the values."""

    n_instances: int
    n_pairs: int  # seeds of all instances in total
    n_a_higher: int  # instances in which a's mean is higher
    mean_difference: float  # with equal weight for each instance
    ci_low: float
    ci_high: float
    sd_between: float  # of the instances' true differences, without the noise of their seeds
    sd_within: float  # of the differences of an instance's seeds
    p_value: float


def compare(differences: Sequence[ArrayLike]) -> Nested:
    """The mixed-model test that the mean difference over all instances is 0; instances without a pair are dropped.

    With          d_ij = mu + b_i + e_ij,  b_i of the instance, e_ij of the pair of seeds in it;
                  t = mean_i(dbar_i) / (sd_i(dbar_i) / sqrt(N)),  N - 1 degrees of freedom, dbar_i the instance's mean;
                  sd_between^2 = max(0, var_i(dbar_i) - mean_i(sd_within^2 / n_i))
    Shapes        a vector (n_i,) of paired differences for each instance; values that aren't finite are dropped.
    Exact         if the instances' means are normal, whatever share of their variance is between instances. For
                  balanced data this is the F test of the mixed model (Satterthwaite's degrees of freedom are N - 1).
                  More seeds make an instance's mean more precise; only instances add degrees of freedom.
    Degenerate    N < 3: no test (p and interval NaN). Means without spread: p is 1 if all are 0, else 0.
    Source        Searle, Casella and McCulloch 1992, section 3.6 (the one-way random model).
    """
    finite = [np.asarray(values, dtype=np.float64) for values in differences]
    found = [values[np.isfinite(values)] for values in finite]
    found = [values for values in found if values.size]
    means = np.array([values.mean() for values in found])
    count = means.size
    mean = float(means.mean()) if count else math.nan
    within = _variance_within(found)
    between = math.nan
    if count > 1:
        noise = 0.0 if math.isnan(within) else within * float(np.mean([1 / values.size for values in found]))
        between = math.sqrt(max(0.0, float(means.var(ddof=1)) - noise))
    p, half_width = _student(means) if count >= FEWEST_INSTANCES else (math.nan, math.nan)
    return Nested(
        n_instances=count,
        n_pairs=sum(values.size for values in found),
        n_a_higher=int(np.count_nonzero(means > 0)),
        mean_difference=mean,
        ci_low=mean - half_width,
        ci_high=mean + half_width,
        sd_between=between,
        sd_within=math.sqrt(within),
        p_value=p,
    )


def _variance_within(found: Sequence[np.ndarray]) -> float:
    """The variance between seeds, pooled over instances; NaN if none has two seeds."""
    freedom = sum(values.size - 1 for values in found)
    return sum(float(((values - values.mean()) ** 2).sum()) for values in found) / freedom if freedom else math.nan


def _student(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Two-sided p of a mean of 0 by Student's t, and half the width of the mean's interval."""
    mean, error = float(means.mean()), float(means.std(ddof=1)) / math.sqrt(means.size)
    if error <= _TIE_TOLERANCE * float(np.abs(means).max()):
        return (1.0 if mean == 0 else 0.0), 0.0
    p = 2 * float(scipy.stats.t.sf(abs(mean) / error, means.size - 1))
    return p, float(scipy.stats.t.isf((1 - level) / 2, means.size - 1)) * error


def mean_over(means: ArrayLike) -> tuple[float, float, float]:
    """The mean of the instances' means (N,) and its 95 % interval by Student's t, (mean, low, high); NaN ends below 3."""
    values = np.asarray(means, dtype=np.float64)
    if values.size < FEWEST_INSTANCES or not np.isfinite(values).all():
        return (float(values.mean()) if values.size else math.nan), math.nan, math.nan
    _, half_width = _student(values)
    return float(values.mean()), float(values.mean()) - half_width, float(values.mean()) + half_width
