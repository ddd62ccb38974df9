"""What code of a plugin may change for everything else in its process: put back after it has run, and named."""

import multiprocessing
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch


class Setting(NamedTuple):
    """One thing that a process has once; `name` is what an author would look for in the code."""

    name: str
    read: Callable[[], Any]
    write: Callable[[Any], Any]


def _handlers() -> list[tuple[int, Any]]:
    return [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]


def _set_handlers(handlers: list[tuple[int, Any]]) -> None:
    for number, handler in handlers:
        if threading.current_thread() is threading.main_thread():  # no other may set them
            signal.signal(number, handler)


def _torch_seed() -> bytes:
    return torch.get_rng_state().numpy().tobytes()


def _set_torch_seed(state: bytes) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _numpy_seed() -> tuple[Any, ...]:
    name, keys, *rest = tuple[Any, ...](np.random.get_state())  # noqa: NPY002  what code of others draws from
    return name, tuple(keys.tolist()), *rest


def _set_numpy_seed(state: tuple[Any, ...]) -> None:
    np.random.set_state(state)  # noqa: NPY002


def _set_environment(variables: dict[str, str]) -> None:
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)


_DENORMAL = 5e-324


def _flushes_denormals() -> bool:
    return _DENORMAL * 1.0 == 0.0


def _set_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)  # where one is set, every call is slower


# Each is read in less than a microsecond, so after every call too.
QUICK = (
    Setting("torch.set_grad_enabled", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch.set_default_dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch.set_num_threads", torch.get_num_threads, torch.set_num_threads),
    Setting(
        "torch.use_deterministic_algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    Setting("torch.autograd.set_detect_anomaly", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
)
ALL = (
    *QUICK,
    Setting("torch.manual_seed", _torch_seed, _set_torch_seed),
    Setting("random.seed", random.getstate, random.setstate),
    Setting("numpy.random.seed", _numpy_seed, _set_numpy_seed),
    Setting("torch.set_default_device", torch.get_default_device, _set_default_device),
    Setting(
        "torch.set_float32_matmul_precision",
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    Setting("torch.set_flush_denormal", _flushes_denormals, torch.set_flush_denormal),
    Setting("os.environ", lambda: dict(os.environ), _set_environment),
    Setting("os.chdir", os.getcwd, os.chdir),
    Setting("signal.signal", _handlers, _set_handlers),
)

PROCESS = tuple(setting for setting in ALL if not setting.name.endswith("seed"))  # that a cell has no business to set

_said: set[str] = set()  # by this process


class put_back:
    """A context after which the settings are as before it; what was changed is said on stderr, once a process.

    Of `what`, some words that name the code that runs in it.
    """

    __slots__ = ("before", "process", "settings", "what")

    def __init__(self, what: str, settings: Sequence[Setting] = QUICK):
        self.what, self.settings = what, settings

    def __enter__(self) -> None:
        self.process = os.getpid()
        self.before = [setting.read() for setting in self.settings]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self.process:
            os._exit(0)  # a child that the code forked, and that would go on as if it were this process
        changed = [
            (setting, value)
            for setting, value in zip(self.settings, self.before, strict=True)
            if setting.read() != value
        ]
        if not changed:
            return
        for setting, value in changed:
            setting.write(value)
        names = ", ".join(setting.name for setting, _ in changed)
        say(f"{self.what} changed settings of the whole process ({names}); they were put back", self.settings is ALL)


def say(what: str, of_import: bool = True) -> None:
    """On stderr, once a process. What a worker imports, its parent has imported, and said so."""
    if not (of_import and multiprocessing.parent_process() is not None) and what not in _said:
        _said.add(what)
        print(f"gradebench: {what}", file=sys.stderr, flush=True)
