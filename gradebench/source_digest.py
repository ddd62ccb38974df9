"""A digest of all that a module's behaviour is written in: itself, its parents and helpers, and versions of the rest.

Followed are imports, also those inside functions, as far as they lead to the plugin's own package, to files beside a
plugin that is a file, and to gradebench. Other packages count by their version. Nothing is imported for it.
"""

import ast
import functools
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from gradebench.plugin_source import locate

FILE = "gradebench_file_"  # what the names of modules begin with that were run from a file

Stamp = tuple[int, int, int]
_known: dict[tuple[str, str], tuple[dict[str, Stamp], str]] = {}  # module and file -> the files it came from, digest


def source_digest(module: str, file: str) -> str:
    """SHA-256, in hexadecimal, for a module of that name in that file. Reads only what has changed since last time."""
    stamps, digest = _known.get((module, file), ({}, ""))
    if not stamps or any(_stamp(path) != stamp for path, stamp in stamps.items()):
        stamps, digest = _collected(module, file)
        _known[module, file] = stamps, digest
    return digest


def _collected(module: str, file: str) -> tuple[dict[str, Stamp], str]:
    """The files that count, and the digest of them all."""
    waiting, found, others = [(module, file)], dict[str, Stamp](), set[str]()
    sha = hashlib.sha256()
    while waiting:
        name, path = waiting.pop(0)
        if path in found:
            continue
        found[path] = _stamp(path)
        content = Path(path).read_bytes()
        sha.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
        for imported in _imports(content, name, Path(path).name == "__init__.py"):
            origin = _beside(imported, file) if module.startswith(FILE) else None
            origin = origin or _origin(imported)
            if origin and _is_own(imported, origin, module, file):
                waiting.append((imported, origin))
            else:
                others.add(imported.partition(".")[0])
    for name in sorted(others - sys.stdlib_module_names):
        sha.update(f"{name} {_version(name)}\n".encode())
    return found, sha.hexdigest()


def _stamp(path: str) -> Stamp:
    """Changes with the file; zeros where there is none."""
    try:
        state = Path(path).stat()
    except OSError:
        return (0, 0, 0)
    return state.st_mtime_ns, state.st_size, state.st_ino


def _imports(content: bytes, name: str, is_package: bool) -> Iterator[str]:
    """The names of modules that a text imports, in order; those of things imported from one too, as they may be modules."""
    package = name if is_package else name.rpartition(".")[0]
    try:
        nodes = list(ast.walk(ast.parse(content)))
    except (SyntaxError, ValueError):  # it can't be run either
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            try:
                base = importlib.util.resolve_name(relative, package)
            except ImportError:  # beyond the top: it fails when it is run
                continue
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


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


def _is_own(imported: str, origin: str, module: str, file: str) -> bool:
    if imported.partition(".")[0] in (module.partition(".")[0], "gradebench"):
        return True
    beside = Path(origin).resolve().is_relative_to(Path(file).resolve().parent)
    return beside and not {"site-packages", "dist-packages"} & set(Path(origin).parts)


@functools.cache
def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except (metadata.PackageNotFoundError, ValueError):
        return None
