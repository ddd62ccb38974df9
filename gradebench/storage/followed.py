"""Tracks what plugin code reads in this process: modules, files and environment variables, so that a later run can tell
whether they have changed. A cell's cell.json lists them, with their digests.

Tracked is what Python code opens, imports or looks up within a call of a plugin's function. Files that a compiled
library opens itself, directory listings and the network are not tracked.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from gradebench.storage.digests import of_file

Stamp = tuple[int, int, int]
_GONE: Stamp = (0, 0, 0)
ABSENT, OR = "absent", " or "  # in place of a digest, and between several
_COPY = 8  # if one place reads more variables, it copies the environment and depends on none
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/usr/", "/etc/")


def _places() -> tuple[str, ...]:
    """Folders of Python and of GradeBench, whose estimators and tasks may be in other places."""
    ours = [importlib.util.find_spec(f"gradebench{part}") for part in ("", ".estimators", ".tasks")]
    places = {place for spec in ours if spec for place in spec.submodule_search_locations or ()}
    places |= {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.prefix, sys.base_prefix}
    return tuple(f"{os.path.realpath(place)}{os.sep}" for place in places)


_LIBRARY = _places()


class _Following:
    """What this process has read."""

    def __init__(self) -> None:
        self.packages: set[str] = set()  # of plugins that are installed
        self.opened: dict[str, Stamp] = {}  # path -> its stamp when it was last opened
        self.written: set[str] = set()
        self.variables: dict[tuple[CodeType, int], dict[str, str | None]] = {}  # by position in the code
        self.loaded: dict[str, str | None] = {}  # files of modules, with their digests
        self.declared: dict[str, str] = {}  # names that code says it depends on, and the file of that code
        self.readers: dict[str, str] = {}  # by name, the file of the code that read it first
        self.on = False


_following = _Following()


def follow(plugins: Sequence[str]) -> None:
    """Start tracking these plugins, given by the paths of their files or the names of their packages."""
    _following.packages |= {plugin for plugin in plugins if os.sep not in plugin}
    if not _following.on:
        _following.on = True
        sys.addaudithook(_hear)
        os.environ.__class__ = _Environment


@contextlib.contextmanager
def apart(plugin: str, besides: Callable[[], Collection[str]]) -> Iterator[dict[str, str | None]]:
    """What code of this plugin reads meanwhile, filled in at the end, in a process that runs the code of many; see `read`."""
    found: dict[str, str | None] = {}
    if not plugin:
        yield found
        return
    follow([plugin])
    before = [(name, getattr(_following, name)) for name in ("opened", "written", "variables", "loaded", "declared")]
    for name, value in before:
        setattr(_following, name, type(value)())
    earlier = read()
    try:
        yield found
    finally:
        found |= {name: digest for name, digest in read(besides()).items() if name not in earlier}
        for name, value in before:
            setattr(_following, name, value)


def read(besides: Collection[str] = ()) -> dict[str, str | None]:
    """What was read so far: paths of files and, as $NAME, variables, with their digests; None if missing.

    `besides` lists files to leave out, because they are in the cell's key anyway.
    """
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        named = getattr(module, "__name__", "")
        if path and path not in _following.loaded and _is_own(path) and not _is_installed(named.partition(".")[0]):
            _following.loaded[path] = file_digest(path)
    found = dict(_following.loaded)
    for path, stamp in _following.opened.items():
        if path not in _following.written and path not in found:
            # The content that was read from a file that has changed meanwhile is unknown.
            found[path] = file_digest(path) if stamp_of(path) == stamp else "changed while it was in use"
    for values in _following.variables.values():
        if len(values) < _COPY:
            found |= values
    found |= {name: _now(name) for name in _following.declared if name not in found}
    return {name: found[name] for name in sorted(found) if name not in besides}


def declare(names: Iterable[str], file: str) -> None:
    """Counts as read: paths, and variables as $NAME, that the code in a file says it depends on."""
    for name in names:
        _following.declared.setdefault(name, file)
        _following.readers.setdefault(name, file)


def inputs(read: Mapping[str, str | None]) -> dict[str, str]:
    """What was `read`, as it can be held against that of a run made elsewhere: by names that don't say where files lie,
    each with its digest, or the digests of all that have the name."""
    digests: dict[str, set[str]] = {}
    for name, digest in read.items():
        digests.setdefault(_portable(name), set()).add(digest or ABSENT)
    return {name: OR.join(sorted(found)) for name, found in sorted(digests.items())}


def _portable(name: str) -> str:
    """ "words/list.txt (mine.py)": from where the code stands that read it, or by the last part of its path."""
    reader = _following.readers.get(name)
    if reader is None:  # a module
        return os.path.basename(name)
    inside = not name.startswith("$") and Path(name).is_relative_to(Path(reader).parent)
    short = name if name.startswith("$") else os.path.relpath(name, Path(reader).parent) if inside else Path(name).name
    return f"{short} ({os.path.basename(reader)})"


def stale(once: Any) -> list[str]:
    """The names of what was `read` earlier and has changed since."""
    if not isinstance(once, Mapping):
        return []
    return [name for name, digest in once.items() if _now(name) != digest]


def _now(name: str) -> str | None:
    return _of_value(os.environ.get(name[1:])) if name.startswith("$") else file_digest(name)


def file_digest(path: str) -> str | None:
    """SHA-256, in hex; None if there is no such file. The file is read again only if it has changed."""
    stamp = stamp_of(path)
    return None if stamp == _GONE else _file_digest(path, stamp)


@functools.lru_cache(maxsize=4096)
def _file_digest(path: str, stamp: Stamp) -> str | None:
    try:
        return of_file(Path(path))
    except OSError:  # a folder, or unreadable
        return None


def stamp_of(path: str) -> Stamp:
    """A value that changes with the file; zeros if there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return _GONE
    return state.st_mtime_ns, state.st_size, state.st_ino


