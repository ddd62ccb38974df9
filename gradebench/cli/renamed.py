"""Options that had other names, which still work for one version."""

import sys

RENAMED = {"--shards": "--micro-batches", "--plan": "--power", "--control": "--aa-test"}


def current_names(words: list[str]) -> list[str]:
    """The words of a command with today's names; each old one is said on stderr."""
    return [_current_name(word) for word in words]


def _current_name(word: str) -> str:
    name, equals, value = word.partition("=")
    if name not in RENAMED:
        return word
    print(f"gradebench: {name} is called {RENAMED[name]} now; the old name goes with the next version", file=sys.stderr)
    return RENAMED[name] + equals + value
