"""What a training has come to, in one safetensors file of tensors and plain data, without pickle.

Plain data: None, truths, numbers, text, tensors, and lists, tuples and dicts of them. A file is read back to the bit.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gradebench.storage import sealed
from gradebench.storage.followed import stale

_MODULE = set(vars(nn.Module()))  # what torch itself keeps in a module's __dict__


class NotPlain(TypeError):
    """Something that is no plain data."""


def save(state: Any, path: Path) -> None:
    """Written whole or not at all. Raises NotPlain."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_encoded(state, tensors))
    sealed.write(path, tensors, text)


def load(path: Path, device: str) -> Any:
    """What was saved; tensors that were on a GPU come back on `device`. Raises Damaged, also where there is no file."""
    tensors, text = sealed.read(path)
    return _decoded(json.loads(text), tensors, device)


def _encoded(value: Any, tensors: dict[str, Tensor]) -> Any:
    """As JSON: scalars as they are, all else as [kind, content]."""
    if value is None or type(value) in (bool, int, str):
        return value
    if isinstance(value, float):  # numpy's too
        return float(value)
    if type(value) is Tensor or type(value) is nn.Parameter:
        if value.grad_fn is not None or value.layout != torch.strided:
            raise NotPlain("a tensor with a graph")
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()  # safetensors takes no two views of one memory
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


# --- what a training has come to --------------------------------------------------------------------------------


@dataclass
class Training:
    """All that moves while a cell trains."""

    params: Sequence[Tensor]
    estimator: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]
    rng: torch.Generator
    counters: Sequence[object]  # objects whose attributes are plain data
    lists: Sequence[list[Any]]  # of plain data, that only grow

    def state(self) -> dict[str, Any]:
        return {
            "params": list(self.params),
            "estimator": _kept(self.estimator),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": self.rng.get_state(),
            "global rng": torch.get_rng_state(),
            "counters": [dict(vars(counter)) for counter in self.counters],
            "lists": list(self.lists),
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


def _kept(module: nn.Module) -> dict[str, list[dict[str, Any]]]:
    """By submodule: its parameters, its buffers, and what it keeps beside them (a queue, a mean in a plain number)."""
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
            part.get_parameter(key).copy_(value)  # in place: the optimizer knows it
        for key, value in buffers.items():
            setattr(part, key, value)
        vars(part).update(others)


KEPT = 64 * 2**20  # bytes that the last state of a finished training may have, to be kept for more steps


class Checkpoint:
    """The file that a cell's training goes on from; written every so many seconds, and only good for one key."""

    def __init__(
        self,
        path: Path,
        key: str,
        every: float,
        device: str,
        read: Callable[[], Mapping[str, str | None]] = dict,
    ):
        """`read` gives what code of plugins has read by now: the file is no good once that is otherwise."""
        self.path, self.key, self.every, self.device, self.read = path, key, every, device, read
        self.last = time.monotonic()

    def restored(self, training: Training, fits: Callable[[int, Sequence[Any]], bool] = lambda step, rows: True) -> int:
        """The steps that were made already, with everything as it was after them; 0 where nothing can be used.

        `fits(steps, the first of its lists)` refuses one that can't go on to what is wanted.
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
        """Write if it is time to. An estimator that keeps what is no plain data has none, and starts over."""
        if time.monotonic() - self.last < self.every:
            return
        try:
            save(self._content(step, training.state()), self.path)
            self.last = time.monotonic()
        except NotPlain:
            self.every = math.inf

    def keep(self, step: int, training: Training) -> None:
        """Write what all steps have come to, unless it takes more than KEPT or is no plain data; then none is left."""
        if self.every == math.inf:  # another process writes, or there is no plain data
            return
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(NotPlain, OSError):  # the results don't depend on it
            state = training.state()
            if bytes_of(state) <= KEPT:
                save(self._content(step, state), self.path)

    def _content(self, step: int, state: dict[str, Any]) -> dict[str, Any]:
        return {"key": self.key, "step": step, "training": state, "read": dict(self.read())}


def bytes_of(state: Any) -> int:
    """Of all tensors in plain data."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return sum(map(bytes_of, parts))
