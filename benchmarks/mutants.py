"""Do the tests notice if one operator, sign, number or `detach` of the code is changed?

    python benchmarks/mutants.py [--seed 0] [--number 60] [--processes 2] [--seconds 300] [--csv FILE]

Each mutant is a copy of the checkout with one random change, in a room of its own, on which the tests of that room are
run until one fails. A mutant that passes them all survives: either no test guards what was changed, or the change makes
no difference.
"""

import argparse
import ast
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TESTS = {
    "estimators": "tests/estimators",
    "gradebench/problems": "tests/gradebench/problems",
    "gradebench/measurement": "tests/gradebench/measurement",
    "gradebench/analysis": "tests/gradebench/analysis",
}
OPERATORS: dict[type, Any] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.And: ast.Or,
    ast.Or: ast.And,
}


def changes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Makes each change in the tree, yields its line and what it is, and undoes it."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in OPERATORS:
            before = node.op
            node.op = OPERATORS[type(before)]()
            yield line, f"{type(before).__name__} to {type(node.op).__name__}"
            node.op = before
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in OPERATORS:
            first = node.ops[0]
            node.ops[0] = OPERATORS[type(first)]()
            yield line, f"{type(first).__name__} to {type(node.ops[0]).__name__}"
            node.ops[0] = first
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            node.op = ast.UAdd()
            yield line, "a minus taken away"
            node.op = ast.USub()
        elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
            number: Any = node.value
            node.value = number + 1
            yield line, f"{number} to {number + 1}"
            node.value = number
        elif isinstance(node, ast.Attribute) and node.attr == "detach":
            node.attr = "clone"
            yield line, "detach taken away"
            node.attr = "detach"


def mutants(seed: int, number: int) -> list[tuple[str, int, str, str]]:
    """File, line, change and the changed source of random mutants, as many in each room."""
    rng, chosen = random.Random(seed), []
    for room in TESTS:
        found = []
        for path in sorted((ROOT / room).glob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found += [(str(path.relative_to(ROOT)), *change, ast.unparse(tree)) for change in changes(tree)]
        chosen += rng.sample(found, min(len(found), -(-number // len(TESTS))))
    return chosen


def outcome(copy: Path, room: str, processes: int, seconds: float) -> str:
    """Whether the tests of a room kill the copy (and which of them does), or it survives, or they take too long."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-n", str(processes), TESTS[room]]
    env = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=copy, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "timeout"
    if done.returncode == 0:
        return "survived"
    failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return f"killed: {failed[0].split(' - ')[0].partition(' ')[2]}" if failed else f"killed: status {done.returncode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--number", type=int, default=60)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--csv", type=Path, default=ROOT / "results" / "check" / "mutants.csv")
    options = parser.parse_args()
    chosen = mutants(options.seed, options.number)
    with tempfile.TemporaryDirectory() as folder, options.csv.open("w", newline="", encoding="utf-8") as stream:
        copy = Path(folder) / "gradebench"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".venv", ".git", ".*_cache", "__pycache__"))
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(["file", "line", "change", "outcome", "seconds"])
        rng = random.Random(options.seed)
        for file, line, change, source in rng.sample(chosen, len(chosen)):  # so that a pass cut short has all rooms
            whole = (copy / file).read_text(encoding="utf-8")
            (copy / file).write_text(source, encoding="utf-8")
            started = time.monotonic()
            found = outcome(copy, str(Path(file).parent), options.processes, options.seconds)
            (copy / file).write_text(whole, encoding="utf-8")
            rows.writerow([file, line, change, found, round(time.monotonic() - started)])
            stream.flush()
            print(f"{file}:{line} {change}: {found}", flush=True)


if __name__ == "__main__":
    main()
