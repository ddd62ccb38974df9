"""From the tidy `metrics` to who leads at which budget, and where the lead changes; DataFrames in and out, no files.

A budget is a number of steps, of reward calls (samples), tokens, updates or seconds, or a divergence (KL). Every seed's
own curve is read at the budget, and only then are means, intervals and tests made over seeds:

steps, samples, tokens, updates, seconds    linear in the logarithm of the budget, between two evaluations
kl        linear in KL between the first two consecutive evaluations on either side of the budget: KL may fall again
          during training, and what counts is when it first reached the budget

Estimators whose learning rates come from different sources are not compared, as in every other table: see `provenance`.

Nothing is extrapolated: before its first evaluation after step 0 and beyond its last, a seed has no value. An estimator
takes part at the budgets that all of its seeds reach, since the seeds that get far are a biased selection.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from gradebench.analysis import crossings, provenance, statistics, tables
from gradebench.core.errors import InputError

# axis -> metric of the cumulative rows of phase "train" (none: the step, or the divergence that was evaluated), unit
AXES = {
    "steps": ("", "steps"),
    "samples": ("reward_calls", "samples"),
    "tokens": ("tokens_sampled", "tokens"),
    "updates": ("updates", "updates"),
    "seconds": ("seconds", "s"),
    "kl": ("", "nats"),
}
METRICS = ("objective", "reward", "gold_reward")
# fmt: off
BUDGETS_COLUMNS = [
    "task", "setting", "metric", "axis", "budget", "estimator", "n_seeds", "mean", "ci_low", "ci_high", "rank",
    "leader", "p_vs_leader_holm",
]
CROSSINGS_COLUMNS = [
    "task", "setting", "metric", "axis", "estimator_a", "estimator_b", "n_pairs", "crossing", "ci_low", "ci_high",
    "leader_before", "leader_after", "sign_changes", "first_budget", "last_budget", "verdict",
]
LEADERS_COLUMNS = [
    "task", "setting", "metric", "axis", "budget", "leader", "mean", "ci_low", "ci_high", "n_seeds", "compared",
    "not_different",
]
# fmt: on
BUDGETS = 12  # at most, on an axis other than steps; each is half of the next
GRID = 64  # budgets at which a pair is compared to find where the lead changes
_RESAMPLES = 2_000  # of a mean's interval: there are many

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One seed's training: budgets (points,) at its evaluations, and the metric (points,), NaN if not finite."""

    budgets: Floats
    values: Floats


def at_budgets(curve: Curve, budgets: ArrayLike, axis: str) -> Floats:
    """The curve's values (m,) at the budgets (m,), by the axis's rule; NaN out of its reach and next to a NaN."""
    wanted = np.asarray(budgets, dtype=np.float64)
    if axis == "kl":
        return _first_passages(curve, wanted)
    spent = curve.budgets > 0
    x, y = curve.budgets[spent], curve.values[spent]
    if not x.size:
        return np.full(wanted.shape, math.nan)
    return np.asarray(np.interp(np.log(wanted), np.log(x), y, left=math.nan, right=math.nan), dtype=np.float64)


def _first_passages(curve: Curve, wanted: Floats) -> Floats:
    """The values (m,) where the curve's budgets first reach the wanted ones, from either side; NaN if they never do."""
    away = curve.budgets[:, None] - wanted  # (points, m)
    meets = away == 0
    meets[:-1] |= away[:-1] * away[1:] < 0
    first, column = meets.argmax(axis=0), np.arange(wanted.size)
    after = np.minimum(first + 1, len(away) - 1)
    here, there = away[first, column], away[after, column]
    share = np.divide(here, here - there, out=np.zeros(wanted.size), where=here != there)
    between = (1 - share) * curve.values[first] + share * curve.values[after]
    return np.where(meets.any(axis=0), np.where(here == 0, curve.values[first], between), math.nan)


