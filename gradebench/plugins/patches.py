"""Functions, classes and hooks of torch, of gradebench and of some modules of Python that code of a plugin replaced.

They are put back and named. What a library brings along when a plugin imports it isn't told from the library's own.
"""

import contextlib
import functools
import importlib
import operator
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.nn.modules import module as torch_modules
from torch.optim import optimizer as torch_optimizer

# fmt: off
_MODULES = {
    "builtins", "copy", "functools", "itertools", "json", "math", "os", "random", "time", "numpy", "numpy.random", "torch",
}
_PACKAGES = (
    "gradebench", "torch.nn", "torch.autograd", "torch.optim", "torch.distributions", "torch.func", "torch.linalg",
)
# fmt: on
_METHODS = (staticmethod, classmethod, property)
_ABSENT: Any = object()

imported: dict[str, list[str]] = {}  # by plugin, what it replaced in this process when it was imported


class Snapshot:
    """What stands under each name now."""

    def __init__(self) -> None:
        _import_own()
        self.spaces = {name: (space, dict(vars(space))) for name, space in _spaces()}
        self.hooks = {name: list(hooks.items()) for name, hooks in _hooks().items()}

    def undo(self, foreign: str) -> list[str]:
        """The names under which something else stands by now that the plugin `foreign` may have put there; they have
        back what they had."""
        names: list[str] = []
        known = None
        for name, (space, before) in self.spaces.items():
            for key, value in _changes(space, before):
                known = known or {id(one) for _, content in self.spaces.values() for one in content.values()}
                if isinstance(value, ModuleType) or (id(value) not in known and _is_library(value, foreign)):
                    continue
                names.append(f"{name}.{key}")
                _put(space, key, before.get(key, _ABSENT))
        for name, hooks in _hooks().items():
            if list(hooks.items()) != self.hooks[name]:
                names.append(name)
                hooks.clear()
                hooks.update(self.hooks[name])
        return names


def _import_own() -> None:
    """All built-in estimators, so that they are known before code of a plugin comes to them."""
    package = importlib.import_module("gradebench.estimators")
    for found in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{found.name}")


def _spaces() -> Iterator[tuple[str, Any]]:
    """Modules, and the classes that they define, by their names."""
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or not _is_watched(name):
            continue
        yield name, module
        for value in list(vars(module).values()):
            if isinstance(value, type) and (value.__module__ == name or value is torch.Tensor):
                yield f"{value.__module__}.{value.__qualname__}", value


@functools.cache
def _is_watched(name: str) -> bool:
    return name in _MODULES or any(f"{name}.".startswith(f"{package}.") for package in _PACKAGES)


def _changes(space: Any, before: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names with what they have now, where they had a function or class or, with us, anything else."""
    now = vars(space)
    if len(now) == len(before) and all(map(operator.is_, (*now, *now.values()), (*before, *before.values()))):
        return
    ours = f"{getattr(space, '__module__', None) or space.__name__}.".startswith("gradebench.")
    for key, value in before.items():
        if now.get(key, _ABSENT) is not value and (ours or callable(value) or isinstance(value, _METHODS)):
            yield key, now.get(key, _ABSENT)
    if isinstance(space, type):  # it hides what the class inherits
        for key in [key for key in now if key not in before and key != "__abstractmethods__"]:
            inherited = getattr(super(space, space), key, None)
            if callable(inherited) or (ours and inherited is not None and not key.startswith("__")):
                yield key, now[key]


def _is_library(value: Any, foreign: str) -> bool:
    """Whether an installed package other than the plugin's defines it."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", None) or getattr(value, "func", None) or value
    # The module of a function that wraps another one says where that other one is from.
    named = getattr(value, "__globals__", {}).get("__name__") or getattr(value, "__module__", None) or ""
    package = named.partition(".")[0]
    place = getattr(sys.modules.get(package), "__file__", None) or ""
    return package != foreign and bool({"site-packages", "dist-packages"} & set(Path(place).parts))


def _put(space: Any, key: str, value: Any) -> None:
    with contextlib.suppress(TypeError, AttributeError):
        delattr(space, key) if value is _ABSENT else setattr(space, key, value)


def _hooks() -> dict[str, dict[Any, Any]]:
    """Of all modules and optimizers of the process, by the names of torch's own variables."""
    return {
        f"{space.__name__}.{name}": hooks
        for space in (torch_modules, torch_optimizer)
        for name, hooks in vars(space).items()
        if name.startswith("_global") and isinstance(hooks, dict)
    }
