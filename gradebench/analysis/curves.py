"""From the tidy `metrics` to who leads at which budget, and where the lead changes; DataFrames in and out, no files.

Estimators whose learning rates have different sources are not compared, as in every other table: see `provenance`. An
estimator takes part in the budgets that all of its seeds reach, since those that get far are a selection of seeds.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from gradebench.analysis import crossings, statistics
from gradebench.analysis.fields import AXES, Field, Floats, budgets_of, fields
from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.core.shown import counted

BUDGETS_COLUMNS, CROSSINGS_COLUMNS = schema.BUDGETS.names, schema.CROSSINGS.names
LEADERS_COLUMNS = [
    "task", "setting", "metric", "axis", "budget", "leader", "mean", "ci_low", "ci_high", "n_seeds", "compared",
    "not_different",
]  # fmt: skip
GRID = 64  # budgets at which a pair is compared to find where the lead changes
_RESAMPLES = 2_000  # of a mean's interval: there are many


def budgets(metrics: pd.DataFrame, by: str | None = None, axes: Sequence[str] = tuple(AXES)) -> pd.DataFrame:
    """One row per budget and estimator, BUDGETS_COLUMNS, the best first within a budget.

    mean, ci_low, ci_high    of the metric on test prompts over seeds, at the budget, and the 95 % interval
    n_seeds                  seeds that have a value there
    rank, leader             by mean, ties by name, among the estimators whose seeds all reach this budget and whose
                             learning rates make them comparable; the others have a mean and no rank
    p_vs_leader_holm         of the paired test against the leader; Holm over all pairs at this budget

    Raises        ValueError as `tables.comparisons` does.
    """
    return _budgets(fields(metrics, by, axes))


def _budgets(found: Iterable[Field]) -> pd.DataFrame:
    rows = [row for field in found for row in _compared(field)]
    return pd.DataFrame(rows, columns=BUDGETS_COLUMNS).astype({"rank": "Int64"})


def _compared(field: Field) -> list[dict[str, Any]]:
    wanted = budgets_of(field)
    values = {name: field.values(name, wanted).to_numpy() for name in field.curves}
    reach = {name: field.reach(name) for name in field.curves}
    rows = []
    for place, budget in enumerate(wanted):
        label = f"{budget:.12g}"
        slack = 1e-12 * budget  # rounding must not exclude an estimator from its own last budget
        here = {
            name: _measured(list(field.curves[name]), mine[:, place])
            for name, mine in values.items()
            if reach[name][0] - slack <= budget <= reach[name][1] + slack
        }
        means = {name: float(mine.values.mean()) for name, mine in here.items() if mine.seeds}
        ordered = sorted(means, key=lambda name: (name not in field.fair, -means[name], name))
        ranked = [name for name in ordered if name in field.fair]
        p = _against_first(field, ranked, here, label)
        for name in ordered:
            rank = ranked.index(name) + 1 if name in ranked else pd.NA
            rng = field.generator(name, label)
            ends = statistics.mean_interval(here[name].values, rng, resamples=_RESAMPLES)
            mine = (len(here[name].seeds), means[name], *ends, rank, name in ranked[:1], p.get(name, math.nan))
            row = (field.task, field.setting, field.metric, field.axis, budget, name, *mine)
            rows.append(dict(zip(BUDGETS_COLUMNS, row, strict=True)))
    return rows


@dataclass(frozen=True)
class _Measured:
    """An estimator's values (seeds,) at a budget."""

    seeds: list[int]
    values: Floats

    def minus(self, other: "_Measured") -> Floats:
        """Of the seeds that both have."""
        if self.seeds == other.seeds:
            return self.values - other.values
        a, b = (pd.Series(one.values, one.seeds) for one in (self, other))
        return np.asarray((a - b).dropna(), dtype=np.float64)


def _measured(seeds: list[int], values: Floats) -> _Measured:
    known = ~np.isnan(values)
    return _Measured([seed for seed, one in zip(seeds, known, strict=True) if one], values[known])