def _of_value(value: str | None) -> str | None:
    return None if value is None else hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()


def _is_own(path: str) -> bool:
    """Whether the path may be plugin code: outside Python, GradeBench and packages other than its own."""
    return _is_own_code(path, frozenset(_following.packages))


@functools.lru_cache(maxsize=2**16)  # all modules of a process: with fewer, going through them in turn never hits
def _is_own_code(path: str, packages: frozenset[str]) -> bool:
    if path.startswith("<"):
        return False
    whole = os.path.realpath(path)
    parts = Path(whole).parts
    for folder in ("site-packages", "dist-packages"):
        if folder in parts:
            top = parts[parts.index(folder) + 1 :][:1]
            return bool(top) and top[0].removesuffix(".py") in packages
    return not whole.startswith((*_LIBRARY, *_SYSTEM))


@functools.cache
def _is_installed(package: str) -> bool:
    """Whether a module is tracked by its version only, or is the user's script, which only starts the run."""
    if package in _following.packages:
        return False
    try:
        return package in ("__main__", "__mp_main__") or bool(metadata.version(package))
    except (metadata.PackageNotFoundError, ValueError):
        return False


def _callers(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _hear(event: str, details: tuple[Any, ...]) -> None:
    """The audit hook: notes every file that is opened within a call of a plugin's function."""
    if event != "open" or not isinstance(details[0], str | bytes | os.PathLike):
        return
    places = (frame.f_code.co_filename for frame in _callers(sys._getframe(1)))
    reader = next(filter(_is_own, places), None)
    if reader is None:
        return
    path, mode, flags = os.path.abspath(os.fsdecode(details[0])), details[1], details[2]
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if set(mode) & set("wax+") if isinstance(mode, str) else isinstance(flags, int) and flags & writes:
        _following.written.add(path)
    elif not path.endswith(".pyc") and not path.startswith(_SYSTEM) and not path.startswith(_LIBRARY):
        _following.opened[path] = stamp_of(path)
        _following.readers.setdefault(path, reader)


class _Environment(type(os.environ)):  # type: ignore[misc]
    """The environment, which notes what plugin code looks up."""

    def __getitem__(self, name: str) -> str:
        try:
            value: str | None = super().__getitem__(name)
        except KeyError:
            value = None
        caller = next(
            frame for frame in _callers(sys._getframe(1)) if frame.f_globals.get("__name__") not in _ENVIRONMENT
        )
        if not name.startswith("GRADEBENCH_") and _is_own(caller.f_code.co_filename):
            place = (caller.f_code, caller.f_lasti)
            _following.readers.setdefault(f"${name}", caller.f_code.co_filename)
            _following.variables.setdefault(place, {}).setdefault(f"${name}", _of_value(value))
        if value is None:
            raise KeyError(name)
        return value


_ENVIRONMENT = ("os", "_collections_abc", "collections.abc")
