"""Frontiers: the highest reward that an estimator reaches within a KL from the reference, over a sweep, seed by seed.

A seed's points are (d, reward) of its policies, d = sqrt(KL), at every evaluation of its training and every swept
value. Its frontier is their upper concave envelope, flat after the highest point, since a KL budget needn't be spent.
Lines are straight in d and not in KL, since reward grows as d (alpha - beta d) (Gao et al. 2023, section 3.2). A chord
in KL would lie far below the curve of a fast estimator, whose first evaluation already has a large KL, and favour slow
ones.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from gradebench.analysis import cell_labels, pairwise, provenance, statistics, tables
from gradebench.analysis.design import RATE, Design, families
from gradebench.analysis.statistics import Floats
from gradebench.core import schema

NAME, TESTS = "frontier", "frontier_tests"  # of their CSV files
METRICS = ("reward", "gold_reward")
SWEPT = (
    "kl",
    RATE,
)  # a frontier goes over these; any other option defines another problem, with its own
BUDGETS = 10
COLUMNS, TESTS_COLUMNS = schema.FRONTIER.names, schema.FRONTIER_TESTS.names

_Frontiers = dict[str, dict[int, "Frontier"]]  # by estimator and seed


@dataclass(frozen=True)
class Frontier:
    """The frontier of one seed: piecewise linear in sqrt(KL) through (kl, value), then flat up to `reach`, the largest
    KL of any policy."""

    kl: Floats  # (m,) ascending, nats a sequence
    value: Floats  # (m,)
    reach: float

    def at(self, budgets: ArrayLike) -> Floats:
        """The value within each KL budget; NaN below the first point and above the reach: nothing is extrapolated."""
        kl = np.asarray(budgets, dtype=np.float64)
        known = (kl >= self.kl[0]) & (kl <= self.reach)
        return np.where(known, self._on_line(np.sqrt(kl)), np.nan)

    def _on_line(self, distance: Floats) -> Floats:
        return np.interp(distance, np.sqrt(self.kl), self.value)

    def mean_over(self, low: float, high: float) -> float:
        """The mean value between two budgets: the area over their distance. NaN if they are outside its range."""
        if not self.kl[0] <= low < high <= self.reach:
            return math.nan
        d = np.sqrt(np.unique(np.concatenate([[low, high], self.kl[(self.kl > low) & (self.kl < high)]])))
        middle = (d[1:] + d[:-1]) / 2
        ends, within = self._on_line(d) * 2 * d, self._on_line(middle) * 2 * middle  # dKL = 2 d dd
        simpson = (ends[:-1] + 4 * within + ends[1:]) / 6  # exact for the quadratic that each piece is
        return float((simpson * np.diff(d)).sum()) / (high - low)


def envelope(distance: ArrayLike, value: ArrayLike) -> list[int]:
    """The points (n,) and (n,) on the upper concave envelope, by distance, up to the highest value; their indices.

    Source        Andrew 1979, the upper half.
    """
    x, y = np.asarray(distance, dtype=np.float64), np.asarray(value, dtype=np.float64)
    hull: list[int] = []
    for i in np.lexsort((-y, x)).tolist():
        if hull and y[i] <= y[hull[-1]]:  # more KL for no more reward
            continue
        while len(hull) > 1 and _below(x, y, hull[-2], hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _below(x: Floats, y: Floats, left: int, middle: int, right: int) -> bool:
    """Whether the middle point is on or below the line from the left one to the right one."""
    rise, run = y[right] - y[left], x[right] - x[left]
    return bool((y[middle] - y[left]) * run <= rise * (x[middle] - x[left]))


def of_seed(points: pd.DataFrame, metric: str) -> Frontier:
    """The frontier of one seed's points, columns (split, metric): chosen on validation, measured on test prompts.

    The policies on the envelope are chosen by the reward of validation prompts, whatever the metric is: a judge rates a
    policy but doesn't choose it. If they were chosen and measured on the same prompts, the maximum would favour the
    noisiest estimator.
    """
    # Rounding makes -1e-17 of the reference's own 0.
    seen, kl = (points[split, "kl"].to_numpy(dtype=np.float64).clip(min=0.0) for split in ("validation", "test"))
    chosen = envelope(np.sqrt(seen), points["validation", "reward"])
    value = points["test", metric].to_numpy(dtype=np.float64)
    order = sorted(chosen, key=lambda i: kl[i])
    return Frontier(kl[order], value[order], float(kl.max()))


def frontiers(metrics: pd.DataFrame, labels: Sequence[str], metric: str) -> _Frontiers:
    """The frontiers over these tasks, by estimator and seed; a seed counts if all of its trainings are ok.

    Empty if the tasks don't measure the metric, KL, or validation prompts.
    """
    names = [("validation", "kl"), ("validation", "reward"), ("test", "kl"), ("test", metric)]
    rows = metrics[metrics["task"].isin(labels) & (metrics["phase"] == "evaluation") & (metrics["status"] == "ok")]
    rows = cell_labels.with_columns(rows)
    rows = rows[rows["control_of"] == ""]
    rows = rows[pd.MultiIndex.from_frame(rows[["split", "metric"]]).isin(names)]
    index = ["estimator", "seed", "task", "step"]
    points = rows.pivot_table(index=index, columns=["split", "metric"], values="value")
    points = points.reindex(columns=pd.MultiIndex.from_tuples(names)).replace([np.inf, -np.inf], np.nan).dropna()
    found: _Frontiers = {}
    place: Any
    for place, mine in points.groupby(level=["estimator", "seed"], sort=True):
        estimator, seed = place
        if set(mine.index.get_level_values("task")) == set(labels):
            found.setdefault(str(estimator), {})[int(seed)] = of_seed(mine, metric)
    return found


def written(metrics: pd.DataFrame, design: Design) -> dict[str, pd.DataFrame]:
    """The tables of a run with a sweep, by the names of their files; none without a sweep."""
    table = budgets(metrics, design)
    return {} if table.empty else {NAME: table, TESTS: areas(metrics, design)}


def swept(design: Design) -> dict[str, list[str]]:
    """The task labels that share a frontier, by the name of the frontier."""
    return families(design, SWEPT)


def along_training(metrics: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """The design of a run without a sweep, whose frontiers cover only the steps of training."""
    return {str(task): {"task": str(task), "values": {SWEPT[0]: "as it is"}} for task in metrics["task"].unique()}


def budgets(metrics: pd.DataFrame, design: Design, given: Sequence[float] | None = None) -> pd.DataFrame:
    """The metrics within KL budgets, COLUMNS: those given, else ten up to the largest that two estimators reach.

    An estimator takes part in a budget that all of its seeds reach; else its mean and rank are empty and n_seeds says
    how many do. One whose learning rate makes it incomparable has a mean but no rank: see `provenance`.
    p_vs_leader_holm is the sign-flip p against the leader, after Holm over all pairs at that budget. Budgets aren't
    corrected for each other; `areas` has one test of the whole curve.
    """
    rows: list[dict[str, Any]] = []
    for task, labels in swept(design).items():
        for metric in METRICS:
            found = frontiers(metrics, labels, metric)
            fair = provenance.compared(metrics[metrics["task"].isin(labels)], found)
            for kl in given or _even_budgets(found):
                rows += _at_budget(found, fair, {"task": task, "metric": metric, "kl": kl})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"rank": "Int64"})


def _reach(seeds: Mapping[int, Frontier]) -> float:
    return min(one.reach for one in seeds.values())


def _even_budgets(found: _Frontiers) -> list[float]:
    """Budgets evenly spaced in the square root."""
    reaches = sorted((_reach(seeds) for seeds in found.values()), reverse=True)[:2]
    if not reaches or not reaches[-1] > 0:
        return []
    size = 10.0 ** (math.floor(math.log10(reaches[-1])) - 1)
    most = math.floor(reaches[-1] / size) * size  # two digits, rounded down, so that it is reached
    return [float(f"{most * (i / BUDGETS) ** 2:.3g}") for i in range(1, BUDGETS + 1)]


def _at_budget(found: _Frontiers, fair: Sequence[str], place: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of one budget, best first; only those in `fair` are ranked."""
    values = {
        name: pd.Series({seed: float(one.at(place["kl"])) for seed, one in seeds.items()}, dtype=float)
        for name, seeds in found.items()
    }
    means = {name: column.mean() for name, column in values.items() if column.notna().all()}
    ranked = sorted((name for name in means if name in fair), key=lambda name: (-means[name], name))
    pairs = list(combinations(ranked, 2))
    p_of = dict(zip(pairs, statistics.holm([_p(values[a], values[b], place, a, b) for a, b in pairs]), strict=True))
    rows = []
    for name in [*ranked, *sorted(values.keys() - set(ranked))]:
        column, place_in = values[name], ranked.index(name) + 1 if name in ranked else pd.NA
        generator = tables.named_generator("frontier", *map(str, place.values()), name)
        low, high = statistics.mean_interval(column.to_numpy(), generator) if name in means else (math.nan, math.nan)
        row = {"estimator": name, "n_seeds": int(column.notna().sum()), "mean": means.get(name, math.nan)}
        p = float(p_of.get((ranked[0], name), math.nan)) if ranked else math.nan
        rows.append(dict(place) | row | {"ci_low": low, "ci_high": high, "rank": place_in, "p_vs_leader_holm": p})
    return rows


