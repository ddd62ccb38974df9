"""`gradebench run --tune`: estimators without a rate tuned for this run are tuned first, as the others were."""

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

FOLDER = "tuning"  # in the run's folder
RATES, SEEDS = 6, "1000-1004"  # of the protocol where none is recorded


def newcomers(run: Run) -> dict[str, list[str]]:
    """By label of each task, the specs of the estimators whose rate isn't tuned for it at these steps; none that
    borrows, as it was asked to."""
    found: dict[str, list[str]] = {}
    for plan, cell in run.cells:
        mine, spec = found.setdefault(cell.task, []), cell.estimator_spec
        if spec in mine or registry.resolve("estimators", spec).rate_like:
            continue
        if run.rate(plan, cell).kind != TUNED:
            mine.append(spec)
    return {label: specs for label, specs in found.items() if specs}


def protocol(task: Task, names: Sequence[str]) -> tuple[list[float], str]:
    """Rates and seeds by which the rates that the task records were tuned; else RATES around the task's own, and SEEDS."""
    for name in names:
        recorded = task.tuned(name) or {}
        if "grid" in recorded and "seeds" in recorded:
            return [float(rate) for rate in recorded["grid"]], str(recorded["seeds"])
    return rate_curve.even_rates(task.learning_rate / 10, task.learning_rate * 10, RATES), SEEDS


def tune_newcomers(request: runner.Request, progress: Progress, dry: bool = False) -> runner.Request:
    """The request with the rates of its newcomers, found by trials in the run's folder; as it is where there are none,
    or `dry`.

    Raises        InputError beside rates that are given, and where a seed of the comparison would be tuned on.
    """
    if request.learning_rate is not None or request.tuned:
        raise InputError("--tune finds learning rates, and they are given; leave out --learning-rate and --tuned")
    run = runner.prepare(request, progress)
    found = newcomers(run)
    if not found:
        progress.note("--tune: every rate is tuned for this already")
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
    """The trials of one task's newcomers. Interrupted, it ends with what is done; a second start goes on."""
    spec = next(cell.task_spec for _, cell in run.cells if cell.task == label)
    out = run.out / FOLDER / records.cell_id(label, "trials", 0)
    facts: dict[str, Any] = {"estimators": list(specs), "tasks": [spec], "seeds": seeds, "out": str(out)}
    facts |= {"steps": _steps(run, label), "control": False, "save_policies": False, "tune": False}
    found = tuning.tune(replace(request, **facts), lambda task: rates, progress)
    if found.outcome.interrupted:
        progress.note(f"interrupted while tuning; the same command with --out {run.out} goes on")
        raise KeyboardInterrupt
    return found


def folder_of(request: runner.Request) -> Path:
    """The run's folder, which its tuning is in: chosen before either begins."""
    tasks, _ = runner.expand("tasks", request.tasks)
    return Path(request.out) if request.out else runner.default_folder(tasks)
