"""Signs of life on stderr while a command is silent: on a terminal one line, which the next output replaces; elsewhere a
line of the log every half minute."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gradebench.core import progress
from gradebench.core.shown import one_line

ON_TERMINAL = 1.5  # seconds of silence before the first sign; promised are 3
IN_LOG = 25.0  # promised are 30
CHECK = 0.25


class Watch:
    """When something was written last, and what to say if that is long ago; `describe` says what a run is at."""

    def __init__(self, name: str, terminal: bool, clock: Callable[[], float] = time.monotonic):
        self.name, self.terminal, self.clock = name, terminal, clock
        self.began = self.spoken = clock()
        self.drawn = False  # whether the line that stands last on the terminal is ours
        self.describe: Callable[[], str] = lambda: ""

    def heard(self) -> str:
        """To be called before anything is written; returns what removes our line from the terminal."""
        self.spoken = self.clock()
        before, self.drawn = self.drawn, False
        return "\r\x1b[K" if before else ""

    def sign(self, width: int = 80) -> str:
        """What to write now; "" while others speak."""
        if not self.drawn and self.clock() - self.spoken < (ON_TERMINAL if self.terminal else IN_LOG):
            return ""
        doing = self.describe() or doing_here()
        line = one_line(f"gradebench {self.name}: {duration(self.clock() - self.began)}{f', {doing}' if doing else ''}")
        if not self.terminal:
            self.spoken = self.clock()
            return f"{line}\n"
        self.drawn = True
        return f"\r\x1b[K{line[: width - 1]}"


def doing_here() -> str:
    """What this process told last: how far it is, and how long the rest will take."""
    found = progress.here()
    if not found:
        return ""
    told, seconds = found
    if not told.total:
        return told.what
    left = f", about {duration(seconds * (told.total - told.done) / told.done)} left" if told.done else ""
    return f"{told.what}: {told.done:,} of {told.total:,}{left}"


def duration(seconds: float) -> str:
    """Like "8 s", "3 min" or "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


watch: Watch | None = None  # of the command that runs
_turn = threading.RLock()


def hush() -> None:
    """To be called before anything else is written: our line goes from the terminal, and silence begins anew."""
    if watch is None:
        return
    with _turn:
        if said := watch.heard():
            _write(said)


def _write(text: str) -> None:
    getattr(sys.stderr, "write_unheard", sys.stderr.write)(text)
    sys.stderr.flush()


@contextmanager
def watched(name: str) -> Iterator[None]:
    """Signs of life on stderr while a command runs."""
    global watch
    ended = threading.Event()
    watch = Watch(name, sys.stderr.isatty() and os.environ.get("TERM") != "dumb")
    mine = watch

    def look() -> None:
        while not ended.wait(CHECK):
            with _turn:
                if said := mine.sign(_width()):
                    _write(said)

    looker = threading.Thread(target=look, daemon=True)
    looker.start()
    try:
        yield
    finally:
        ended.set()
        looker.join()
        hush()
        watch = None


def _width() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
