"""The cells of a run: which are finished, how the others are carried out, and what they left in the run's folder."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench import harness, records, tables
from gradebench.checkpoints import is_whole
from gradebench.plan import Cell, Plan
from gradebench.task import Task
from gradebench.workers import Each

# A process that is killed now and then must not cost all cells of a task their probes.
REFERENCE_TRIES = 3
Job = tuple[Plan, Cell, str]  # the key that the cell is finished under


@dataclass
class Run:
    """A prepared run: its cells with their plans, and what it left out."""

    out: Path
    device: str
    jobs: int
    cells: list[tuple[Plan, Cell]]
    tasks: dict[str, Task]  # by label
    left_out: dict[str, str] = field(default_factory=dict)  # estimators that `all` can't include, with the reason
    # by plan, task and estimator, the same for all seeds
    rates: dict[tuple[Plan, str, str], float] = field(default_factory=dict, repr=False)

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.id

    def has_ended(self, cell: Cell) -> bool:
        return (self.folder(cell) / records.ENDED).is_file()

    def key(self, plan: Plan, cell: Cell) -> str:
        task, named = self.tasks[cell.task], (plan, cell.task, cell.estimator_spec)
        if named not in self.rates:
            self.rates[named] = harness.learning_rate_of(task, plan, cell.estimator_spec)
        return harness.cell_key(plan, cell, task, self.rates[named])


class Progress:
    """What the runner tells whoever watches; this one stays silent."""

    def note(self, message: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, cell: Cell | None, status: str) -> None: ...
    def stop(self) -> None: ...


@dataclass
class Troubles:
    """What did not go well."""

    reasons: dict[str, str] = field(default_factory=dict)  # cell id to why it isn't `ok`
    unprobed: dict[str, str] = field(default_factory=dict)  # task to why its cells have no gradient probes


def pending(run: Run, resume: bool) -> list[Job]:
    """The cells that have to run, without what an earlier attempt left of them; but for the checkpoint to go on from."""
    jobs = []
    out = str(run.out.absolute())  # a worker may be at home elsewhere
    abroad: dict[int, Plan] = {}
    for here, cell in run.cells:
        if id(here) not in abroad:
            abroad[id(here)] = replace(here, out=out)
        plan = abroad[id(here)]
        folder, key = run.folder(cell), run.key(plan, cell)
        if resume and records.is_finished(folder, key):
            continue
        records.forget_cell(folder)
        if not resume:
            harness.training_file(plan, cell).unlink(missing_ok=True)
        jobs.append((plan, cell, key))
    return jobs


def carry_out(run: Run, jobs: Sequence[Job], each: Each, resume: bool, progress: Progress, troubles: Troubles) -> None:
    """The reference trajectories, then the cells; where a task's reference fails, its cells go without probes."""
    waiting = list(_references(jobs, resume))
    for _ in range(REFERENCE_TRIES):
        lost = []
        for call, (status, reason) in each(_reference, waiting):
            if status != "ok":
                lost.append((call, reason))
            progress.advance(None, status)
        waiting = [call for call, _ in lost]
    troubles.unprobed |= {cell.task: reason for (_, cell, _), reason in lost}
    for (plan, cell, _), (status, reason) in each(harness.run_cell, _with_probes(run, jobs, troubles)):
        if not run.has_ended(cell):  # its process died or was killed
            _write_status(run, plan, cell, status, reason)
        if reason:
            troubles.reasons[cell.id] = f"{status}: {reason}"
        progress.advance(cell, status)


def _references(jobs: Sequence[Job], resume: bool) -> Iterator[tuple[Plan, Cell, int]]:
    """The checkpoints of each task's reference trajectory that aren't there yet, for each seed: its own gradients."""
    for plan, cell in {(cell.task, cell.seed): (plan, cell) for plan, cell, _ in jobs}.values():
        for number in range(len(harness.checkpoint_steps(plan))):
            if not (resume and is_whole(harness.checkpoint_file(plan, cell, number))):
                yield plan, cell, number


def _reference(plan: Plan, cell: Cell, number: int) -> tuple[str, str]:
    harness.reference_cell(plan, cell, number)
    return "ok", ""


def _with_probes(run: Run, jobs: Sequence[Job], troubles: Troubles) -> Iterator[Job]:
    """The jobs as they can run after all: without probes where the reference failed."""
    for plan, cell, key in jobs:
        if cell.task not in troubles.unprobed:
            yield plan, cell, key
        elif plan.train:
            # A key of its own, so that a later run, whose reference may succeed, computes the cell again.
            used = replace(plan, checkpoints=0)
            yield used, cell, run.key(used, cell)
        else:
            reason = f"the reference gradient failed: {troubles.unprobed[cell.task]}"
            _write_status(run, plan, cell, "failed", reason)


def _write_status(run: Run, plan: Plan, cell: Cell, status: str, reason: str) -> None:
    records.write_cell(run.folder(cell), run.key(plan, cell), _status_rows(plan, cell, status), status, reason)


def _status_rows(plan: Plan, cell: Cell, status: str) -> pd.DataFrame:
    return records.CellRecord(harness.identity_of(plan, cell)).frame(status)


def gather(run: Run) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    """The metrics, probes and samples of all cells; those that haven't ended count as interrupted."""
    name = run.out.resolve().name
    rows: list[Path | pd.DataFrame] = [
        run.folder(cell) / records.METRICS if run.has_ended(cell) else _status_rows(plan, cell, "interrupted")
        for plan, cell in run.cells
    ]
    folders = [run.folder(cell) for _, cell in run.cells if run.has_ended(cell)]
    probes = records.merged(_present(folders, records.PROBES), name, tables.PROBES_COLUMNS)
    samples = [row for path in _present(folders, records.SAMPLES) for row in records.read_lines(path)]
    return records.merged(rows, name, tables.METRICS_COLUMNS), probes, samples


def _present(folders: Iterable[Path], name: str) -> Iterator[Path]:
    return (folder / name for folder in folders if (folder / name).is_file())
