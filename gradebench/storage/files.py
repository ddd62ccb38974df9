"""Atomic writes, and folders locked by one run at a time."""

import contextlib
import errno
import os
import re
import shutil
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

from gradebench.core.errors import InputError

LOCK = ".lock"
_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A draft beside the path, renamed to it at the end, so that readers never see an incomplete file or folder."""
    # Not tempfile: its files are readable by their owner only, and the rename would keep that.
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        with contextlib.suppress(OSError):  # if the disk fails, the earlier error matters more
            _remove(draft)


def _remove(draft: Path) -> None:
    if draft.is_dir():
        shutil.rmtree(draft)
    else:
        draft.unlink(missing_ok=True)


def is_draft(name: str) -> bool:
    """Whether a file of this name was being written when its process died."""
    return bool(_DRAFT.fullmatch(name))


def sweep(root: Path) -> None:
    """Remove the drafts that a killed process left in a run's folder and in those of its cells.

    Only the holder of the lock may call it: drafts of another holder are still being written.
    """
    cells = root / "cells"
    folders = [str(root)]
    if cells.is_dir():
        folders += [str(cells), *(entry.path for entry in os.scandir(cells) if entry.is_dir())]
    for folder in folders:
        for entry in os.scandir(folder):
            if is_draft(entry.name) and not entry.is_symlink():
                _remove(Path(entry.path))


@contextlib.contextmanager
def exclusive_lock(root: Path) -> Iterator[None]:
    """Locks the folder for this process. Creates it if needed, and removes drafts that a killed holder left.

    The operating system releases the lock when the process ends, however it ends.

    Raises        InputError if another process has the lock.
    """
    from filelock import FileLock, Timeout

    root.mkdir(parents=True, exist_ok=True)
    path = root / LOCK
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{root} is in use by {_holder(path)}; wait until it ends, or choose another folder with --out"
        ) from None
    try:
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        sweep(root)
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()  # before the release: afterwards it may be another process's
        lock.release()


def require_unlocked(root: Path) -> None:
    """Raises InputError if another process has locked the folder; creates nothing."""
    if (root / LOCK).exists():
        with exclusive_lock(root):
            pass


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8") or "another run"
    return "another run"


def out_of_room(error: OSError) -> bool:
    """Whether the error means that nothing more can be written to the disk."""
    return error.errno in _NO_ROOM
