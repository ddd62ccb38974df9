"""Several tasks at once: one score that tasks share, aggregated so that no single task or seed decides."""

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from gradebench import statistics, tables

TASKS_FOR_RANKS = 10  # fewer say too little about ranks for Friedman's test and Nemenyi's critical difference
RESAMPLES = 2_000
LEVELS = (0.5, 0.9)  # of the performance profile, as shares of the best estimator's gain
COLUMNS = ["estimator", "tasks", "runs", "iqm", "ci_low", "ci_high", "above_0.5", "above_0.9", "mean_rank"]


def scores(metrics: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """For each task and setting its scores (seed x estimator): the gain in test reward over that of the best estimator.

    With          (reward - start) / (mean reward of the best - start), start the mean test reward before training
    A task on which the best one gains nothing gives no scores.
    """
    first = metrics[(metrics["phase"] == "evaluation") & (metrics["step"] == 0) & (metrics["split"] == "test")]
    starts = first[first["metric"] == "reward"].groupby(["task", "setting"])["value"].mean().to_dict()
    found = {}
    for (task, setting), rewards in tables.per_seed(metrics, "reward", "test"):
        start = starts.get((task, setting), math.nan)
        best = rewards.mean().max() - start
        if best > 0:
            found[f"{task} {setting}"] = (rewards - start) / best
    return found


def across_tasks(metrics: pd.DataFrame) -> pd.DataFrame:
    """One row an estimator that has scores on all tasks, COLUMNS, the highest first; empty with fewer than two tasks.

    iqm, ci_low, ci_high    interquartile mean over all tasks and seeds, and its 95 % percentile interval by a bootstrap
                            of the seeds of each task
    above_0.5, above_0.9    the performance profile there: the share of runs with a score above
    mean_rank               over tasks, by mean score

    Source        Agarwal et al. 2021 (NeurIPS), sections 4.1 to 4.3.
    """
    by_task = scores(metrics)
    if len(by_task) < 2:
        return pd.DataFrame(columns=COLUMNS)
    everywhere = set.intersection(*(set(frame.columns) for frame in by_task.values()))
    ranks = pd.DataFrame(
        {task: frame[sorted(everywhere)].mean().rank(ascending=False) for task, frame in by_task.items()}
    )
    rows: list[dict[str, Any]] = []
    for name in sorted(everywhere):
        runs = [frame[name].dropna().to_numpy() for frame in by_task.values()]
        pooled = np.concatenate(runs)
        generator = tables.named_generator("across", name)
        resampled = np.concatenate(
            [values[generator.integers(0, len(values), (RESAMPLES, len(values)))] for values in runs], axis=1
        )
        low, high = np.quantile(scipy.stats.trim_mean(resampled, 0.25, axis=1), [0.025, 0.975])
        shares = [float((pooled > level).mean()) for level in LEVELS]
        iqm = float(scipy.stats.trim_mean(pooled, 0.25))
        row = (name, len(runs), len(pooled), iqm, low, high, *shares, ranks.mean(axis=1)[name])
        rows.append(dict(zip(COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=COLUMNS).sort_values(
        ["iqm", "estimator"], ascending=[False, True], ignore_index=True
    )


def critical_difference(metrics: pd.DataFrame) -> tuple[float, float, float] | str:
    """Friedman's p that all estimators rank alike, Nemenyi's critical difference of mean ranks, and how many differ by it.

    Or, in words, why there is none: it needs ten tasks, and three estimators on all of them.

    Source        Demsar 2006, sections 3.2.2 and 3.2.4.
    """
    by_task = scores(metrics)
    if len(by_task) < TASKS_FOR_RANKS:
        return f"{len(by_task)} tasks are too few to compare ranks (Friedman, Nemenyi): {TASKS_FOR_RANKS} are needed"
    names = sorted(set.intersection(*(set(frame.columns) for frame in by_task.values())))
    if len(names) < 3:
        return f"{len(names)} estimators with scores on all tasks are too few to compare ranks: 3 are needed"
    means = np.array([frame[names].mean().to_numpy() for frame in by_task.values()])  # (tasks, estimators)
    k = len(names)
    p = float(scipy.stats.friedmanchisquare(*means.T).pvalue)
    quantile = float(scipy.stats.studentized_range.isf(statistics.ALPHA, k, math.inf)) / math.sqrt(2)
    difference = quantile * math.sqrt(k * (k + 1) / (6 * len(means)))
    ranks = scipy.stats.rankdata(-means, axis=1).mean(axis=0)
    apart = sum(abs(a - b) > difference for a, b in combinations(ranks, 2)) if p < statistics.ALPHA else 0
    return p, difference, apart
