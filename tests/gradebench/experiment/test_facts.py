"""Each item of the list of what a number depends on: in the key, in what every reader refuses, and in what repeats it."""

import json
import shlex
import shutil
from dataclasses import fields, replace

import pandas as pd
import pytest

from gradebench.core.sampler import ON_POLICY
from gradebench.experiment import facts, repeat
from gradebench.experiment.plan import Cell, Plan

TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]
ITEMS = [("tasks", item.name) for item in facts.TASK if item.name != "setting"]  # which stands in the rows
ITEMS += [("estimators", item.name) for item in facts.ESTIMATOR]


@pytest.fixture
def run(command, tiny, tmp_path, in_process, no_report, made_once):
    """`gradebench run` of the tiny task into a folder; returns the folder."""

    def call(name, *more, estimators=("rloo",), seeds="0", first="run", task=None):
        words = [word for one in estimators for word in ("-e", one)]
        words += ["-t", task or tiny(), "--seeds" if first == "run" else "--seed", seeds]
        steps = () if "--steps" in more else ("--steps", 2)
        words += [*steps, *more]

        def make():
            status, _, err = command(first, *words, "--out", tmp_path / name)
            assert status == 0, err

        made_once(("test_facts", name, first, *words), tmp_path / name, make)
        return tmp_path / name

    return call


def changed(value):
    if isinstance(value, dict):
        return {**value, "more": 1}
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int | float) else f"{value}?"


def test_every_field_of_a_plan_is_listed_or_has_a_reason_not_to_be(tiny):
    """Read through a plan that tells what was read of it."""
    cell = Cell("t", tiny(), {}, "rloo", "rloo", 0)
    read = set()

    class Telling:
        def __getattr__(self, name):
            read.add(name)
            return {"device": "cpu", "sampler": ON_POLICY}.get(name, 1)

    class Task:
        sizes, params = {}, []

        def digests(self):
            return {}

    facts.facts_of(facts.Known(Telling(), cell, Task(), 0.1, (0.1, "")))
    assert {field.name for field in fields(Plan)} == (read - {"device"}) | set(facts.NOT_LISTED)


def test_each_item_changes_the_key_and_all_but_steps_and_probes_that_of_a_training():
    cell = Cell("t", "t", {}, "rloo", "rloo", 0)
    known = {
        "task": {item.name: 1 for item in facts.TASK},
        "estimator": {item.name: 1 for item in facts.ESTIMATOR},
    }
    keys, trained = {facts.key_of(known, cell)}, {facts.training_key_of(known, cell)}
    for part, items in (("task", facts.TASK), ("estimator", facts.ESTIMATOR)):
        for item in items:
            other = known | {part: known[part] | {item.name: 2}}
            keys.add(facts.key_of(other, cell))
            new = facts.training_key_of(other, cell) not in trained
            assert new == (item.training and item.name != "steps")
            trained.add(facts.training_key_of(other, cell))
    assert len(keys) == 1 + len(facts.TASK) + len(facts.ESTIMATOR)
    assert facts.key_of(known, replace(cell, seed=1)) not in keys


# --- readers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def pair(run, tmp_path):
    """Two runs that agree, of other seeds; and a function that changes an item in the second one's config.json."""
    first, second = run("first"), run("second", seeds="1")
    (second / "digests.json").unlink()  # its config.json is edited
    whole = json.loads((second / "config.json").read_text())

    def change(part, name):
        config = json.loads(json.dumps(whole))
        (task,) = config["facts"]["tasks"]
        table = config["facts"][part][task]
        table = table if part == "tasks" else table["rloo"]
        table[name] = changed(table[name])
        (second / "config.json").write_text(json.dumps(config))

    return first, second, change


