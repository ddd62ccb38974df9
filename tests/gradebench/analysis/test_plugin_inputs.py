"""Runs whose plugins read something else than each other's are pooled by no reader, which name what it was."""

import json
import shutil
import sys
from functools import partial

import pytest

from gradebench.analysis import plugin_inputs
from gradebench.analysis.plugin_inputs import READ, difference, notice, uneven
from gradebench.experiment import loaded, runner
from gradebench.storage import followed

MINE = """
import importlib, os, sys
from pathlib import Path
from gradebench.estimators.score_function import Rloo
import words_helper as HELPER
HERE = Path(__file__).parent
{declared}
class Mine(Rloo):
    def reset(self):
        {way}
"""
# What the plugin does, what is changed between two runs, and the name under which a refusal has it.
WAYS = {
    "a file": ("(HERE / 'data.txt').read_text()", "data.txt", "data.txt (mine.py)"),
    "a file in a folder": ("open(HERE / 'deep' / 'data.txt').close()", "deep/data.txt", "deep/data.txt (mine.py)"),
    "a file elsewhere": ("open(HERE.parent / 'there' / 'far.txt').close()", "../there/far.txt", "far.txt (mine.py)"),
    "by a helper": ("HELPER.words()", "words.txt", "words.txt (words_helper.py)"),
    "a module": ("sys.path.insert(0, str(HERE)); importlib.import_module('late' + 'ly')", "lately.py", "lately.py"),
    "a variable": ("os.environ.get('LEVEL')", "$LEVEL", "$LEVEL (mine.py)"),
    "a file that wasn't there": (
        "next((open(p) for p in [HERE / 'data.txt', HERE / 'other.txt'] if p.exists()), None)", "-data.txt",
        "read for",
    ),
    "a declared file": ("depends_on = 'data.txt'", "data.txt", "data.txt (mine.py)"),
    "a declared folder": ("depends_on = 'deep'", "deep/data.txt", "deep/data.txt (mine.py)"),
    "a declared variable": ("depends_on = '$LEVEL'", "$LEVEL", "$LEVEL (mine.py)"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of a plugin, with all that it may read."""
    folder = tmp_path / "plugin"
    for name in ("data.txt", "other.txt", "words.txt", "deep/data.txt", "../there/far.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1")
    (folder / "lately.py").write_text("X = 1\n")
    helper = "from pathlib import Path\ndef words():\n    return Path(__file__).with_name('words.txt').read_text()\n"
    (folder / "words_helper.py").write_text(helper)
    monkeypatch.setenv("LEVEL", "1")
    return folder


@pytest.fixture
def run(command, tiny, in_process, no_report, tmp_path, monkeypatch):
    """A run as in a process of its own, without probes that matter and without a report."""

    def call(name, estimator, *more, task=None, seeds="0"):
        for part in ("opened", "variables", "loaded", "declared", "readers"):
            monkeypatch.setattr(followed._following, part, {})
        words = ["-e", estimator, "-t", task or tiny(), "--seeds", seeds, "--steps", 2, "--out", tmp_path / name]
        with monkeypatch.context() as brief:
            brief.setattr(runner, "Request", partial(runner.Request, checkpoints=1))
            status, _, err = command("run", *words, *more)
        assert status == 0, err
        call.said = err
        return tmp_path / name

    return call


def readers(first, second, out):
    return {
        "leaderboard": (first, second),
        "claims": (first, second),
        "report": (first, second, "--out", out),
        "merge": (first, second, "--out", out),
        "compare": (first, "--with", second),
    }


def change(folder, name, monkeypatch):
    if name.startswith("$"):
        monkeypatch.setenv(name[1:], "another")
    elif name.startswith("-"):
        (folder / name[1:]).unlink()
    else:
        (folder / name).write_text("X = 2\n")


@pytest.mark.parametrize("way", WAYS)
def test_runs_whose_plugin_read_something_else_are_refused_by_name(folder, run, command, tmp_path, monkeypatch, way):
    does, changed, said = WAYS[way]
    declared, does = (does, "...") if does.startswith("depends_on") else ("", does)
    (folder / "mine.py").write_text(MINE.format(way=does, declared=declared))
    first = run("first", f"{folder / 'mine.py'}:Mine")
    change(folder, changed, monkeypatch)
    monkeypatch.delitem(sys.modules, "lately", raising=False)
    second = run("second", f"{folder / 'mine.py'}:Mine", seeds="1")
    for reader, words in readers(first, second, tmp_path / "out").items():
        status, out, err = command(reader, *words)
        assert (status, out) == (2, "") and said in err and str(second) in err, (reader, err)
        assert err.startswith("gradebench: runs of ") and len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    assert command("leaderboard", first, second, "--apart")[0] == 0


def test_a_plugin_and_its_data_may_lie_elsewhere(folder, run, command, tmp_path):
    way = "(HERE / 'data.txt').read_text(); HELPER.words(); os.environ.get('LEVEL')"
    (folder / "mine.py").write_text(MINE.format(way=way, declared="depends_on = ['deep', '$LEVEL']"))
    shutil.copytree(folder, tmp_path / "moved")
    first = run("first", f"{folder / 'mine.py'}:Mine")
    second = run("second", f"{tmp_path / 'moved' / 'mine.py'}:Mine", seeds="1")
    assert command("leaderboard", first, second)[::2] == (0, "")
    (tmp_path / "moved" / "data.txt").write_text("2")
    third = run("third", f"{tmp_path / 'moved' / 'mine.py'}:Mine", seeds="1")
    assert "data.txt (mine.py)" in command("leaderboard", first, third)[2]


def test_what_a_task_read_is_compared_also_where_no_estimator_is_in_both(folder, run, command, tiny, tmp_path):
    """And a merge keeps it."""
    text = f"import runpy\nfrom pathlib import Path\nTiny = runpy.run_path({str(tiny()).partition('.py:')[0] + '.py'!r})['TinyTask']\n"
    text += "class Mine(Tiny):\n    def load(self, device):\n        Path(__file__).with_name('data.txt').read_text()\n"
    (folder / "mine.py").write_text(text + "        super().load(device)\n")
    names = iter(("rloo", "reinforce", "grpo", "st"))

    def fresh(name):
        loaded.worker.forget()
        return run(name, next(names), task=f"{folder / 'mine.py'}:Mine")

    first, same = fresh("first"), fresh("same")
    (folder / "data.txt").write_text("2")
    second = fresh("second")
    assert command("merge", first, same, "--out", tmp_path / "merged")[0] == 0
    for one in (first, tmp_path / "merged"):
        assert "differ in their data.txt (mine.py)" in command("leaderboard", one, second)[2]


def test_cells_of_one_folder_that_found_something_otherwise_are_told(folder, run, tmp_path):
    (folder / "mine.py").write_text(MINE.format(way="(HERE / 'data.txt').read_text()", declared=""))
    text = MINE.format(way="(HERE / 'data.txt').read_text()", declared="").replace("class Mine", "class Other")
    (folder / "other.py").write_text(text)
    run("run", f"{folder / 'mine.py'}:Mine")
    (folder / "data.txt").write_text("2")
    run("run", f"{folder / 'other.py'}:Other")
    assert f"{folder / 'data.txt'} changed between cells of tiny.py:TinyTask" in run.said
    assert set(json.loads((tmp_path / "run" / "config.json").read_text())["facts"]["estimators"]["tiny.py:TinyTask"])


# --- by themselves ----------------------------------------------------------------------------------------------


def test_one_run_that_read_more_is_a_notice_and_two_that_read_other_things_a_difference():
    def having(a, b):
        return [("one", {"m": {READ: a}}), ("two", {"m": {READ: b}})]

    assert difference(having({"a": "1"}, {"a": "1"})) == notice(having({"a": "1"}, {"a": "1"})) == ""
    more = having({"a": "1", "b": "2"}, {"a": "1"})
    assert difference(more) == "" and notice(more).startswith("for m, code of plugins read b in one and not in two")
    assert "read for m (one: b; two: c)" in difference(having({"a": "1", "b": "2"}, {"a": "1", "c": "2"}))
    assert "a, which code of plugins read (one: 1; two: 1 or 2)" in difference(having({"a": "1"}, {"a": "1 or 2"}))
    for old in ({}, {READ: None}, {READ: {"a": 3}}, {READ: []}):  # of an earlier version, or from elsewhere
        assert difference([("one", {"m": {READ: {"a": "1"}}}), ("two", {"m": old})]) == ""
        assert notice([("one", {"m": {READ: {"a": "1"}}}), ("two", {"m": old})]) == ""


def test_files_of_one_name_count_together_whatever_their_order():
    followed._following.readers |= {"/p/a/x.txt": "/q/mine.py", "/p/b/x.txt": "/q/mine.py", "$V": "/q/mine.py"}
    read = {"/p/a/x.txt": "2", "/p/b/x.txt": "1", "$V": None, "/p/words_helper.py": "3"}
    assert followed.inputs(read) == {"$V (mine.py)": "absent", "words_helper.py": "3", "x.txt (mine.py)": "1 or 2"}
    parts = [{"x": "2"}, {"x": "1 or 3", "y": "1"}]
    assert plugin_inputs.united(parts) == plugin_inputs.united(parts[::-1]) == {"x": "1 or 2 or 3", "y": "1"}
    assert uneven([{"a": "1", "b": None}, {"a": "1", "b": "1"}]) == ["b"]
