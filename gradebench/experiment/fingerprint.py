"""A fingerprint of a task, to find what a cell changed: a small value by name for each part that cells share.

The values of trained parameters are left out, because they change in training and every cell resets them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradebench.core.problem import Ledger

_PLAIN = (bool, int, float, str, bytes, type(None))
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

Print = dict[str, Any]


def fingerprint(task: object, trained: Sequence[Tensor]) -> Print:
    """The fingerprint of the task's tensors, modules and plain data."""
    return dict(_of(type(task).__name__, task, {id(p) for p in trained}, set()))


def of_tensors(name: str, tensors: Sequence[Tensor]) -> Print:
    return dict(_of(name, list(tensors), set(), set()))


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The names of the parts that have changed or are gone; added parts don't count."""
    return [name for name, value in before.items() if now.get(name) != value]


def _of(name: str, value: Any, trained: set[int], seen: set[int]) -> Iterator[tuple[str, Any]]:
    if isinstance(value, _PLAIN):
        yield name, repr(value)
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield from _of_tensor(name, value, id(value) in trained)
    elif isinstance(value, nn.Module):
        for part, module in value.named_modules():
            yield from _of_module(f"{name}.{part}" if part else name, module, trained, seen)
    elif isinstance(value, Mapping):
        for key, one in list(value.items()):
            yield from _of(f"{name}[{key!r}]", one, trained, seen)
    elif isinstance(value, list | tuple) and all(isinstance(one, _PLAIN) for one in value):
        yield name, hash(tuple(value))
    elif isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _of(f"{name}[{number}]", one, trained, seen)
    elif type(value).__module__.partition(".")[0] == "gradebench" or not seen - {id(value)}:
        for key, one in list(getattr(value, "__dict__", {}).items()):
            if not key.startswith("_") and not isinstance(one, Ledger):  # caches and counts
                yield from _of(f"{name}.{key}", one, trained, seen)


def _of_module(name: str, module: nn.Module, trained: set[int], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """A module's mode, hooks, replaced methods, parameters and buffers.

    Non-persistent buffers of the library's models are left out, because they serve as caches.
    """
    yield f"{name}.training", module.training
    yield f"hooks of {name}", [len(getattr(module, hooks)) for hooks in _HOOKS]
    yield f"methods of {name}", sorted(key for key in vars(module) if callable(getattr(type(module), key, None)))
    ours = type(module).__module__.partition(".")[0] != "transformers"
    for key, p in module.named_parameters(recurse=False):
        yield from _of(f"{name}.{key}", p, trained, seen)
    for key, buffer in module.named_buffers(recurse=False):
        if ours or key not in module._non_persistent_buffers_set:
            yield from _of(f"{name}.{key}", buffer, trained, seen)


def _of_tensor(name: str, tensor: Tensor, trained: bool) -> Iterator[tuple[str, Any]]:
    hooks = (getattr(tensor, "_backward_hooks", None), getattr(tensor, "_post_accumulate_grad_hooks", None))
    yield f"requires_grad of {name}", tensor.requires_grad
    yield f"hooks of {name}", [len(one or ()) for one in hooks]
    yield f"shape of {name}", (tuple(tensor.shape), str(tensor.dtype), str(tensor.device))
    if not trained and tensor.layout == torch.strided:
        yield name, _numbers(tensor)


def _numbers(tensor: Tensor) -> tuple[int, ...]:
    """Sums of a tensor's bits as integers: of all, of every second, and of the first half, so that swaps are noticed too."""
    flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    bits = flat.detach().contiguous().flatten().view(_INTEGERS[flat.element_size()])
    parts = (bits, bits[::2], bits[: len(bits) // 2])
    return tuple(int(part.sum(dtype=torch.int64)) for part in parts)
