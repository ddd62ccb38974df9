"""Before a run: how many seeds a difference of two estimators needs, from the spread between the seeds of a pilot."""

import math
from collections.abc import Collection
from itertools import combinations
from typing import Any

import pandas as pd
import scipy.stats

from gradebench import statistics, tables
from gradebench.errors import InputError

POWER = 0.8
COLUMNS = [
    "task", "setting", "estimator_a", "estimator_b", "pilot_seeds", "spread", "spread_high", "family", "difference",
    "seeds_needed", "seeds_needed_high", "detectable",
]  # fmt: skip
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


def detectable_at(n: int, family: int, power: float = POWER) -> float:
    """The least mean, in standard deviations, that n seeds support with this power; infinite where none can be."""
    if n < max(2, statistics.seeds_needed(family)):
        return math.inf
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if power_of(n, middle, statistics.ALPHA / family) >= power else (middle, high)
    return high


def plan(pilot: pd.DataFrame, estimators: Collection[str], difference: float, seeds: int | None = None) -> pd.DataFrame:
    """One row a pair of the estimators that the pilot has test rewards of, COLUMNS, the widest spread first.

    spread             standard deviation of the paired differences of test reward between seeds; spread_high the upper
                       end of its one-sided 80 % interval, which the few seeds of a pilot make much larger
    family             comparisons that Holm counts: all pairs of `estimators`
    seeds_needed       for `difference` to be supported with a power of 0.8, by spread and by spread_high
    detectable         the least difference supported with that power at `seeds`, by default those of a run

    Raises        InputError where the pilot has no pair with two seeds.
    """
    family = math.comb(len(estimators), 2)
    if not family:
        raise InputError("one estimator is compared with nothing; give two or more")
    seeds = seeds or tables.default_seed_count(len(estimators))
    least = detectable_at(seeds, family)
    rows: list[dict[str, Any]] = []
    for (task, setting), values in tables.per_seed(pilot, "reward", "test"):
        for a, b in combinations([name for name in values.columns if name in estimators], 2):
            found = (values[a] - values[b]).dropna()
            if len(found) < 2:
                continue
            spread = float(found.std(ddof=1))
            high = spread * math.sqrt((len(found) - 1) / scipy.stats.chi2.ppf(0.2, len(found) - 1))
            needed = [seeds_for(difference / s, family) if s else seeds for s in (spread, high)]
            place = (task, setting, a, b, len(found), spread, high, family, difference)
            rows.append(dict(zip(COLUMNS, (*place, *needed, least * spread), strict=True)))
    if not rows:
        raise InputError("the pilot has no two of these estimators with test rewards of two seeds or more")
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["task", "setting", "spread"], ascending=[True, True, False], ignore_index=True)
