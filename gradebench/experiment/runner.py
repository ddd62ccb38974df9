"""Runs: prepares one, runs its cells, and writes its tables."""

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import curves, frontier, instances, runs, tables
from gradebench.analysis.once import made_once
from gradebench.core.errors import InputError
from gradebench.core.shown import counted
from gradebench.experiment import earlier, repeat
from gradebench.experiment.cells import (
    Failures,
    Progress,
    Run,
    carry_out,
    drop_damaged,
    gather,
    pending,
    training_steps,
    with_inputs,
)
from gradebench.experiment.launchers import launched
from gradebench.experiment.preparing import expand, missing, prepare
from gradebench.experiment.request import Outcome, Request, choose_device, default_folder, require_family
from gradebench.storage import digests, files, records
from gradebench.storage.tuned import read_choices

__all__ = [
    "Outcome",
    "Progress",
    "Request",
    "Run",
    "choose_device",
    "config_of",
    "default_folder",
    "execute",
    "expand",
    "measure",
    "missing",
    "prepare",
    "require_family",
]


def execute(request: Request, run: Run, progress: Progress) -> Outcome:
    """Run all cells that aren't finished yet, and write the tables, also when interrupted.

    Raises        InputError if another run is using the folder, or if nothing more can be written.
    """
    with files.exclusive_lock(run.out):
        outcome = measure(request, run, progress)
        written = {"metrics": outcome.metrics, "probes": outcome.probes, **_tables(request, run, outcome)}
        for name, frame in written.items():
            tables.write_csv(frame, run.out / f"{name}.csv")
        digests.seal(run.out, records.READ_AGAIN)
    return outcome


@made_once()
def _tables(request: Request, run: Run, outcome: Outcome) -> dict[str, pd.DataFrame]:
    """Those that are made of what was measured, by name; the outcome has them too."""
    written: dict[str, pd.DataFrame] = {}
    if request.train:  # without training there is no reward to rank by
        outcome.comparisons = tables.comparisons(outcome.metrics, request.against)
        outcome.leaderboard = tables.leaderboard(outcome.metrics, outcome.comparisons, request.by, request.against)
        written |= {"tests": outcome.comparisons, "leaderboard": outcome.leaderboard}
        written |= curves.written(outcome.metrics, request.by)
        varied = frontier.written(outcome.metrics, run.design) | instances.written(outcome.metrics, run.design)
        outcome.frontier = varied.get(frontier.NAME, outcome.frontier)
        outcome.areas = varied.get(frontier.TESTS, outcome.areas)
        outcome.instances = varied.get(instances.BOARD, outcome.instances)
        written |= varied
    controls = tables.controls(outcome.metrics)
    if request.control or len(controls):
        written["controls"] = outcome.controls = controls
    return written


def measure(request: Request, run: Run, progress: Progress) -> Outcome:
    """Run all cells that aren't finished yet, and gather their results, also when interrupted, without comparing them.

    Cells of earlier commands in the folder with the same facts stay in its tables. The caller must hold the folder's
    lock.

    Raises        InputError if finished cells would be discarded, unless --fresh was given.
    """
    before = _config_before(run.out, progress)
    stand_beside(request, run, before, progress)
    config = earlier.united(config_of(request, run), before, run.kept, run.interrupted)
    run.sources, run.design = config["rate_sources"], config["design"]
    digests.unseal(run.out)
    records.write_json(run.out / "config.json", config)
    records.write_json(run.out / "environment.json", records.environment(run.device))
    jobs, troubles, interrupted = pending(run, request.resume), Failures(), False
    reused = len(run.cells) - len(jobs)
    if damaged := drop_damaged(jobs):
        progress.note(
            f"{counted(len(damaged), 'file of unfinished cells is', 'files of unfinished cells are')} damaged, such as {damaged[0]}; made again"
        )
    progress.start(len(run.cells), reused)
    try:
        if jobs:
            with launched(request.launcher, request.jobs, run.device, request.timeout) as each:
                carry_out(run, jobs, each, request.resume, progress, troubles)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stop()
    if (known := with_inputs(run, config, progress.note)) != config:
        records.write_json(run.out / "config.json", known)
    metrics, probes, samples = gather(run, progress.note)
    tables.write_parquet(metrics, run.out / "metrics.parquet")
    if samples:
        records.write_lines(run.out / records.SAMPLES, samples)
    if len(steps := training_steps(run)):
        tables.write_parquet(steps, run.out / records.SERIES)
    own = frozenset(cell.id for _, cell in run.cells)
    return Outcome(metrics, probes, troubles.reasons, troubles.unprobed, interrupted, reused, own=own)


