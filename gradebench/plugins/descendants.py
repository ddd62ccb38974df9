"""Processes that code of a plugin started and left behind. Found on Linux; elsewhere none is.

A process tells its own by their parents, and by a mark in the environment that they began with: one whose parent has
ended, or that went to a session of its own, still has it.
"""

import contextlib
import os
import signal
from pathlib import Path

MARK = "GRADEBENCH_WORKER"  # variable of the environment, different for each worker process


def of(pid: int, mark: str) -> list[int]:
    """The processes that descend from `pid` or carry its mark, without itself."""
    parents: dict[int, int] = {}
    marked = set()
    wanted = f"{MARK}={mark}".encode()
    for entry in os.scandir("/proc") if os.path.isdir("/proc") else ():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):  # it has ended, or is another user's
            # The name, in brackets, may hold anything.
            parents[int(entry.name)] = int(Path(entry, "stat").read_bytes().rpartition(b")")[2].split()[1])
            if wanted in Path(entry, "environ").read_bytes().split(b"\0"):
                marked.add(int(entry.name))
    found = marked | {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found - {pid, os.getpid()})


def end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
