"""What `gradebench list` prints: the registered estimators and tasks, broken ones with their reason.

Nothing is imported to list it, unless the listing is verbose: then each entry's import is put to the test.
"""

import difflib
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gradebench
from gradebench.core.errors import InputError
from gradebench.core.options import options_of
from gradebench.core.shown import one_line
from gradebench.core.streams import plugins_aside
from gradebench.plugins.registry import INSTALL_HINT, KINDS, Entry, collisions, entries, installed, load

if TYPE_CHECKING:
    from gradebench.reporting.console import PlainConsole


def print_listing(kind: str | None, as_json: bool = False, verbose: bool = False) -> None:
    """Print what is registered, of one kind or of all, to stdout: as a table, or as a JSON document.

    `verbose` imports each entry, which takes seconds: its options come from the live signature, and an entry that
    fails to import is shown as broken. Raises InputError for an unknown kind.
    """
    kinds = [kind] if kind else list(KINDS)
    listed = {each: list(entries(each).values()) for each in kinds}
    if verbose:
        listed = {each: [imported(entry) for entry in found] for each, found in listed.items()}
    ignored = [line for each in kinds for line in collisions(each)]
    for line in ignored:
        warnings.warn(line, stacklevel=2)
    if not installed():
        print(INSTALL_HINT, file=sys.stderr)
    if as_json:
        print(json.dumps(document(listed, ignored), indent=2))
    elif sys.stdout.isatty():
        _print_tables(listed, verbose)
    else:
        for line in plain_lines(listed, verbose):
            print(one_line(line))


def imported(entry: Entry) -> Entry:
    """The entry with the options of its imported object, or with the reason why it can't be imported."""
    if entry.problem:
        return entry
    try:
        with plugins_aside():
            return replace(entry, options=options_of(load(entry.kind, entry.name).factory))
    except InputError as error:
        return replace(entry, problem=str(error))


def document(listed: dict[str, list[Entry]], ignored: Sequence[str]) -> dict[str, Any]:
    """The listing as `json` writes it; null stands for "not known without importing it"."""
    kinds = {kind: [_entry_as_json(entry) for entry in found] for kind, found in listed.items()}
    return {"gradebench": gradebench.__version__, **kinds, "warnings": list(ignored)}


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": entry.name,
        "distribution": entry.distribution,
        "version": entry.version,
        "builtin": entry.builtin,
        "object": entry.value,
        "status": "broken" if entry.problem else "ok",
        "problem": entry.problem,
        "summary": entry.summary,
    }
    if entry.kind == "estimators":
        facts["unbiased"] = entry.unbiased
        facts["needs"] = None if entry.needs is None else list(entry.needs)
        facts["card"] = entry.card
    facts["options"] = None if entry.options is None else [option.as_json() for option in entry.options.values()]
    return facts


def header(kind: str) -> list[str]:
    """The titles of the columns."""
    return [kind, "from", "unbiased", "needs", "summary"] if kind == "estimators" else [kind, "from", "summary"]


def row(entry: Entry) -> list[str]:
    """The cells of one entry; what isn't known is blank."""
    summary = f"BROKEN: {entry.problem}" if entry.problem else entry.summary
    if entry.kind != "estimators":
        return [entry.name, entry.source, summary]
    unbiased = {True: "yes", False: "no", None: ""}[entry.unbiased]
    return [entry.name, entry.source, unbiased, " ".join(entry.needs or ()), summary]


def detail_lines(entry: Entry) -> list[str]:
    """The card of an estimator, and one line for each option: `n: int >= 2, default 4 (samples per prompt)`."""
    card = entry.card if entry.kind == "estimators" else {}
    lines = [line for name, text in card.items() for line in f"{name}: {text}".replace("\n", "\n    ").split("\n")]
    return lines + [
        f"{option.name}: {option.describe()}{f' ({option.doc})' if option.doc else ''}"
        for option in (entry.options or {}).values()
    ]


def plain_lines(listed: dict[str, list[Entry]], verbose: bool) -> Iterator[str]:
    """Aligned text for pipes and files: one entry a line, however long, and with `verbose` its card and options below it."""
    for position, (kind, found) in enumerate(listed.items()):
        if position:
            yield ""
        rows = [header(kind), *map(row, found)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for index, cells in enumerate(rows):
            yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
            if verbose and index:
                yield from (f"    {line}" for line in detail_lines(found[index - 1]))


def _print_tables(listed: dict[str, list[Entry]], verbose: bool) -> None:
    from gradebench.reporting.console import stdout_console  # rich takes a quarter of the time that `--help` may take
    from gradebench.reporting.fitted import Shown, print_table

    console = stdout_console()
    for kind, found in listed.items():
        if verbose:
            for entry in found:
                _say_card(console, entry)
                console.print()
        elif found:
            cells = [dict(zip(header(kind), row(entry), strict=True)) for entry in found]
            importance = {kind: 0, "unbiased": 1, "needs": 2, "from": 3, "summary": 0}
            columns = [
                Shown(
                    title, [one[title] for one in cells], importance[title], left=True, prose=40 * (title == "summary")
                )
                for title in header(kind)
            ]
            print_table(console, "", columns)
            console.print()


def print_card(name: str) -> None:
    """Print all that is known of one estimator or task, and the commands that try it.

    Raises InputError for a name that nothing is registered under.
    """
    from gradebench.reporting.console import stdout_console
    from gradebench.reporting.next_steps import print_next

    found = [entry for kind in KINDS if (entry := entries(kind).get(name))]
    if not found:
        known = {one: None for kind in KINDS for one in entries(kind)}
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"there is no estimator or task {name!r}; {hint}`gradebench list` shows all")
    console = stdout_console()
    for entry in map(imported, found):
        _say_card(console, entry)
        estimator = entry.kind == "estimators"
        tried = f"gradebench run -e {'rloo -e ' if name != 'rloo' else ''}{name} -t enumerable-lm"
        steps = [
            (f"gradebench check {name}", "whether it keeps its contract"),
            (tried, "trains it on a task of seconds"),
        ]
        print_next(console, steps if estimator else [(f"gradebench run -e rloo -e grpo -t {name}", "trains on it")])


def _say_card(console: "PlainConsole", entry: Entry) -> None:
    """The name, and below it what its card says, a line or paragraph each."""
    cells = dict(zip(header(entry.kind), row(entry), strict=True))
    console.heading(f"{entry.name}  ({entry.kind.removesuffix('s')}, {entry.source})")
    console.say(cells["summary"], indent=2)
    for title in ("unbiased", "needs"):
        if cells.get(title):
            console.say(f"{title}: {cells[title]}", indent=2)
    for line in detail_lines(entry):
        console.say(line.strip(), indent=4 if line.startswith(" ") else 2)
