"""Text that others wrote, made fit for files and for people."""

import re

# What breaks a line, steers a terminal, turns the direction of reading, or can't stand in HTML and SVG.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
SURROGATE = re.compile("[\ud800-\udfff]")


def shown(text: str) -> str:
    """The text with control characters, and others that nobody would see, as escapes such as \\x1b."""
    return _UNSEEN.sub(escape, text)


def one_line(text: str) -> str:
    """The same, tabs and line breaks too: a name, a cell of a table, or a message."""
    return shown(text).replace("\n", "\\n").replace("\t", "\\t")


def utf8(text: str) -> str:
    """The text with each lone surrogate as its escape, six characters such as \\ud800: UTF-8 has no form for it.

    They come from file names that are no UTF-8, and from JSON; no table could hold them.
    """
    return text if text.isascii() else SURROGATE.sub(escape, text)


def escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


def counted(number: float | str, noun: str, plural: str = "") -> str:
    """ "1 seed", "0 seeds", "1,200 seeds": a whole number, or one in words, with its noun.

    `plural` is for a noun that takes no s, and for one that brings its verb: "cell is", "cells are".
    """
    words = number if isinstance(number, str) else f"{int(number):,}"
    return f"{words} {noun if words == '1' else plural or f'{noun}s'}"
