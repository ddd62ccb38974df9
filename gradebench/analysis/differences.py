"""Differences of two runs in what their numbers depend on, from the facts in their config.json."""

import json
from collections.abc import Mapping
from typing import Any


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The names of the facts that two tasks, or two estimators, both have and that differ."""
    return [name for name, value in ours.items() if name in theirs and _plain(theirs[name]) != _plain(value)]


def said(value: Any, other: Any) -> str:
    """A short form of a value: for a table the entries that differ from the other one, for a digest its beginning."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        mine = {key: one for key, one in value.items() if key not in other or _plain(other[key]) != _plain(one)}
        return ", ".join(f"{key}={said(one, None)}" for key, one in sorted(mine.items())) or "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 and " " not in text else text


def _plain(value: Any) -> Any:
    """The value as it would be read back from a file."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))
