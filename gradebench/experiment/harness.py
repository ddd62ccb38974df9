"""Runs one cell in a worker: trains a policy with one estimator on one task with one seed, evaluates and probes it.

All of this is the same for every estimator; differences are behind the interfaces `Estimator` and `Problem`.
"""

import math
import shutil
from pathlib import Path

import torch

from gradebench.core import parallel, progress
from gradebench.core.errors import Unsupported
from gradebench.core.interrupts import is_users
from gradebench.core.panics import panics_raised
from gradebench.core.task import Task
from gradebench.experiment import facts, isolation
from gradebench.experiment.cell_files import about, checkpoint_steps, training_file, warm_file, what_was_read
from gradebench.experiment.cell_setup import identity_of, make_estimator, require_unchanged
from gradebench.experiment.failures import apart, is_out_of_memory, keep_traceback, told
from gradebench.experiment.loaded import worker
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.probe import probe
from gradebench.experiment.train import train
from gradebench.experiment.training import Diverged
from gradebench.storage import followed, records
from gradebench.storage.checkpoints import Checkpoint
from gradebench.storage.files import atomic_path, out_of_room


def run_cell(plan: Plan, cell: Cell, key: str, known: facts.Facts | None = None) -> tuple[str, str]:
    """Run the cell and write its folder. Returns its status and one line: why it isn't `ok`, or which results it lacks.

    `known`, the facts that its results depend on, is written too; it allows later commands to extend the training.
    """
    folder = Path(plan.out) / "cells" / cell.id
    record = records.CellRecord(identity_of(plan, cell))
    watch = isolation.Watch(cell.foreign, cell.estimator)
    status, reason, lacking = "ok", "", list[str]()
    try:
        with parallel.agree_on_failure(), panics_raised():
            lacking = _run_parts(plan, cell, facts.training_key_of(known, cell) if known else key, record, folder)
    except Unsupported as error:
        status, reason = "skipped", str(error)
    except Diverged as error:
        status, reason = "diverged", str(error)
    except BaseException as error:
        if is_users(error) or (isinstance(error, OSError) and out_of_room(error)):
            raise  # because this couldn't be written either
        status, reason = "oom" if is_out_of_memory(error) else "failed", told(error, cell)
        keep_traceback(plan, cell)
    if lacking:
        reason, key = "; ".join(lacking)[:1000], f"{key} in part"  # so that a later run tries again
    if (status == "oom" or lacking) and torch.cuda.is_available():
        torch.cuda.empty_cache()  # the next cell may need blocks of other sizes
    progress.ended()
    if changed := watch.ended():
        status, reason = "failed", f"{changed} ({reason})" if reason else changed
        record = records.CellRecord(identity_of(plan, cell))
    if parallel.is_main():
        if changed:
            _discard(plan, cell, folder)
        found = (record.frame(status), status, reason, record.probe_frame(), record.samples)
        read = what_was_read(cell)
        also = about(cell, known) | {"read": read, "inputs": followed.inputs(read)}
        records.write_cell(folder, key, *found, about=also, steps=record.steps_frame(status))
        if status == "skipped":
            training_file(plan, cell).unlink(missing_ok=True)
    return status, reason


def _run_parts(plan: Plan, cell: Cell, key: str, record: records.CellRecord, folder: Path) -> list[str]:
    """Train, save the policy if requested, and probe; returns which diagnostics could not be computed.

    If a probe fails after training, the results of training are kept; without training, the cell fails.
    """
    require_unchanged(cell)
    task = worker.task(plan, cell)
    if plan.train:
        every = plan.checkpoint_every if parallel.is_main() else math.inf
        checkpoint = Checkpoint(training_file(plan, cell), key, every, plan.device, lambda: what_was_read(cell))
        train(make_estimator(cell.estimator_spec, task, plan), task, plan, cell, record, checkpoint)
        if plan.save_policies and parallel.is_main():
            _save_policy(task, folder / records.POLICY)
    if not plan.checkpoints or cell.other_draws:
        return []
    if not plan.train:
        return probe(task, plan, cell, record)
    lacking: list[str] = []
    with apart(plan, cell, "no gradient probes", lacking):
        lacking += probe(task, plan, cell, record)
    return lacking


def _discard(plan: Plan, cell: Cell, folder: Path) -> None:
    """Remove the checkpoints of a cell, from which a later one would resume."""
    training_file(plan, cell).unlink(missing_ok=True)
    shutil.rmtree(folder / records.POLICY, ignore_errors=True)
    for number in range(len(checkpoint_steps(plan))):
        shutil.rmtree(warm_file(plan, cell, number).parent, ignore_errors=True)


def _save_policy(task: Task, folder: Path) -> None:
    """Save the policy, completely or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as draft:
        draft.mkdir()
        task.save_policy(draft)
        shutil.rmtree(folder, ignore_errors=True)
