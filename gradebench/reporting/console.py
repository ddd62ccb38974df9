"""The terminal, or the pipe in its place: text that others wrote is shown as it is, on one line, in any encoding."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich import progress
from rich.console import Console
from rich.text import Text

from gradebench.core.shown import one_line

WIDTH_WHEN_PIPED = 220
One = TypeVar("One")


class PlainConsole(Console):
    """Neither markup nor emoji codes are read in what is printed, nor in titles and cells of tables."""

    def __init__(self, **options: Any):
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        fitting = one_line(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        return super().render_str(fitting, **options)


def stdout_console() -> Console:
    return PlainConsole(width=None if sys.stdout.isatty() else WIDTH_WHEN_PIPED)


def stderr_console() -> Console:
    return PlainConsole(stderr=True, soft_wrap=True)


def track(many: Iterable[One], total: int, of: str) -> Iterator[One]:
    """The same, with a bar on stderr where that is a terminal and there are enough to wait for."""
    if total < 10 or not sys.stderr.isatty():
        return iter(many)
    return iter(progress.track(many, of, total=total, console=stderr_console(), transient=True))
