"""What a plugin's source text says about it: enough to list it, and to see that it is broken, without importing it.

Importing one estimator costs seconds of torch; `gradebench list` reads source files instead.
"""

import ast
import contextlib
import copy
import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Optional, Union

from gradebench.core.options import REQUIRED, Option, Range, option
from gradebench.plugins.card import card

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
_DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
_UNKNOWN: Any = object()  # an attribute that is declared, but not as a literal
# Bases from other packages that declare no options; any other foreign base leaves the options unknown.
_PLAIN_BASES = {"object", "ABC", "abc.ABC", "Protocol", "Generic", "nn.Module", "torch.nn.Module"}
_ANNOTATION_NAMES: dict[str, Any] = {
    "Annotated": Annotated,
    "Literal": Literal,
    "Optional": Optional,
    "Union": Union,
    "Range": Range,
    "int": int,
    "float": float,
    "bool": bool,
    "str": str,
}
_ANNOTATION_NODES = (
    ast.Expression,
    ast.Name,
    ast.Load,
    ast.Subscript,
    ast.Tuple,
    ast.Constant,
    ast.BinOp,
    ast.BitOr,
    ast.UnaryOp,
    ast.USub,
    ast.Call,
    ast.keyword,
)


@dataclass(frozen=True)
class Facts:
    """What can be told of a plugin's object without importing it; None stands for "the text doesn't say"."""

    summary: str = ""
    unbiased: bool | None = None
    needs: tuple[str, ...] | None = None
    options: dict[str, Option] | None = None
    card: dict[str, str] = field(default_factory=dict)
    problem: str | None = None  # why an import would fail


@dataclass(frozen=True)
class Source:
    """A parsed module: `names` maps each name bound at its top level to the statement that binds it."""

    module: str
    package: str
    body: list[ast.stmt]
    names: dict[str, ast.stmt]
    open: bool  # more names may appear when it runs: a star import, a module's __getattr__


def read_facts(module: str, name: str) -> Facts:
    """What the sources say of object `name` of `module`; nothing of it is run."""
    problem = _chain_problem(module)
    if problem:
        return Facts(problem=problem)
    source = _source(module)
    if source is None:  # compiled: there is no text to read
        return Facts()
    root = name.partition(".")[0]
    if root not in source.names and not source.open:
        return Facts(problem=f"module {module} has no object {root!r}")
    found = _definition(source, name)
    return _facts_of(*found) if found else Facts()


def locate(module: str) -> importlib.machinery.ModuleSpec | None:
    """Where `module` would be imported from, or None.

    Unlike `importlib.util.find_spec` it doesn't import the parent packages, which may be heavy or broken; only a
    parent that computes its own search path is imported.
    """
    parts = module.split(".")
    path: list[str] | None = None
    spec = None
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        loaded = sys.modules.get(name)
        parent = spec
        spec = getattr(loaded, "__spec__", None) or _search(name, path)
        if spec is None:
            return _imported_spec(module) if parent is not None and "__path__" in _text(parent) else None
        locations = getattr(loaded, "__path__", None) or spec.submodule_search_locations
        path = None if locations is None else list(locations)
        if path is None and depth < len(parts):
            return None  # a plain module has no submodules
    return spec


