"""The cells of a run: which are finished, how the others are run, and how their results are gathered."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import cell_labels, plugin_inputs
from gradebench.analysis.provenance import Rate
from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.core.task import Task
from gradebench.experiment import harness
from gradebench.experiment.cell_files import (
    about,
    checkpoint_file,
    checkpoint_steps,
    files_to_go_on_from,
    training_file,
)
from gradebench.experiment.cell_setup import facts_of, identity_of, learning_rate_of
from gradebench.experiment.earlier import Left, joined
from gradebench.experiment.facts import Facts, key_of
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.references import reference_cell
from gradebench.experiment.workers import Each
from gradebench.storage import records, sealed
from gradebench.storage.files import LOCK
from gradebench.storage.formats import read_lines, read_parquet

# Retries, because otherwise one killed process would cost all cells of a task their probes.
REFERENCE_TRIES = 3
CONFIG = "config.json"
Job = tuple[Plan, Cell, str, Facts]  # with the cell's key, and the facts that its results depend on


@dataclass
class Run:
    """A prepared run: its cells with their plans, and what was left out."""

    out: Path
    device: str
    jobs: int
    cells: list[tuple[Plan, Cell]]
    tasks: dict[str, Task]  # by label
    left_out: dict[str, str] = field(default_factory=dict)  # estimators that `all` leaves out, with the reason
    kept: list[Left] = field(default_factory=list)  # cells of earlier commands that stay in the tables
    interrupted: list[str] = field(default_factory=list)  # ids of cells of earlier commands that haven't ended
    # by plan, task and estimator, the same for all seeds
    rates: dict[tuple[Plan, str, str], Rate] = field(default_factory=dict, repr=False)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)  # of learning rates, by task and estimator
    design: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task label, see `gradebench.analysis.design`
    known: dict[tuple[Plan, str, str], Facts] = field(default_factory=dict, repr=False)

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.id

    def has_ended(self, cell: Cell) -> bool:
        return (self.folder(cell) / records.ENDED).is_file()

    def facts(self, plan: Plan, cell: Cell) -> Facts:
        """The facts that the cell's results depend on."""
        named = (plan, cell.task, cell.estimator_spec)
        if named not in self.known:
            self.known[named] = facts_of(plan, cell, self.tasks[cell.task])
        return self.known[named]

    def key(self, plan: Plan, cell: Cell) -> str:
        return key_of(self.facts(plan, cell), cell)

    def rate(self, plan: Plan, cell: Cell) -> Rate:
        """The cell's learning rate, and where it comes from."""
        named = (plan, cell.task, cell.estimator_spec)
        if named not in self.rates:
            self.rates[named] = learning_rate_of(self.tasks[cell.task], plan, cell.estimator_spec)
        return self.rates[named]


class Progress:
    """Receives progress messages from the runner; this base class ignores them."""

    def note(self, message: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, cell: Cell | None, status: str) -> None: ...
    def phase(self, references: int) -> None: ...
    def stop(self) -> None: ...


@dataclass
class Failures:
    """What went wrong in a run."""

    reasons: dict[str, str] = field(default_factory=dict)  # cell id to why it isn't `ok`, or which results it lacks
    unprobed: dict[str, str] = field(default_factory=dict)  # task to why its cells have no gradient probes


def pending(run: Run, resume: bool) -> list[Job]:
    """The cells that have to run. Removes what earlier attempts left of them, except checkpoints to resume from."""
    jobs = []
    out = str(run.out.absolute())  # because a worker may have another working directory
    abroad: dict[int, Plan] = {}
    for here, cell in run.cells:
        if id(here) not in abroad:
            abroad[id(here)] = replace(here, out=out)
        plan = abroad[id(here)]
        folder, key = run.folder(cell), run.key(plan, cell)
        if resume and records.is_finished(folder, key) and (not plan.save_policies or records.has_policy(folder)):
            continue
        records.forget_cell(folder)
        if not resume:
            training_file(plan, cell).unlink(missing_ok=True)
        jobs.append((plan, cell, key, run.facts(plan, cell)))
    return jobs


def drop_damaged(jobs: Sequence[Job]) -> list[Path]:
    """Remove damaged checkpoints that cells would resume from, and return their paths."""
    found = {path for plan, cell, *_ in jobs for path in files_to_go_on_from(plan, cell)}
    damaged = sorted(path for path in found if path.is_file() and not sealed.is_whole(path))
    for path in damaged:
        path.unlink()
    return damaged


