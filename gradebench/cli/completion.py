"""What the shell completes: estimators and tasks by name, and behind the colon their options and values."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Iterator

VARIABLE = "_GRADEBENCH_COMPLETE"
_BREAKS = ":="  # where bash ends a word, and so completes only what follows


def estimators(incomplete: str) -> list[str]:
    return _specs("estimators", incomplete)


def tasks(incomplete: str) -> list[str]:
    return _specs("tasks", incomplete)


def names(incomplete: str) -> list[str]:
    """Of both kinds, without their options."""
    from gradebench.plugins.registry import KINDS, entries

    return sorted({name for kind in KINDS for name in entries(kind) if name.startswith(incomplete)})


def _specs(kind: str, incomplete: str) -> list[str]:
    """What NAME[:k=v,...] may go on with; nothing is imported for it."""
    from gradebench.plugins.registry import entries

    known = entries(kind)
    name, colon, given = incomplete.partition(":")
    if not colon:
        return [one for one in (*known, "all") if one.startswith(name)]
    if name not in known:
        return []
    before, comma, last = given.rpartition(",")
    start = f"{name}:{before}{comma}"
    taken = {part.partition("=")[0] for part in before.split(",")}
    options = {key: option for key, option in (known[name].options or {}).items() if key not in taken}
    key, equals, _ = last.partition("=")
    if equals:
        options = {key: options[key]} if key in options else {}
    found = [f"{start}{key}={value}" for key, option in options.items() for value in ["", *_values(option)]]
    return [one for one in found if one.startswith(incomplete) and one != incomplete]


def _values(option: object) -> Iterator[str]:
    """The choices of an option; else its default, so that there is something to change."""
    from gradebench.core.options import Option, text_of

    assert isinstance(option, Option)
    if option.choices:
        yield from map(text_of, option.choices)
    elif not option.required:
        yield text_of(option.default)


def in_bash(run: Callable[[], None]) -> None:
    """A completion in bash, which cuts the words of a command at colons and equals signs: they are joined for `run`, and
    from its answers goes what stands there already."""
    words, current = joined(os.environ["COMP_WORDS"].split("\n"), int(os.environ["COMP_CWORD"]))
    os.environ["COMP_WORDS"], os.environ["COMP_CWORD"] = "\n".join(words), str(current)
    there = re.match(rf".*[{_BREAKS}]|", words[current])
    answers = io.StringIO()
    try:
        with contextlib.redirect_stdout(answers):
            run()
    finally:
        for line in answers.getvalue().splitlines():
            sys.stdout.write(line[there.end() if there else 0 :] + "\n")


def joined(words: list[str], current: int) -> tuple[list[str], int]:
    """The words up to the current one as they were typed, and where that is now."""
    answer: list[str] = []
    for word in words[: current + 1]:
        broken = bool(word) and set(word) <= set(_BREAKS)
        if answer and len(answer) > 1 and (broken or answer[-1][-1:] in _BREAKS) and answer[-1]:
            answer[-1] += word
        else:
            answer.append(word)
    return answer, len(answer) - 1
