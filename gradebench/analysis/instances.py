"""Verdicts about a kind of task: estimators over several instances of it, seeds nested in instances."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from gradebench.analysis import nested, provenance, statistics, tables
from gradebench.analysis.design import INSTANCE, Design, families
from gradebench.core import schema

NAME, BOARD = "instances", "instances_leaderboard"  # of their CSV files
METRICS = ("objective", "reward", "gold_reward")  # the board is ranked by the first that was measured
COLUMNS, BOARD_COLUMNS = schema.INSTANCES.names, schema.INSTANCES_BOARD.names
_BESIDE = ("reward", "gold_reward", "kl")  # shown beside it
_Values = dict[str, pd.DataFrame]  # of a metric: by the label of an instance, (seed, estimator)


def written(metrics: pd.DataFrame, design: Design) -> dict[str, pd.DataFrame]:
    """The tables of a run with several instances by the names of their files; none of another run."""
    tests = comparisons(metrics, design)
    return {} if tests.empty else {NAME: tests, BOARD: leaderboard(metrics, design, tests)}


def comparisons(metrics: pd.DataFrame, design: Design) -> pd.DataFrame:
    """All pairs of estimators over the instances of each kind of task, COLUMNS; empty without two instances of one.

    One Holm family is one metric on one kind of task, without pairs whose learning rates make them incomparable. Values
    are those of test prompts at the last evaluation; n_seeds counts the pairs of seeds of all instances. estimator_a
    has the larger mean over instances.

    Raises        ValueError as `tables.comparisons` does.
    """
    rows: list[dict[str, Any]] = []
    for task, labels in _kinds(design).items():
        unfair = provenance.incomparable(metrics[metrics["task"].isin(labels)])
        for metric in METRICS:
            rows += _family(task, metric, _values(metrics, metric, labels), unfair)
    return pd.DataFrame(rows, columns=COLUMNS)


def leaderboard(metrics: pd.DataFrame, design: Design, tests: pd.DataFrame) -> pd.DataFrame:
    """One row per estimator and kind of task, BOARD_COLUMNS, best first; `tests` are the comparisons of these metrics.

    mean, ci_low, ci_high    of `metric`, with equal weight for each instance, and Student's interval over instances
    n_first                  instances in which its mean is the highest
    rank                     among those measured in all instances whose learning rates make them comparable; empty for
                             the others
    """
    boards = []
    for task, labels in _kinds(design).items():
        values = {name: _values(metrics, name, labels) for name in (*METRICS, "kl")}
        main = next((name for name in METRICS if values[name]), None)
        if main is not None:
            means = {name: _means(one) for name, one in values.items()}
            pooled = tests[(tests["task"] == task) & (tests["metric"] == main)]
            fair = provenance.compared(metrics[metrics["task"].isin(labels)], means[main].columns)
            boards.append(_board(task, main, means, values[main], pooled, fair))
    return pd.concat(boards, ignore_index=True) if boards else pd.DataFrame(columns=BOARD_COLUMNS)


def _kinds(design: Design) -> dict[str, list[str]]:
    return {task: labels for task, labels in families(design, [INSTANCE]).items() if len(labels) > 1}


def _values(metrics: pd.DataFrame, metric: str, labels: list[str]) -> _Values:
    """The values of test prompts by instance; an instance with several settings, of runs ranked apart, is left out."""
    mine = metrics[metrics["task"].isin(labels)]
    settings = mine.groupby("task")["setting"].nunique()
    mine = mine[mine["task"].isin(settings.index[settings == 1])]
    return {task: values for (task, _), values in tables.per_seed(mine, metric, "test") if not values.empty}


def _means(values: _Values) -> pd.DataFrame:
    """The mean over seeds, (instance, estimator)."""
    return pd.DataFrame({label: frame.mean() for label, frame in values.items()}).T


def _family(task: str, metric: str, values: _Values, unfair: Mapping[frozenset[str], str]) -> list[dict[str, Any]]:
    """The rows of one Holm family."""
    if len(values) < 2:
        return []
    overall = _means(values).mean()
    ranked = sorted(overall.index, key=lambda name: (-overall[name], name))
    rows: list[dict[str, Any]] = []
    for a, b in combinations(ranked, 2):
        both = [frame for frame in values.values() if a in frame and b in frame]
        found = vars(nested.compare([(frame[a] - frame[b]).to_numpy() for frame in both]))
        names = {"task": task, "metric": metric, "estimator_a": a, "estimator_b": b}
        rows.append(provenance.unless_unfair(names | found | {"n_seeds": found["n_pairs"]}, unfair))
    for row, p_holm in zip(rows, statistics.holm([row["p_value"] for row in rows]), strict=True):
        row["p_holm"] = float(p_holm)
        # Student's t has no smallest p, so any test could have been significant.
        decided = statistics.verdict(row["p_holm"], 0.0, row["mean_difference"], statistics.ALPHA)
        row["verdict"] = row.get("verdict", decided)
    return rows


def _board(
    task: str,
    metric: str,
    by_metric: dict[str, pd.DataFrame],
    values: _Values,
    tests: pd.DataFrame,
    fair: Sequence[str],
) -> pd.DataFrame:
    means = by_metric[metric]
    complete = [name for name in means.columns[means.notna().all()] if name in fair]
    order = sorted(means.columns, key=lambda name: (name not in complete, -means[name].mean(), name))
    p_of = {
        frozenset((a, b)): p
        for a, b, p in zip(tests["estimator_a"], tests["estimator_b"], tests["p_holm"], strict=True)
    }
    first = means[list(fair)].idxmax(axis=1)
    rows = []
    for place, name in enumerate(order, 1):
        mine = means[name].dropna().to_numpy()
        mean, low, high = nested.mean_over(mine)
        others = {f"{other}_mean": by_metric[other].get(name, pd.Series(dtype=float)).mean() for other in _BESIDE}
        rows.append(
            {
                "task": task,
                "metric": metric,
                "rank": place if name in complete else pd.NA,
                "estimator": name,
                "n_instances": mine.size,
                "n_seeds": sum(int(frame[name].notna().sum()) for frame in values.values() if name in frame),
                "mean": mean,
                "ci_low": low,
                "ci_high": high,
                "n_first": int(np.count_nonzero(first == name)),
                "p_vs_best_holm": p_of.get(frozenset((order[0], name)), math.nan),
            }
            | others
        )
    return pd.DataFrame(rows, columns=BOARD_COLUMNS).astype({"rank": "Int64"})
