"""Several tasks at once: a score on a scale common to all tasks, aggregated robustly over tasks and seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from gradebench.analysis import provenance, statistics, tables
from gradebench.analysis.groups import places_of
from gradebench.analysis.once import once
from gradebench.core.shown import counted

TASKS_FOR_RANKS = 10  # fewer are too few for Friedman's test and Nemenyi's critical difference
LEVELS = (0.5, 0.9)  # of the performance profile in the table, as shares of the best estimator's gain
PROFILE = np.linspace(0.0, 1.2, 25)  # and in the figure
COLUMNS = ["estimator", "tasks", "runs", "iqm", "ci_low", "ci_high", "above_0.5", "above_0.9", "mean_rank"]


@dataclass(frozen=True)
class Ranks:
    """The estimators over ten tasks or more: Friedman's p, Nemenyi's critical difference, mean ranks, the best first."""

    p: float
    critical_difference: float
    mean_ranks: dict[str, float]

    @property
    def apart(self) -> int:
        """How many pairs differ significantly: none if Friedman's test isn't significant."""
        pairs = combinations(self.mean_ranks.values(), 2)
        return sum(abs(a - b) > self.critical_difference for a, b in pairs) if self.p < statistics.ALPHA else 0


def scores(metrics: pd.DataFrame, by: str | None = None) -> dict[str, pd.DataFrame]:
    """For each task and setting its scores (seed x estimator): the gain over that of the best estimator, in the metric
    that ranks there, on test prompts.

    With          (value - start) / (mean value of the best - start), start the mean before training
    There are no scores for a task on which the best estimator gains nothing, or for an estimator whose learning rate
    makes it incomparable with most others.
    """
    return once(lambda: _scores(metrics, by), metrics, "scores", by)


def _scores(metrics: pd.DataFrame, by: str | None) -> dict[str, pd.DataFrame]:
    first = metrics[(metrics["phase"] == "evaluation") & (metrics["step"] == 0) & (metrics["split"] == "test")]
    starts = first.groupby(["task", "setting", "metric"])["value"].mean().to_dict()
    found = {}
    by_place = places_of(metrics)
    for (task, setting), metric, values in tables.ranked_per_seed(metrics, by):
        start = starts.get((task, setting, metric), math.nan)
        rates = provenance.ran(by_place[task, setting])
        values = values[provenance.together(rates[name] for name in values.columns)]
        best = values.mean().max() - start
        if best > 0:
            found[f"{task} {setting}"] = (values - start) / best
    return found


def _everywhere(by_task: dict[str, pd.DataFrame]) -> list[str]:
    """The estimators that have scores on all tasks."""
    return sorted(set.intersection(*(set(frame.columns) for frame in by_task.values()))) if by_task else []


def across_tasks(metrics: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """One row per estimator with scores on all tasks, COLUMNS, the highest first; empty with fewer than two tasks.

    iqm, ci_low, ci_high    interquartile mean over all tasks and seeds, and its 95 % interval by a bootstrap of the
                            seeds of each task
    above_0.5, above_0.9    the performance profile there: the share of runs with a score above
    mean_rank               over tasks, by mean score

    Source        Agarwal et al. 2021 (NeurIPS), sections 4.1 to 4.3.
    """
    by_task = scores(metrics, by)
    if len(by_task) < 2:
        return pd.DataFrame(columns=COLUMNS)
    everywhere = _everywhere(by_task)
    ranks = pd.DataFrame({task: frame[everywhere].mean().rank(ascending=False) for task, frame in by_task.items()})
    rows: list[dict[str, Any]] = []
    for name in everywhere:
        runs = [frame[name].dropna().to_numpy() for frame in by_task.values()]
        interval = statistics.interquartile_interval(runs, tables.named_generator("across", name))
        shares = _profile(runs, LEVELS)
        row = (name, len(runs), sum(map(len, runs)), statistics.interquartile_mean(runs), *interval, *shares)
        rows.append(dict(zip(COLUMNS, (*row, ranks.mean(axis=1)[name]), strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        ["iqm", "estimator"], ascending=[False, True], ignore_index=True
    )


def _profile(runs: Sequence[np.ndarray], levels: Sequence[float] | np.ndarray) -> list[float]:
    """For each level the share of runs above it, with equal weight for each task."""
    return [float(np.mean([(values > level).mean() for values in runs])) for level in levels]


def profiles(metrics: pd.DataFrame, by: str | None = None) -> pd.DataFrame:
    """The performance profile of each estimator that has scores on all tasks: estimator, score, and the share above."""
    by_task = scores(metrics, by)
    rows = [
        (name, float(level), share)
        for name in _everywhere(by_task)
        for level, share in zip(
            PROFILE, _profile([frame[name].dropna().to_numpy() for frame in by_task.values()], PROFILE), strict=True
        )
    ]
    return pd.DataFrame(rows, columns=["estimator", "score", "share_above"])


def ranks(metrics: pd.DataFrame, by: str | None = None) -> Ranks | str:
    """The ranks over tasks, or a sentence why there are none: they need ten tasks and three estimators on all."""
    by_task = scores(metrics, by)
    if len(by_task) < TASKS_FOR_RANKS:
        return f"{counted(len(by_task), 'task is', 'tasks are')} too few to compare ranks (Friedman, Nemenyi): {TASKS_FOR_RANKS} are needed"
    names = _everywhere(by_task)
    if len(names) < 3:
        return f"{counted(len(names), 'estimator has', 'estimators have')} scores on all tasks, too few to compare ranks: 3 are needed"
    means = np.array([frame[names].mean().to_numpy() for frame in by_task.values()])  # (tasks, estimators)
    p, difference, mean_ranks = statistics.nemenyi(means)
    found = dict(sorted(zip(names, mean_ranks.tolist(), strict=True), key=lambda item: item[1]))
    return Ranks(p, difference, found)