def carry_out(run: Run, jobs: Sequence[Job], each: Each, resume: bool, progress: Progress, troubles: Failures) -> None:
    """Run the reference trajectories, then the cells. If a task's reference fails, its cells run without probes."""
    waiting = list(_references(jobs, resume))
    progress.phase(len(waiting))
    for _ in range(REFERENCE_TRIES):
        lost = []
        for call, (status, reason) in each(_reference, waiting):
            if status != "ok":
                lost.append((call, reason))
            progress.advance(None, status)
            require_folder(run.out)
        waiting = [call for call, _ in lost]
    troubles.unprobed |= {cell.task: reason for (_, cell, _), reason in lost}
    ended = []
    for (plan, cell, *_), (status, reason) in each(harness.run_cell, _with_probes(run, jobs, troubles)):
        if not run.has_ended(cell):  # its process died or was killed
            _write_status(run, plan, cell, status, reason)
        if reason:
            troubles.reasons[cell.id] = f"{status}: {reason}"
        progress.advance(cell, status)
        require_folder(run.out)
        ended.append(cell)
    troubles.reasons |= {
        cell.id: "interrupted: its folder was deleted after it had ended; find out what deletes it, and run again"
        for cell in ended
        if not run.has_ended(cell)
    }


def require_folder(out: Path) -> None:
    """Raises InputError if the run's folder was deleted or replaced."""
    if not (out / LOCK).is_file() or not (out / CONFIG).is_file():
        raise InputError(
            f"{out} was deleted or emptied while the run went on, by a plugin or from outside, with what was finished; "
            "see to it that nothing deletes it, and run again"
        )


def _references(jobs: Sequence[Job], resume: bool) -> Iterator[tuple[Plan, Cell, int]]:
    """The probe points of each task's reference trajectory, and for each seed, whose files are missing."""
    for plan, cell in {(cell.task, cell.seed): (plan, cell) for plan, cell, *_ in jobs}.values():
        if plan.along == "own":
            continue  # each cell has its own trajectory and reference gradients
        for number in range(len(checkpoint_steps(plan))):
            if not (resume and checkpoint_file(plan, cell, number).is_file()):
                # To be run in a process that never runs the code of the cell's estimator.
                yield plan, replace(cell, foreign=(*cell.foreign[:1], "") if cell.foreign else ()), number


def _reference(plan: Plan, cell: Cell, number: int) -> tuple[str, str]:
    reference_cell(plan, cell, number)
    return "ok", ""


def _with_probes(run: Run, jobs: Sequence[Job], troubles: Failures) -> Iterator[Job]:
    """The jobs, without probes for the tasks whose reference failed."""
    for plan, cell, key, known in jobs:
        if cell.task not in troubles.unprobed:
            yield plan, cell, key, known
        elif plan.train:
            # With another key, so that a later run, whose reference may succeed, runs the cell again.
            used = replace(plan, checkpoints=0)
            yield used, cell, run.key(used, cell), known
        else:
            reason = f"the reference gradient failed: {troubles.unprobed[cell.task]}"
            _write_status(run, plan, cell, "failed", reason)


def _write_status(run: Run, plan: Plan, cell: Cell, status: str, reason: str) -> None:
    said = about(cell, run.facts(plan, cell))
    rows = _status_rows(plan, cell, status)
    records.write_cell(run.folder(cell), run.key(plan, cell), rows, status, reason, about=said)


def _status_rows(plan: Plan, cell: Cell, status: str) -> pd.DataFrame:
    return records.CellRecord(identity_of(plan, cell)).frame(status)


def gather(run: Run, note: Callable[[str], None]) -> tuple[pd.DataFrame, pd.DataFrame, list[dict[str, Any]]]:
    """The metrics, probes and samples of all cells, those of earlier commands first.

    Cells that haven't ended count as interrupted. Unreadable samples are left out, with a note.
    """
    name = run.out.resolve().name
    rows: list[Path | pd.DataFrame] = [left.folder / records.METRICS for left in run.kept]
    rows += _interrupted(run)
    rows += [
        run.folder(cell) / records.METRICS if run.has_ended(cell) else _status_rows(plan, cell, "interrupted")
        for plan, cell in run.cells
    ]
    probes = records.merged(_present(run, records.PROBES), name, schema.PROBES_COLUMNS)
    samples = [row for path in _present(run, records.SAMPLES) for row in _texts(path, note)]
    metrics = records.merged(rows, name, schema.METRICS_COLUMNS)
    return _with_facts(metrics, run), probes, samples


def training_steps(run: Run) -> pd.DataFrame:
    """Every training step of all cells, those of earlier commands first; a row each."""
    return records.series(records.merged(_present(run, records.STEPS), run.out.resolve().name, schema.TRAINING_COLUMNS))


