"""Run folders from elsewhere: every file of one changed at random, and every command that reads it answers in one line.

Long because every file of a run is written out here, for each test to change.
"""

import copy
import json
import math
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from gradebench import cli
from gradebench.analysis import tables
from gradebench.core import schema
from gradebench.experiment import merging
from gradebench.storage import formats
from gradebench.storage.tuned import CURVES_COLUMNS

FEW = {
    "deadline": None,
    "database": None,
    "derandomize": True,
    "phases": [Phase.explicit, Phase.generate],
    "suppress_health_check": [HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
}
NAMES, SEEDS, TASK, SETTING = ("rloo", "reinforce"), range(3), "bernoulli-toy", "s"
CLAIMS = """
[[claim]]
id = "c"
says = "a is better than b"
source = "here, 2026"
task = "bernoulli-toy"
a = "rloo"
b = "reinforce"
metric = "reward"
form = "difference"
at_least = 0.0
"""
IDENTITY = {"run_id": "run", "task": TASK, "setting": SETTING, "estimator_params": "{}", "estimator_source": "here"}


def metrics():
    rows = []
    for place, name in enumerate(NAMES):
        for seed in SEEDS:
            cell = IDENTITY | {"estimator": name, "seed": seed, "cell_id": f"{name}-{seed}", "status": "ok", "unit": ""}
            cell |= {"learning_rate": 0.1, "rate_source": "task"}
            for step in (0, 2, 4):
                for split in ("train", "test", "validation"):
                    for metric, value in (("objective", 0.4), ("reward", 0.5), ("kl", 0.1)):
                        value += 0.1 * place * step + 0.01 * seed
                        place_of = {"phase": "evaluation", "split": split, "step": step, "metric": metric}
                        rows.append(cell | place_of | {"value": value})
            for metric in ("gradient_variance", "gradient_norm_squared"):
                rows.append(cell | {"phase": "probe", "split": "train", "step": 0, "metric": metric, "value": 1.0})
            for metric in ("seconds_per_step", "updates", "seconds"):
                rows.append(cell | {"phase": "train", "split": "train", "step": 4, "metric": metric, "value": 1.0})
    return pd.DataFrame(rows)


def probes():
    place = {
        "along": "own",
        "step": 0,
        "group": "",
        "samples": 8,
        "draws": 4,
        "unit": "",
        "ci_low": 0.5,
        "ci_high": 2.0,
    }
    rows = [
        IDENTITY | place | {"cell_id": f"{name}-0", "estimator": name, "seed": 0, "metric": metric, "value": 1.0}
        for name in NAMES
        for metric in ("gradient_variance", "gradient_variance_relative", "gradient_mse", "gradient_bias_relative")
    ]
    return pd.DataFrame(rows, columns=schema.PROBES_COLUMNS)


def curves():
    point = {"task": TASK, "setting": SETTING, "options": "", "standard_error": 0.1, "seeds": 3, "status": "ok"}
    point |= {"steps": 4, "fit": 0.5, "fit_error": 0.1, "tied": False}
    rows = [
        point | {"estimator": name, "learning_rate": rate, "objective": 0.5 + rate, "chosen": rate == 0.1}
        for name in NAMES
        for rate in (0.1, 0.2)
    ]
    return pd.DataFrame(rows, columns=CURVES_COLUMNS)


def steps():
    rows = [
        {
            "run_id": "run",
            "cell_id": f"{name}-{seed}",
            "task": TASK,
            "setting": SETTING,
            "estimator": name,
            "seed": seed,
        }
        | {"status": "ok", "step": step, "reward": 0.5, "kl": 0.1, "gradient_norm": 2.0, "info_share": 0.5}
        for name in NAMES
        for seed in SEEDS
        for step in range(4)
    ]
    return pd.DataFrame(rows).reindex(columns=[*schema.TRAINING_COLUMNS, "info_share"])


TABLES = {"metrics.parquet": metrics, "probes.csv": probes, "curves.csv": curves, "training.parquet": steps}
JSON = {
    "config.json": {
        "cells": [f"{name}-{seed}" for name in NAMES for seed in SEEDS],
        "seeds": list(SEEDS),
        "request": {"estimators": list(NAMES), "tasks": [TASK], "seeds": "0-2", "train": True, "by": None, "against": []},
        "plans": {TASK: {"steps": 4}},
        "tasks": {TASK: {"setting": SETTING, "options": {"kl": 0.1}}},
        "learning_rates": {TASK: dict.fromkeys(NAMES, 0.1)},
        "rate_sources": {TASK: dict.fromkeys(NAMES, "task")},
        "tuned_options": {TASK: {"rloo": {"n": "4"}}},
        "left_out": {"exact": "no list"},
        "design": {TASK: {"task": TASK, "values": {"kl": "0.1"}}},
        "facts": {
            "tasks": {TASK: {"task": TASK, "setting": SETTING, "options": {"kl": 0.1}, "steps": 4, "training": True}},
            "estimators": {TASK: {name: {"learning rate": 0.1, "options": {"n": 4}} for name in NAMES}},
        },
        "given": {
            "tasks": {TASK: TASK},
            "estimators": {TASK: {name: {"spec": name, "seeds": [0, 1, 2], "tune": False} for name in NAMES}},
        },
    },
    "environment.json": {"python": "3.11", "packages": {"torch": "2.13.0", "peft": None}, "cpu_count": 2},
    "samples.jsonl": {
        "task": TASK, "setting": SETTING, "estimator": "rloo", "seed": 0, "split": "test", "step": 4, "number": 0,
        "prompt": "a", "text": "ab", "reward": 0.5,
    },
    "cells/rloo-0/cell.json": {"status": "failed", "reason": "why", "key": "k", "files": {}, "seed": 0, "facts": {}},
}  # fmt: skip
COMMANDS = {
    "leaderboard": ("leaderboard", "run"),
    "leaderboard of two": ("leaderboard", "run", "other"),
    "merge": ("merge", "run", "--out", "merged"),
    "merge of two": ("merge", "run", "other", "--out", "merged"),
    "compare": ("compare", "run"),
    "report": ("report", "run", "--out", "page"),
    "figures": ("report", "run", "--out", "page", "--figures", "svg"),
    "latex": ("leaderboard", "run", "--format", "latex"),
    "markdown": ("leaderboard", "run", "--format", "markdown"),
    "cite": ("cite", "run"),
    "claims": ("claims", "run", "--claims", "claims.toml"),
    "status": ("status", "run"),
    "curves": ("curves", "run"),
    "frontier": ("frontier", "run"),
    "run": ("run", "-e", "reinforce", "-t", TASK, "--seeds", "0", "--steps", "1", "--out", "run"),
    "power": ("run", "--power", "run", "-t", TASK, "-e", "rloo", "-e", "reinforce"),
}

odd = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        3,
        2**40,
        10**30,
        1.5,
        math.nan,
        math.inf,
        "",
        "x",
        "�",
        "a\nb",
        "../x",
        [],
        [1],
        ["x"],
        {},
        {"x": 1},
        {"x": {"y": "z"}},
        [[]],
        {"": None},
    ]
)
words = st.text(max_size=5)
columns = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        1.5,
        math.nan,
        math.inf,
        -math.inf,
        1e300,
        "",
        "x",
        "NA",
        "ok",
        b"\xff",
        [1],
        {"x": 1},
        "2026-01-01",
        pd.Timestamp("2026-01-01"),
        pd.Timedelta(1),
        2**62,
        2**64 - 1,
        "reward",
        "evaluation",
    ]
)


