"""A digest of all that a module's behaviour is written in: itself, its parents and helpers, and versions of the rest.

Followed are imports, also those inside functions, as far as they lead to the plugin's own package, to gradebench, and to
files that belong to no installed package. Others count by their version. Nothing is imported for it.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

import gradebench
from gradebench.core.errors import InputError
from gradebench.plugins.plugin_source import locate
from gradebench.storage.followed import Stamp, declare, file_digest, stamp_of

FILE = "gradebench_file_"  # what the names of modules begin with that were run from a file

_known: dict[tuple[str, str], tuple[dict[str, Stamp], str]] = {}  # module and file -> the files it came from, digest


def source_digest(module: str, file: str) -> str:
    """SHA-256, in hexadecimal, for a module of that name in that file. Reads only what has changed since last time."""
    stamps, digest = _known.get((module, file), ({}, ""))
    if not stamps or any(stamp_of(path) != stamp for path, stamp in stamps.items()):
        stamps, digest = _collected(module, file)
        _known[module, file] = stamps, digest
    return digest


def with_declared(digest: str, file: str, declared: Iterable[str]) -> str:
    """A digest that also changes with what the code in a file declares that it depends on: `$NAME` is a variable of the
    environment, all else a file, or a folder of files, named from where the code stands.

    Raises        InputError for a file that isn't there.
    """
    names, lines = list(declared), [digest]
    for name in names:
        place = Path(file).resolve().parent / Path(name).expanduser()
        if name.startswith("$"):
            lines.append(f"{name} {os.environ.get(name[1:])}")
            declare([name], file)
        elif not place.exists():
            raise InputError(f"{file} depends on {name}, and there is no {place}; mend its depends_on")
        else:
            files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
            lines += [f"{path.relative_to(place.parent)} {file_digest(str(path))}" for path in files]
            declare(map(str, files), str(Path(file).resolve()))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest() if names else digest


def known_files() -> set[str]:
    """All files that digests were made of in this process."""
    return {path for stamps, _ in _known.values() for path in stamps}


def _collected(module: str, file: str) -> tuple[dict[str, Stamp], str]:
    """The files that count, and the digest of them all."""
    waiting, found, others = [(module, file)], dict[str, Stamp](), set[str]()
    sha = hashlib.sha256()
    while waiting:
        name, path = waiting.pop(0)
        if path in found:
            continue
        found[path] = stamp_of(path)
        content = Path(path).read_bytes()
        said = Path(path).name if name.startswith(FILE) else name  # whose name has where it lies in it
        sha.update(f"{said} {hashlib.sha256(content).hexdigest()}\n".encode())
        for imported in _imports(content, name, Path(path).name == "__init__.py"):
            origin = _beside(imported, file) if module.startswith(FILE) else None
            origin = origin or _origin(imported)
            if origin and _is_own(imported, origin, module):
                waiting.append((imported, origin))
            else:
                others.add(imported.partition(".")[0])
    for name in sorted(others - sys.stdlib_module_names):
        sha.update(f"{name} {_version(name)}\n".encode())
    return found, sha.hexdigest()


def _imports(content: bytes, name: str, is_package: bool) -> Iterator[str]:
    """The names of modules that a text imports, in order; those of things imported from one too, as they may be modules."""
    package = name if is_package else name.rpartition(".")[0]
    try:
        nodes = list(_run(ast.parse(content)))
    except (SyntaxError, ValueError):  # it can't be run either
        return
    for node in nodes:
        if isinstance(node, ast.Call) and (named := _named(node)):
            yield from _with_parents(named)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(relative, package)
            except ImportError:  # beyond the top: it fails when it is run
                continue
            yield from _with_parents(base)
            for alias in node.names:
                yield f"{base}.{alias.name}"
                if base == "gradebench" and (home := gradebench.HOME_OF.get(alias.name)):  # which it loads on first use
                    yield from _with_parents(f"gradebench.{home}")


def _run(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes below, but for those that are there for a checker of types alone."""
    waiting = [tree]
    while waiting:
        node = waiting.pop(0)
        yield node
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def _named(call: ast.Call) -> str | None:
    """The module that `importlib.import_module("it")` or `__import__("it")` names."""
    function = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    first = call.args[0] if call.args else None
    if function not in ("import_module", "__import__") or not isinstance(first, ast.Constant):
        return None
    return first.value if isinstance(first.value, str) and not first.value.startswith(".") else None


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def _beside(module: str, file: str) -> str | None:
    """The source file of a module that stands beside a file: where that finds it first, whatever was loaded since under
    the same name."""
    stem = Path(file).resolve().parent.joinpath(*module.split("."))
    return next(
        (str(path) for path in (stem / "__init__.py", stem.with_name(f"{stem.name}.py")) if path.is_file()), None
    )


def _origin(module: str) -> str | None:
    """The source file of a module; None where there is no such module, or no text of it."""
    if module.partition(".")[0] in sys.stdlib_module_names:
        return None
    try:
        spec = locate(module)
    except (ValueError, AttributeError):  # someone else's finder
        return None
    return spec.origin if spec is not None and (spec.origin or "").endswith(".py") else None


def _is_own(imported: str, origin: str, module: str) -> bool:
    """Whether it counts by its text: of the same package, of ours, or of none that is installed."""
    if imported.partition(".")[0] in (module.partition(".")[0], "gradebench"):
        return True
    installed = {"site-packages", "dist-packages"} & set(Path(origin).parts) or _version(imported.partition(".")[0])
    return not installed


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None
