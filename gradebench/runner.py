"""A run: the grid of estimators, tasks and seeds, its cells side by side in worker processes, and its tables."""

import os
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gradebench import harness, records, registry, tables
from gradebench.errors import InputError
from gradebench.harness import Cell, Plan
from gradebench.task import Task


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    estimators: Sequence[str]
    tasks: Sequence[str]
    seeds: str | None = None
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    device: str = "auto"
    out: str | None = None
    jobs: int | None = None
    timeout: float | None = None
    resume: bool = True
    strict: bool = False


@dataclass
class Run:
    """A prepared run: its cells with their plans, and what it left out."""

    out: Path
    device: str
    jobs: int
    cells: list[tuple[Plan, Cell]]
    tasks: dict[str, Task]  # by label
    left_out: dict[str, str] = field(default_factory=dict)  # estimators that `all` can't include, with the reason


@dataclass
class Outcome:
    """How a run ended."""

    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    leaderboard: pd.DataFrame
    reasons: dict[str, str]  # cell id to why it isn't `ok`
    interrupted: bool
    reused: int  # cells that an earlier run had finished


class Progress:
    """What the runner tells whoever watches; this one stays silent."""

    def note(self, message: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, cell: Cell | None, status: str) -> None: ...
    def stop(self) -> None: ...


# --- before a run -----------------------------------------------------------------------------------------------


def parse_seeds(text: str) -> list[int]:
    """ "0-4", "3", "0,2,5-7" to seeds in order. Raises InputError for anything else, and for repeats."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first:
            raise InputError(f"--seeds {text}: {part.strip() or 'nothing'!r} is no range; write 0-9 or 0,2,5-7")
        if last - first >= 10_000:
            raise InputError(f"--seeds {text}: more than 10,000 seeds")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {text}: a seed stands there twice")
    return seeds


def choose_device(wanted: str) -> str:
    """ "cuda" or "cpu" for "auto"; raises InputError for a device that isn't there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {wanted} can't be used: {str(error).splitlines()[0]}; try --device auto") from error
    return str(device)


def expand(kind: str, specs: Sequence[str]) -> tuple[list[registry.Resolved], dict[str, str]]:
    """Resolved specs, `all` standing for every healthy plugin; and what `all` had to leave out."""
    left_out: dict[str, str] = {}
    resolved: dict[str, registry.Resolved] = {}
    for line in registry.collisions(kind):
        warnings.warn(line, stacklevel=2)
    for spec in specs:
        if spec != "all":
            one = registry.resolve(kind, spec)
            resolved[one.label] = one
            continue
        healthy, left_out = registry.names(kind)
        for name in healthy:
            try:
                resolved[name] = registry.resolve(kind, name)
            except InputError as reason:  # a plugin nobody asked for by name must not end the run
                left_out[name] = str(reason)
    if not resolved:
        raise InputError(f"no {kind} to run; {registry.INSTALL_HINT}")
    return list(resolved.values()), left_out


def prepare(request: Request, progress: Progress) -> Run:
    """Check everything that can be checked before the first cell, and make the tasks ready.

    Raises InputError for whatever in the request can't be used.
    """
    estimators, left_out = expand("estimators", request.estimators)
    task_specs, left_out_tasks = expand("tasks", request.tasks)
    for name, value in (("steps", request.steps), ("batch", request.batch), ("jobs", request.jobs)):
        if value is not None and value < 1:
            raise InputError(f"--{name} {value}: at least 1 is needed")
    seeds = parse_seeds(request.seeds) if request.seeds else list(range(tables.default_seed_count(len(estimators))))
    device = choose_device(request.device)
    out = records.writable_folder(Path(request.out) if request.out else default_folder(task_specs))
    jobs = request.jobs or (1 if device.startswith("cuda") else usable_cores())
    run = Run(out, device, jobs, [], {}, left_out | left_out_tasks)
    for resolved in task_specs:
        task = resolved.create()
        torch.set_num_threads(min(2, usable_cores()))  # fixed, so that what is trained here doesn't vary with jobs
        task.prepare(torch.device(device), progress.note, request.strict)
        task.load(torch.device(device))
        run.tasks[resolved.label] = task
        plan = Plan(
            run_id=out.name,
            out=str(out),
            device=device,
            steps=request.steps or task.default_steps,
            batch=request.batch or task.default_batch,
            learning_rate=request.learning_rate,
        )
        for estimator in estimators:
            harness.make_estimator(estimator.spec, task, plan)
        run.cells += [
            (plan, Cell(resolved.label, resolved.spec, task.options, one.label, one.spec, seed))
            for seed in seeds
            for one in estimators
        ]
    return run


