"""Tables that fit the terminal: as many columns as it has room for, the most important first; no name is cut."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD, Box
from rich.cells import cell_len
from rich.table import Table

from gradebench.reporting.console import PlainConsole

ALWAYS = 0  # the importance of a column that is never left out
GAP = 2  # spaces between columns
NAMED = 3  # columns that are left out and named
EMPTY = frozenset({"", "-"})
_ASCII_HEAD = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


@dataclass(frozen=True)
class Shown:
    """A column as it is printed.

    importance   ALWAYS, or its place in the order in which columns are chosen while there is room
    left         whether its cells are texts, which stand on the left
    prose        whether they may be folded between words; it takes what room is left
    """

    heading: str
    cells: Sequence[str]
    importance: int = ALWAYS
    left: bool = False
    prose: int = 0

    @property
    def width(self) -> int:
        """What it needs: headings may be broken between words, cells only in prose."""
        widest = max(map(cell_len, self.cells), default=0)
        words = max(map(cell_len, self.heading.split()), default=0)
        return max(words, min(widest, self.prose) if self.prose else widest)


def chosen(columns: Sequence[Shown], width: int) -> list[Shown]:
    """Those that fit, in their own order; those without a value are left out. Too wide if even ALWAYS needs more."""
    filled = [column for column in columns if column.importance == ALWAYS or not EMPTY.issuperset(column.cells)]
    taken: list[Shown] = []
    for column in sorted(filled, key=lambda one: one.importance):
        if column.importance == ALWAYS or _width([*taken, column]) <= width:
            taken.append(column)
    return [column for column in filled if any(column is one for one in taken)]


def _width(columns: Sequence[Shown]) -> int:
    return sum(column.width for column in columns) + GAP * (len(columns) - 1)


def print_table(console: PlainConsole, title: str, columns: Sequence[Shown]) -> list[str]:
    """A table below its title; where a name is too long for one, each row as a paragraph. Returns the headings shown."""
    if title:
        console.heading(title)
    columns = [_written(console, column) for column in columns]
    fitting = chosen(columns, console.width)
    if _width(fitting) > console.width:
        return _print_paragraphs(console, columns)
    room = console.width - _width([column for column in fitting if not column.prose])
    box = SIMPLE_HEAD if console.encoding.startswith("utf") else _ASCII_HEAD
    table = Table(box=box, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    folded = any(column.prose for column in fitting)
    for column in fitting:
        width = column.width
        if column.prose:
            widest = max(map(cell_len, [column.heading, *column.cells]))
            width = max(column.width, min(widest, room - GAP))
        table.add_column(
            column.heading,
            justify="left" if column.left or column.prose else "right",
            vertical="top" if folded else "bottom",
            width=width,
        )
    for cells in zip(*(column.cells for column in fitting), strict=True):
        table.add_row(*cells)
    console.print(table)
    if hidden := [column.heading for column in columns if column not in fitting and not EMPTY.issuperset(column.cells)]:
        named = f"{len(hidden)} more columns" if len(hidden) > NAMED else ", ".join(hidden)
        console.say(f"(a wider terminal also shows {named})")
    return [column.heading for column in fitting]


def _written(console: PlainConsole, column: Shown) -> Shown:
    """The column in characters that the terminal can show."""
    cells = column.cells if column.left else [console.spelled(cell) for cell in column.cells]
    return replace(column, heading=console.spelled(column.heading), cells=[console.fitting(cell) for cell in cells])


def _print_paragraphs(console: PlainConsole, columns: Sequence[Shown]) -> list[str]:
    """A row as its first text on a line of its own, which the terminal may break, and below it a line of what matters
    most. Returns the headings shown."""
    first, *others = columns
    shown: list[str] = []
    for number, name in enumerate(first.cells):
        console.copyable(name)
        line = ""
        for column in sorted(others, key=lambda one: one.importance):
            fact = f"{'; ' if line else '  '}{column.heading.removesuffix(' ±')} {column.cells[number]}"
            if column.cells[number] not in EMPTY and cell_len(line + fact) <= console.width:
                line += fact
                shown.append(column.heading)
        if line:
            console.copyable(line)
    return list(dict.fromkeys(shown))
