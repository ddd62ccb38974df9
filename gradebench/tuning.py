"""Equal tuning: as many trials for every estimator, at the same learning rates, on seeds that no comparison uses."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from gradebench import disk, options, records, registry, runner, tables
from gradebench.errors import InputError
from gradebench.plan import Cell
from gradebench.task import Task
from gradebench.tuned import CURVES, CURVES_COLUMNS

_AT = " @ "  # between the estimator and the trial in the names of a tuning's cells


@dataclass
class Tuned:
    """What a tuning found: its curves, CURVES_COLUMNS, and what `run --tuned` reads."""

    curves: pd.DataFrame
    choices: dict[str, Any]
    run: runner.Run
    outcome: runner.Outcome


@dataclass(frozen=True)
class Varied:
    """An option of an estimator that is tuned along with the learning rate: two ends, or choices."""

    name: str
    low: float | int = 0
    high: float | int = 0
    choices: tuple[str, ...] = ()

    def at(self, share: float) -> str:
        """What it is that far, 0 to 1, along its range; even in the logarithm where both ends are above 0."""
        if self.choices:
            return self.choices[int(share * len(self.choices))]
        whole = isinstance(self.low, int)
        low, high = (self.low - 0.5, self.high + 0.5) if whole else (self.low, self.high)
        value = low * (high / low) ** share if low > 0 else low + (high - low) * share
        return str(min(max(round(value), self.low), self.high)) if whole else f"{value:.3g}"


def parse_varied(text: str) -> tuple[str, list[Varied]]:
    """ "gumbel-rao:tau=0.1..2,k=2..64" or "ppo:whiten=true|false": the estimator's label, and what varies of it.

    Raises        InputError for another form, and for ends and choices that the estimator's options don't take.
    """
    spec = options.parse_spec(text)
    if not spec.options:
        raise InputError(f"--vary {text}: it names no option; write NAME:option=LOW..HIGH or NAME:option=a|b|c")
    varied = []
    for name, value in spec.options.items():
        given = value.split("..") if ".." in value else value.split("|")
        found = [registry.resolve("estimators", f"{spec.target}:{name}={one}").params[name] for one in given]
        if len(set(found)) < max(2, len(found)):
            raise InputError(f"--vary {text}: {name}={value} has nothing to choose from")
        if "|" in value or ".." not in value:
            varied.append(Varied(name, choices=tuple(given)))
            continue
        low, high = (found[0], found[-1])
        numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in found)
        if len(found) != 2 or not numbers or low >= high:
            raise InputError(f"--vary {text}: {name}={value} is no LOW..HIGH of numbers")
        varied.append(Varied(name, low, high))
    return registry.resolve("estimators", spec.target).label, varied


def quasi_random(trials: int, dimensions: int) -> np.ndarray:
    """Points (trials, dimensions) that fill the unit cube evenly: the first few of them as well as all.

    Each column is the same, however many there are: learning rates, the first, don't depend on what else varies.

    Source        Halton 1960, without its first point, the origin.
    """
    return np.asarray(scipy.stats.qmc.Halton(dimensions, scramble=False).random(trials + 1)[1:])


def quasi_random_rates(low: float, high: float, trials: int) -> list[float]:
    """Learning rates between low and high, even in the logarithm."""
    return [float(f"{low * (high / low) ** share:.3g}") for share in quasi_random(trials, 1)[:, 0]]


def tune(
    request: runner.Request,
    rates_for: Callable[[Task], Sequence[float]],
    progress: runner.Progress,
    vary: Mapping[str, Sequence[Varied]] | None = None,
) -> Tuned:
    """Train every estimator at the same rates and seeds, and choose the trial with the highest mean objective.

    `vary` names options, by estimator, that go along: as many trials, each at its rate and at a quasi-random point of
    the options. The objective is the task's own, reward - beta KL on validation prompts, at the last step. Cells that
    an earlier tuning in the folder finished are kept; what is done when it is interrupted is written.

    Raises        InputError for what varies of an estimator that isn't tuned.
    """
    vary = vary or {}
    run = runner.prepare(request, progress)
    if unknown := set(vary) - {cell.estimator for _, cell in run.cells}:
        raise InputError(f"--vary {min(unknown)}: it isn't among the estimators that are tuned")
    rates = {label: list(rates_for(task)) for label, task in run.tasks.items()}
    for label, task in run.tasks.items():
        tried = ", ".join(f"{rate:g}" for rate in sorted(rates[label]))
        progress.note(f"{label} [{task.setting}]: learning rates {tried} for every estimator, on seeds {request.seeds}")
    run.cells = [
        (replace(plan, learning_rate=rate, checkpoints=0), trial)
        for plan, cell in run.cells
        for rate, trial in _trials(cell, rates[cell.task], vary.get(cell.estimator, ()))
    ]
    steps = {cell.task: plan.steps for plan, cell in run.cells}
    with disk.held(run.out):
        outcome = runner.measure(request, run, progress)
    betas = {label: float(task.options.get("kl", 0.0)) for label, task in run.tasks.items()}
    # Trials of earlier commands in the folder count; tasks of theirs that this one doesn't tune have tables of their own.
    rows = trials_of(outcome.metrics[outcome.metrics["task"].isin(list(steps))], steps, betas)
    rates = {label: sorted(set(rows.loc[rows["task"] == label, "learning_rate"])) for label in rates}
    curves = curves_of(rows)
    choices = {
        "protocol": {
            "criterion": "reward - beta * KL on validation prompts at the last step, mean over seeds",
            "seeds": sorted(map(int, rows["seed"].unique())),
        },
        "tasks": {
            label: {
                "setting": task.setting,
                "steps": steps[label],
                "beta": betas[label],
                "rates": sorted(rates[label]),
                "estimators": _chosen(curves[curves["task"] == label], rates[label]),
            }
            for label, task in run.tasks.items()
        },
    }
    tables.write_csv(rows, run.out / "trials.csv")
    tables.write_csv(curves, run.out / CURVES)
    records.write_json(run.out / "tuned.json", choices)
    return Tuned(curves, choices, run, outcome)


def _trials(cell: Cell, rates: Sequence[float], varied: Sequence[Varied]) -> list[tuple[float, Cell]]:
    """The cell at each rate, and at a point of what varies, named by both."""
    if not varied:
        return [(rate, replace(cell, estimator=f"{cell.estimator}{_AT}{rate:g}")) for rate in rates]
    found = []
    for rate, (_, *shares) in zip(rates, quasi_random(len(rates), 1 + len(varied)), strict=True):
        values = {one.name: one.at(float(share)) for one, share in zip(varied, shares, strict=True)}
        resolved = registry.resolve("estimators", options.with_values(cell.estimator_spec, values))
        said = ",".join(f"{name}={value}" for name, value in values.items())
        trial = replace(
            cell,
            estimator=f"{cell.estimator}{_AT}{rate:g} {said}",
            estimator_spec=resolved.spec,
            params=json.dumps(resolved.params, sort_keys=True),
        )
        found.append((rate, trial))
    return found


def trials_of(metrics: pd.DataFrame, steps: Mapping[str, int], betas: Mapping[str, float]) -> pd.DataFrame:
    """One row a trial: the cell's status, and its validation reward, KL and objective at the last step."""
    cells = metrics.groupby(["task", "setting", "estimator", "seed"], sort=False)["status"].first().reset_index()
    last = metrics[(metrics["split"] == "validation") & (metrics["step"] == metrics["task"].map(steps))]
    index = ["task", "setting", "estimator", "seed"]
    wide = last.pivot_table(index=index, columns="metric", values="value").reindex(columns=["reward", "kl"])
    rows = cells.join(wide, on=index)
    rows["objective"] = rows["reward"] - rows["task"].map(betas) * rows["kl"].fillna(0.0)
    rows[["estimator", "trial"]] = rows["estimator"].str.rsplit(_AT, n=1, expand=True)
    rows[["learning_rate", "options"]] = rows["trial"].str.partition(" ")[[0, 2]]
    rows["learning_rate"] = rows["learning_rate"].astype(float)
    order = ["task", "setting", "estimator", "learning_rate", "options", "seed"]
    return rows[[*order, "status", "reward", "kl", "objective"]].sort_values(order, ignore_index=True)


def curves_of(rows: pd.DataFrame) -> pd.DataFrame:
    """The mean objective by trial. One in which a seed failed or diverged can't be chosen.

    Ties are broken by the smaller rate. Estimators that were skipped have no curve.
    """
    points = []
    ran = rows[rows["status"] != "skipped"]
    for place, seeds in ran.groupby(["task", "setting", "estimator", "learning_rate", "options"], sort=True):
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
    """By estimator: the rate, the options that varied, the objective, and whether the rate is the least or largest,
    so that a better one may lie beyond."""
    return {
        str(row["estimator"]): {
            "learning_rate": row["learning_rate"],
            "options": dict(item.split("=", 1) for item in row["options"].split(",") if item),
            "objective": row["objective"],
            "at_the_end": row["learning_rate"] in (min(rates), max(rates)),
        }
        for row in curves[curves["chosen"]].to_dict("records")
    }
