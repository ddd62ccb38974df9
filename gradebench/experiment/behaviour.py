"""The behaviour distribution of a training: its sampler, and the parameters of some steps ago."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from gradebench.core.errors import InputError, Unsupported
from gradebench.core.problem import Behaviour, Problem
from gradebench.core.sampler import Sampler
from gradebench.core.task import Task


def require_sampler(task: Task, label: str, sampler: Sampler) -> None:
    """Raises InputError if the task can't draw its samples like that."""
    if sampler.on_policy:
        return
    try:
        task.problem("train", torch.arange(1, device=task.params[0].device)).sampled_by(Behaviour(sampler))
        able = not sampler.stale or isinstance(getattr(task, "policy", None), nn.Module)
    except Unsupported:
        able = False
    if not able:
        raise InputError(f"{label} can only sample from its policy, not with {sampler}; tasks of texts can")


@dataclass
class Past:
    """The parameters before each of the last `length` steps, the oldest first."""

    length: int
    steps: list[list[Tensor]] = field(default_factory=list)

    def add(self, params: Sequence[Tensor]) -> None:
        """Remember the present parameters, before they are updated."""
        if self.length:
            self.steps = [*self.steps, [p.detach().clone() for p in params]][-self.length :]


class Sampled:
    """Gives problems whose samples are drawn as `sampler` says, with parameters from `past`.

    Until there is a past, as at the first step, the present policy takes its place.
    """

    def __init__(self, task: Task, sampler: Sampler):
        self.task, self.sampler, self.past = task, sampler, Past(sampler.stale)
        self._policy: Any = None  # a frozen copy of the task's, with the parameters `_held`
        self._held: list[Tensor] | None = None

    def __call__(self, problem: Problem) -> Problem:
        return problem if self.sampler.on_policy else problem.sampled_by(Behaviour(self.sampler, self._old_policy()))

    def _old_policy(self) -> Any:
        if not self.past.steps:
            return None
        if self._policy is None:
            self._policy = copy.deepcopy(self.task.policy).requires_grad_(False)  # type: ignore[attr-defined]
            trained = [p.requires_grad for p in self.task.policy.parameters()]  # type: ignore[attr-defined]
            self._params = [p for p, own in zip(self._policy.parameters(), trained, strict=True) if own]
        oldest = self.past.steps[0]
        if oldest is not self._held:
            self._held = oldest
            with torch.no_grad():
                for p, value in zip(self._params, oldest, strict=True):
                    p.copy_(value)
        return self._policy
