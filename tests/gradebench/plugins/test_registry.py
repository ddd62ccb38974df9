"""Names to plugins: real metadata of made-up distributions, broken plugins of each kind, files of the user's own."""

import importlib
import importlib.metadata
import itertools
import pickle
import re
import subprocess
import sys

import pytest

from gradebench.core.errors import InputError
from gradebench.plugins.registry import collisions, entries, installed, load_file, names, resolve

_numbers = itertools.count()

ESTIMATORS = '''
from typing import Annotated
from gradebench import Estimate, Estimator, Range


class Mine(Estimator):
    """An estimator of a user's own."""

    unbiased = True

    def __init__(self, n: Annotated[int, Range(1), "samples"] = 4, tau: float = 1.0):
        super().__init__()
        if n == 13:
            raise ValueError("13 is\\n unlucky")
        self.n = n


def function(problem, rng, *, scale: float = 2.0):
    """Gradients in one function."""
    return [scale]


class Foreign:
    pass


instance = Mine(n=7)
number = 3
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of an importable module with the estimators above, forgotten after the test."""
    name = f"registered_{next(_numbers)}"
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / f"{name}.py").write_text(ESTIMATORS)
    importlib.invalidate_caches()
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def distribute(tmp_path, monkeypatch):
    """Install the metadata of a distribution: distribute(name, version, {entry name: value}, kind)."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name, version, points, kind="estimators"):
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"[gradebench.{kind}]", *(f"{key} = {value}" for key, value in points.items())]
        (folder / "entry_points.txt").write_text("\n".join(lines))
        importlib.invalidate_caches()

    return install


@pytest.fixture
def mine(tmp_path):
    """A user's file with the estimators above."""
    path = tmp_path / "mine.py"
    path.write_text(ESTIMATORS)
    return path


def refusal(*arguments, function=resolve):
    """The one line with which a call is refused."""
    with pytest.raises(InputError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestEntries:
    def test_built_ins_and_third_parties_are_listed_alike_and_sorted(self, distribute, module):
        distribute("other-plugin", "0.3.0", {"mine": f"{module}:Mine", "aaa": f"{module}:function"})
        found = entries("estimators")
        assert list(found) == sorted(found)
        assert found["rloo"].builtin and found["rloo"].source.startswith("gradebench 0.")
        assert not found["mine"].builtin and found["mine"].source == "other-plugin 0.3.0"
        assert (found["mine"].summary, found["mine"].unbiased) == ("An estimator of a user's own.", True)
        assert list(found["aaa"].options) == ["scale"]
        assert module not in sys.modules

    def test_kinds_are_apart(self, distribute, module):
        distribute("other-plugin", "0.3.0", {"mine": f"{module}:Mine"}, "tasks")
        assert "mine" in entries("tasks") and "mine" not in entries("estimators")
        assert "estimators and tasks" in refusal("policies", function=entries)

    def test_a_built_in_wins_a_collision_and_the_loser_is_named(self, distribute, module):
        distribute("a-plugin", "0.3.0", {"rloo": f"{module}:Mine"})
        assert entries("estimators")["rloo"].builtin
        (line,) = collisions("estimators")
        assert "'rloo' of a-plugin 0.3.0 is ignored: gradebench 0." in line

    def test_of_two_third_parties_the_alphabetically_first_wins(self, distribute, module, monkeypatch):
        distribute("zebra", "1.0", {"mine": f"{module}:Mine"})
        distribute("Aardvark", "2.0", {"mine": f"{module}:function"})
        found = importlib.metadata.entry_points(group="gradebench.estimators")
        for order in (sorted, lambda points: sorted(points, reverse=True)):
            with monkeypatch.context() as patch:
                patch.setattr(importlib.metadata, "entry_points", lambda group, order=order: order(found))
                assert entries("estimators")["mine"].source == "Aardvark 2.0"
        assert collisions("estimators") == ["estimator 'mine' of zebra 1.0 is ignored: Aardvark 2.0 has that name"]
        assert resolve("estimators", "mine").source == "Aardvark 2.0"

    def test_no_collision_is_reported_where_there_is_none(self):
        assert collisions("estimators") == []

    def test_a_broken_entry_has_its_reason_and_does_not_hide_the_others(self, distribute, module):
        points = {"gone": "nowhere_to_be_found:It", "absent": f"{module}:It", "odd": module, "mine": f"{module}:Mine"}
        distribute("other-plugin", "0.3.0", points)
        found = entries("estimators")
        assert found["gone"].problem == "there is no module nowhere_to_be_found"
        assert found["absent"].problem == f"module {module} has no object 'It'"
        assert found["odd"].problem == f"its entry point is '{module}', not MODULE:OBJECT"
        assert found["mine"].problem is None

    def test_all_leaves_out_the_broken_ones_and_says_why(self, distribute, module):
        distribute("other-plugin", "0.3.0", {"gone": "nowhere_to_be_found:It", "mine": f"{module}:Mine"})
        healthy, left_out = names("estimators")
        assert "mine" in healthy and "rloo" in healthy and "gone" not in healthy
        assert left_out["gone"] == "there is no module nowhere_to_be_found"
        assert "gone" in names("estimators", healthy_only=False)[0]

    def test_listing_imports_neither_plugins_nor_torch(self):
        code = (
            "import sys; from gradebench.plugins.registry import entries, KINDS; [entries(kind) for kind in KINDS];"
            "print([name for name in ('torch', 'numpy', 'pandas', 'scipy', 'rich', 'gradebench.estimators.score_function')"
            " if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestResolving:
    def test_a_name_resolves_to_a_label_complete_params_and_an_origin(self, distribute, module, tmp_path):
        distribute("other-plugin", "0.3.0", {"mine": f"{module}:Mine"})
        resolved = resolve("estimators", "mine:n=08,tau=1.0")
        assert (resolved.label, resolved.name, resolved.source) == ("mine:n=8", "mine", "other-plugin 0.3.0")
        assert resolved.params == {"n": 8, "tau": 1.0}
        assert resolved.create().n == 8
        before = resolved.digest
        (tmp_path / f"{module}.py").write_text(ESTIMATORS + "# edited")
        assert resolve("estimators", "mine").digest != before

    def test_a_built_in_comes_from_gradebench(self):
        resolved = resolve("estimators", "rloo:n=04")
        assert resolved.label == "rloo" and resolved.source.startswith("gradebench 0.")
        assert resolved.create().n == 4

    def test_each_creation_is_a_new_object(self, distribute, module):
        distribute("other-plugin", "0.3.0", {"mine": f"{module}:Mine", "built": f"{module}:instance"})
        for name in ("mine", "built"):
            resolved = resolve("estimators", name)
            first = resolved.create()
            first.n = 99
            assert resolved.create().n != 99

    def test_a_plain_function_becomes_an_estimator_with_its_options(self, distribute, module):
        distribute("other-plugin", "0.3.0", {"plain": f"{module}:function"})
        estimator = resolve("estimators", "plain:scale=3").create()
        assert estimator.gradient(None, None).grad == [3.0]

    def test_a_built_object_takes_no_options(self, distribute, module):
        distribute("other-plugin", "0.3.0", {"built": f"{module}:instance"})
        assert resolve("estimators", "built").create().n == 7
        assert "takes no options" in refusal("estimators", "built:n=3")

    def test_near_names_are_suggested(self):
        message = refusal("estimators", "RLO")
        assert "did you mean rloo" in message and "gradebench list estimators" in message
        assert "did you mean grade-ste" in refusal("estimators", "grade_ste")

    def test_without_a_near_name_all_are_given(self):
        message = refusal("estimators", "qqqqqq")
        assert all(name in message for name in ("grade", "ppo", "rebar", "reinforce", "rloo"))
        assert "gradebench list estimators" in message

    def test_a_checkout_that_was_never_installed_says_how_to(self, monkeypatch):
        assert installed()
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: ())
        assert not installed()
        assert "`pip install -e .`" in refusal("estimators", "rloo")

    def test_options_are_checked_under_the_name_of_the_plugin(self):
        assert refusal("estimators", "rloo:n=1") == "estimator rloo: n=1 won't do; n takes int >= 2"

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("raise RuntimeError('no licence\\nask for one')", "ask for one"),
            ("import sys; sys.exit('bye')", "SystemExit: bye"),
            ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
            ("x = (", "SyntaxError: '(' was never closed"),
            ("x = 1", "has no object 'It'"),
            ("It = 3", "is of type int, neither an estimator nor a class or function that makes one"),
        ],
    )
    def test_a_plugin_that_fails_to_load_is_named_with_the_last_line(self, distribute, module, tmp_path, text, reason):
        (tmp_path / f"{module}.py").write_text(text)
        distribute("other-plugin", "0.3.0", {"broken": f"{module}:It", "odd": module})
        message = refusal("estimators", "broken")
        assert reason in message and "other-plugin 0.3.0" in message
        assert "not MODULE:OBJECT" in refusal("estimators", "odd")

    def test_what_the_constructor_refuses_is_an_input_error(self, mine):
        resolved = resolve("estimators", f"{mine}:Mine:n=13")
        assert refusal(function=resolved.create) == "estimator mine.py:Mine:n=13: 13 is unlucky"

    def test_what_is_no_estimator_is_refused(self, mine):
        resolved = resolve("estimators", f"{mine}:Foreign")
        assert "builds an object of type Foreign, which is no gradebench.Estimator" in refusal(function=resolved.create)
        resolved = resolve("tasks", f"{mine}:Mine")
        assert "builds an object of type Mine, which is no gradebench.Task" in refusal(function=resolved.create)


class TestFiles:
    def test_class_function_and_instance_of_a_file_are_estimators(self, mine):
        assert resolve("estimators", f"{mine}:Mine:n=8").create().n == 8
        assert resolve("estimators", f"{mine}:function").create().gradient(None, None).grad == [2.0]
        assert resolve("estimators", f"{mine}:instance").create().n == 7

    def test_a_file_is_named_by_its_base_name_and_digest(self, mine):
        resolved = resolve("estimators", f"{mine}:Mine:n=8,tau=1")
        assert (resolved.label, resolved.name) == ("mine.py:Mine:n=8", "mine.py:Mine")
        assert re.fullmatch(r"mine.py sha256:[0-9a-f]{12}", resolved.source) and len(resolved.digest) == 64

    def test_a_path_may_be_relative(self, mine, monkeypatch):
        monkeypatch.chdir(mine.parent)
        resolved = resolve("estimators", "./mine.py:Mine:n=8")
        assert resolved.spec == f"{mine.resolve()}:Mine:n=8"
        assert resolved.label == "mine.py:Mine:n=8"

    def test_a_file_is_run_once_until_it_changes(self, mine, monkeypatch):
        monkeypatch.setattr(sys, "dont_write_bytecode", False)  # a stale .pyc would go unseen
        first = load_file(str(mine), "Mine").factory
        assert load_file(str(mine), "Mine").factory is first
        mine.write_text(ESTIMATORS.replace("self.n = n", "self.n = 5"))  # of the same length, in the same second
        assert resolve("estimators", f"{mine}:Mine").create().n == 5

    def test_modules_beside_a_file_are_found_and_each_file_has_its_own(self, tmp_path, monkeypatch):
        """`helper` and, in a package, `tools.helper`, of the same names in two folders."""
        path, modules = list(sys.path), set(sys.modules)
        for folder in ("a", "b"):
            (tmp_path / folder / "tools").mkdir(parents=True)
            (tmp_path / folder / "helper.py").write_text(f"where = {folder!r}")
            (tmp_path / folder / "tools" / "__init__.py").write_text("from tools.helper import where")
            (tmp_path / folder / "tools" / "helper.py").write_text(f"where = {folder!r}")
            (tmp_path / folder / "mine.py").write_text(
                "import helper, tools\nfrom tools import helper as other\ndef mine(problem, rng):\n"
                "    return helper.where + tools.where + other.where\n"
            )
        first, second = (load_file(str(tmp_path / folder / "mine.py"), "mine").factory for folder in ("a", "b"))
        assert (first(None, None), second(None, None)) == ("aaa", "bbb")
        assert sys.path == path
        monkeypatch.setattr(
            "gradebench.plugins.source_digest._known", {}
        )  # as where the first digest of a comes after b
        before = [load_file(str(tmp_path / folder / "mine.py"), "mine").digest for folder in ("a", "b")]
        (tmp_path / "a" / "tools" / "helper.py").write_text("where = 'an edit'")
        after = [load_file(str(tmp_path / folder / "mine.py"), "mine").digest for folder in ("a", "b")]
        assert after[0] != before[0] and after[1] == before[1]
        for name in set(sys.modules) - modules:
            del sys.modules[name]

    def test_files_of_one_name_in_two_folders_are_two_modules(self, mine, tmp_path):
        other = tmp_path / "other" / "mine.py"
        other.parent.mkdir()
        other.write_text(ESTIMATORS)
        here, there = (load_file(str(path), "Mine").factory for path in (mine, other))
        assert here is not there and here.__module__ != there.__module__

    def test_objects_of_a_file_can_be_pickled(self, mine):
        estimator = resolve("estimators", f"{mine}:Mine:n=8").create()
        assert pickle.loads(pickle.dumps(estimator)).n == 8

    def test_what_was_resolved_can_be_sent_to_another_process(self, mine, tmp_path):
        resolved = resolve("estimators", f"{mine}:Mine:n=8")
        (tmp_path / "sent").write_bytes(pickle.dumps(resolved))
        code = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).create().n)"
        sent = [sys.executable, "-c", code, str(tmp_path / "sent")]
        assert subprocess.run(sent, capture_output=True, text=True, check=True).stdout.strip() == "8"

    def test_no_bytecode_is_left_beside_the_file(self, mine, monkeypatch):
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        resolve("estimators", f"{mine}:Mine")
        assert not (mine.parent / "__pycache__").exists()

    def test_a_missing_file_or_object_is_an_input_error(self, mine, tmp_path):
        assert "can't read" in refusal("estimators", f"{tmp_path}/absent.py:Mine")
        message = refusal("estimators", f"{mine}:Mien")
        assert "has no object 'Mien'; it defines Mine, function, Foreign" in message

    def test_a_syntax_error_has_its_line(self, mine):
        mine.write_text("x = 1\ny = (\n")
        message = refusal("estimators", f"{mine}:Mine")
        assert "mine.py, line 2)" in message and "'(' was never closed" in message

    def test_a_file_that_fails_leaves_no_half_made_module(self, mine):
        known = set(sys.modules)
        mine.write_text("raise RuntimeError('first line\\nlast line')")
        assert refusal("estimators", f"{mine}:Mine").endswith("last line (mine.py, line 1)")
        assert set(sys.modules) == known
