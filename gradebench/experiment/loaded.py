"""The task that a process has loaded, which its cells share and must not change."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradebench.core.task import Task
from gradebench.experiment.fingerprint import Print, changed, fingerprint, of_tensors
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry
from gradebench.storage import followed


class Loaded(NamedTuple):
    """A loaded task, and what it was like then."""

    identity: str
    task: Task
    initial: list[Tensor]  # values of its parameters
    print: Print


class Worker:
    """What a process keeps between cells: the loaded task, one at a time because cells come grouped by task, and its
    evaluations before training."""

    def __init__(self) -> None:
        self.loaded: Loaded | None = None
        # metrics and samples at the initial parameters, by task, seed and split
        self.first_evaluations: dict[tuple[int, int, str], tuple[dict[str, float], list[dict[str, Any]]]] = {}

    def task(self, plan: Plan, cell: Cell) -> Task:
        """The cell's task at its initial parameters."""
        options = sorted(cell.task_options.items())
        identity = f"{cell.task_spec} {cell.digests[:1]} {options} {plan.prepared} {plan.device}"
        if self.loaded is None or self.loaded.identity != identity:
            self.forget()
            self.loaded = _load(plan, cell, identity)
        set_parameters(self.loaded.task, {f"parameter_{i}": p for i, p in enumerate(self.loaded.initial)})
        return self.loaded.task

    def forget(self) -> None:
        self.loaded = None
        self.first_evaluations.clear()

    def changes(self) -> list[str]:
        """The names of the task's parts that have changed since it was loaded, apart from the values of trained parameters."""
        one = self.loaded
        return [] if one is None else changed(one.print, _print(one.task, one.initial))


worker = Worker()  # the only one in this process


def _load(plan: Plan, cell: Cell, identity: str) -> Loaded:
    if plugins := [one for one in cell.foreign if one]:
        followed.follow(plugins)  # because a reference gradient may load the task before any cell is watched
    task = registry.resolve("tasks", cell.task_spec).factory(**cell.task_options)
    task.prepared = plan.prepared
    if task.prepared is None:
        task.prepare(torch.device(plan.device), log=lambda message: None)
    task.load(torch.device(plan.device))
    initial = [p.detach().clone() for p in task.params]
    return Loaded(identity, task, initial, _print(task, initial))


def _print(task: Task, initial: list[Tensor]) -> Print:
    return fingerprint(task, task.params) | of_tensors("initial parameters", initial)


@torch.no_grad()
def set_parameters(task: Task, stored: Mapping[str, Tensor]) -> None:
    for i, p in enumerate(task.params):
        p.copy_(stored[f"parameter_{i}"])
