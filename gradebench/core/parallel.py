"""Several processes, one a GPU, that run the same cells in step (`torchrun --nproc-per-node N -m gradebench run ...`).

The first one leads: it reads the command line, prepares, and writes. The others follow: they are told each call that
the leader makes for a cell, and make it too, so that all meet in the sums of `gradebench.problems.sharded`. With one process
nothing here does anything.
"""

import contextlib
import datetime
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradebench.core.interrupts import is_users

_PATIENCE = datetime.timedelta(days=7)  # a process may wait for another one's evaluation; one that dies ends all


class Elsewhere(RuntimeError):
    """Another process failed in the part that this one has done."""


def launched() -> bool:
    """Whether this is one of several processes that torchrun has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def world_size() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def run(command: Callable[[], None]) -> None:
    """Run the command in the first process, and make its calls for cells in the others.

    Each process sees one GPU, its own, where there are any.
    """
    devices = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    os.environ["CUDA_VISIBLE_DEVICES"] = devices[local] if len(devices) > local and devices[0] else str(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=_PATIENCE)
    try:
        if is_main():
            try:
                command()
            finally:
                with contextlib.suppress(RuntimeError):  # the others may be gone
                    _told(None)
        else:
            _follow()
    finally:
        dist.destroy_process_group()


def call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's answer here, while all other processes make the same call."""
    _told((function, arguments, {name: value for name, value in os.environ.items() if name.startswith("GRADEBENCH_")}))
    return function(*arguments)


def _follow() -> None:
    while (job := _told()) is not None:
        function, arguments, environment = job
        os.environ.update(environment)  # what the leader's options have set
        try:
            function(*arguments)
        except BaseException as error:
            if is_users(error):
                raise
            # the leader tells


def _told(job: Any = None) -> Any:
    """What the leader says."""
    box = [job]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


@contextlib.contextmanager
def agree_on_failure() -> Iterator[None]:
    """A part that succeeds in all processes or fails in all: none goes on to a sum that another one never reaches.

    Raises Elsewhere where it failed in another one, or torch.OutOfMemoryError if that was its failure.
    """
    if world_size() == 1:
        yield
        return
    try:
        yield
    except BaseException as error:
        if is_users(error):
            raise
        if not getattr(error, "agreed", False):
            _agree(f"{type(error).__name__}: {' '.join(str(error).split())}")
            vars(error)["agreed"] = True
        raise
    failures = _agree(None)
    if failures:
        kind = torch.OutOfMemoryError if any("OutOfMemoryError" in failure for failure in failures) else Elsewhere
        elsewhere = kind("; ".join(failures))
        vars(elsewhere)["agreed"] = True
        raise elsewhere


def _agree(failure: str | None) -> list[str]:
    """What failed in any of the processes, each with its number."""
    failed = torch.tensor(int(failure is not None))
    dist.all_reduce(failed)
    if not failed:
        return []
    said = []
    for source in range(world_size()):  # on the CPU: it may be a GPU that failed
        box = [failure if source == rank() else None]
        dist.broadcast_object_list(box, src=source, device=torch.device("cpu"))
        said.append(box[0])
    return [f"process {i}: {one}" for i, one in enumerate(said) if one is not None]


def all_reduce(tensors: list[Tensor]) -> None:
    """Each tensor becomes its sum over all processes."""
    if world_size() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)


def all_reduce_by_name(values: dict[str, float]) -> dict[str, float]:
    """The sums over all processes, of which each may have other names."""
    if world_size() == 1:
        return values
    everyone: list[dict[str, float]] = [{}] * world_size()
    dist.all_gather_object(everyone, values)
    total: dict[str, float] = {}
    for one in everyone:
        total |= {name: total.get(name, 0.0) + value for name, value in one.items()}
    return total