def config_of(request: Request, run: Run) -> dict[str, Any]:
    """The content of config.json: the request, and what it was resolved to."""
    plans = {cell.task: plan for plan, cell in run.cells}
    known = {(cell.task, cell.estimator): run.facts(plan, cell) for plan, cell in run.cells}
    rates: dict[str, dict[str, float]] = {}
    sources: dict[str, dict[str, str]] = {}
    for plan, cell in run.cells:
        rate = run.rate(plan, cell)
        rates.setdefault(cell.task, {})[cell.estimator] = rate.value
        sources.setdefault(cell.task, {})[cell.estimator] = rate.source
    return {
        "request": asdict(request),
        # `prepared` names folders in this machine's cache; the setting says what ran.
        "plans": {label: {k: v for k, v in asdict(plan).items() if k != "prepared"} for label, plan in plans.items()},
        "tasks": {label: {"setting": task.setting, **task.describe()} for label, task in run.tasks.items()},
        "learning_rates": rates,
        "rate_sources": sources,
        "tuned_options": _tuned_options(request),
        "seeds": sorted({cell.seed for _, cell in run.cells}),
        "cells": [cell.id for _, cell in run.cells],
        "left_out": run.left_out,
        "design": run.design,
        "facts": earlier.gathered((*named, mine) for named, mine in known.items()),
        "given": repeat.given(asdict(request), run.cells),
    }


def _tuned_options(request: Request) -> dict[str, dict[str, dict[str, str]]]:
    """The options that --tuned chose, by task and estimator."""
    tasks = read_choices(Path(request.tuned))["tasks"] if request.tuned else {}
    chosen = {
        label: {name: one["options"] for name, one in task["estimators"].items() if one.get("options")}
        for label, task in tasks.items()
    }
    return {label: one for label, one in chosen.items() if one}


def _config_before(out: Path, progress: Progress) -> dict[str, Any]:
    """The config.json of earlier commands in the folder; {} if it is damaged, because it can be rebuilt from the cells."""
    path = out / "config.json"
    if not digests.is_as_written(path):
        progress.note(f"{path} is damaged; it is rebuilt from the cells in the folder")
        return {}
    try:
        return runs.read_config(out)
    except InputError as error:
        progress.note(f"{error}; it is rebuilt from the cells in the folder")
        return {}


def stand_beside(request: Request, run: Run, before: Mapping[str, Any], progress: Progress) -> None:
    """Add the cells of earlier commands in the folder to the run, and note which are continued and which are kept.

    Raises        InputError if finished cells would be discarded; --fresh deletes them.
    """
    found = earlier.beside(run.out, [(cell, run.facts(plan, cell)) for plan, cell in run.cells])
    if found.lost and request.resume:
        raise InputError(found.refusal(run.out))
    asked, gone = {cell.id for _, cell in run.cells}, {left.id for left in found.lost}
    for left in found.lost:
        if left.id not in asked:
            shutil.rmtree(left.folder)
    run.kept = found.kept
    ended = {left.id for left in found.kept} | gone | asked | set(found.damaged)
    run.interrupted = [] if gone else [name for name in before.get("cells", []) if str(name) not in ended]
    if found.extended and request.resume:
        fresh = [name for name in found.extended if not (run.out / "cells" / name / records.TRAINING).is_file()]
        progress.note(f"{len(found.extended) - len(fresh)} trainings go on from their last step")
        if fresh:
            progress.note(f"{len(fresh)} start over: their last state was too large to keep, or no plain data")
    if found.kept:
        progress.note(
            f"{counted(len(found.kept), f'other cell of {run.out} stays', f'other cells of {run.out} stay')} in its tables"
        )
    if without := [left for left in found.kept if left.damaged]:
        name = without[0].folder / without[0].damaged[0]
        progress.note(f"{counted(len(without), 'of them stays', 'of them stay')} without damaged files, such as {name}")
    if found.damaged:
        progress.note(
            f"{counted(len(found.damaged), 'cell is', 'cells are')} damaged and left out, such as {found.damaged[0]}; ask for them again"
        )