def _against_first(field: Field, ranked: list[str], here: dict[str, _Measured], label: str) -> dict[str, float]:
    """The p of each other estimator against the first, after Holm over all pairs."""
    pairs = list(combinations(ranked, 2))
    p = []
    for a, b in pairs:
        p.append(statistics.paired_permutation_p(here[a].minus(here[b]), field.generator(a, b, label)))
    adjusted = dict(zip(pairs, statistics.holm(p), strict=True))
    return {b: float(value) for (a, b), value in adjusted.items() if a == ranked[0]}


def leaders(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per budget in rows of `budgets`, LEADERS_COLUMNS: the leader, and those not significantly different."""
    found = []
    for place, mine in rows[rows["rank"].notna()].groupby(LEADERS_COLUMNS[:5], sort=False):
        first = mine[mine["leader"].astype(bool)].iloc[0]
        apart = mine["p_vs_leader_holm"] < statistics.ALPHA
        others = mine.loc[~apart & ~mine["leader"].astype(bool), "estimator"]
        shown = (first["estimator"], *(first[name] for name in ("mean", "ci_low", "ci_high", "n_seeds")))
        found.append((*place, *shown, len(mine), ", ".join(others)))
    return pd.DataFrame(found, columns=LEADERS_COLUMNS)


def proportional(rows: pd.DataFrame) -> list[str]:
    """The axes, in the rows of `budgets` of one task, that are proportional to steps with the same factor for all
    estimators."""
    by_axis = {str(axis): mine for axis, mine in rows.groupby("axis", sort=False)}
    steps = by_axis.pop("steps", None)
    if steps is None:
        return []
    return [axis for axis, mine in by_axis.items() if axis != "kl" and _same_curves(steps, mine)]


def _same_curves(steps: pd.DataFrame, other: pd.DataFrame) -> bool:
    a = steps.sort_values(["budget", "estimator"])
    b = other.sort_values(["budget", "estimator"])
    if list(a["estimator"]) != list(b["estimator"]):
        return False
    ratios = b["budget"].to_numpy() / a["budget"].to_numpy()
    return bool(np.allclose(ratios, ratios[0]) and np.allclose(a["mean"], b["mean"], rtol=1e-9, atol=0))


def leading_pairs(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """The pairs of estimators that lead at some budget in these rows of `budgets`, in order of their first lead."""
    first = rows[rows["leader"].astype(bool)].sort_values("budget", kind="stable")["estimator"]
    return list(combinations(map(str, dict.fromkeys(first)), 2))


def named_pair(rows: pd.DataFrame, a: str, b: str) -> list[tuple[str, str]]:
    """The pair, alone in a list.

    Raises        InputError for a name without a row of `budgets`, and for one name given twice.
    """
    known = sorted(rows["estimator"].unique())
    for name in (a, b):
        if name not in known:
            raise InputError(f"the run has no estimator {name!r} at these budgets; it has {', '.join(known)}")
    if a == b:
        raise InputError(f"{a} is compared with itself; give two estimators")
    return [(a, b)]


def crossings_of(
    metrics: pd.DataFrame,
    by: str | None = None,
    axes: Sequence[str] = tuple(AXES),
    pairs: Sequence[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """One row per pair of estimators and axis, CROSSINGS_COLUMNS; all pairs in order of names, unless some are given.

    crossing                     the budget at which the lead changes, where the mean difference is 0. Empty if the lead
                                 doesn't change
    ci_low, ci_high              95 %: the nearest budgets on either side with a supported lead; empty if there is none
    leader_before, leader_after  the supported leader there; the same if the lead doesn't change; empty if there is none
    sign_changes                 of the mean difference, supported or not; the last supported one is the crossing
    first_budget, last_budget    the range in which the two were compared

    A lead is supported by `crossings.simultaneous_p`: all budgets of a pair are one family, pairs are not.

    Raises        ValueError as `tables.comparisons` does.
    """
    return _crossings(fields(metrics, by, axes), pairs)


def _crossings(found: Iterable[Field], pairs: Sequence[tuple[str, str]] | None = None) -> pd.DataFrame:
    rows = []
    for field in found:
        chosen = combinations(sorted(field.curves), 2) if pairs is None else pairs
        rows += [_crossed(field, a, b) for a, b in chosen if a in field.curves and b in field.curves]
    return pd.DataFrame([row for row in rows if row], columns=CROSSINGS_COLUMNS)


def written(metrics: pd.DataFrame, by: str | None = None) -> dict[str, pd.DataFrame]:
    """The tables of curves in a run's folder, by the names of their files without extension."""
    found = list(fields(metrics, by))
    return {"budgets": _budgets(found), "crossings": _crossings(found)}


def grid_of(field: Field, a: str, b: str) -> Floats:
    """The budgets (m,) at which a pair is compared: evenly spaced logarithms over what both reach, and, along steps,
    every evaluation; empty if they have no budget in common."""
    (low_a, high_a), (low_b, high_b) = field.reach(a), field.reach(b)
    low, high = max(low_a, low_b), min(high_a, high_b)
    if not 0 < low <= high < math.inf:
        return np.empty(0)
    even = np.geomspace(low, high, GRID)
    even[[0, -1]] = low, high
    steps = [step for step in budgets_of(field) if low <= step <= high] if field.axis == "steps" else []
    return np.unique([*even, *steps])


def _crossed(field: Field, a: str, b: str) -> dict[str, Any] | None:
    """The row of a pair; None without a budget or a seed that both have."""
    grid = grid_of(field, a, b)
    values = field.differences(a, b, grid)
    if not values.size:
        return None
    if unfair := field.unfair.get(frozenset((a, b))):
        return _uncompared(field, a, b, grid, len(values), unfair)
    first, second = sorted((a, b))  # either order draws the same signs
    leads = crossings.supported_leads(values, field.generator("crossing", first, second))
    found = crossings.crossing(grid, values, leads)
    names = {1: a, -1: b, 0: ""}
    row = (
        *(field.task, field.setting, field.metric, field.axis, a, b, len(values)),
        *(found.budget, found.low, found.high, names[found.before], names[found.after], found.sign_changes),
        *(float(grid[0]), float(grid[-1]), verdict(found, grid, leads, names, field.axis, len(values))),
    )
    return dict(zip(CROSSINGS_COLUMNS, row, strict=True))


def _uncompared(field: Field, a: str, b: str, grid: Floats, pairs: int, why: str) -> dict[str, Any]:
    """The row of a pair whose learning rates make it incomparable."""
    place = (field.task, field.setting, field.metric, field.axis, a, b, pairs)
    nothing = (math.nan, math.nan, math.nan, "", "", pd.NA)
    return dict(zip(CROSSINGS_COLUMNS, (*place, *nothing, float(grid[0]), float(grid[-1]), why), strict=True))


def verdict(
    found: crossings.Crossing,
    grid: Floats,
    leads: NDArray[np.int64],
    names: dict[int, str],
    axis: str,
    seeds: int,
) -> str:
    """The verdict on a pair's curves as a sentence that contains the last budget."""
    last = amount(float(grid[-1]), axis)
    if found.supported:
        return (
            f"{names[found.before]} leads up to {amount(found.low, axis)}, {names[found.after]} from "
            f"{amount(found.high, axis)} on; compared up to {last}"
        )
    decided = np.flatnonzero(leads)
    if not decided.size:
        least = statistics.seeds_needed(1)
        why = (
            f": {counted(seeds, 'paired seed')} can't give a significant result, {least} are needed"
            if seeds < least
            else ""
        )
        return f"undecided up to {last}{why}"
    leader = names[int(leads[decided[-1]])]
    if decided.size == leads.size:
        return f"no change up to {last}: {leader} leads throughout"
    start, end = (amount(float(grid[place]), axis) for place in (decided[0], decided[-1]))
    if leads[-1]:
        return f"no change up to {last}: {leader} leads from {start} on"
    return f"no supported change up to {last}: {leader} leads at {start} to {end}, undecided after"


def axis_name(axis: str) -> str:
    """The axis in a heading."""
    return "KL" if axis == "kl" else axis


def amount(budget: float, axis: str) -> str:
    """A budget with its unit, to three digits or whole."""
    number = f"{budget:.0f}" if budget >= 100 else f"{budget:.3g}"
    return f"KL {number}" if axis == "kl" else f"{number} {AXES[axis][1]}"
