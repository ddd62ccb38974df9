"""Equal tuning: the same learning rates tried for every estimator, on seeds that the comparison doesn't use."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from gradebench import disk, records, runner, tables
from gradebench.task import Task

_GOLDEN = (math.sqrt(5) - 1) / 2
_AT = " @ "  # between the estimator and the rate in the names of a tuning's cells
CURVES_COLUMNS = [
    "task", "setting", "estimator", "learning_rate", "objective", "standard_error", "seeds", "status", "chosen",
]  # fmt: skip


@dataclass
class Tuned:
    """What a tuning found: its curves, CURVES_COLUMNS, and what `run --tuned` reads."""

    curves: pd.DataFrame
    choices: dict[str, Any]
    run: runner.Run
    outcome: runner.Outcome


def quasi_random_rates(low: float, high: float, trials: int) -> list[float]:
    """Learning rates between low and high, even in the logarithm: the first few of them as well as all.

    Source        the additive recurrence of the golden ratio, the one-dimensional sequence of lowest discrepancy.
    """
    shares = [(0.5 + i * _GOLDEN) % 1 for i in range(trials)]
    return [float(f"{low * (high / low) ** share:.3g}") for share in shares]


def tune(request: runner.Request, rates_for: Callable[[Task], Sequence[float]], progress: runner.Progress) -> Tuned:
    """Train every estimator at the same rates and seeds, and choose the rate with the highest mean objective.

    The objective is the task's own, reward - beta KL on validation prompts, at the last step. Cells that an earlier
    tuning in the folder finished are kept; what is done when it is interrupted is written.
    """
    run = runner.prepare(request, progress)
    rates = {label: sorted(rates_for(task)) for label, task in run.tasks.items()}
    for label, task in run.tasks.items():
        tried = ", ".join(f"{rate:g}" for rate in rates[label])
        progress.note(f"{label} [{task.setting}]: learning rates {tried} for every estimator, on seeds {request.seeds}")
    run.cells = [
        (
            replace(plan, learning_rate=rate, checkpoints=0, evaluations=1),
            replace(cell, estimator=f"{cell.estimator}{_AT}{rate:g}"),
        )
        for plan, cell in run.cells
        for rate in rates[cell.task]
    ]
    steps = {cell.task: plan.steps for plan, cell in run.cells}
    with disk.held(run.out):
        outcome = runner.measure(request, run, progress)
    betas = {label: float(task.options.get("kl", 0.0)) for label, task in run.tasks.items()}
    rows = trials_of(outcome.metrics, steps, betas)
    curves = curves_of(rows)
    choices = {
        "protocol": {
            "criterion": "reward - beta * KL on validation prompts at the last step, mean over seeds",
            "seeds": sorted({cell.seed for _, cell in run.cells}),
        },
        "tasks": {
            label: {
                "setting": task.setting,
                "steps": steps[label],
                "beta": betas[label],
                "rates": rates[label],
                "estimators": _chosen(curves[curves["task"] == label], rates[label]),
            }
            for label, task in run.tasks.items()
        },
    }
    tables.write_csv(rows, run.out / "trials.csv")
    tables.write_csv(curves, run.out / "curves.csv")
    records.write_json(run.out / "tuned.json", choices)
    return Tuned(curves, choices, run, outcome)


def trials_of(metrics: pd.DataFrame, steps: Mapping[str, int], betas: Mapping[str, float]) -> pd.DataFrame:
    """One row a trial: the cell's status, and its validation reward, KL and objective at the last step."""
    cells = metrics.groupby(["task", "setting", "estimator", "seed"], sort=False)["status"].first().reset_index()
    last = metrics[(metrics["split"] == "validation") & (metrics["step"] == metrics["task"].map(steps))]
    index = ["task", "setting", "estimator", "seed"]
    wide = last.pivot_table(index=index, columns="metric", values="value").reindex(columns=["reward", "kl"])
    rows = cells.join(wide, on=index)
    rows["objective"] = rows["reward"] - rows["task"].map(betas) * rows["kl"].fillna(0.0)
    rows[["estimator", "learning_rate"]] = rows["estimator"].str.rsplit(_AT, n=1, expand=True)
    rows["learning_rate"] = rows["learning_rate"].astype(float)
    order = ["task", "setting", "estimator", "learning_rate", "seed"]
    return rows[[*order, "status", "reward", "kl", "objective"]].sort_values(order, ignore_index=True)


def curves_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean objective by learning rate. A rate at which a seed failed or diverged can't be chosen.

    Ties are broken by the smaller rate. Estimators that were skipped have no curve.
    """
    points = []
    ran = rows[rows["status"] != "skipped"]
    for place, seeds in ran.groupby(["task", "setting", "estimator", "learning_rate"], sort=True):
        objective = seeds["objective"]
        statuses = sorted(set(seeds["status"]) - {"ok"})
        whole = not statuses and bool(objective.notna().all())
        mean, error = (objective.mean(), objective.sem()) if whole else (math.nan, math.nan)
        points.append((*place, mean, error, len(seeds), "+".join(statuses) or "ok", False))
    curves = pd.DataFrame(points, columns=CURVES_COLUMNS)
    found = curves[curves["objective"].notna()]
    if not found.empty:
        curves.loc[found.groupby(["task", "estimator"])["objective"].idxmax(), "chosen"] = True
    return curves


def _chosen(curves: pd.DataFrame, rates: Sequence[float]) -> dict[str, Any]:
    """By estimator: the rate, its objective, and whether it is the least or largest, so that a better one may lie beyond."""
    return {
        str(row["estimator"]): {
            "learning_rate": row["learning_rate"],
            "objective": row["objective"],
            "at_the_end": row["learning_rate"] in (min(rates), max(rates)),
        }
        for row in curves[curves["chosen"]].to_dict("records")
    }
