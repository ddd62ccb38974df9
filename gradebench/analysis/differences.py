"""Where two runs differ in what their numbers depend on, by the facts that their config.json keeps."""

import json
from collections.abc import Mapping
from typing import Any


def differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The items in which facts of two tasks, or of two estimators, differ, of those that both have."""
    return [name for name, value in ours.items() if name in theirs and _plain(theirs[name]) != _plain(value)]


def said(value: Any, other: Any) -> str:
    """A value in few words: of a table, what is otherwise in the other one; of a digest, its beginning."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        mine = {key: one for key, one in value.items() if key not in other or _plain(other[key]) != _plain(one)}
        return ", ".join(f"{key}={said(one, None)}" for key, one in sorted(mine.items())) or "none"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 and " " not in text else text


def _plain(value: Any) -> Any:
    """As it comes back from a file."""
    return json.loads(json.dumps(value, sort_keys=True, default=str))
