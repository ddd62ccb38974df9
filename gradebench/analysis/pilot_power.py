"""Before a run: how many seeds it takes to detect a difference, from the spread between the seeds of a pilot."""

import math
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any

import pandas as pd
import scipy.stats

from gradebench.analysis import tables
from gradebench.analysis.power import detectable_at, seeds_for
from gradebench.core.errors import InputError

COLUMNS = [
    "task", "setting", "estimator_a", "estimator_b", "pilot_seeds", "spread", "spread_high", "family", "difference",
    "seeds_needed", "seeds_needed_high", "detectable", "metric",
]  # fmt: skip


def pilot_power(
    pilot: pd.DataFrame,
    estimators: Collection[str],
    difference: float,
    seeds: int | None = None,
    by: str | None = None,
    against: Sequence[str] = (),
) -> pd.DataFrame:
    """One row per pair of the family that the pilot has values for, COLUMNS, the widest spread first.

    metric             that is ranked by, on test prompts: the ranking metric, see `tables.leaderboard`
    spread             standard deviation of its paired differences between seeds; spread_high is the upper end of its
                       one-sided 80 % interval, which is much larger if the pilot has few seeds
    family             comparisons that Holm corrects together: all pairs of `estimators`, or each baseline of `against`
                       with each other estimator
    seeds_needed       for `difference` to be supported with a power of 0.8, by spread and by spread_high
    detectable         the smallest difference supported with that power at `seeds`, by default those of a run

    Raises        InputError if the pilot has no pair with two seeds.
    """
    family = tables.family_size(len(estimators), len(against))
    if not family:
        raise InputError("one estimator is compared with nothing; give two or more")
    seeds = seeds or tables.default_seed_count(len(estimators), len(against))
    least = detectable_at(seeds, family)
    rows: list[dict[str, Any]] = []
    for (task, setting), metric, values in tables.ranked_per_seed(pilot, by):
        for a, b in combinations([name for name in values.columns if name in estimators], 2):
            if against and (a in against) == (b in against):
                continue
            found = (values[a] - values[b]).dropna()
            if len(found) < 2:
                continue
            spread = float(found.std(ddof=1))
            high = spread * math.sqrt((len(found) - 1) / scipy.stats.chi2.ppf(0.2, len(found) - 1))
            needed = [seeds_for(difference / s, family) if s else seeds for s in (spread, high)]
            place = (task, setting, a, b, len(found), spread, high, family, difference)
            rows.append(dict(zip(COLUMNS, (*place, *needed, least * spread, metric), strict=True)))
    if not rows:
        raise InputError("the pilot has no two of these estimators with test rewards of two seeds or more")
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.sort_values(["task", "setting", "spread"], ascending=[True, True, False], ignore_index=True)
