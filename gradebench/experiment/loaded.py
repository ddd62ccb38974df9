"""The task that a process has loaded: its cells share it, and none of them may change it for the others."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradebench.core.task import Task
from gradebench.experiment.fingerprint import Print, changed, fingerprint, of_tensors
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry


class Loaded(NamedTuple):
    """A task as it was loaded."""

    task: Task
    initial: list[Tensor]  # its parameters
    print: Print


_tasks: dict[str, Loaded] = {}  # of this process
# metrics and samples at the initial parameters, by task, seed and split
first_evaluations: dict[tuple[int, int, str], tuple[dict[str, float], list[dict[str, Any]]]] = {}


def loaded_task(plan: Plan, cell: Cell) -> Task:
    """The cell's task at its initial parameters; loaded once a process."""
    identity = f"{cell.task_spec} {cell.digests[:1]} {sorted(cell.task_options.items())} {plan.settled} {plan.device}"
    if identity not in _tasks:
        forget()  # cells come grouped by task, so one at a time is kept
        task = registry.resolve("tasks", cell.task_spec).factory(**cell.task_options)
        task.settled = plan.settled
        if task.settled is None:
            task.prepare(torch.device(plan.device), log=lambda message: None)
        task.load(torch.device(plan.device))
        initial = [p.detach().clone() for p in task.params]
        _tasks[identity] = Loaded(task, initial, _print(task, initial))
    task, initial, _ = _tasks[identity]
    set_parameters(task, {f"parameter_{i}": p for i, p in enumerate(initial)})
    return task


def forget() -> None:
    _tasks.clear()
    first_evaluations.clear()


def changes() -> list[str]:
    """What has changed of it since it was loaded, but for the numbers of what is trained."""
    return [name for one in _tasks.values() for name in changed(one.print, _print(one.task, one.initial))]


def _print(task: Task, initial: list[Tensor]) -> Print:
    return fingerprint(task, task.params) | of_tensors("initial parameters", initial)


@torch.no_grad()
def set_parameters(task: Task, stored: Mapping[str, Tensor]) -> None:
    for i, p in enumerate(task.params):
        p.copy_(stored[f"parameter_{i}"])