def with_inputs(run: Run, config: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """The config.json of a run whose cells have ended; its facts include what plugin code read for each estimator.

    Notes if cells of one task read different contents of the same file.
    """
    found = [(left.task, left.estimator, left.ended) for left in run.kept]
    found += [(c.task, c.estimator, records.read_ended(run.folder(c))) for _, c in run.cells if any(c.foreign)]
    inputs: dict[str, dict[str, list[dict[str, str]]]] = {}
    reads: dict[str, list[dict[str, str | None]]] = {}
    for task, estimator, ended in found:
        if isinstance(ended.get("inputs"), dict) and isinstance(ended.get("read"), dict) and ended["read"]:
            inputs.setdefault(task, {}).setdefault(estimator, []).append(ended["inputs"])
            reads.setdefault(task, []).append(ended["read"])
    for task, read in reads.items():
        if names := plugin_inputs.uneven(read):
            note(
                f"{names[0]} changed between cells of {task} whose plugin code reads it, so they can't be compared; "
                "give --fresh to run them again"
            )
    known = {
        task: {label: {plugin_inputs.READ: plugin_inputs.united(parts)} for label, parts in mine.items()}
        for task, mine in inputs.items()
    }
    return dict(config) | {"facts": joined(config["facts"], {"estimators": known})}


def _texts(path: Path, note: Callable[[str], None]) -> list[dict[str, Any]]:
    try:
        return read_lines(path)
    except InputError as error:
        note(f"{error}; its texts are left out")
        return []


def _with_facts(metrics: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The metrics with RATE_COLUMNS, the columns of `cell_labels`, and FACT_COLUMNS.

    Rates are taken from the run and not from cells, because a finished cell isn't run again if only the source of its rate
    has changed.
    """
    said: dict[str, dict[str, Any]] = {}
    for plan, cell in run.cells:
        rate, which = run.rate(plan, cell), {name: getattr(cell, name) for name in cell_labels.COLUMNS}
        said[cell.id] = {"learning_rate": rate.value, "rate_source": rate.source} | which
        said[cell.id] |= _facts(run.facts(plan, cell), records.read_ended(run.folder(cell)))
    for left in run.kept:  # of earlier commands
        value = left.facts["estimator"].get("learning rate", math.nan)
        source = run.sources.get(left.task, {}).get(left.estimator, "")
        parsed = cell_labels.parsed(left.estimator)
        which = {name: str(left.ended.get(name, parsed[name])) for name in cell_labels.COLUMNS}
        said[left.id] = {"learning_rate": value, "rate_source": source} | which | _facts(left.facts, left.ended)
    labelled = cell_labels.with_columns(metrics)  # from labels, for cells that are in no config.json
    for name in (*schema.RATE_COLUMNS, *cell_labels.COLUMNS):
        found = metrics["cell_id"].map({cell: one[name] for cell, one in said.items()})
        found = found.fillna("" if name == "rate_source" else labelled[name]) if name != "learning_rate" else found
        labelled[name] = found.astype(float if name == "learning_rate" else object)
    for name in schema.FACT_COLUMNS:
        found = metrics["cell_id"].map({cell: one[name] for cell, one in said.items()})
        labelled[name] = found.astype("Int64") if name in ("steps", "batch") else found.astype(object).fillna("")
    return labelled[[*metrics.columns, *schema.RATE_COLUMNS, *cell_labels.COLUMNS, *schema.FACT_COLUMNS]]


def _facts(known: Facts, ended: Mapping[str, Any]) -> dict[str, Any]:
    """FACT_COLUMNS of a cell, from what its results depend on and from its cell.json."""
    of_task = known["task"]
    budget = {name: of_task.get(name, pd.NA) for name in ("steps", "batch")}
    ends = {name: str(ended.get(name, "")) for name in ("commit", "date", "reason")}
    return budget | {"version": str(of_task.get("version of gradebench", ""))} | ends


def _interrupted(run: Run) -> list[pd.DataFrame]:
    """The rows of interrupted cells of earlier commands, from the table in the run's folder."""
    path = run.out / "metrics.parquet"
    try:
        earlier = read_parquet(path) if run.interrupted and path.is_file() else pd.DataFrame()
        found = earlier[earlier["cell_id"].isin(run.interrupted) & (earlier["status"] == "interrupted")]
        return [found[schema.METRICS_COLUMNS]] if len(found) else []
    except (InputError, KeyError):  # not a table of metrics
        return []


def _present(run: Run, name: str) -> Iterator[Path]:
    """The cells' files of this name, without damaged ones of earlier commands."""
    folders = [left.folder for left in run.kept if name not in left.damaged]
    folders += [run.folder(cell) for _, cell in run.cells if run.has_ended(cell)]
    return (folder / name for folder in folders if (folder / name).is_file())
