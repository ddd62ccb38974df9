"""How far a run is: a bar on a terminal, lines elsewhere; steps within cells and the time left count too."""

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.cells import cell_len
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from gradebench.core import alive
from gradebench.core import progress as told
from gradebench.core.shown import one_line
from gradebench.experiment.plan import Cell
from gradebench.experiment.runner import Progress
from gradebench.reporting.console import stderr_console

SHOWN = 2  # cells at work that are named
BAR = 16  # characters
EVERY = 0.5  # seconds between two looks at them


class TerminalProgress(Progress):
    """Notes as lines on stderr; on a terminal a bar, and elsewhere `gradebench.core.alive` says what `state` is."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.console = stderr_console()
        self.clock = clock
        self.bar: Bar | None = None
        self.folder: Path | None = None
        self.cells = self.cells_done = self.references = self.references_done = self.kept = 0
        self.last = ""

    def note(self, message: str) -> None:
        self.console.print(message)

    def start(self, total: int, done: int) -> None:
        self.cells, self.cells_done, self.kept, self.began = total, done, done, self.clock()
        self.references = self.references_done = 0
        self.folder = Path(tempfile.mkdtemp(prefix="gradebench-"))
        os.environ[told.FOLDER] = str(self.folder)
        if alive.watch:
            alive.watch.describe = self.state
        if self.console.is_terminal and not self.console.is_dumb_terminal:
            self._draw()

    def _draw(self) -> None:
        text = TextColumn("{task.description}", markup=False)
        self.bar = Bar(BarColumn(BAR), text, console=self.console, refresh_per_second=2)
        self.identity = self.bar.add_task("", total=1.0)
        self.bar.start()
        self.ended = threading.Event()

        def look() -> None:
            while not self.ended.wait(EVERY):
                self.show()

        self.looker = threading.Thread(target=look, daemon=True)
        self.looker.start()
        self.show()

    def show(self) -> None:
        """The bar as it is now; in narrow terminals with fewer cells named."""
        if self.bar is None:
            return
        states = [one_line(self.state(shown)) for shown in range(SHOWN, -1, -1)]
        fitting = next((one for one in states if cell_len(one) < self.console.width - BAR - 1), states[-1])
        self.bar.update(self.identity, completed=self.part(), description=fitting)

    def phase(self, references: int) -> None:
        self.references = references

    def advance(self, cell: Cell | None, status: str) -> None:
        if cell is None:
            self.references_done += 1
        else:
            self.cells_done += 1
            self.last = f"{cell.estimator} seed {cell.seed} {status}"
            if status not in ("ok", "skipped"):
                self.note(f"{cell.estimator} on {cell.task}, seed {cell.seed}: {status}")
        self.show()

    def stop(self) -> None:
        if self.bar is not None:
            self.ended.set()
            self.looker.join()
            self.bar.stop()
            self.bar = None
        if self.folder is not None:
            os.environ.pop(told.FOLDER, None)
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None
        if alive.watch:
            alive.watch.describe = lambda: "writing the tables and the report"

    def _at_work(self) -> list[told.Told]:
        with contextlib.suppress(OSError):
            return told.of_workers(self.folder) if self.folder else []
        return []

    def part(self) -> float:
        """How much is done of what this command has to do, cells and reference gradients alike; of a cell that is at work
        as much as it has told."""
        todo = self.cells - self.kept + self.references
        done = self.cells_done - self.kept + self.references_done + sum(one.part for one in self._at_work())
        return min(1.0, done / todo) if todo > 0 else 1.0

    def state(self, shown: int = SHOWN) -> str:
        """Like "cells 3/20, about 4 min left: rloo seed 2 12/40 steps"."""
        counts = f"cells {self.cells_done}/{self.cells}"
        if self.references > self.references_done:
            counts = f"reference gradients {self.references_done}/{self.references}, {counts}"
        part = self.part()
        if 0 < part < 1:
            counts += f", about {alive.duration((self.clock() - self.began) * (1 - part) / part)} left"
        work = [f"{one.what} {one.done}/{one.total}" for one in self._at_work()]
        if not shown:
            return counts
        named = "; ".join(work[:shown]) + (f" and {len(work) - shown} more" if len(work) > shown else "")
        return f"{counts}: {named or self.last}" if named or self.last else counts