def default_folder(tasks: Sequence[registry.Resolved]) -> Path:
    """results/<task>-<time> below the present folder."""
    name = "-".join(dict.fromkeys(task.name for task in tasks))[:60]
    return Path("results") / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}-{time.strftime('%Y%m%d-%H%M%S')}"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def config_of(request: Request, run: Run) -> dict[str, Any]:
    """config.json: the request, and what it came to."""
    plans = {cell.task: plan for plan, cell in run.cells}
    labels = dict.fromkeys((cell.task, cell.estimator, cell.estimator_spec) for _, cell in run.cells)
    rates: dict[str, dict[str, float]] = {}
    for task, estimator, spec in labels:
        rates.setdefault(task, {})[estimator] = harness.learning_rate_of(run.tasks[task], plans[task], spec)
    return {
        "request": asdict(request),
        "plans": {label: asdict(plan) for label, plan in plans.items()},
        "tasks": {label: {"setting": task.setting, **task.describe()} for label, task in run.tasks.items()},
        "learning_rates": rates,
        "seeds": sorted({cell.seed for _, cell in run.cells}),
        "cells": [cell.id for _, cell in run.cells],
        "left_out": run.left_out,
    }


# --- the run ----------------------------------------------------------------------------------------------------


def execute(request: Request, run: Run, progress: Progress) -> Outcome:
    """Run all cells that aren't finished yet, and write the tables, also when interrupted."""
    records.write_json(run.out / "config.json", config_of(request, run))
    records.write_json(run.out / "environment.json", records.environment(run.device))
    keys = {cell.id: harness.cell_key(plan, cell, run.tasks[cell.task].setting) for plan, cell in run.cells}
    done = {
        cell.id
        for _, cell in run.cells
        if request.resume and records.finished_cell(run.out / "cells" / cell.id, keys[cell.id]) is not None
    }
    pending = [(plan, cell) for plan, cell in run.cells if cell.id not in done]
    progress.start(len(run.cells), len(done))
    reasons: dict[str, str] = {}
    try:
        interrupted = _run_pending(request, run, pending, keys, reasons, progress)
    finally:
        progress.stop()
    metrics = records.merged((_rows_of(run, plan, cell, keys[cell.id]) for plan, cell in run.cells), run.out.name)
    return _with_tables(run, metrics, reasons, interrupted, len(done))