def _p(a: pd.Series, b: pd.Series, place: Mapping[str, Any], *names: str) -> float:
    generator = tables.named_generator("frontier", *map(str, place.values()), *names)
    return statistics.paired_permutation_p((a - b).dropna().to_numpy(), generator)


def areas(metrics: pd.DataFrame, design: Design) -> pd.DataFrame:
    """All pairs by the area under their frontiers, over the range of KL that all seeds of both reach. TESTS_COLUMNS.

    Areas are divided by the length of that range, kl_to - kl_from, so a difference is one of mean reward. One Holm
    family is one metric on one task. estimator_a has the larger mean over the range.
    """
    rows: list[dict[str, Any]] = []
    for task, labels in swept(design).items():
        for metric in METRICS:
            found = frontiers(metrics, labels, metric)
            unfair = provenance.incomparable(metrics[metrics["task"].isin(labels)])
            of_pairs = [_area(task, metric, found, a, b, unfair) for a, b in combinations(sorted(found), 2)]
            rows += _with_verdicts([row | {"setting": _said(design, labels)} for row in of_pairs])
    return pd.DataFrame(map(pairwise.directed, rows), columns=TESTS_COLUMNS)


def _said(design: Design, labels: Sequence[str]) -> str:
    """Such as "sweep kl=0.02,0.05,0.15"."""
    values: dict[str, list[str]] = {}
    for label in labels:
        for name, value in design[label]["values"].items():
            if name in SWEPT and value not in values.setdefault(name, []):
                values[name].append(value)
    return "sweep " + " ".join(f"{name}={','.join(found)}" for name, found in values.items())


