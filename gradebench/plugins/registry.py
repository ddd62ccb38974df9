"""Estimators and tasks by name: entry points of installed packages, and objects in files of the user's own.

Built-ins register as a third party does. Listing imports no plugin; resolving imports the one that was asked for.
"""

import contextlib
import copy
import difflib
import functools
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import numbers
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

from gradebench.core.errors import InputError
from gradebench.core.options import RATE_LIKE, Option, bind, label, parse_spec
from gradebench.plugins.plugin_files import kept, module_of, one_line
from gradebench.plugins.plugin_source import Facts, read_facts
from gradebench.plugins.source_digest import source_digest, with_declared

KINDS = ("estimators", "tasks")
# The class that what a plugin builds must be of. Named, not imported: listing must not wait for torch.
_CONTRACTS = {"estimators": ("gradebench.core.estimator", "Estimator"), "tasks": ("gradebench.core.task", "Task")}
_MISSHAPEN = "its entry point is {!r}, not MODULE:OBJECT"
INSTALL_HINT = "no built-in estimators or tasks are registered; in the checkout run `pip install -e .`"


@dataclass(frozen=True)
class Entry:
    """One registered plugin, as far as it is known without importing it; None where its text doesn't say."""

    kind: str
    name: str
    value: str  # MODULE:OBJECT
    distribution: str
    version: str
    builtin: bool
    summary: str = ""
    unbiased: bool | None = None
    needs: tuple[str, ...] | None = None
    options: dict[str, Option] | None = None
    card: dict[str, str] = field(default_factory=dict)
    problem: str | None = None  # why it can't be used, in one line

    @property
    def source(self) -> str:
        return f"{self.distribution} {self.version}"


@dataclass(frozen=True)
class Plugin:
    """An imported plugin: its object, who it comes from, and the digest of its sources."""

    name: str
    factory: Any
    source: str
    digest: str  # SHA-256 of its module, and of the parents and helpers that this imports, in hexadecimal
    foreign: str = ""  # whose code it is: the path of its file, or its package; "" for our own


@dataclass(frozen=True)
class Resolved:
    """What a NAME:key=value,... stands for, ready to be built as often as wanted, in this process or another."""

    kind: str
    spec: str  # what was asked for, with the path of a file made absolute
    label: str  # canonical: options that are not at their defaults, in signature order
    name: str
    params: dict[str, Any] = field(hash=False)  # complete
    source: str  # "gradebench 0.1.0", or "mine.py sha256:1f2e3d4c5b6a" for a file
    digest: str
    factory: Any = field(repr=False)
    rate_like: str = ""  # of an estimator: the label of the one whose learning rate it runs at
    foreign: str = ""  # whose code it is, as of a Plugin

    def create(self) -> Any:
        """A fresh Estimator or Task. Raises InputError where the options are refused or something else is built."""
        what = f"{_singular(self.kind)} {self.label}"
        module, contract = _CONTRACTS[self.kind]
        try:
            built = _build(self.kind, self.factory, self.params)
        except (ValueError, TypeError) as error:
            raise InputError(f"{what}: {' '.join(str(error).split())}") from error
        if not isinstance(built, getattr(importlib.import_module(module), contract)):
            raise InputError(
                f"{what} builds an object of type {type(built).__name__}, which is no gradebench.{contract}"
            )
        n = getattr(built, "n", 1)
        if not isinstance(n, numbers.Integral) or n < 1:
            raise InputError(f"{what} has n={n!r}, where a number of samples a prompt is needed, 1 or more")
        return built

    def __reduce__(self) -> tuple[Any, ...]:
        # A module loaded from a file exists in this process only, so another one resolves anew.
        return resolve, (self.kind, self.spec)


def entries(kind: str, names: Collection[str] | None = None) -> dict[str, Entry]:
    """The registered plugins of a kind, sorted by name, or those of them that have these names; imports none of them."""
    registered = _registered(kind)
    return {name: _entry(kind, registered[name][0]) for name in registered if names is None or name in names}


def collisions(kind: str) -> list[str]:
    """One line for each plugin that is ignored because another one has its name."""
    return [
        f"{_singular(kind)} {name!r} of {_source(loser)} is ignored: {_source(points[0])} has that name"
        for name, points in _registered(kind).items()
        for loser in points[1:]
    ]


