"""A file of the user's own, run as a module; and what may happen while code of a plugin is imported."""

import contextlib
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from gradebench.core.errors import InputError, place_of
from gradebench.core.interrupts import is_users
from gradebench.plugins.source_digest import FILE

_folders: set[Path] = set()  # of the files that were run


def module_of(file: Path, content: bytes, digest: str) -> ModuleType:
    """The file as a module in `sys.modules`, where dataclasses and pickle look for the classes defined in it."""
    name = f"{FILE}{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__gradebench_digest__", None) == digest:
        return loaded
    spec = importlib.util.spec_from_file_location(name, file, loader=_ExactLoader(file, content))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with one_line(f"{file} can't be run", str(file)), kept(str(file), str(file)), _beside(file.parent):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    vars(module)["__gradebench_digest__"] = digest
    return module


class _ExactLoader(importlib.abc.SourceLoader):
    """Runs the very bytes of the digest: a cached .pyc is stale after an edit within the same second."""

    def __init__(self, file: Path, content: bytes):
        self.file = file
        self.content = content

    def get_filename(self, fullname: str) -> str:
        return str(self.file)

    def get_data(self, path: str) -> bytes:
        return self.content


@contextlib.contextmanager
def _beside(folder: Path) -> Iterator[None]:
    """The modules in the folder are found first, as they are by a script; one that was loaded from beside another file
    under the same name is another module."""
    others = _folders - {folder}
    for name, module in list(sys.modules.items()):
        place = getattr(module, "__file__", None)
        beside = {Path(place).parent, Path(place).parent.parent} if place else set()
        if (
            beside & others
            and not name.startswith(FILE)
            and importlib.machinery.PathFinder.find_spec(name.partition(".")[0], [str(folder)])
        ):
            del sys.modules[name]
    _folders.add(folder)
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def kept(what: str, foreign: str) -> Iterator[None]:
    """What belongs to the whole process stays as it is while a plugin is imported."""
    from gradebench.core.global_state import ALL, put_back, say
    from gradebench.plugins import patches  # here, because it imports torch

    snapshot = patches.Snapshot()
    try:
        with put_back(what, ALL):
            yield
    finally:
        if names := snapshot.undo(foreign):
            patches.imported[foreign] = names
            say(
                f"{what} replaced {', '.join(names)} for the whole process; they were put back, and its cells will fail"
            )


@contextlib.contextmanager
def one_line(what: str, own: str = "") -> Iterator[None]:
    """Turn whatever a plugin's code raises into an InputError with the last line of it, and the line of its `own` file or
    package where it was raised."""
    try:
        yield
    except BaseException as error:
        if is_users(error):
            raise
        lines = "".join(traceback.format_exception_only(error)).split("\n")
        where = place_of(error, [own] if own else [])
        if isinstance(error, SyntaxError) and error.filename:
            where = f" ({error.filename}, line {error.lineno})"
        raise InputError(f"{what}: {[line for line in lines if line.strip()][-1].strip()}{where}") from error
