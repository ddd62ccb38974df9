"""Learning curves: what each seed of each estimator had reached by each budget, along one axis.

A budget is a number of steps, of reward calls (samples), tokens, updates or seconds, or a divergence (KL). Every seed's
own curve is read at the budget, and only then are means, intervals and tests made over seeds:

steps, samples, tokens, updates, seconds    linear in the logarithm of the budget, between two evaluations
kl        linear in KL between the first two consecutive evaluations on either side of the budget: KL may fall again
          during training, and what counts is when it first reached the budget

Nothing is extrapolated: before its first evaluation after step 0 and beyond its last, a seed has no value.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from gradebench.analysis import provenance, tables
from gradebench.analysis.once import once

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
EVALUATIONS = 20  # at most, on the axis of steps: those of the default series are fewer up to 5 million steps

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


Curves = dict[str, dict[int, Curve]]  # estimator -> seed -> curve
Points = dict[tuple[str, float, float], float]  # (estimator, seed, step) -> value


@dataclass(frozen=True)
class Field:
    """The curves of one task in one setting, by one metric along one axis."""

    task: str
    setting: str
    metric: str
    axis: str
    curves: Curves
    fair: frozenset[str] = frozenset()  # estimators whose rates make them mutually comparable
    unfair: Mapping[frozenset[str], str] = dataclasses.field(default_factory=dict)  # verdicts of the incomparable pairs

    def reach(self, estimator: str) -> tuple[float, float]:
        """The smallest and the largest budget that all seeds of the estimator reach; (inf, -inf) if there is none."""
        ends = [_ends(curve.budgets) for curve in self.curves[estimator].values()]
        low, high = max(first for first, _ in ends), min(last for _, last in ends)
        return (low, high) if low <= high else (math.inf, -math.inf)

    def values(self, estimator: str, budgets: ArrayLike) -> pd.DataFrame:
        """The estimator's values, seed x budget."""
        seeds = list(self.curves[estimator])
        return pd.DataFrame(self._values(estimator, budgets), index=seeds, columns=list(np.asarray(budgets, float)))

    def _values(self, estimator: str, budgets: ArrayLike) -> Floats:
        rows = [at_budgets(curve, budgets, self.axis) for curve in self.curves[estimator].values()]
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1)

    def differences(self, a: str, b: str, budgets: ArrayLike) -> Floats:
        """Those of two estimators (seeds, budgets), of the seeds that have both at every budget."""
        if list(self.curves[a]) == list(self.curves[b]):
            found = self._values(a, budgets) - self._values(b, budgets)
            return found[~np.isnan(found).any(axis=1)]
        return (self.values(a, budgets) - self.values(b, budgets)).dropna().to_numpy()

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
        ran = once(functools.partial(_Ran, task, setting, rows), rows, "fields")
        metric = by or next(iter(ran.metrics), "")
        if metric not in ran.metrics:
            continue
        for axis in axes:
            field = once(functools.partial(ran.field, metric, axis), ran, metric, axis)
            if field.curves:
                yield field


class _Ran:
    """What the fields of one task in one setting share."""

    def __init__(self, task: str, setting: str, rows: pd.DataFrame):
        self.task, self.setting = task, setting
        measured = rows[(rows["phase"] == "evaluation") & (rows["split"] == "test")]
        self.measured = _by_metric(measured, (*METRICS, "kl"))
        spent = rows[(rows["phase"] == "train") & (rows["split"] == "train")]
        self.spent = _by_metric(spent, [cost for cost, _ in AXES.values() if cost])
        having = set(measured["metric"])
        self.metrics = [one for one in METRICS if one in having]
        rates = provenance.ran(rows)
        self.fair = frozenset(provenance.together(rates.values()))
        self.unfair = provenance.incomparable_of(rates.values())

    def field(self, metric: str, axis: str) -> Field:
        cost = AXES[axis][0]
        x = self.spent[cost] if cost else self.measured["kl"] if axis == "kl" else None
        curves = _curves(self.measured[metric], x)
        return Field(self.task, self.setting, metric, axis, curves, self.fair, self.unfair)


def _by_metric(rows: pd.DataFrame, metrics: Sequence[str]) -> dict[str, Points]:
    """The values of each metric; rows without a value are not there."""
    rows = rows[rows["metric"].isin(metrics) & rows["value"].notna() & rows["step"].notna()]
    found: dict[str, Points] = {name: {} for name in metrics}
    names = ("metric", "estimator", "seed", "step", "value")
    for metric, estimator, seed, step, value in zip(*(rows[name].tolist() for name in names), strict=True):
        found[metric][estimator, seed, step] = value
    return {name: dict(sorted(points.items())) for name, points in found.items()}


def _curves(values: Points, x: Points | None) -> Curves:
    """The curve of each cell; along steps where there is no other axis `x`."""
    points: dict[tuple[str, int], list[tuple[float, float]]] = {}
    for place, y in values.items():
        estimator, seed, step = place
        budget = step if x is None else x.get(place)
        if budget is not None:
            points.setdefault((estimator, int(float(seed))), []).append((budget, y if math.isfinite(y) else math.nan))
    found: Curves = {}
    for (estimator, seed), mine in points.items():
        budgets, y = np.array(mine, dtype=np.float64).T.copy()
        if (budgets > 0).sum() >= (1 if x is None else 2):
            found.setdefault(estimator, {})[seed] = Curve(budgets, y)
    return found


def budgets_of(field: Field) -> list[float]:
    """The budgets at which the estimators are compared, increasing.

    steps     those after 0 at which all cells were evaluated; of more than EVALUATIONS the last one, the last one up to
              half of it, up to half of that, and so on
    others    the largest budget that two estimators reach, half of it, a quarter and so on, down to the smallest that
              two have reached; if steps cost the same for all, these are evaluations
    """
    cells = [curve for seeds in field.curves.values() for curve in seeds.values()]
    if field.axis == "steps":
        shared = set.intersection(*(set(curve.budgets.tolist()) for curve in cells))
        return _halved(sorted(step for step in shared if step > 0))
    reaches = [field.reach(name) for name in field.curves]
    second = min(1, len(reaches) - 1)
    low, high = sorted(low for low, _ in reaches)[second], sorted(high for _, high in reaches)[-1 - second]
    if not 0 < low <= high < math.inf:
        return []
    halvings = min(BUDGETS - 1, math.floor(math.log2(high / low) + 1e-9))
    return [high / 2**i for i in range(halvings, -1, -1)]


def _halved(steps: list[float]) -> list[float]:
    """The steps, or where they are too many to compare all estimators at each, those that are halves of later ones."""
    if len(steps) <= EVALUATIONS:
        return steps
    kept = [steps[-1]]
    while below := [step for step in steps if step <= kept[0] / 2]:
        kept.insert(0, below[-1])
    return kept
