"""Artefacts that take long to build, each in a folder named by the facts it was built from.

A folder has a digest of every file in it. If a file has changed since it was written, the folder is built again, with a
notice.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError
from gradebench.storage.digests import DIGESTS, fault_of, of_file, seal
from gradebench.storage.files import LOCK, exclusive_lock, require_unlocked

FACTS, REPORT = "facts.json", "report.json"
_BEGINNING = 60.0  # seconds during which a new draft may not have its lock yet
_DAMAGED = "-damaged"
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}  # errors of a rename if the target exists


def cache_root() -> Path:
    """$GRADEBENCH_CACHE, else the user's cache folder."""
    explicit = os.environ.get("GRADEBENCH_CACHE")
    if explicit:
        return Path(explicit)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradebench"
    except RuntimeError:
        raise InputError("there is no home folder to keep a cache in; set GRADEBENCH_CACHE to a folder") from None


def content_key(facts: Mapping[str, Any]) -> str:
    """16 hex digits that change with any of the facts (JSON-able)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def cached_folder(
    name: str, facts: Mapping[str, Any], build: Callable[[Path], None], log: Callable[[str], object] = warnings.warn
) -> Path:
    """The folder that `build(folder)` fills, built once for these facts and published atomically.

    A damaged one is built again, with a message to `log`.

    Raises        InputError if the cache can't be written.
    """
    folder = cache_root() / f"{name}-{content_key(facts)}"
    fault = fault_of(folder)
    if not fault:
        return folder
    if folder.exists():
        log(f"{folder}: {fault}; it is made again")
    with _draft(name) as draft:
        build(draft)
        (draft / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        seal(draft, [path.name for path in _files(draft)])
        with _writing():
            _publish(draft, folder)
    return folder


def require_whole(folder: Path) -> None:
    """Raises InputError if a cached folder was damaged since the run prepared it."""
    if fault := fault_of(folder):
        raise InputError(f"{folder} was damaged during the run: {fault}; start the run again to rebuild it")


def digests_of(folder: Path) -> dict[str, str]:
    """16 hex digits for each file of a build, by name, except its report."""
    return {path.name: of_file(path)[:16] for path in _files(folder) if path.name not in (DIGESTS, REPORT)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name != LOCK)


@contextlib.contextmanager
def _writing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"can't write into the cache {cache_root()}: {error.strerror}; set GRADEBENCH_CACHE"
        ) from error


@contextlib.contextmanager
def _draft(name: str) -> Iterator[Path]:
    """A folder to build in, locked by this process; removes those that killed builders left behind."""
    root = cache_root()
    draft = root / f".{name}-{uuid.uuid4().hex}"
    with contextlib.ExitStack() as stack:
        with _writing():
            root.mkdir(parents=True, exist_ok=True)
            for left in root.glob(f".{name}-*"):
                _sweep(left)
            stack.enter_context(exclusive_lock(draft))
        stack.callback(shutil.rmtree, draft, ignore_errors=True)
        yield draft


def _sweep(draft: Path) -> None:
    """Remove a draft whose builder is dead."""
    with contextlib.suppress(InputError, OSError):  # it is being built, or has just appeared or disappeared
        if time.time() - draft.stat().st_mtime < _BEGINNING:
            return
        if not draft.name.endswith(_DAMAGED):
            require_unlocked(draft)
        shutil.rmtree(draft, ignore_errors=True)


def _publish(draft: Path, folder: Path) -> None:
    """Of two simultaneous builders, the second keeps the result of the first; a damaged folder is removed."""
    while True:
        try:
            os.replace(draft, folder)
            (folder / LOCK).unlink(missing_ok=True)
            return
        except OSError as error:
            if error.errno not in _OCCUPIED:
                raise
        if not fault_of(folder):
            return
        aside = draft.with_name(draft.name + _DAMAGED)
        with contextlib.suppress(FileNotFoundError):  # another builder has moved it aside
            os.replace(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
