"""`gradebench run --tune`: first tunes the estimators that have no tuned learning rate, with the others' protocol."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import rate_curve, tables
from gradebench.analysis.provenance import TUNED
from gradebench.core.errors import InputError
from gradebench.core.seeds import parse_seeds
from gradebench.core.shown import counted
from gradebench.core.task import Task
from gradebench.experiment import runner, tuning
from gradebench.experiment.cells import Progress, Run
from gradebench.plugins import registry
from gradebench.storage import digests, records
from gradebench.storage.tuned import CURVES

FOLDER = "tuning"  # the tuning's folder in the run's
RATES, SEEDS = 6, "1000-1004"  # of the protocol if the task records none


def newcomers(run: Run) -> dict[str, list[str]]:
    """For each task's label, the specs of the estimators without a rate tuned for it at this number of steps, except those
    with `rate-like`."""
    found: dict[str, list[str]] = {}
    for plan, cell in run.cells:
        mine, spec = found.setdefault(cell.task, []), cell.estimator_spec
        if spec in mine or registry.resolve("estimators", spec).rate_like:
            continue
        if run.rate(plan, cell).kind != TUNED:
            mine.append(spec)
    return {label: specs for label, specs in found.items() if specs}


def protocol(task: Task, names: Sequence[str]) -> tuple[list[float], str]:
    """The rates and seeds with which the task's recorded rates were tuned; else RATES rates around its default, and SEEDS."""
    for name in names:
        recorded = task.tuned(name) or {}
        if "grid" in recorded and "seeds" in recorded:
            return [float(rate) for rate in recorded["grid"]], str(recorded["seeds"])
    return rate_curve.even_rates(task.learning_rate / 10, task.learning_rate * 10, RATES), SEEDS


def tune_newcomers(request: runner.Request, progress: Progress, dry: bool = False) -> runner.Request:
    """The request with tuned rates for its newcomers, by trials in the run's folder; unchanged if there are none, or if
    `dry`.

    Raises        InputError if learning rates are given, or if a seed of the comparison would be used for tuning.
    """
    if request.learning_rate is not None or request.tuned:
        raise InputError(
            "--tune would find learning rates that are given already; leave out --learning-rate and --tuned"
        )
    run = runner.prepare(request, progress)
    found = newcomers(run)
    if not found:
        progress.note("--tune: all estimators have tuned rates already")
        return request
    names = list(registry.entries("estimators"))
    protocols = {label: protocol(run.tasks[label], names) for label in found}
    compared = {cell.seed for _, cell in run.cells}
    for label, (rates, seeds) in protocols.items():
        trials = f"{counted(len(rates), 'rate')} x {counted(len(parse_seeds(seeds)), 'seed')}"
        progress.note(
            f"--tune: {', '.join(found[label])} on {label}, by {trials} of {counted(_steps(run, label), 'step')} each"
        )
        if both := sorted(compared & set(parse_seeds(seeds))):
            raise InputError(f"--tune: seed {both[0]} is for tuning; compare on other seeds than {seeds}")
    if dry:
        return request
    parts = [_tuned(request, run, label, specs, *protocols[label], progress) for label, specs in found.items()]
    folder = run.out / FOLDER
    seeds_used = {tuple(part.choices["protocol"]["seeds"]) for part in parts}
    if len(seeds_used) > 1:
        raise InputError("--tune: these tasks were tuned on different seeds; run them one at a time")
    merged = dict(parts[0].choices)
    merged["tasks"] = {label: task for part in parts for label, task in part.choices["tasks"].items()}
    digests.unseal(folder)
    records.write_json(folder / "tuned.json", merged)
    digests.seal(folder, records.READ_AGAIN)
    tables.write_csv(pd.concat([part.curves for part in parts], ignore_index=True), folder / CURVES)
    return replace(request, tuned=str(folder / "tuned.json"), out=str(run.out))


def _steps(run: Run, label: str) -> int:
    return next(plan.steps for plan, cell in run.cells if cell.task == label)


def _tuned(
    request: runner.Request,
    run: Run,
    label: str,
    specs: Sequence[str],
    rates: Sequence[float],
    seeds: str,
    progress: Progress,
) -> tuning.Tuned:
    """Tune one task's newcomers. If it is interrupted, finished trials are kept, and a second start resumes."""
    spec = next(cell.task_spec for _, cell in run.cells if cell.task == label)
    out = run.out / FOLDER / records.cell_id(label, "trials", 0)
    facts: dict[str, Any] = {"estimators": list(specs), "tasks": [spec], "seeds": seeds, "out": str(out)}
    facts |= {"steps": _steps(run, label), "control": False, "save_policies": False, "tune": False}
    facts |= {"evaluate_every": None}  # a rate is chosen for every budget that is evaluated
    found = tuning.tune(replace(request, **facts), lambda task: rates, progress)
    if found.outcome.interrupted:
        progress.note(f"interrupted while tuning; the same command with --out {run.out} goes on")
        raise KeyboardInterrupt
    return found


def folder_of(request: runner.Request) -> Path:
    """The run's folder, which also holds its tuning, so it is chosen before either starts."""
    tasks, _ = runner.expand("tasks", request.tasks)
    return Path(request.out) if request.out else runner.default_folder(tasks)