def names(kind: str, healthy_only: bool = True) -> tuple[list[str], dict[str, str]]:
    """What `all` stands for, and the entries left out of it with the reason.

    With `healthy_only=False` every name is in the list and nothing is left out.
    """
    known = entries(kind)
    broken = {name: entry.problem for name, entry in known.items() if entry.problem and healthy_only}
    return [name for name in known if name not in broken], broken


def installed() -> bool:
    """Whether gradebench's own entry points are visible; they aren't in a checkout that was never installed."""
    return any(_is_builtin(points[0]) for kind in KINDS for points in _registered(kind).values())


def resolve(kind: str, text: str) -> Resolved:
    """What `NAME[:k=v,...]` or `FILE.py:OBJECT[:k=v,...]` stands for; imports that plugin.

    Raises InputError for an unknown name, a plugin or file that can't be loaded, and options that won't do.
    """
    spec = parse_spec(text)
    plugin = load_file(*spec.file) if spec.file else load(kind, spec.target)
    _require_usable(kind, plugin)
    own = {key: value for key, value in spec.options.items() if key != RATE_LIKE or kind != "estimators"}
    params = bind(plugin.factory, own, f"{_singular(kind)} {plugin.name}")
    canonical, lender = label(plugin.name, params, plugin.factory), ""
    if len(own) < len(spec.options):
        lender = _lender(text, spec.options[RATE_LIKE])
        canonical += f"{',' if canonical != plugin.name else ':'}{RATE_LIKE}={lender}"
    target = f"{Path(os.path.expanduser(spec.file[0])).resolve()}:{spec.file[1]}" if spec.file else spec.target
    given = ",".join(f"{key}={value}" for key, value in spec.options.items())
    portable = f"{target}:{given}" if given else target
    return Resolved(
        kind,
        portable,
        canonical,
        plugin.name,
        params,
        plugin.source,
        plugin.digest,
        plugin.factory,
        lender,
        plugin.foreign,
    )


def _lender(borrower: str, name: str) -> str:
    """The label of the estimator `name`, at whose rate another one is to run."""
    lender = resolve("estimators", name)
    if lender.rate_like:
        raise InputError(f"{borrower}: {name} borrows its own rate; name {lender.rate_like}")
    return lender.label


def load(kind: str, name: str) -> Plugin:
    """Import the plugin registered as `name`. Raises InputError where there is none or its import fails."""
    registered = _registered(kind)
    if name not in registered:
        raise InputError(_unknown_name(kind, name, list(registered)))
    point = registered[name][0]
    what = f"{_singular(kind)} {name} of {_source(point)}"
    shape = _shape(point)
    if shape is None:
        raise InputError(f"{what} is broken: {_MISSHAPEN.format(point.value)}")
    foreign = "" if _is_builtin(point) else shape[0].partition(".")[0]
    with (
        one_line(f"{what} can't be imported", foreign),
        contextlib.nullcontext() if not foreign else kept(what, foreign),
    ):
        module = importlib.import_module(shape[0])
    try:
        factory = functools.reduce(getattr, shape[1].split("."), module)
    except AttributeError as error:
        raise InputError(f"{what} is broken: module {shape[0]} has no object {shape[1]!r}") from error
    path = getattr(module, "__file__", None)
    if path and path.endswith(".py"):
        digest = with_declared(source_digest(shape[0], path), path, declared(module, factory))
        return Plugin(name, factory, _source(point), digest, foreign)
    return Plugin(name, factory, _source(point), hashlib.sha256(_source(point).encode()).hexdigest(), foreign)


def load_file(path: str, name: str) -> Plugin:
    """Load object `name` from a Python file, running the file if it is new or has changed.

    Raises InputError for a missing file or object and for a file that fails to run.
    """
    file = Path(os.path.expanduser(path))  # unlike Path.expanduser, lets be a user whom nobody knows
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    module = module_of(file.resolve(), content, digest)
    if not hasattr(module, name):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        raise InputError(f"{path} has no object {name!r}; it defines {', '.join(own) or 'nothing'}")
    source = f"{file.name} sha256:{digest[:12]}"
    factory = getattr(module, name)
    digest = with_declared(source_digest(module.__name__, str(file)), str(file), declared(module, factory))
    return Plugin(f"{file.name}:{name}", factory, source, digest, str(file.resolve()))


def declared(module: ModuleType, factory: Any) -> list[str]:
    """What a plugin says it depends on, in `depends_on` of its module and of its class or function."""
    both = [getattr(module, "depends_on", ()), getattr(factory, "depends_on", ())]
    return [name for names in both for name in ([names] if isinstance(names, str) else names)]


