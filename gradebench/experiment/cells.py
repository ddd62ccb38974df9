"""The cells of a run: which are finished, how the others are carried out, and what they left in the run's folder."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import plugin_inputs
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

# A process that is killed now and then must not cost all cells of a task their probes.
REFERENCE_TRIES = 3
CONFIG = "config.json"
Job = tuple[Plan, Cell, str, Facts]  # the key that the cell is finished under, and what its numbers depend on


@dataclass
class Run:
    """A prepared run: its cells with their plans, and what it left out."""

    out: Path
    device: str
    jobs: int
    cells: list[tuple[Plan, Cell]]
    tasks: dict[str, Task]  # by label
    left_out: dict[str, str] = field(default_factory=dict)  # estimators that `all` can't include, with the reason
    kept: list[Left] = field(default_factory=list)  # cells of earlier commands that stay in the tables
    interrupted: list[str] = field(default_factory=list)  # ids of those that haven't ended
    # by plan, task and estimator, the same for all seeds
    rates: dict[tuple[Plan, str, str], Rate] = field(default_factory=dict, repr=False)
    sources: dict[str, dict[str, str]] = field(default_factory=dict)  # of learning rates, by task and estimator
    design: dict[str, dict[str, Any]] = field(default_factory=dict)  # by task label: see `design`
    known: dict[tuple[Plan, str, str], Facts] = field(default_factory=dict, repr=False)

    def folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.id

    def has_ended(self, cell: Cell) -> bool:
        return (self.folder(cell) / records.ENDED).is_file()

    def facts(self, plan: Plan, cell: Cell) -> Facts:
        """What the cell's numbers depend on."""
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
    """What the runner tells whoever watches; this one stays silent."""

    def note(self, message: str) -> None: ...
    def start(self, total: int, done: int) -> None: ...
    def advance(self, cell: Cell | None, status: str) -> None: ...
    def phase(self, references: int) -> None: ...
    def stop(self) -> None: ...


@dataclass
class Failures:
    """What did not go well."""

    reasons: dict[str, str] = field(default_factory=dict)  # cell id to why it isn't `ok`, or what it lacks
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
        if resume and records.is_finished(folder, key) and (not plan.save_policies or records.has_policy(folder)):
            continue
        records.forget_cell(folder)
        if not resume:
            training_file(plan, cell).unlink(missing_ok=True)
        jobs.append((plan, cell, key, run.facts(plan, cell)))
    return jobs


def drop_damaged(jobs: Sequence[Job]) -> list[Path]:
    """Remove what cells would go on from where it isn't as it was written; returns what it was."""
    found = {path for plan, cell, *_ in jobs for path in files_to_go_on_from(plan, cell)}
    damaged = sorted(path for path in found if path.is_file() and not sealed.is_whole(path))
    for path in damaged:
        path.unlink()
    return damaged


def carry_out(run: Run, jobs: Sequence[Job], each: Each, resume: bool, progress: Progress, troubles: Failures) -> None:
    """The reference trajectories, then the cells; where a task's reference fails, its cells go without probes."""
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
        cell.id: "interrupted: its folder was deleted after it had ended; run again for it, without what deletes it"
        for cell in ended
        if not run.has_ended(cell)
    }


def require_folder(out: Path) -> None:
    """Raises InputError where the run's folder has gone, or is another one by now."""
    if not (out / LOCK).is_file() or not (out / CONFIG).is_file():
        raise InputError(
            f"{out} was deleted or emptied while the run went on, by a plugin or from outside, with what was finished; "
            "see to it that nothing deletes it, and run again"
        )


def _references(jobs: Sequence[Job], resume: bool) -> Iterator[tuple[Plan, Cell, int]]:
    """The checkpoints of each task's reference trajectory that aren't there yet, for each seed: its own gradients."""
    for plan, cell in {(cell.task, cell.seed): (plan, cell) for plan, cell, *_ in jobs}.values():
        if plan.along == "own":
            continue  # each trains its own, and has its truth there
        for number in range(len(checkpoint_steps(plan))):
            if not (resume and checkpoint_file(plan, cell, number).is_file()):
                # In a process that never runs the code of the cell's estimator.
                yield plan, replace(cell, foreign=(*cell.foreign[:1], "") if cell.foreign else ()), number


def _reference(plan: Plan, cell: Cell, number: int) -> tuple[str, str]:
    reference_cell(plan, cell, number)
    return "ok", ""


def _with_probes(run: Run, jobs: Sequence[Job], troubles: Failures) -> Iterator[Job]:
    """The jobs as they can run after all: without probes where the reference failed."""
    for plan, cell, key, known in jobs:
        if cell.task not in troubles.unprobed:
            yield plan, cell, key, known
        elif plan.train:
            # A key of its own, so that a later run, whose reference may succeed, computes the cell again.
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
    """The metrics, probes and samples of all cells, those of earlier commands first; those that haven't ended count as
    interrupted. Texts that can't be read are left out, with a note."""
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
    return _with_rates(metrics, run), probes, samples


def with_inputs(run: Run, config: Mapping[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """The config.json of a run whose cells have ended, with what code of plugins read for each estimator among its facts.

    Cells of one task that found something otherwise than others did are told.
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
                f"{names[0]} was changed between cells of {task}, which code of plugins read it for: they don't go "
                "together; give --fresh to make them anew"
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


def _with_rates(metrics: pd.DataFrame, run: Run) -> pd.DataFrame:
    """The metrics with learning_rate and rate_source: said by the run, since where a rate comes from may change while its value doesn't,
    and a finished cell with it."""
    rates = {cell.id: run.rate(plan, cell) for plan, cell in run.cells}
    said = {cell: (rate.value, rate.source) for cell, rate in rates.items()}
    for left in run.kept:  # of earlier commands, whose config.json this command's goes on from
        rate = left.facts["estimator"].get("learning rate", math.nan)
        said[left.id] = (rate, run.sources.get(left.task, {}).get(left.estimator, ""))
    value, source = ({cell: one[i] for cell, one in said.items()} for i in range(2))
    return metrics.assign(
        learning_rate=metrics["cell_id"].map(value).astype(float),
        rate_source=metrics["cell_id"].map(source).fillna("").astype(object),
    )


def _interrupted(run: Run) -> list[pd.DataFrame]:
    """The rows of cells of earlier commands that haven't ended, from the tables of those."""
    path = run.out / "metrics.parquet"
    try:
        earlier = read_parquet(path) if run.interrupted and path.is_file() else pd.DataFrame()
        found = earlier[earlier["cell_id"].isin(run.interrupted) & (earlier["status"] == "interrupted")]
        return [found[schema.METRICS_COLUMNS]] if len(found) else []
    except (InputError, KeyError):  # no table of ours
        return []


def _present(run: Run, name: str) -> Iterator[Path]:
    """The files of that name that cells have, but for damaged ones of earlier commands."""
    folders = [left.folder for left in run.kept if name not in left.damaged]
    folders += [run.folder(cell) for _, cell in run.cells if run.has_ended(cell)]
    return (folder / name for folder in folders if (folder / name).is_file())
