"""Checkpoints of trainings, in one safetensors file of tensors and plain data, without pickle.

Plain data: None, bools, numbers, text, tensors, and lists, tuples and dicts of them. Reading it back is bit-identical.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gradebench.storage import sealed
from gradebench.storage.followed import stale

_MODULE = set(vars(nn.Module()))  # attributes that torch itself keeps in a module's __dict__


class NotPlain(TypeError):
    """Raised for a value that isn't plain data."""


def save(state: Any, path: Path) -> None:
    """Writes the state atomically. Raises NotPlain."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(state, tensors))
    sealed.write(path, tensors, text)


def load(path: Path, device: str) -> Any:
    """The saved state; tensors that were on a GPU are put on `device`. Raises Damaged, also if there is no file."""
    tensors, text = sealed.read(path)
    return _decoded(json.loads(text), tensors, device)


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON: scalars unchanged, everything else as [kind, content]."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):  # numpy's too
        return float(value)
    if type(value) is Tensor or type(value) is nn.Parameter:
        if value.grad_fn is not None or value.layout != torch.strided:
            raise NotPlain("a tensor with a graph")
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors refuses two views of the same memory
        return ["tensor", [name, value.device.type]]
    if type(value) in (list, tuple):
        return [type(value).__name__, [_encoded(one, tensors) for one in value]]
    if type(value) is dict:
        return ["dict", [[_encoded(key, tensors), _encoded(one, tensors)] for key, one in value.items()]]
    raise NotPlain(f"an object of type {type(value).__name__}")


def _decoded(value: Any, tensors: Mapping[str, Tensor], device: str) -> Any:
    if not isinstance(value, list):
        return value
    kind, content = value
    if kind == "tensor":
        name, home = content
        return tensors[name] if home == "cpu" else tensors[name].to(device)
    if kind == "dict":
        return {_decoded(key, tensors, device): _decoded(one, tensors, device) for key, one in content}
    items = [_decoded(one, tensors, device) for one in content]
    return tuple(items) if kind == "tuple" else items


# --- the state of a training ------------------------------------------------------------------------------------


class Kept(Protocol):
    """What gives its state as plain data, and takes it back."""

    def state(self) -> Any: ...
    def restore(self, state: Any) -> None: ...


@dataclass
class Training:
    """Everything that changes while a cell trains."""

    params: Sequence[Tensor]
    estimator: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    rng: torch.Generator
    counters: Sequence[object]  # objects whose attributes are plain data
    lists: Sequence[list[Any]]  # of plain data; they only grow
    series: Kept | None = None

    def state(self) -> dict[str, Any]:
        return {
            "params": list(self.params),
            "estimator": _kept(self.estimator),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.get_state(),
            "global rng": torch.get_rng_state(),
            "counters": [dict(vars(counter)) for counter in self.counters],
            "lists": list(self.lists),
            "series": self.series.state() if self.series else None,
        }

    @torch.no_grad()
    def restore(self, state: Mapping[str, Any]) -> None:
        for p, stored in zip(self.params, state["params"], strict=True):
            p.copy_(stored)
        _put_back(self.estimator, state["estimator"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.rng.set_state(state["rng"].cpu())
        torch.set_rng_state(state["global rng"])
        for counter, stored in zip(self.counters, state["counters"], strict=True):
            vars(counter).update(stored)
        for mine, stored in zip(self.lists, state["lists"], strict=True):
            mine[:] = stored
        if self.series:
            self.series.restore(state["series"])


def _kept(module: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """For each submodule its parameters, its buffers, and its plain attributes, such as a queue or a running mean."""
    return {
        name: [
            dict(part.named_parameters(recurse=False)),
            dict(part.named_buffers(recurse=False)),
            {key: value for key, value in vars(part).items() if key not in _MODULE},
        ]
        for name, part in module.named_modules()
    }


def _put_back(module: nn.Module, stored: Mapping[str, Any]) -> None:
    for name, part in module.named_modules():
        parameters, buffers, others = stored[name]
        for key, value in parameters.items():
            part.get_parameter(key).copy_(value)  # in place, because the optimizer refers to it
        for key, value in buffers.items():
            setattr(part, key, value)
        vars(part).update(others)


KEPT = 64 * 2**20  # largest size in bytes of a finished training's state that is kept so that it can be continued


class Checkpoint:
    """The file that a cell's training resumes from, written at intervals of some seconds and valid for one key."""

    def __init__(
        self,
        path: Path,
        key: str,
        every: float,
        device: str,
        read: Callable[[], Mapping[str, str | None]] = dict,
    ):
        """`read` gives what plugin code has read so far; if that has changed, the file isn't valid."""
        self.path, self.key, self.every, self.device, self.read = path, key, every, device, read
        self.last = time.monotonic()

    def restored(self, training: Training, fits: Callable[[int, Sequence[Any]], bool] = lambda step, rows: True) -> int:
        """Restores the training and returns its number of steps; 0 if there is no valid checkpoint.

        `fits(steps, the first of its lists)` rejects a checkpoint that can't be continued to what is wanted.
        """
        try:
            stored = load(self.path, self.device)
        except sealed.Damaged:
            return 0
        if stored["key"] != self.key or stale(stored.get("read")):
            return 0
        if not fits(stored["step"], stored["training"]["lists"][0]):
            return 0
        training.restore(stored["training"])
        return stored["step"]

    def after(self, step: int, training: Training) -> None:
        """Write if it is time. An estimator whose state isn't plain data has no checkpoint, and starts over."""
        if time.monotonic() - self.last < self.every:
            return
        try:
            save(self._content(step, training.state()), self.path)
            self.last = time.monotonic()
        except NotPlain:
            self.every = math.inf

    def keep(self, step: int, training: Training) -> None:
        """Write the final state, unless it is larger than KEPT or not plain data; then no file is left."""
        if self.every == math.inf:  # another process writes, or the state isn't plain data
            return
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(NotPlain, OSError):  # the results don't depend on it
            state = training.state()
            if bytes_of(state) <= KEPT:
                save(self._content(step, state), self.path)

    def _content(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        return {"key": self.key, "step": step, "training": state, "read": dict(self.read())}


def bytes_of(state: Any) -> int:
    """The size of all tensors in plain data."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(bytes_of, parts))