def _run_pending(
    request: Request,
    run: Run,
    pending: Sequence[tuple[Plan, Cell]],
    keys: dict[str, str],
    reasons: dict[str, str],
    progress: Progress,
) -> bool:
    """Schedule the references first, then the cells; returns whether the user interrupted."""
    if not pending:
        return False
    from pebble import ProcessPool

    context = get_context("spawn")
    threads = max(1, usable_cores() // run.jobs) if run.device.startswith("cuda") else 1
    pool = ProcessPool(max_workers=run.jobs, context=context, initializer=_start_worker, initargs=(threads,))

    def told(cell: Cell | None, plan: Plan, future: Future) -> None:
        status, reason = _result_of(future, request.timeout)
        if cell is not None:
            if status in ("timeout", "failed") and not _finished(run, cell):
                _write_status(run, plan, cell, keys[cell.id], status, reason)
            if reason:
                reasons[cell.id] = f"{status}: {reason}"
        elif reason:
            reasons["reference"] = reason
        progress.advance(cell, status)

    try:
        references = {}
        for plan, cell in {cell.task: (plan, cell) for plan, cell in reversed(pending)}.values():
            first = replace(cell, seed=0)
            for number in range(plan.checkpoints):
                if not (request.resume and harness.checkpoint_file(plan, cell, number).is_file()):
                    future = pool.schedule(_reference, args=(plan, first, number), timeout=request.timeout)
                    references[future] = (plan, None)
        _drain(references, told)
        for cell in (cell for _, cell in pending):
            _forget(run, cell)
        futures = {
            pool.schedule(harness.run_cell, args=(plan, cell, keys[cell.id]), timeout=request.timeout): (plan, cell)
            for plan, cell in pending
        }
        _drain(futures, told)
        pool.close()
        pool.join()
        return False
    except KeyboardInterrupt:
        pool.stop()
        pool.join()
        for plan, cell in pending:
            if not _finished(run, cell):
                _write_status(run, plan, cell, "", "interrupted", "")
        return True


def _drain(futures: dict[Future, tuple[Plan, Any]], told: Callable[[Any, Plan, Future], None]) -> None:
    waiting = set(futures)
    while waiting:
        finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
        for future in finished:
            plan, cell = futures[future]
            told(cell, plan, future)


def _start_worker(threads: int) -> None:
    """Fixed threads, so that results don't depend on how many cells run side by side; Ctrl-C is the parent's."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def _reference(plan: Plan, cell: Cell, number: int) -> tuple[str, str]:
    harness.reference_cell(plan, cell, number)
    return "ok", ""


def _result_of(future: Future, timeout: float | None) -> tuple[str, str]:
    """Status and reason of a cell, also where its process was killed or died."""
    try:
        return future.result()
    except TimeoutError:
        return "timeout", f"took longer than --timeout {timeout:g} s"
    except Exception as error:  # noqa: BLE001 - whatever ended the worker becomes the cell's status
        return "failed", f"{type(error).__name__}: {' '.join(str(error).split())}"


def _finished(run: Run, cell: Cell) -> bool:
    return (run.out / "cells" / cell.id / "cell.json").is_file()


def _forget(run: Run, cell: Cell) -> None:
    """Drop an earlier attempt's mark, so that a worker that dies now doesn't leave it standing."""
    (run.out / "cells" / cell.id / "cell.json").unlink(missing_ok=True)


def _write_status(run: Run, plan: Plan, cell: Cell, key: str, status: str, reason: str) -> None:
    record = records.CellRecord(harness.identity_of(plan, cell, run.tasks[cell.task]))
    records.write_cell(run.out / "cells" / cell.id, key, record.frame(status), status, reason)


def _rows_of(run: Run, plan: Plan, cell: Cell, key: str) -> pd.DataFrame:
    path = run.out / "cells" / cell.id / "metrics.parquet"
    try:
        return pd.read_parquet(path)
    except OSError:
        _write_status(run, plan, cell, key, "interrupted", "")
        return pd.read_parquet(path)


def _with_tables(run: Run, metrics: pd.DataFrame, reasons: dict[str, str], interrupted: bool, reused: int) -> Outcome:
    """Write metrics.parquet, metrics.csv, tests.csv and leaderboard.csv."""
    comparisons = tables.comparisons(metrics)
    leaderboard = tables.leaderboard(metrics, comparisons)
    tables.write_parquet(metrics, run.out / "metrics.parquet")
    tables.write_csv(metrics, run.out / "metrics.csv")
    tables.write_csv(comparisons, run.out / "tests.csv")
    tables.write_csv(leaderboard, run.out / "leaderboard.csv")
    return Outcome(metrics, comparisons, leaderboard, reasons, interrupted, reused)


def all_labels(cells: Iterable[tuple[Plan, Cell]]) -> list[str]:
    """Estimator labels of a run, in order."""
    return list(dict.fromkeys(cell.estimator for _, cell in cells))