@dataclass(frozen=True)
class Field:
    """The curves of one task in one setting, by one metric along one axis."""

    task: str
    setting: str
    metric: str
    axis: str
    curves: dict[str, dict[int, Curve]]  # estimator -> seed -> curve
    fair: frozenset[str] = frozenset()  # estimators whose rates make them mutually comparable
    unfair: Mapping[frozenset[str], str] = dataclasses.field(default_factory=dict)  # verdicts of the incomparable pairs

    def reach(self, estimator: str) -> tuple[float, float]:
        """The smallest and the largest budget that all seeds of the estimator reach; (inf, -inf) if there is none."""
        ends = [_ends(curve.budgets) for curve in self.curves[estimator].values()]
        low, high = max(first for first, _ in ends), min(last for _, last in ends)
        return (low, high) if low <= high else (math.inf, -math.inf)

    def values(self, estimator: str, budgets: ArrayLike) -> pd.DataFrame:
        """The estimator's values, seed x budget."""
        rows = {seed: at_budgets(curve, budgets, self.axis) for seed, curve in self.curves[estimator].items()}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(np.asarray(budgets, dtype=float)))

    def generator(self, *names: str) -> np.random.Generator:
        return tables.named_generator("curves", self.metric, self.axis, self.task, self.setting, *names)


def _ends(budgets: Floats) -> tuple[float, float]:
    spent = budgets[budgets > 0]
    return (float(spent.min()), float(spent.max())) if spent.size else (math.inf, -math.inf)


def fields(metrics: pd.DataFrame, by: str | None = None, axes: Sequence[str] = tuple(AXES)) -> Iterator[Field]:
    """The curves of each task and setting along each axis that was measured; `by` is the objective unless it is given,
    and the reward where a run has no objective.

    Only ok cells count. An axis other than steps needs two points of each cell: cells that lack them are left out, and
    an axis that no cell has isn't there.

    Raises        ValueError as `tables.comparisons` does.
    """
    for (task, setting), rows in tables.ok_rows(metrics):
        measured = rows[(rows["phase"] == "evaluation") & (rows["split"] == "test")]
        found = [one for one in METRICS if (measured["metric"] == one).any()]
        metric = by or next(iter(found), "")
        if metric not in found:
            continue
        spent = rows[(rows["phase"] == "train") & (rows["split"] == "train")]
        values = _by_step(measured, metric)
        fair = frozenset(provenance.compared(rows, sorted(rows["estimator"].unique())))
        unfair = provenance.incomparable(rows)
        for axis in axes:
            cost = AXES[axis][0]
            x = _by_step(spent, cost) if cost else _by_step(measured, "kl") if axis == "kl" else None
            if curves := _curves(values, x):
                yield Field(task, setting, metric, axis, curves, fair, unfair)


def _by_step(rows: pd.DataFrame, metric: str) -> pd.Series:
    """(estimator, seed, step) -> value; rows without a value are not there."""
    mine = rows[(rows["metric"] == metric) & rows["value"].notna() & rows["step"].notna()]
    return mine.set_index(["estimator", "seed", "step"])["value"].sort_index()


def _curves(values: pd.Series, x: pd.Series | None) -> dict[str, dict[int, Curve]]:
    """The curve of each cell; along steps where there is no other axis `x`."""
    found: dict[str, dict[int, Curve]] = {}
    points = pd.DataFrame({"y": values, "x": values.index.get_level_values("step") if x is None else x})
    points = points.reindex(values.index)[points["x"].reindex(values.index).notna()]
    for place, mine in points.groupby(["estimator", "seed"], sort=True):
        estimator, seed = map(str, place)
        budgets, y = mine["x"].to_numpy(dtype=float), mine["y"].to_numpy(dtype=float)
        spent = budgets > 0
        if spent.sum() >= (1 if x is None else 2):
            y = np.where(np.isfinite(y), y, math.nan)
            found.setdefault(estimator, {})[int(float(seed))] = Curve(budgets, y)
    return found


def budgets_of(field: Field) -> list[float]:
    """The budgets at which the estimators are compared, increasing.

    steps     those after 0 at which all cells were evaluated
    others    the largest budget that two estimators reach, half of it, a quarter and so on, down to the smallest that
              two have reached; if steps cost the same for all, these are evaluations
    """
    cells = [curve for seeds in field.curves.values() for curve in seeds.values()]
    if field.axis == "steps":
        shared = set.intersection(*(set(curve.budgets.tolist()) for curve in cells))
        return sorted(step for step in shared if step > 0)
    reaches = [field.reach(name) for name in field.curves]
    second = min(1, len(reaches) - 1)
    low, high = sorted(low for low, _ in reaches)[second], sorted(high for _, high in reaches)[-1 - second]
    if not 0 < low <= high < math.inf:
        return []
    halvings = min(BUDGETS - 1, math.floor(math.log2(high / low) + 1e-9))
    return [high / 2**i for i in range(halvings, -1, -1)]


