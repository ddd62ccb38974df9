"""How far a piece of work is: told by who does it, in this process or a worker, and read by who shows it.

Processes tell by a file each in a folder, which works for any launcher on this machine; where there is no folder, nothing
is written. Nothing that is computed depends on it.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

FOLDER = "GRADEBENCH_PROGRESS"  # the variable that workers inherit
EVERY = 0.5  # seconds between two files of one process
FRESH = 120.0  # seconds after which a file is of a process that has gone, or hangs
One = TypeVar("One")


class Told(NamedTuple):
    """So many of so many steps of something are done."""

    what: str
    done: int
    total: int

    @property
    def part(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0


class _Latest:
    """What this process told last, and when it began with it."""

    def __init__(self) -> None:
        self.told: Told | None = None
        self.began = self.written = 0.0


_latest = _Latest()


def tell(what: str, done: int, total: int) -> None:
    """Report that `done` of `total` steps of `what` are done. Cheap enough to be called in each training step."""
    now = time.monotonic()
    if _latest.told is None or _latest.told.what != what:
        _latest.began, _latest.written = now, 0.0
    _latest.told = Told(what, done, total)
    folder = os.environ.get(FOLDER)
    if folder and now - _latest.written >= EVERY:
        _latest.written = now
        with contextlib.suppress(OSError, UnicodeError):  # a folder that has gone, or a full disk: nothing is lost
            (Path(folder) / str(os.getpid())).write_text(f"{done}\t{total}\t{what}", "utf-8")


def track(what: str, many: Iterable[One], total: int) -> Iterator[One]:
    """The same, telling each."""
    for done, one in enumerate(many):
        tell(what, done, total)
        yield one
    ended()


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Report work that can't tell how far it is."""
    tell(what, 0, 0)
    try:
        yield
    finally:
        ended()


def ended() -> None:
    """Report that the last reported work is done."""
    _latest.told = None
    if folder := os.environ.get(FOLDER):
        with contextlib.suppress(OSError):
            (Path(folder) / str(os.getpid())).unlink(missing_ok=True)


def here() -> tuple[Told, float] | None:
    """What this process told last, and how many seconds ago it began with it."""
    return (_latest.told, time.monotonic() - _latest.began) if _latest.told else None


def of_workers(folder: Path) -> list[Told]:
    """What the processes that report into this folder told last, without those that have been silent for long."""
    answer = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        try:
            done, total, what = path.read_text("utf-8").split("\t", 2)
            if time.time() - path.stat().st_mtime < FRESH:
                answer.append(Told(what, int(done), int(total)))
        except (OSError, ValueError):  # just now written, or deleted
            continue
    return answer