def places(document, found=()):
    """The paths of all parts of a document."""
    yield found
    parts = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, part in parts:
        yield from places(part, (*found, key))


def changed(document, path, value, gone):
    """The document with one part replaced, or taken out."""
    if not path:
        return value
    answer = copy.deepcopy(document)
    holder = answer
    for key in path[:-1]:
        holder = holder[key]
    if gone:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return answer


@st.composite
def changed_json(draw):
    name = draw(st.sampled_from(list(JSON)))
    path = draw(st.sampled_from(list(places(JSON[name]))))
    content = json.dumps(changed(JSON[name], path, draw(odd), draw(st.booleans()))).encode()
    how = draw(st.sampled_from(["whole", "whole", "whole", "cut", "byte"]))
    at = draw(st.integers(0, len(content) - 1))
    if how == "cut":
        content = content[:at]
    elif how == "byte":
        content = content[:at] + bytes([draw(st.integers(0, 255))]) + content[at + 1 :]
    return name, content


@st.composite
def changed_table(draw):
    """A table with a column of other values, in all rows or in the first, without one, twice the rows, or none."""
    name = draw(st.sampled_from(["metrics.parquet", *TABLES]))
    frame = TABLES[name]()
    column, value = draw(st.sampled_from(list(frame))), draw(columns)
    how = draw(st.sampled_from(["all", "all", "first", "first", "gone", "twice", "none"]))
    if how == "all":
        frame[column] = [value] * len(frame)
    elif how == "first":
        frame[column] = pd.Series([value, *frame[column].tolist()[1:]], dtype=object)
    elif how == "gone":
        frame = frame.drop(columns=column)
    else:
        frame = pd.concat([frame, frame]) if how == "twice" else frame.iloc[:0]
    return name, frame


