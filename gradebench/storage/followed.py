"""What code of plugins reads in this process: modules, files and environment variables, so that a later run can tell
whether they have changed. A cell's rows name them, with their digests.

Followed is what Python code opens, imports or looks up below a function of a plugin. What a compiled library opens by
itself, a listing of a folder and what comes over a network are not.
"""

import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from gradebench.storage.digests import of_file

Stamp = tuple[int, int, int]
_GONE: Stamp = (0, 0, 0)
_COPY = 8  # different variables read at one place: a copy of all, that depends on none
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/usr/", "/etc/")


def _places() -> tuple[str, ...]:
    """Folders of Python and of GradeBench, whose estimators and tasks may stand elsewhere."""
    ours = [importlib.util.find_spec(f"gradebench{part}") for part in ("", ".estimators", ".tasks")]
    places = {place for spec in ours if spec for place in spec.submodule_search_locations or ()}
    places |= {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), sys.prefix, sys.base_prefix}
    return tuple(f"{os.path.realpath(place)}{os.sep}" for place in places)


_LIBRARY = _places()


class _Following:
    """Of this process."""

    def __init__(self) -> None:
        self.packages: set[str] = set()  # of plugins that are installed
        self.opened: dict[str, Stamp] = {}  # path, and what it was when it was last opened
        self.written: set[str] = set()
        self.variables: dict[tuple[CodeType, int], dict[str, str | None]] = {}  # by place in the code
        self.loaded: dict[str, str | None] = {}  # files of modules, with their digests
        self.on = False


_following = _Following()


def follow(plugins: Sequence[str]) -> None:
    """From now on, and for good: by the paths of their files, or the names of their packages."""
    _following.packages |= {plugin for plugin in plugins if os.sep not in plugin}
    if not _following.on:
        _following.on = True
        sys.addaudithook(_hear)
        os.environ.__class__ = _Environment


def read(besides: Collection[str] = ()) -> dict[str, str | None]:
    """What was read by now: the paths of files and, as $NAME, variables, with digests; None for what wasn't there.

    `besides` the files that are known to count anyway.
    """
    for module in list(sys.modules.values()):
        path = getattr(module, "__file__", None)
        named = getattr(module, "__name__", "")
        if path and path not in _following.loaded and _is_own(path) and not _is_installed(named.partition(".")[0]):
            _following.loaded[path] = file_digest(path)
    found = dict(_following.loaded)
    for path, stamp in _following.opened.items():
        if path not in _following.written and path not in found:
            # One that was changed meanwhile is of no known content.
            found[path] = file_digest(path) if stamp_of(path) == stamp else "changed while it was in use"
    for values in _following.variables.values():
        if len(values) < _COPY:
            found |= values
    return {name: found[name] for name in sorted(found) if name not in besides}


def stale(once: Any) -> list[str]:
    """Of what was `read` once, the names of what is otherwise now."""
    if not isinstance(once, Mapping):
        return []
    return [name for name, digest in once.items() if _now(name) != digest]


def _now(name: str) -> str | None:
    return _of_value(os.environ.get(name[1:])) if name.startswith("$") else file_digest(name)


def file_digest(path: str) -> str | None:
    """SHA-256, in hexadecimal; None where there is no such file. Read again only when it has changed."""
    stamp = stamp_of(path)
    return None if stamp == _GONE else _file_digest(path, stamp)


@functools.lru_cache(maxsize=4096)
def _file_digest(path: str, stamp: Stamp) -> str | None:
    try:
        return of_file(Path(path))
    except OSError:  # a folder, or one that can't be read
        return None


def stamp_of(path: str) -> Stamp:
    """Changes with the file; zeros where there is none."""
    try:
        state = os.stat(path)
    except OSError:
        return _GONE
    return state.st_mtime_ns, state.st_size, state.st_ino


def _of_value(value: str | None) -> str | None:
    return None if value is None else hashlib.sha256(value.encode(errors="surrogateescape")).hexdigest()


def _is_own(path: str) -> bool:
    """Whether code of a plugin may stand there: outside of Python, of GradeBench and of packages other than its own."""
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
    """Whether a module counts by its version, or is the user's script, which only starts the run."""
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
    """The audit hook: every file that is opened below a function of a plugin."""
    if event != "open" or not isinstance(details[0], str | bytes | os.PathLike):
        return
    if not any(_is_own(frame.f_code.co_filename) for frame in _callers(sys._getframe(1))):
        return
    path, mode, flags = os.path.abspath(os.fsdecode(details[0])), details[1], details[2]
    writes = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    if set(mode) & set("wax+") if isinstance(mode, str) else isinstance(flags, int) and flags & writes:
        _following.written.add(path)
    elif not path.endswith(".pyc") and not path.startswith(_SYSTEM) and not path.startswith(_LIBRARY):
        _following.opened[path] = stamp_of(path)


class _Environment(type(os.environ)):  # type: ignore[misc]
    """The environment, noting what code of a plugin looks up."""

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
            _following.variables.setdefault(place, {}).setdefault(f"${name}", _of_value(value))
        if value is None:
            raise KeyError(name)
        return value


_ENVIRONMENT = ("os", "_collections_abc", "collections.abc")
