"""Artefacts that take long to make, each in a folder named by the content it was made from."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradebench.errors import InputError


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


def cached_folder(name: str, facts: Mapping[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder that `build(folder)` fills, built once for these facts; appears whole or not at all."""
    root = cache_root()
    folder = root / f"{name}-{content_key(facts)}"
    if (folder / "facts.json").is_file():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
    except OSError as error:
        raise InputError(f"can't write into the cache {root}: {error.strerror}; set GRADEBENCH_CACHE") from error
    try:
        build(draft)
        (draft / "facts.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def digests_of(folder: Path) -> dict[str, str]:
    """By name, 16 hex digits of each file that a build has left, but for what it only reports."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != "report.json")
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def _publish(draft: Path, folder: Path) -> None:
    """Of two builders at once the second finds the folder made; what lacks its facts was damaged and goes."""
    if folder.exists() and not (folder / "facts.json").is_file():
        shutil.rmtree(folder)
    try:
        os.replace(draft, folder)
    except OSError:
        if not (folder / "facts.json").is_file():
            raise