def _registered(kind: str) -> dict[str, list[EntryPoint]]:
    """Entry points by name; the first of each list has the name, and the others lost it.

    Built-ins come first, then distributions in alphabetical order.
    """
    if kind not in KINDS:
        raise InputError(f"{kind!r} is not a kind of plugin; there are {' and '.join(KINDS)}")
    return _points_of(kind, tuple((path, _changed(path)) for path in sys.path), importlib.metadata.entry_points)


@functools.lru_cache(maxsize=16)
def _points_of(
    kind: str, places: tuple[tuple[str, int], ...], entry_points: Callable[..., Iterable[EntryPoint]]
) -> dict[str, list[EntryPoint]]:
    """Reads the metadata of every installed package, so not for each cell; `places` changes with an installation."""
    points = entry_points(group=f"gradebench.{kind}")
    ordered = sorted(points, key=lambda point: (point.name, not _is_builtin(point), _distribution(point)))
    by_name: dict[str, list[EntryPoint]] = {}
    for point in ordered:
        by_name.setdefault(point.name, []).append(point)
    return by_name


def _changed(path: str) -> int:
    """When a folder of packages was last added to; 0 where it isn't there."""
    try:
        return os.stat(path or ".").st_mtime_ns
    except OSError:
        return 0


def _distribution(point: EntryPoint) -> str:
    return re.sub(r"[-_.]+", "-", _name_and_version(point.dist)[0]).lower() if point.dist else ""


@functools.lru_cache(maxsize=64)  # of the points of one query, which share theirs: each look parses its metadata anew
def _name_and_version(distribution: importlib.metadata.Distribution) -> tuple[str, str]:
    return distribution.name, distribution.version


def _is_builtin(point: EntryPoint) -> bool:
    return _distribution(point) == "gradebench"


def _source(point: EntryPoint) -> str:
    return " ".join(_name_and_version(point.dist)) if point.dist else "an unknown distribution"


def _shape(point: EntryPoint) -> tuple[str, str] | None:
    """Module and object of an entry point, or None where it names no object."""
    shape = re.fullmatch(r"\s*([\w.]+)\s*:\s*([\w.]+)\s*(\[.*\])?\s*", point.value)
    return (shape[1], shape[2]) if shape else None


def _entry(kind: str, point: EntryPoint) -> Entry:
    shape = _shape(point)
    facts = read_facts(*shape) if shape else Facts(problem=_MISSHAPEN.format(point.value))
    name, version = _name_and_version(point.dist) if point.dist else ("", "")
    return Entry(kind, point.name, point.value, name, version, _is_builtin(point), **vars(facts))


def _unknown_name(kind: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3)
    message = f"no {_singular(kind)} is called {name!r}; "
    if near:
        message += f"did you mean {' or '.join(near)}? See `gradebench list {kind}`"
    elif known:
        message += f"there are {', '.join(known)}; see `gradebench list {kind}`"
    else:
        message += "none is registered"
    if not installed():
        message += f". {INSTALL_HINT[0].upper()}{INSTALL_HINT[1:]}"
    elif not near:
        message += ". A plugin is listed once its package is installed (again, after a change of its entry points)"
    return message


def _singular(kind: str) -> str:
    return kind.removesuffix("s")


def _is_instance(kind: str, factory: Any) -> bool:
    """Whether the object is already an Estimator or Task; told by name, as the class may not be imported yet."""
    return not inspect.isclass(factory) and any(
        (parent.__module__, parent.__qualname__) == _CONTRACTS[kind] for parent in type(factory).__mro__
    )


def _require_usable(kind: str, plugin: Plugin) -> None:
    if not callable(plugin.factory) and not _is_instance(kind, plugin.factory):
        article = "an estimator" if kind == "estimators" else "a task"
        raise InputError(
            f"{plugin.name} of {plugin.source} is of type {type(plugin.factory).__name__}, "
            f"neither {article} nor a class or function that makes one"
        )


def _build(kind: str, factory: Any, params: Mapping[str, Any]) -> Any:
    if _is_instance(kind, factory):
        return copy.deepcopy(factory)  # a cell must not see the running state that another one left
    if kind == "estimators" and not inspect.isclass(factory):
        from gradebench.core.estimator import FunctionEstimator  # here, because it imports torch

        return FunctionEstimator(factory, params)
    return factory(**params)
