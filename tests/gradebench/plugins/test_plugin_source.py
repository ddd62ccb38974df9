"""What is read from a plugin's text without running it, and that it agrees with what an import gives."""

import importlib
import importlib.metadata
import itertools
import sys

import pytest

from gradebench.core.options import Range, options_of
from gradebench.plugins.plugin_source import locate, read_facts

_numbers = itertools.count()

CLASS = '''
from typing import Annotated, ClassVar, Literal
import typing as t
from gradebench import Estimator, Range

LOWEST = 2
Temperature = Annotated[float, Range(low=0, low_open=True), "temperature"]


class Parent(Estimator):
    needs: ClassVar[frozenset[str]] = frozenset({"support", "binary"})

    def __init__(self, tau: Temperature = 1, *, n: t.Annotated[int, t.Any and Range(LOWEST), "samples"] = 4): ...


class Child(Parent):
    """First line.

    Second line.
    """

    unbiased: ClassVar[bool] = True

    def __init__(self, tau: Temperature = 1, *, n: t.Annotated[int, Range(LOWEST), "samples"] = LOWEST,
                 mode: "Literal['a', 'b'] | None" = None, shift: float = -1.5): ...


class Grandchild(Child):
    unbiased = bool(1)
    needs = Parent.needs | {"x"}


class Bare(Estimator):
    pass


def function(problem, rng, *, n: Annotated[int, Range(1), "draws"] = 3, fast=False):
    """A function."""


instance = Bare()
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write files (path: text) into a folder that modules are imported from."""
    monkeypatch.syspath_prepend(tmp_path)

    def write_files(**texts):
        for name, text in texts.items():
            path = tmp_path / (name.replace(".", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()

    return write_files


@pytest.fixture
def module():
    """A module's name that no other test has used, since imports and parsed files are remembered by name."""
    return f"written_{next(_numbers)}"


def test_facts_come_from_the_class_and_its_bases(write):
    write(facts_class=CLASS)
    facts = read_facts("facts_class", "Child")
    assert (facts.summary, facts.unbiased, facts.needs) == ("First line.", True, ("binary", "support"))
    assert facts.problem is None
    assert "facts_class" not in sys.modules


def test_a_class_that_declares_nothing_has_the_contract_s_defaults(write):
    write(facts_bare=CLASS)
    facts = read_facts("facts_bare", "Bare")
    assert (facts.summary, facts.unbiased, facts.needs, facts.options) == ("", False, (), {})


def test_what_is_no_literal_is_unknown_rather_than_guessed(write):
    write(facts_unknown=CLASS)
    facts = read_facts("facts_unknown", "Grandchild")
    assert (facts.unbiased, facts.needs) == (None, None)
    assert read_facts("facts_unknown", "Parent").options is None  # an annotation that would run code
    assert read_facts("facts_unknown", "instance").options is None


@pytest.mark.parametrize("name", ["Child", "Grandchild", "function", "Bare"])
def test_options_read_from_the_text_equal_those_of_the_import(write, name):
    write(facts_equal=CLASS.replace("t.Any and ", ""))
    read = read_facts("facts_equal", name).options
    try:
        assert read == options_of(getattr(importlib.import_module("facts_equal"), name))
    finally:
        sys.modules.pop("facts_equal", None)


def test_options_and_bases_are_followed_through_the_plugin_s_own_modules(write):
    write(
        **{
            "facts_package.__init__": "",
            "facts_package.first": "Number = float\nRate = Number\nclass Base:\n    unbiased = True\n",
            "facts_package.second": (
                "from .first import Base, Rate as R\nclass Derived(Base):\n    def __init__(self, rate: R = 0.5): ...\n"
            ),
        }
    )
    facts = read_facts("facts_package.second", "Derived")
    assert facts.unbiased is True
    assert facts.options["rate"].base is float
    assert "facts_package" not in sys.modules


@pytest.mark.parametrize(
    "text",
    [
        "from dataclasses import dataclass\n@dataclass\nclass It:\n    n: int = 1\n",
        "import json\nclass It(json.JSONDecoder): ...\n",
        "class It:\n    def __init__(self, n: int = max(1, 2)): ...\n",
        "class It:\n    def __init__(self, n: open('x') = 1): ...\n",
        "class It:\n    def __init__(self, n: list = 1): ...\n",
        "class It:\n    def __init__(self, n: [int][0] = 1): ...\n",
        "class It:\n    def __init__(self, n: Missing = 1): ...\n",
    ],
)
def test_options_that_only_an_import_can_tell_are_unknown(write, text, module):
    write(**{module: text})
    assert read_facts(module, "It").options is None
    assert read_facts(module, "It").problem is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("class It:\n    def f(self:\n", "syntax error in module {}, line 2"),
        ("class Other: ...\n", "module {} has no object 'It'"),
        ("import nowhere_to_be_found.part\nclass It: ...\n", "imports nowhere_to_be_found, which isn't installed"),
        ("from nowhere_to_be_found import x\nclass It: ...\n", "imports nowhere_to_be_found, which isn't"),
        ("raise RuntimeError('no\\n licence')\nclass It: ...\n", "raises RuntimeError('no\\n licence') on import"),
        ("class It: ...\n\0", "syntax error in module {}"),
    ],
)
def test_a_module_that_cannot_be_imported_has_its_reason(write, text, problem, module):
    write(**{module: text})
    read = read_facts(module, "It").problem
    assert problem.format(module) in read
    assert "\n" not in read


@pytest.mark.parametrize(
    "text",
    [
        "try:\n    import nowhere_to_be_found\nexcept ImportError:\n    It = None\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nowhere_to_be_found\nclass It: ...\n",
        "if False:\n    raise RuntimeError\nelse:\n    class It: ...\n",
        "def __getattr__(name):\n    return name\n",
        "from os.path import *\n",
        "for It in range(3):\n    pass\n",
        "with open(__file__) as It:\n    pass\n",
        "(a, [It, b]) = 1, (2, 3)\n",
        "from os import path as It\n",
        "def f():\n    import nowhere_to_be_found\nIt = f\n",
    ],
)
def test_a_module_that_may_be_imported_is_not_called_broken(write, text, module):
    write(**{module: text})
    assert read_facts(module, "It").problem is None


def test_a_broken_parent_package_is_the_reason(write):
    write(**{"broken_parent.__init__": "import nowhere_to_be_found", "broken_parent.fine": "class It: ..."})
    assert read_facts("broken_parent.fine", "It").problem.startswith("module broken_parent imports nowhere")
    assert "broken_parent" not in sys.modules


def test_a_module_that_is_nowhere_is_named(write):
    write(**{"half_there.__init__": ""})
    assert read_facts("nowhere_to_be_found", "It").problem == "there is no module nowhere_to_be_found"
    assert read_facts("half_there.more.deep", "It").problem == "there is no module half_there.more"


def test_a_package_that_computes_its_own_search_path_is_followed(write):
    write(
        **{
            "moved_parent.__init__": "__path__.append(__path__[0] + '/elsewhere')",
            "moved_parent.elsewhere.inner": "class It: ...",
        }
    )
    try:
        assert read_facts("moved_parent.inner", "It").problem is None
    finally:
        sys.modules.pop("moved_parent", None)


def test_an_edited_file_is_read_again(write):
    write(edited="class It: ...\n")
    assert read_facts("edited", "It").problem is None
    write(edited="class Renamed: ...\n")
    assert read_facts("edited", "It").problem == "module edited has no object 'It'"


def test_compiled_modules_have_no_text_and_no_problem():
    assert locate("math") is not None
    assert read_facts("math", "sqrt").problem is None


@pytest.mark.parametrize("kind", ["estimators", "tasks"])
def test_the_text_of_every_built_in_tells_what_its_import_tells(kind):
    points = [
        point
        for point in importlib.metadata.entry_points(group=f"gradebench.{kind}")
        if point.dist.name == "gradebench" and locate(point.module)
    ]
    for point in points:
        facts, factory = read_facts(point.module, point.attr), point.load()
        assert facts.problem is None
        assert facts.options == options_of(factory), point.name
        assert facts.summary == factory.__doc__.splitlines()[0]
        if kind == "estimators":
            assert facts.unbiased == factory.unbiased
            assert set(facts.needs) == factory.needs
    assert points or kind == "tasks"


def test_ranges_in_the_text_are_real_ranges():
    assert read_facts("gradebench.estimators.score_function", "Rloo").options["n"].range == Range(2)
