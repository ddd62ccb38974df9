"""A failure in one part of a cell is reported in one line and with a traceback, and leaves the other parts intact."""

import contextlib
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from gradebench.core import parallel
from gradebench.core.errors import place_of
from gradebench.core.interrupts import is_users
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.workers import said
from gradebench.plugins import registry
from gradebench.storage.files import out_of_room
from gradebench.storage.formats import write_text


@contextlib.contextmanager
def apart(plan: Plan, cell: Cell, what: str, lacking: list[str]) -> Iterator[None]:
    """A context for a diagnostic whose failure isn't that of the cell: what failed and why is added to `lacking`."""
    try:
        with parallel.agree_on_failure():
            yield
    except BaseException as error:
        if is_users(error) or (isinstance(error, OSError) and out_of_room(error)):
            raise  # because nothing else could be written either
        lacking.append(f"{what}: {told(error, cell)}")
        keep_traceback(plan, cell)


def keep_traceback(plan: Plan, cell: Cell) -> None:
    """Write the traceback of the present exception into the cell's folder."""
    if parallel.is_main():
        file = Path(plan.out) / "cells" / cell.id / "error.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, traceback.format_exc())


def told(error: BaseException, cell: Cell) -> str:
    """An exception in one line, with its place in a plugin's own code, and with advice if memory ran out."""
    line = said(error) + place_of(error, list(filter(None, cell.foreign)))
    return f"{line[:300]}; {memory_advice(cell)}" if is_out_of_memory(error) else line


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; on a CPU, torch raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def memory_advice(cell: Cell) -> str:
    """Advice on how to use less memory."""
    advice = getattr(registry.resolve("tasks", cell.task_spec).factory, "memory_advice", "")
    return f"take a smaller --batch, or --micro-batches 2 or more{f', or {advice}' if advice else ''}"