def _area(
    task: str, metric: str, found: _Frontiers, a: str, b: str, unfair: Mapping[frozenset[str], str]
) -> dict[str, Any]:
    """The row of a pair, without p_holm; it has a verdict only if the pair can't be compared."""
    low = max(one.kl[0] for name in (a, b) for one in found[name].values())
    high = min(_reach(found[name]) for name in (a, b))
    means = {name: pd.Series({seed: one.mean_over(low, high) for seed, one in found[name].items()}) for name in (a, b)}
    if means[b].mean() > means[a].mean():
        a, b = b, a
    both = pd.DataFrame({"a": means[a], "b": means[b]})
    generator = tables.named_generator("frontier area", metric, task, a, b)
    result = vars(statistics.compare(both["a"].to_numpy(), both["b"].to_numpy(), generator))
    names = {"task": task, "metric": metric, "split": "test", "estimator_a": a, "estimator_b": b}
    ends = {"kl_from": float(low), "kl_to": float(high), "test": f"{result['test']} of the area over the range of KL"}
    return provenance.unless_unfair(names | result | ends, unfair)


def _with_verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One Holm family, the largest differences first."""
    adjusted = statistics.holm([row["p_value"] for row in rows])
    size = int(np.count_nonzero(~np.isnan(adjusted)))
    for row, p_holm in zip(rows, adjusted, strict=True):
        row["p_holm"] = float(p_holm)
        least = size * row["smallest_attainable_p"]
        decided = statistics.verdict(row["p_holm"], least, row["mean_difference"], statistics.ALPHA)
        row["verdict"] = row.get("verdict", decided)
    return sorted(rows, key=lambda row: -row["mean_difference"] if row["n_pairs"] else math.inf)


def leaders(table: pd.DataFrame) -> list[tuple[float, float, str, list[str]]]:
    """The leaders on one task and metric: (first budget, last budget, leader, those not significantly different).

    Neighbouring budgets with the same leaders share a row.
    """
    found = []
    kl: Any
    for kl, rows in table[table["rank"].notna()].groupby("kl", sort=True):
        leader, *others = rows.sort_values("rank").to_dict("records")
        beside = [row["estimator"] for row in others if row["p_vs_leader_holm"] >= statistics.ALPHA]
        found.append((float(kl), str(leader["estimator"]), sorted(beside)))
    answer = []
    for (leader, beside), same in groupby(found, key=lambda one: one[1:]):
        span = [kl for kl, *_ in same]
        answer.append((span[0], span[-1], leader, beside))
    return answer
