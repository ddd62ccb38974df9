"""`gradebench new`: an estimator or a task of one's own to start from, one page with holes to fill, or both as a package."""

import ast
import builtins
import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

import gradebench
from gradebench.core.errors import InputError
from gradebench.plugins import registry

_TEMPLATES = Path(__file__).with_name("templates")
# Files of a package, and the templates that they are made of.
_PACKAGE = {
    "pyproject.toml": "pyproject.toml.txt",
    "$package/estimator.py": "estimator.py.txt",
    "$package/task.py": "task.py.txt",
    "tests/test_plugin.py": "plugin_test.py.txt",
    "README.md": "README.md.txt",
    ".github/workflows/test.yml": "workflow.yml.txt",
    ".gitignore": "gitignore.txt",
}


def write_page(name: str, folder: Path, kind: str = "estimator") -> tuple[Path, str]:
    """Writes NAME.py into the folder, with an `estimator` or a `task`; returns the file and the name of its class.

    Raises        InputError for a name that makes no class, or that something else has which the page or what it
                  imports needs, and where the file is there or can't be written.
    """
    module, cls = _names(name, [kind])
    file = folder / f"{module}.py"
    try:
        with file.open("x", encoding="utf-8") as page:
            page.write(_filled(f"{kind}.py.txt", cls=cls, file=file.name))
    except FileExistsError:
        raise InputError(f"{file} is there already; give another name") from None
    except OSError as error:
        raise InputError(f"can't write {file}: {error.strerror}") from error
    return file, cls


def write_package(name: str, folder: Path) -> tuple[Path, str]:
    """Writes a project into folder/gradebench-NAME, for this version of gradebench or later; returns it, and the name
    that its estimator and its task have once it is installed.

    Raises        InputError for a name that a page can't have, or that a plugin has which comes with gradebench, and
                  where the folder is there or can't be written.
    """
    module, cls = _names(name, ["estimator", "task"])
    registered = module.replace("_", "-")
    for kind in registry.KINDS:
        if (known := registry.entries(kind).get(registered)) and known.builtin:
            raise InputError(f"{name!r} won't do: gradebench has {registered} in its {kind}; give another name")
    project, package = f"gradebench-{registered}", f"gradebench_{module}"
    facts = {"name": registered, "project": project, "package": package, "cls": cls}
    facts["version"] = gradebench.__version__
    top = folder / project
    try:
        top.mkdir()
        for place, template in _PACKAGE.items():
            file = top / Template(place).substitute(facts)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(_filled(template, **facts, file=file.name), encoding="utf-8")
        (top / package / "__init__.py").write_text(
            f'"""The estimator and the task {registered} for GradeBench."""\n', encoding="utf-8"
        )
    except FileExistsError:
        raise InputError(f"{top} is there already; give another name") from None
    except OSError as error:
        raise InputError(f"can't write {top}: {error.strerror}") from error
    return top, registered


def _names(name: str, kinds: list[str]) -> tuple[str, str]:
    """Module and class. Raises InputError where the name doesn't make them, or something else has one of them."""
    words = re.findall(r"[A-Za-z0-9]+", name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or not words:
        raise InputError(f"{name!r} makes no name of a class; give letters, digits and hyphens, such as my-{kinds[0]}")
    module, cls = "_".join(words).lower(), "".join(word[0].upper() + word[1:] for word in words)
    if taken := next(filter(None, (_taken(module, cls, kind) for kind in kinds)), ""):
        raise InputError(f"{name!r} won't do: {taken}; give another name, such as my-{name}")
    return module, cls


def _taken(module: str, cls: str, kind: str) -> str:
    """What else has one of the names, in words; "" where nothing has."""
    if keyword.iskeyword(module) or keyword.iskeyword(cls):
        return f"{module if keyword.iskeyword(module) else cls} is a word of Python's own"
    page = ast.parse(_filled(f"{kind}.py.txt", cls="It", file="it.py"))
    if hasattr(builtins, cls) or cls in {node.id for node in ast.walk(page) if isinstance(node, ast.Name)}:
        return f"the page needs another {cls}"
    if importlib.util.find_spec(module) and not Path(f"{module}.py").exists():
        return f"{module}.py would stand in the way of the module {module}"
    return ""


def _filled(template: str, **facts: str) -> str:
    return Template((_TEMPLATES / template).read_text(encoding="utf-8")).substitute(facts)
