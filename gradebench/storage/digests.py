"""Digests of the files in a folder, in a file beside them: what tells one that isn't as it was written.

The list has a digest of its own, so that damage to it is no damage to the files.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError
from gradebench.storage.files import atomic_path

DIGESTS = "digests.json"


def of_file(path: Path) -> str:
    """SHA-256, in hex. Raises OSError for what can't be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_json(content: Any) -> str:
    """The same of plain data, however its file is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write down the digests of those of the files that are there."""
    files = {name: of_file(folder / name) for name in sorted(names) if (folder / name).is_file()}
    with atomic_path(folder / DIGESTS) as draft:
        draft.write_text(json.dumps({"files": files, "own": of_json(files)}, indent=2), encoding="utf-8")


def fault_of(folder: Path) -> str:
    """What is wrong in a sealed folder, in words; "" where the list and every file on it are as they were written."""
    files = _known(folder)
    if not files:
        return f"no {DIGESTS} that can be used (one of an earlier version has none)"
    for name, digest in files.items():
        try:
            if of_file(folder / name) != digest:
                return f"{name} isn't as it was written"
        except (OSError, ValueError):
            return f"no {name} that can be read"
    return ""


def unseal(folder: Path) -> None:
    """To be called before the files are written anew: whoever reads in between takes them as they are."""
    (folder / DIGESTS).unlink(missing_ok=True)


def is_as_written(path: Path) -> bool:
    """Whether a file is as its folder's list says; also where that doesn't know it, or is damaged itself."""
    known = _known(path.parent).get(path.name)
    return known is None or not path.is_file() or of_file(path) == known


def require_as_written(path: Path) -> None:
    """Raises InputError."""
    if not is_as_written(path):
        raise InputError(
            f"{path} isn't as it was written: damaged, or edited; run again there for a new one, or delete {DIGESTS} "
            "beside it to take it as it is"
        )


def _known(folder: Path) -> Mapping[str, str]:
    try:
        content = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        files = dict(content["files"])
        return files if content["own"] == of_json(files) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
