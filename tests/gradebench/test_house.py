"""The house stays in order: files and functions that can be read in one go, and few files at the top."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION = 400, 60  # lines, of a function those below its signature
MOST_AT_THE_TOP = 10
REASON = "long because"  # what the docstring of a longer one says, in any case of letters


def too_long(name: str, text: str) -> set[str]:
    """The file and its functions that are over the limits and give no reason."""
    tree = ast.parse(text)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = {name} if len(text.splitlines()) > LONGEST_FILE and not gives_reason(tree) else set()
    return found | {
        f"{name}:{one.name}"
        for one in functions
        if one.end_lineno - one.body[0].lineno + 1 > LONGEST_FUNCTION and not gives_reason(one)
    }


def gives_reason(node) -> bool:
    return REASON in " ".join((ast.get_docstring(node) or "").lower().split())


def test_files_and_functions_are_short_or_say_why_not():
    folders = ("gradebench", "estimators", "tasks", "tests", "benchmarks")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 100
    found = set().union(*(too_long(path.relative_to(ROOT).as_posix(), path.read_text("utf-8")) for path in files))
    assert not found, f"split them, or say why in the docstring ({REASON} ...): {sorted(found)}"


def test_few_files_stand_at_the_top():
    names = sorted(path.name for path in (ROOT / "gradebench").glob("*.py"))
    assert len(names) <= MOST_AT_THE_TOP, names


def test_the_limits_are_seen():
    long_function = "def f():\n" + "    x = 1\n" * (LONGEST_FUNCTION + 1)
    assert too_long("a.py", long_function) == {"a.py:f"}
    assert too_long("a.py", long_function.removesuffix("    x = 1\n")) == set()
    assert too_long("a.py", long_function.replace("    x", '    """Long because it is."""\n    x', 1)) == set()
    assert too_long("a.py", "x = 1\n" * (LONGEST_FILE + 1)) == {"a.py"}
    assert too_long("a.py", "x = 1\n" * LONGEST_FILE) == set()
    assert too_long("a.py", '"""Long\nbecause it is."""\n' + "x = 1\n" * LONGEST_FILE) == set()