def _search(name: str, path: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        with contextlib.suppress(Exception):  # someone else's finder, or a namespace whose parent isn't imported
            spec = finder.find_spec(name, path)
            if spec is not None:
                return spec
    return None


def _imported_spec(module: str) -> importlib.machinery.ModuleSpec | None:
    with contextlib.suppress(Exception, SystemExit):  # whatever a plugin's package does on import
        return importlib.util.find_spec(module)
    return None


def _text(spec: importlib.machinery.ModuleSpec) -> str:
    path = spec.origin or ""
    return Path(path).read_text("utf-8", "replace") if path.endswith(".py") and Path(path).is_file() else ""


def _chain_problem(module: str) -> str | None:
    """The first reason for which the import of `module`, and before it of its packages, fails; None if none shows."""
    parts = module.split(".")
    for depth in range(1, len(parts) + 1):
        name = ".".join(parts[:depth])
        if locate(name) is None:
            return f"there is no module {name}"
        if name in sys.modules:
            continue
        try:
            source = _source(name)
        except (SyntaxError, ValueError) as error:  # ValueError: null bytes
            line = f"line {error.lineno}: {error.msg}" if isinstance(error, SyntaxError) else str(error)
            return f"syntax error in module {name}, {line}"
        problem = _body_problem(source) if source else None
        if problem:
            return problem
    return None


def _body_problem(source: Source) -> str | None:
    """Why running the module must fail. Only plain statements count: an import under try or if may be optional."""
    for statement in source.body:
        if isinstance(statement, ast.Raise):
            what = ast.unparse(statement.exc) if statement.exc else "an exception"
            return f"module {source.module} raises {' '.join(what.split())} on import"
        for root in _imported_roots(statement):
            if root not in sys.modules and _search(root, None) is None:
                return f"module {source.module} imports {root}, which isn't installed"
    return None


def _imported_roots(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name.partition(".")[0] for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.level == 0 and statement.module:
        return [statement.module.partition(".")[0]]
    return []


def _source(module: str) -> Source | None:
    """The parsed module, or None where it has no source text. Raises SyntaxError or ValueError from the parser."""
    spec = locate(module)
    if spec is None or not (spec.origin or "").endswith(".py") or not Path(str(spec.origin)).is_file():
        return None
    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
    stamp = Path(str(spec.origin)).stat()
    return replace(_parsed(str(spec.origin), (stamp.st_mtime_ns, stamp.st_size)), module=module, package=package)


@functools.cache
def _parsed(path: str, stamp: tuple[int, int]) -> Source:
    """The source without its module's name; `stamp` makes an edited file a new one."""
    tree = ast.parse(Path(path).read_bytes(), path)
    names: dict[str, ast.stmt] = {}
    for statement in _statements(tree.body):
        names |= dict.fromkeys(_bound(statement), statement)
    return Source("", "", tree.body, names, open="*" in names or "__getattr__" in names)


def _statements(body: list[Any]) -> Iterator[ast.stmt]:
    """The statements of a body, and of the branches and loops in it, but not of functions and classes."""
    for item in body:
        if isinstance(item, ast.stmt):  # else the handler of an exception or a case of a match
            yield item
        if not isinstance(item, _DEFINITIONS):
            for part in ("body", "orelse", "finalbody", "handlers", "cases"):
                yield from _statements(getattr(item, part, []))


def _bound(statement: ast.stmt) -> list[str]:
    """The names that one statement binds."""
    if isinstance(statement, _DEFINITIONS):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name.partition(".")[0] for alias in statement.names]
    parts = [getattr(statement, part, None) for part in ("targets", "target", "items", "name")]
    nodes = [node for part in parts for node in (part if isinstance(part, list) else [part])]
    stored = [child for node in nodes if isinstance(node, ast.AST) for child in ast.walk(node)]
    return [node.id for node in stored if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]


def _binding(source: Source, name: str, depth: int = 8) -> tuple[Source, ast.stmt] | None:
    """The statement that binds `name`, followed through imports within the plugin's own package and gradebench."""
    statement = source.names.get(name)
    if depth == 0 or statement is None:
        return None
    if not isinstance(statement, ast.ImportFrom):
        return source, statement
    module = importlib.util.resolve_name("." * statement.level + (statement.module or ""), source.package)
    if module.partition(".")[0] not in (source.module.partition(".")[0], "gradebench"):
        return None  # parsing foreign packages would cost more than it tells
    original = next(alias.name for alias in statement.names if name in (alias.asname, alias.name))
    home = _source(module)
    return _binding(home, original, depth - 1) if home else None


def _definition(source: Source, name: str) -> tuple[Source, Definition] | None:
    try:
        found = _binding(source, name)
    except (SyntaxError, ValueError, ImportError):
        return None
    return (found[0], found[1]) if found and isinstance(found[1], _DEFINITIONS) else None


def _facts_of(source: Source, node: Definition) -> Facts:
    doc = ast.get_docstring(node) or ""
    summary = doc.partition("\n")[0]
    try:
        if not isinstance(node, ast.ClassDef):
            return Facts(summary, options=_options(source, node), card=card(doc))
        lineage, complete = _lineage(source, node)
        unbiased = _class_attribute(lineage, "unbiased")
        needs = _class_attribute(lineage, "needs")
        family = _class_attribute(lineage, "family")
        return Facts(
            summary,
            unbiased if isinstance(unbiased, bool) else None,
            tuple(sorted(needs)) if isinstance(needs, set | tuple | list) else None,
            _class_options(lineage, complete),
            card(doc, family if isinstance(family, str) else ""),
        )
    except (SyntaxError, RecursionError):  # of a file that a base class or an annotation comes from
        return Facts(summary)


def _lineage(source: Source, node: ast.ClassDef) -> tuple[list[tuple[Source, ast.ClassDef]], bool]:
    """The class and its bases, depth first, as far as their texts are at hand; and whether that is all of them."""
    lineage, complete = [(source, node)], True
    for base in node.bases:
        text = ast.unparse(base).partition("[")[0]
        found = _definition(source, text)
        if found and isinstance(found[1], ast.ClassDef) and found[1] is not node:
            more, known = _lineage(found[0], found[1])
            lineage += more
            complete &= known
        else:
            complete &= text in _PLAIN_BASES
    return lineage, complete


def _class_attribute(lineage: list[tuple[Source, ast.ClassDef]], name: str) -> Any:
    """The literal that the first class declaring `name` gives it; `_UNKNOWN` for anything but a literal."""
    for _, node in lineage:
        for statement in node.body:
            if name in _bound(statement):
                value = getattr(statement, "value", None)
                return _literal(value) if isinstance(value, ast.expr) else _UNKNOWN
    return _UNKNOWN


def _literal(node: ast.expr) -> Any:
    """The value of a literal; `frozenset(...)` of a literal counts as a set."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("frozenset", "set") and not node.keywords:
        inner = _literal(node.args[0]) if node.args else ()
        return set(inner) if isinstance(inner, set | tuple | list) else _UNKNOWN
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return _UNKNOWN


def _class_options(lineage: list[tuple[Source, ast.ClassDef]], complete: bool) -> dict[str, Option] | None:
    for source, node in lineage:
        constructor = next((item for item in node.body if "__init__" in _bound(item)), None)
        if isinstance(constructor, ast.FunctionDef):
            return _options(source, constructor)
        if constructor or node.decorator_list:  # a decorator such as @dataclass may write the constructor
            return None
    return {} if complete else None


def _options(source: Source, node: Definition) -> dict[str, Option] | None:
    """The options of a constructor or of a plain function, or None where the text alone doesn't give them."""
    if isinstance(node, ast.ClassDef) or node.decorator_list:
        return None
    arguments = node.args
    pairs = list(zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True))
    if node.name == "__init__":
        ordinary = arguments.args[0 if arguments.posonlyargs else 1 :]
        defaults = [None] * (len(arguments.args) + len(arguments.posonlyargs) - len(arguments.defaults))
        all_defaults: list[ast.expr | None] = [*defaults, *arguments.defaults]
        pairs = [*zip(ordinary, all_defaults[len(all_defaults) - len(ordinary) :], strict=True), *pairs]
    try:
        return {argument.arg: _option(source, argument, default) for argument, default in pairs}
    except (ValueError, TypeError, NameError, ImportError):
        return None