def test_runs_that_differ_in_any_item_are_refused_by_every_reader_which_name_it(command, pair, tmp_path):
    first, second, change = pair
    readers = {
        "leaderboard": (first, second),
        "claims": (first, second),
        "report": (first, second, "--out", tmp_path / "out"),
        "merge": (first, second, "--out", tmp_path / "out"),
        "compare": (first, "--with", second),
    }
    for reader, words in readers.items():
        status, _, err = command(reader, *words)
        assert "differ in their" not in err and (status == 0 or "fewer than two estimators" in err), err
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
    for part, name in ITEMS:
        change(part, name)
        for reader, words in readers.items():
            status, out, err = command(reader, *words)
            of = "" if part == "tasks" else " of rloo"
            assert (status, out) == (2, "") and f"differ in their {name}{of} ({first}: " in err, (reader, err)
            assert len(err.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert command("leaderboard", first, second, "--apart")[0] == 0


def test_one_task_by_another_spelling_is_one_task(command, run, tiny, tmp_path):
    """As where corpus=auto fell back to what another run was given."""
    first = run("first")
    second = run("second", seeds="1", task=tiny())
    (second / "digests.json").unlink()
    text = (second / "config.json").read_text().replace('tiny.py:TinyTask"', 'tiny.py:TinyTask:kl=0.0"')
    text = text.replace('"task": "tiny.py:TinyTask:kl=0.0"', '"task": "tiny.py:TinyTask"')  # the item
    (second / "config.json").write_text(text)
    metrics = pd.read_parquet(second / "metrics.parquet")
    metrics.assign(task=metrics["task"] + ":kl=0.0").to_parquet(second / "metrics.parquet")
    assert command("leaderboard", first, second, "--csv", tmp_path / "board.csv")[0] == 0
    board = pd.read_csv(tmp_path / "board.csv")
    assert list(board["task"]) == ["tiny.py:TinyTask"] and list(board["n_seeds"]) == [2]
    assert command("merge", first, second, "--out", tmp_path / "merged")[0] == 0
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert list(config["facts"]["tasks"]) == list(config["plans"]) == ["tiny.py:TinyTask"]
    (given,) = config["given"]["estimators"].values()
    assert given["rloo"]["seeds"] == [0, 1]


def test_runs_without_the_list_are_compared_by_what_they_have_and_that_is_said(command, pair):
    first, second, _ = pair
    config = json.loads((second / "config.json").read_text())
    del config["facts"]
    (second / "config.json").write_text(json.dumps(config))
    status, _, err = command("leaderboard", first, second)
    assert status == 0 and f"{second}: made before" in err and len(err.splitlines()) == 1
    config["plans"]["tiny.py:TinyTask"]["clip"] = 2.0
    (second / "config.json").write_text(json.dumps(config))
    assert "differ in their clip" in command("leaderboard", first, second)[2]


# --- to repeat it -----------------------------------------------------------------------------------------------


def values(folder):
    """All metrics but seconds and memory, by what they are of."""
    rows = pd.read_csv(folder / "metrics.csv")
    rows = rows[~rows["metric"].isin(TIMES)]
    names = ["estimator", "seed", "phase", "split", "step", "metric"]
    return rows.set_index(names)["value"].sort_index()


def repeated(command, folder, tmp_path):
    """Run the printed commands; returns the folder."""
    lines = repeat.commands_of(json.loads((folder / "config.json").read_text()))
    for line in lines:
        words = shlex.split(line)
        words = words[1 : words.index("--out")] if "--out" in words else words[1:]
        status, _, err = command(*words, "--out", tmp_path / "again")
        assert status == 0, (line, err)
    return lines


@pytest.mark.parametrize(
    "options",
    [
        ("--clip", "0.05", "--micro-batches", "2"),
        ("--batch", "16", "--learning-rate", "0.003", "--aa-test", "--device", "cpu", "--trust-remote-code"),
    ],
)
def test_the_printed_command_gives_every_value_again(command, run, tmp_path, options):
    folder = run("run", *options, seeds="0,2", estimators=("rloo", "reinforce"))
    (line,) = repeated(command, folder, tmp_path)
    pd.testing.assert_series_equal(values(folder), values(tmp_path / "again"), check_exact=True)
    plain = values(run("plain", estimators=("rloo", "reinforce"), seeds="0,2"))
    assert not plain.equals(values(folder))
    for word in options:
        assert word in line.split() or word == "0.05"


def test_the_printed_command_of_a_probe_gives_every_value_again(command, run, tmp_path):
    more = ("--draws", "6", "--checkpoints", "2", "--along", "own", "--clip", "0.05")
    folder = run("run", *more, seeds="3", first="probe")
    repeated(command, folder, tmp_path)
    rows = [
        values(path).drop(index="seconds", level="metric", errors="ignore") for path in (folder, tmp_path / "again")
    ]
    pd.testing.assert_series_equal(*rows, check_exact=True)


def test_the_printed_commands_of_parts_of_several_seeds_and_rates_give_every_value_again(command, run, tmp_path):
    """The rate that is given for one part is the other's own, as that of the reference has to be the same."""
    first = run("first", seeds="0-1")
    run("first", seeds="0", estimators=("grade",))
    second = run("second", "--learning-rate", "0.02", estimators=("reinforce",))
    assert command("merge", first, second, "--out", tmp_path / "merged")[0] == 0
    lines = repeated(command, tmp_path / "merged", tmp_path)
    assert len(lines) == 3 and sum("--learning-rate 0.02" in line for line in lines) == 1
    pd.testing.assert_series_equal(values(tmp_path / "merged"), values(tmp_path / "again"), check_exact=True)


def test_what_was_resolved_is_spelled_out(tiny):
    cell = Cell("t", tiny("TinyTask"), {"kl": 0.5}, "rloo", "rloo", 0)
    assert repeat._resolved(cell, tiny("TinyTask")) == tiny("TinyTask:kl=0.5")
    assert repeat._resolved(replace(cell, task_options={"kl": 0.0}), "spec") == "spec"


@pytest.mark.parametrize("variable", ["MKL_CBWR", "ONEDNN_MAX_CPU_ISA"])
def test_a_variable_that_chooses_other_kernels_is_part_of_the_processor(monkeypatch, variable):
    monkeypatch.delenv(variable, raising=False)
    before = facts.processor.__wrapped__("cpu")
    monkeypatch.setenv(variable, "AVX2")
    assert facts.processor.__wrapped__("cpu") == f"{before} {variable}=AVX2"