@st.composite
def changed_claims(draw):
    lines = CLAIMS.split("\n")
    number = draw(st.integers(1, len(lines) - 2))
    value = draw(st.one_of(odd.map(lambda one: json.dumps(one)), words))
    lines[number] = draw(st.sampled_from([f"{lines[number].partition('=')[0]} = {value}", value, ""]))
    return "claims.toml", "\n".join(lines).encode("utf-8", "replace")


def write(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif name.endswith(".csv"):
        content.to_csv(path, index=False)
    else:
        content.to_parquet(path, index=False)


@pytest.fixture
def gradebench(tmp_path, monkeypatch, capfd, in_process):
    """A command on a run with one file changed, beside another one of other seeds: how it ended, and what it said."""
    monkeypatch.chdir(tmp_path)
    for folder, seeds in (("run", 0), ("other", 10)):
        for name, content in JSON.items():
            write(Path(folder), name, json.dumps(content).encode())
        for name, made in TABLES.items():
            table = made()
            table = table.assign(seed=table["seed"] + seeds) if "seed" in table else table
            write(Path(folder), name, table)
    Path("claims.toml").write_text(CLAIMS)
    shutil.copytree(tmp_path, tmp_path / "whole")

    def call(what, name=None, content=None):
        for folder in ("run", "merged", "page"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree("whole/run", "run")
        shutil.copy("whole/claims.toml", "claims.toml")
        try:
            if name:
                write(Path() if name == "claims.toml" else Path("run"), name, content)
        except (ValueError, TypeError, OverflowError, NotImplementedError, ArithmeticError):
            return 0, ""  # no file that any reader could meet
        monkeypatch.setattr(sys, "argv", ["gradebench", *COMMANDS[what]])
        capfd.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = ended.code or 0
        _, err = capfd.readouterr()
        assert "Traceback" not in err
        return status, err

    return call


def in_one_line(status, err, name):
    assert status in (0, 1, 2)
    if status == 2:
        last = err.strip().splitlines()[-1]
        assert last.startswith("gradebench: ") and len(last) < 1000, err
        assert len([line for line in err.splitlines() if line.startswith("gradebench: ")]) == 1, err


def test_every_command_that_reads_a_run_is_among_those_that_are_tried():
    reading = {name for name, command in cli.COMMANDS.items() if command.__module__ == "gradebench.cli.reading"}
    assert reading and reading <= {words[0] for words in COMMANDS.values()}


@pytest.mark.parametrize("content", [[], 7, {"packages": 3}, {"packages": {"gradebench": 5}}, {"device": [1]}])
@pytest.mark.parametrize("what", ["cite", "report", "merge"])
def test_an_environment_of_another_shape_is_answered_in_one_line(gradebench, what, content):
    in_one_line(*gradebench(what, "environment.json", json.dumps(content).encode()), "environment.json")


@pytest.mark.parametrize("lacks", ["steps", "batch", "clip", "setting"])
def test_a_plan_that_lacks_a_setting_is_cited_without_it(gradebench, lacks):
    config = json.loads(json.dumps(JSON["config.json"]))
    for plan in config["plans"].values():
        plan.pop(lacks, None)
    assert gradebench("cite", "config.json", json.dumps(config).encode())[0] == 0


@pytest.mark.parametrize("what", ["report", "merge of two", "status"])
def test_a_whole_run_is_answered(gradebench, what):
    status, err = gradebench(what)
    assert status == (1 if what == "status" else 0), err


@pytest.mark.parametrize("what", ["leaderboard", "curves"])
def test_a_table_is_there_before_anything_is_printed(gradebench, monkeypatch, what):
    def fails(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gradebench.reporting.console.PlainConsole.print", fails)
    monkeypatch.setitem(COMMANDS, what, (*COMMANDS[what], "--csv", "table.csv"))
    assert gradebench(what)[0] == 2 and len(pd.read_csv("table.csv"))


def many(folder, count):
    """A run of so many tasks."""
    folder.mkdir()
    frames = [
        metrics().assign(task=f"{TASK}:horizon={i}", setting=f"s{i}", cell_id=lambda f: f["cell_id"] + "x")
        for i in range(count)
    ]
    tables.write_parquet(pd.concat(frames, ignore_index=True), folder / "metrics.parquet")
    rows = [JSON["samples.jsonl"] | {"task": f"{TASK}:horizon={i}", "setting": f"s{i}"} for i in range(count)]
    formats.write_lines(folder / "samples.jsonl", rows)
    names = [f"{TASK}:horizon={i}" for i in range(count)]
    config = {"cells": [], "request": {}, "tasks": {name: {"options": {"kl": 0.1}} for name in names}}
    config |= {"plans": {name: {"steps": 4} for name in names}}
    formats.write_json(folder / "config.json", config)
    return folder


def test_the_work_grows_with_the_number_of_tasks_and_no_faster(tmp_path, monkeypatch):
    """Counted in rows that are compared: a search through all rows for each task would be the square of it."""
    compared = 0
    compare = pd.Series._cmp_method

    def counted(self, other, operator):
        nonlocal compared
        compared += len(self)
        return compare(self, other, operator)

    monkeypatch.setattr(pd.Series, "_cmp_method", counted)
    monkeypatch.setattr("gradebench.reporting.figures.of_task", lambda *_: [])  # takes a task's own rows
    counts = []
    for count in (2, 4):
        compared, folder = 0, many(tmp_path / str(count), count)
        merging.merge([folder], tmp_path / f"merged-{count}")
        counts.append(compared)
    assert counts[1] < 2.02 * counts[0], counts


def test_a_leaderboard_looks_at_each_task_once(monkeypatch):
    """As above, of the step in which the rest would hide it: the tests of each task are found without a search."""
    compared = 0
    compare = pd.Series._cmp_method

    def counted(self, other, operator):
        nonlocal compared
        compared += len(self)
        return compare(self, other, operator)

    counts = []
    for count in (4, 8):
        rows = pd.concat([metrics().assign(task=f"{TASK}:horizon={i}") for i in range(count)], ignore_index=True)
        tests = tables.comparisons(rows)
        with monkeypatch.context() as counting:
            counting.setattr(pd.Series, "_cmp_method", counted)
            compared = 0
            tables.leaderboard(rows, tests)
            counts.append(compared)
    assert counts[1] <= 2 * counts[0], counts


@pytest.mark.parametrize("name", ["samples.jsonl", "probes.csv", "training.parquet"])
def test_a_damaged_file_beside_the_metrics_costs_a_merge_itself_alone(gradebench, name):
    status, err = gradebench("merge of two", name, b"{\x00")
    assert status == 0 and f"run/{name} is damaged and left out" in err.replace("\n", " ")
    assert len(pd.read_parquet("merged/metrics.parquet")) == 2 * len(metrics())
    assert {path.name for path in Path("merged").iterdir()} >= {"samples.jsonl", "probes.csv", "training.parquet"}


@settings(**FEW)
@example(("samples.jsonl", b'{"task": [1]}\n'), "merge")
@given(st.one_of(changed_json(), changed_json(), changed_table(), changed_claims()), st.sampled_from(list(COMMANDS)))
def test_a_changed_file_is_answered_in_one_line(gradebench, change, what):
    name, content = change
    in_one_line(*gradebench("claims" if name == "claims.toml" else what, name, content), name)
