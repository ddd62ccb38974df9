"""The terminal, or the pipe in its place: text that others wrote is shown as it is, on one line, in any encoding."""

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich import progress
from rich.console import Console
from rich.text import Text

from gradebench.core import progress as told
from gradebench.core.shown import one_line

WIDTH_WHEN_PIPED = 220  # unless COLUMNS says otherwise
ASCII = {"±": "+-", "²": "^2", "≥": ">=", "≤": "<="}  # where the terminal's encoding lacks them
One = TypeVar("One")


class PlainConsole(Console):
    """Neither markup nor emoji codes are read in what is printed, nor in titles and cells of tables.

    No control codes are written into pipes, on dumb terminals, and where NO_COLOR is set.
    """

    def __init__(self, **options: Any):
        color = {"color_system": None} if os.environ.get("NO_COLOR") else {}
        super().__init__(markup=False, emoji=False, highlight=False, **(color | options))

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(self.fitting(text), **options)

    def fitting(self, text: str) -> str:
        """What others wrote on one line, as the encoding can show it."""
        return one_line(text).encode(self.encoding, "backslashreplace").decode(self.encoding)

    def spelled(self, text: str) -> str:
        """Words of our own, with signs that the encoding lacks as ASCII spells them; what others wrote stays as it is."""
        for sign, instead in ASCII.items():
            if sign in text and sign.encode(self.encoding, "ignore") == b"":
                text = text.replace(sign, instead)
        return text

    def heading(self, title: str) -> None:
        """A title, in bold where the terminal can."""
        self.say(title, style="bold")

    def say(self, sentence: str, indent: int = 0, style: str | None = None) -> None:
        """A sentence, broken between words; names with hyphens and paths stay whole."""
        room, words = " " * indent, self.fitting(self.spelled(sentence))
        broken = textwrap.TextWrapper(
            self.width, initial_indent=room, subsequent_indent=room, break_long_words=False, break_on_hyphens=False
        )
        for line in broken.wrap(words) or [""]:
            self.print(line, soft_wrap=True, style=style)

    def copyable(self, text: str) -> None:
        """A command or a path, into which no line break is put."""
        self.print(text, soft_wrap=True)


def stdout_console() -> PlainConsole:
    given = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdigit()
    return PlainConsole(width=None if given else WIDTH_WHEN_PIPED)


def stderr_console() -> PlainConsole:
    return PlainConsole(stderr=True, soft_wrap=True)


def track(many: Iterable[One], total: int, of: str) -> Iterator[One]:
    """The same, with a bar on a terminal's stderr if there are enough to wait for; elsewhere signs of life count them."""
    if total < 10 or not sys.stderr.isatty():
        return told.track(of, many, total)
    return iter(progress.track(many, of, total=total, console=stderr_console(), transient=True))
