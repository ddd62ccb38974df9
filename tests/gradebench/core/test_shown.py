"""What is printed of others' text, and of counts."""

import ast
import itertools
import re
from pathlib import Path

import pytest

from gradebench.core.shown import counted

ROOT = Path(__file__).parents[3]
COUNTABLE = [
    "seed",
    "cell",
    "step",
    "estimator",
    "task",
    "pair",
    "draw",
    "run",
    "check",
    "file",
    "instance",
    "comparison",
    "sequence",
    "update",
    "call",
    "claim",
    "row",
    "text",
    "token",
    "prompt",
    "sample",
    "gradient",
    "parameter",
    "kind",
    "shard",
    "value",
]
# Words before a plural, such as a split's name, and numbers that are never one. The sources of learning rates are values of
# tables, which older runs have as they are: "6 rates x 5 seeds".
OTHER = {
    *("split", "found", "trials", "nearest", "rates", "seeds", "MONTE_CARLO_DRAWS", "vocabulary ** horizon"),
    *("size.horizon", "size.prompt + size.horizon", "1 / report['false_alarm_rate']", "len(names)"),
}
PLURAL = re.compile(rf" (?:{'|'.join(COUNTABLE)})s\b")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0 seeds"),
        (1, "1 seed"),
        (1.0, "1 seed"),
        (2, "2 seeds"),
        (1200, "1,200 seeds"),
        ("1", "1 seed"),
        ("no", "no seeds"),
    ],
)
def test_a_count_has_its_noun_in_the_right_number(number, said):
    assert counted(number, "seed") == said


def test_a_noun_may_bring_its_own_plural_and_its_verb():
    assert [counted(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]
    assert [counted(n, "cell is", "cells are") for n in (1, 2)] == ["1 cell is", "2 cells are"]


def bare_counts(source):
    """Lines of the f-strings in which a plural stands right behind a number, which may be one."""
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else ()
        for number, words in itertools.pairwise(parts):
            counts = isinstance(number, ast.FormattedValue) and ast.unparse(number.value) not in OTHER
            if counts and isinstance(words, ast.Constant) and PLURAL.match(str(words.value)):
                yield node.lineno


def test_no_message_puts_a_plural_behind_a_number():
    assert list(bare_counts('f"{len(found)} cells"')) == [1] and not list(bare_counts('f"{x} cell, {y} seed"'))
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for folder in ("gradebench", "estimators", "tasks")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in bare_counts(path.read_text(encoding="utf-8"))
    ]
    assert found == []
