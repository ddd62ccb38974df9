"""Learning curves: what each seed of each estimator had reached by each budget, along one axis.

A budget is a number of steps, of reward calls (samples), tokens, updates or seconds, or a divergence (KL). Every seed's
own curve is read at the budget, and only then are means, intervals and tests made over seeds:

steps, samples, tokens, updates, seconds    linear in the logarithm of the budget, between two evaluations
kl        linear in KL between the first two consecutive evaluations on either side of the budget: KL may fall again
          during training, and what counts is when it first reached the budget

Nothing is extrapolated: before its first evaluation after step 0 and beyond its last, a seed has no value.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from gradebench.analysis import provenance, tables

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
BUDGETS = 12  # at most, on an axis other than steps; each is half of the next

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
