"""The power of the paired test: what a number of seeds can see. Plain numbers in and out."""

import functools
import math

import scipy.stats

from gradebench import statistics

POWER = 0.8  # that plans and claims ask for
_MOST_SEEDS = 100_000


def power_of(n: int, effect: float, level: float) -> float:
    """The power of a two-sided test of n paired differences at a level, for a mean of `effect` standard deviations.

    That of the t test at a level that the sign-flip test has, of the side that the mean is on. The sign-flip test's
    own is close for differences that are roughly normal: benchmarks/verdict_study.py.
    """
    step = statistics.smallest_attainable_p(n)
    if step > 1e-3 * level:  # the sign-flip test has p-values in steps
        level = min(level, step * (math.ceil(level / step) - 1))
    if n < 2 or level <= 0:
        return 0.0
    critical = scipy.stats.t.isf(level / 2, n - 1)
    shift = abs(effect) * math.sqrt(n)
    if shift > critical + 10:  # where scipy's noncentral t has no digits left
        return 1.0
    return float(scipy.stats.nct.sf(critical, n - 1, shift))


def seeds_for(effect: float, family: int, power: float = POWER) -> float:
    """The least seeds at which a mean of `effect` standard deviations is supported with this power.

    Under Bonferroni's share of the level, which Holm is never stricter than; at least as many as the sign-flip test
    can decide a family of this size with. Infinite above 100,000.
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
    """The least mean, in standard deviations, that n seeds support with this power; infinite where none can be."""
    if n < max(2, statistics.seeds_needed(family)):
        return math.inf
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(n, middle, statistics.ALPHA / family) >= power else (middle, high)
    return high