def budgets(metrics: pd.DataFrame, by: str | None = None, axes: Sequence[str] = tuple(AXES)) -> pd.DataFrame:
    """One row per budget and estimator, BUDGETS_COLUMNS, the best first within a budget.

    mean, ci_low, ci_high    of the metric on test prompts over seeds, at the budget, and the 95 % interval
    n_seeds                  seeds that have a value there
    rank, leader             by mean, ties by name, among the estimators whose seeds all reach this budget and whose
                             learning rates make them comparable; the others have a mean and no rank
    p_vs_leader_holm         of the paired test against the leader; Holm over all pairs at this budget

    Raises        ValueError as `tables.comparisons` does.
    """
    rows = [row for field in fields(metrics, by, axes) for row in _compared(field)]
    return pd.DataFrame(rows, columns=BUDGETS_COLUMNS).astype({"rank": "Int64"})


def _compared(field: Field) -> list[dict[str, Any]]:
    wanted = budgets_of(field)
    values = {name: field.values(name, wanted) for name in field.curves}
    reach = {name: field.reach(name) for name in field.curves}
    rows = []
    for place, budget in enumerate(wanted):
        label = f"{budget:.12g}"
        slack = 1e-12 * budget  # rounding must not exclude an estimator from its own last budget
        here = {
            name: mine.iloc[:, place].dropna()
            for name, mine in values.items()
            if reach[name][0] - slack <= budget <= reach[name][1] + slack
        }
        means = {name: float(seeds.mean()) for name, seeds in here.items() if len(seeds)}
        ordered = sorted(means, key=lambda name: (name not in field.fair, -means[name], name))
        ranked = [name for name in ordered if name in field.fair]
        p = _against_first(field, ranked, here, label)
        for name in ordered:
            rank = ranked.index(name) + 1 if name in ranked else pd.NA
            rng = field.generator(name, label)
            ends = statistics.mean_interval(here[name].to_numpy(), rng, resamples=_RESAMPLES)
            mine = (len(here[name]), means[name], *ends, rank, name in ranked[:1], p.get(name, math.nan))
            row = (field.task, field.setting, field.metric, field.axis, budget, name, *mine)
            rows.append(dict(zip(BUDGETS_COLUMNS, row, strict=True)))
    return rows


def _against_first(field: Field, ranked: list[str], here: dict[str, pd.Series], label: str) -> dict[str, float]:
    """The p of each other estimator against the first, after Holm over all pairs."""
    pairs = list(combinations(ranked, 2))
    p = []
    for a, b in pairs:
        differences = (here[a] - here[b]).dropna()
        p.append(statistics.paired_permutation_p(differences.to_numpy(), field.generator(a, b, label)))
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
    rows = []
    for field in fields(metrics, by, axes):
        chosen = combinations(sorted(field.curves), 2) if pairs is None else pairs
        rows += [_crossed(field, a, b) for a, b in chosen if a in field.curves and b in field.curves]
    return pd.DataFrame([row for row in rows if row], columns=CROSSINGS_COLUMNS)


def written(metrics: pd.DataFrame, by: str | None = None) -> dict[str, pd.DataFrame]:
    """The tables of curves in a run's folder, by the names of their files without extension."""
    return {"budgets": budgets(metrics, by), "crossings": crossings_of(metrics, by)}


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
    differences = (field.values(a, grid) - field.values(b, grid)).dropna()
    if not grid.size or differences.empty:
        return None
    if unfair := field.unfair.get(frozenset((a, b))):
        return _uncompared(field, a, b, grid, len(differences), unfair)
    values = differences.to_numpy()
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
        why = f": {seeds} paired seeds can't give a significant result, {least} are needed" if seeds < least else ""
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