def _option(source: Source, argument: ast.arg, default: ast.expr | None) -> Option:
    """Raises ValueError or TypeError where annotation or default aren't plain enough to read."""
    value = REQUIRED
    if default is not None:
        value = ast.literal_eval(_inlined(source, default))
    return option(argument.arg, _annotation(source, argument.annotation), value)


def _annotation(source: Source, node: ast.expr | None) -> Any:
    """The type that an annotation stands for, out of a handful of names: no other code can run."""
    if node is None:
        return REQUIRED
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    tree = ast.fix_missing_locations(ast.Expression(_inlined(source, node)))
    for part in ast.walk(tree):
        if not isinstance(part, _ANNOTATION_NODES) or (
            isinstance(part, ast.Call) and ast.unparse(part.func) != "Range"
        ):
            raise ValueError(f"{ast.unparse(tree)} is more than a declaration")
    return eval(compile(tree, "<annotation>", "eval"), {"__builtins__": {}}, _ANNOTATION_NAMES)


def _inlined(source: Source, node: ast.expr, depth: int = 8) -> ast.expr:
    """An expression with the module's own constants and type aliases put in place of their names.

    Raises ValueError where a name stands for something else.
    """
    inlined: ast.expr = _Inliner(source, depth).visit(copy.deepcopy(node))  # the parsed source is shared
    return inlined


class _Inliner(ast.NodeTransformer):
    def __init__(self, source: Source, depth: int = 8):
        self.source = source
        self.depth = depth

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name(node.attr, ast.Load()) if node.attr in _ANNOTATION_NAMES else node  # typing.Annotated

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if node.id in _ANNOTATION_NAMES:
            return node
        found = _binding(self.source, node.id)
        value = getattr(found[1], "value", None) if found and isinstance(found[1], ast.Assign | ast.AnnAssign) else None
        if value is None or self.depth == 0:
            raise ValueError(f"{node.id} isn't a constant of the module")
        assert found is not None
        return _inlined(found[0], value, self.depth - 1)
