"""The power of the paired test: which differences a number of seeds can detect. Plain numbers in and out."""

import functools
import math

import numpy as np
import scipy.optimize
import scipy.stats

from gradebench.analysis import statistics

POWER = 0.8  # that `run --power` and claims ask for
_MOST_SEEDS = 100_000
# Above so many seeds the power of the sign-flip test equals the t test's within two points, down to a level of
# 0.05 / 253 (benchmarks/verdict_study.py).
_LIKE_T = 22
_CONFIGURATIONS = 200  # give an error of about half a point of power
_HALVINGS = 12


def power_of(n: int, effect: float, level: float) -> float:
    """The power of the sign-flip test of n paired normal differences at a level, for a mean of `effect` standard
    deviations: the chance of p < level, on the side that the mean is on.

    With          E_u P(T > c(u)),  T noncentral t with n - 1 degrees of freedom and noncentrality effect sqrt(n),
                  c(u) the t above which the test rejects differences whose residuals are u, up to scale
    For normal differences u is independent of T. If few of the 2^n sign assignments are below the level, c is far above
    the t test's: with 14 seeds at 0.05 / 253 only one is, so all differences must have the same sign, which has
    probability Phi(effect)^n. Above 22 seeds c is the t test's.
    """
    least = statistics.smallest_attainable_p(n)
    if n < 2 or least >= level:
        return 0.0
    if 2 * least >= level:  # the next p: significant only if all differences have the same sign
        return float(scipy.stats.norm.cdf(abs(effect)) ** n)
    critical, shift = _critical_t(n, level), abs(effect) * math.sqrt(n)
    near = critical > shift - 10  # elsewhere scipy's noncentral t loses all precision, and the test rejects
    return float((scipy.stats.nct.sf(critical[near], n - 1, shift).sum() + (~near).sum()) / critical.size)


@functools.cache
def _critical_t(n: int, level: float) -> statistics.Floats:
    """The t above which the sign-flip test has p < level, for each of several random configurations of residuals."""
    if n > _LIKE_T:
        return np.array([scipy.stats.t.isf(level / 2, n - 1)])
    residuals = np.random.default_rng(n).standard_normal((_CONFIGURATIONS, n))
    residuals -= residuals.mean(axis=1, keepdims=True)
    residuals /= residuals.std(axis=1, ddof=1, keepdims=True)
    return np.array([_least_mean(one, level) for one in residuals]) * math.sqrt(n)


def _least_mean(residuals: statistics.Floats, level: float) -> float:
    """The smallest mean at which differences with these residuals have p < level; p decreases with the mean."""
    low, high = 0.0, -float(residuals.min())  # from there on all have the same sign, and p is the smallest attainable
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        seen = statistics.paired_permutation_p(residuals + middle) < level
        low, high = (low, middle) if seen else (middle, high)
    return high


def seeds_for(effect: float, family: int, power: float = POWER) -> float:
    """The smallest number of seeds at which a mean of `effect` standard deviations is supported with this power.

    At Bonferroni's level, which Holm's is never below; at least as many as make the smallest p of the sign-flip test
    significant in a family of this size. Infinite above 100,000.
    """
    level = statistics.ALPHA / family
    fewest, most = max(2, statistics.seeds_needed(family)), _MOST_SEEDS
    if power_of(most, effect, level) < power:
        return math.inf
    while fewest < most:
        middle = (fewest + most) // 2
        fewest, most = (fewest, middle) if power_of(middle, effect, level) >= power else (middle + 1, most)
    return fewest


@functools.cache
def detectable_at(n: int, family: int, power: float = POWER) -> float:
    """The smallest mean, in standard deviations, that n seeds support with this power; infinite if there is none."""
    if n < max(2, statistics.seeds_needed(family)):
        return math.inf
    level = statistics.ALPHA / family
    return float(scipy.optimize.brentq(lambda effect: power_of(n, effect, level) - power, 0.0, 100.0, xtol=1e-9))
