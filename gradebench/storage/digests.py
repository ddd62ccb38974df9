"""Digests of the files in a folder, in a file beside them, which reveal a file that has changed since it was written.

The list has a digest of its own, so that damage to the list isn't taken for damage to the files.
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
    """SHA-256 of plain data, in hex, whatever the layout of its file."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seal(folder: Path, names: Iterable[str]) -> None:
    """Write the digests of those of the files that exist."""
    files = {name: of_file(folder / name) for name in sorted(names) if (folder / name).is_file()}
    with atomic_path(folder / DIGESTS) as draft:
        draft.write_text(json.dumps({"files": files, "own": of_json(files)}, indent=2), encoding="utf-8")


def fault_of(folder: Path) -> str:
    """What is wrong in a sealed folder, as text; "" if the list and every file on it are unchanged."""
    files = _known(folder)
    if not files:
        return f"it has no valid {DIGESTS} (folders of earlier versions have none)"
    for name, digest in files.items():
        try:
            if of_file(folder / name) != digest:
                return f"{name} has changed since it was written"
        except (OSError, ValueError):
            return f"{name} can't be read"
    return ""


def unseal(folder: Path) -> None:
    """Call before the files are rewritten: readers don't check them until `seal`."""
    (folder / DIGESTS).unlink(missing_ok=True)


def is_as_written(path: Path) -> bool:
    """Whether a file matches its folder's list; true also if the list lacks it or is damaged itself."""
    known = _known(path.parent).get(path.name)
    return known is None or not path.is_file() or of_file(path) == known


def require_as_written(path: Path) -> None:
    """Raises InputError if a file has changed since it was written."""
    if not is_as_written(path):
        raise InputError(
            f"{path} has changed since it was written (damaged or edited); run again there for a new one, or delete "
            f"{DIGESTS} beside it to use it as it is"
        )


def _known(folder: Path) -> Mapping[str, str]:
    try:
        content = json.loads((folder / DIGESTS).read_text(encoding="utf-8"))
        files = dict(content["files"])
        return files if content["own"] == of_json(files) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
