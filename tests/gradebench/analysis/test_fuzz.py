"""Malformed input of every kind (by hand more of it, with --examples): one clear line, exit status 0, 1 or 2, never a traceback."""

import json
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from gradebench import cli
from gradebench.analysis import tables
from gradebench.core import schema

FEW = {"deadline": None, "database": None, "derandomize": True, "phases": [Phase.explicit, Phase.generate]}
EASY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
TASK = "bernoulli-toy"

words = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12)
numbers = st.sampled_from(
    ["0", "-1", "1", "1e9", "nan", "inf", "-inf", "0x10", "1_0", "\u0661", "1.5", "9" * 40, "", " 2 ", "1e-400"]
)
values = st.one_of(
    words, numbers, st.sampled_from(["true", "none", "[]", "{}", "../x", "/dev/null", "~", "$HOME", "=1+1"])
)
options = st.sampled_from(
    [
        "--seeds",
        "--steps",
        "--batch",
        "--learning-rate",
        "--tuned",
        "--device",
        "--jobs",
        "--timeout",
        "--power",
        "--difference",
        "--launcher",
        "--checkpoint-every",
        "--out",
        "-e",
        "-t",
        "--aa-test",
        "--strict",
        "--fresh",
    ]
)
estimator_options = st.sampled_from(["n", "tau", "epochs", "minibatches", "clip", "whiten", "k", "", "n=", ":"])
task_options = st.sampled_from(["kl", "vocabulary", "horizon", "layers", "width", "seed", "contexts", "size", ""])


@pytest.fixture
def gradebench(tmp_path, monkeypatch, capfd):
    """The command line in this process, in an empty folder; returns what is wrong with how it ended."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["gradebench", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
        except SystemExit as ended:
            status = ended.code or 0
        else:
            status = 0
        out, err = capfd.readouterr()
        assert status in (0, 1, 2), (arguments, status)
        assert "Traceback" not in out + err, (arguments, err)
        if status == 2:
            said = err.strip().splitlines()
            assert said and len(said[-1]) < 2000, (arguments, err)
        return status

    return call


def spec(name, pairs):
    return f"{name}:" + ",".join(f"{key}={value}" for key, value in pairs)


@settings(suppress_health_check=EASY, **FEW)
@given(st.lists(st.tuples(options, values), max_size=3))
def test_options_of_the_command_line(gradebench, pairs):
    given_ones = [part for pair in pairs for part in pair]
    base = ["-e", "rloo"] if "-e" not in given_ones else []
    base += ["-t", TASK] if "-t" not in given_ones or given_ones[-1] == "imdb" else []
    gradebench("run", *base, *given_ones, "--dry-run")


@settings(suppress_health_check=EASY, **FEW)
@given(
    st.lists(st.tuples(estimator_options, values), max_size=3), st.lists(st.tuples(task_options, values), max_size=2)
)
def test_options_of_estimators_and_tasks(gradebench, of_estimator, of_task):
    estimator, task = spec("ppo", of_estimator), spec("enumerable-lm", of_task)
    gradebench("run", "-e", estimator, "-t", task, "--seeds", "0", "--dry-run")


@settings(suppress_health_check=EASY, **FEW)
@given(
    st.sampled_from(["c.csv", "c.tsv", "c.jsonl", "c.parquet", "c", "c.docx"]),
    st.one_of(
        st.binary(max_size=200),
        words.map(lambda text: f"text,label\n{text},1\n".encode() * 3),
        st.dictionaries(words, st.one_of(words, st.none(), st.integers())).map(lambda row: json.dumps(row).encode()),
    ),
)
def test_corpora(gradebench, name, content):
    Path(name).write_bytes(content)
    assert gradebench("run", "-e", "rloo", "-t", f"imdb:corpus={name}", "--seeds", "0", "--dry-run") == 2
    os.unlink(name)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.floats(), words),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(words, inner, max_size=3)),
    max_leaves=6,
)
known_keys = st.sampled_from(["cells", "plans", "tasks", "seeds", "request", "learning_rates", "packages", "left_out"])


@settings(suppress_health_check=EASY, **FEW)
@example({"tasks": {}}, None, [("step", None)])
@example({}, None, [("step", -4.4e247)])
@example({}, None, [("step", 0.5), ("seed", float("inf"))])
@given(
    st.dictionaries(known_keys, json_values, max_size=4),
    st.one_of(st.none(), st.binary(max_size=100)),
    st.lists(st.tuples(st.sampled_from(schema.METRICS_COLUMNS), st.one_of(words, st.none(), st.floats())), max_size=3),
)
def test_folders_of_runs(gradebench, config, samples, changes):
    folder = Path("run")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "samples.jsonl").unlink(missing_ok=True)
    if samples is not None:
        (folder / "samples.jsonl").write_bytes(samples)
    row = dict.fromkeys(schema.METRICS_COLUMNS, "x") | {"seed": 0, "step": 1, "value": 0.5, "status": "ok"}
    rows = [row | {"seed": seed, "estimator": name} for seed in (0, 1, 2) for name in "ab"]
    rows = [one | {"phase": "evaluation", "split": "test", "metric": "reward"} for one in rows]
    frame = pd.DataFrame(rows)
    for name, value in changes:
        frame[name] = value
    frame.to_parquet(folder / "metrics.parquet")
    for name in ("status", "leaderboard", "compare", "claims", "report", "cite"):
        gradebench(name, folder)


places = st.sampled_from(
    ["", ".", "/", "/proc", "/nowhere/at/all", "~", "\U0001f600\udcff", "a\nb", "x" * 300, "file", "/dev/null"]
)
whole = st.sampled_from(["", "0", "1", "-1", "80", "99999", "1e9", "many", " 2 ", "\u0661", "nan"])
other = st.one_of(
    places, whole, st.sampled_from(["dumb", "xterm-256color", "C", "tr_TR.UTF-8", "de_DE@euro", "0,1", "GPU-x", "1:2"])
)
PLACES = [
    "HOME",
    "TMPDIR",
    "XDG_CACHE_HOME",
    "GRADEBENCH_CACHE",
    "HF_HOME",
    "HF_HUB_CACHE",
    "PATH",
    "PWD",
    "TORCH_HOME",
]
COUNTS = ["COLUMNS", "LINES", "WORLD_SIZE", "RANK", "LOCAL_RANK", "OMP_NUM_THREADS", "SLURM_NTASKS", "SLURM_PROCID"]
OTHERS = ["TERM", "LANG", "LC_ALL", "LC_NUMERIC", "NO_COLOR", "FORCE_COLOR", "CUDA_VISIBLE_DEVICES", "TZ", "HF_ENDPOINT",
          "RAY_ADDRESS", "SLURM_JOB_ID", "SBATCH_TIMELIMIT", "PYTHONIOENCODING", "TTY_COMPATIBLE", "USER", "EDITOR"]  # fmt: skip
COMMANDS = {
    "list": ["list"], "status": ["status", "run"], "leaderboard": ["leaderboard", "run"], "report": ["report", "run"],
    "dry run": ["run", "-e", "rloo", "-t", TASK, "--seeds", "0", "--dry-run"],
    "dry run of a cached task": ["run", "-e", "rloo", "-t", "digits:contexts=3", "--seeds", "0", "--dry-run", "--out", "x"],
    "doctor": ["doctor"],
}  # fmt: skip


@settings(suppress_health_check=EASY, **FEW)
@given(
    st.sampled_from(list(COMMANDS)),
    st.dictionaries(st.sampled_from(PLACES), st.one_of(st.none(), places), max_size=3),
    st.dictionaries(st.sampled_from(COUNTS), st.one_of(st.none(), whole), max_size=2),
    st.dictionaries(st.sampled_from(OTHERS), st.one_of(st.none(), other), max_size=3),
)
def test_environments(gradebench, run, what, in_places, counts, others):
    with pytest.MonkeyPatch.context() as environment:
        for name, value in (in_places | counts | others).items():
            environment.delenv(name, raising=False) if value is None else environment.setenv(name, value)
        gradebench(*COMMANDS[what])


@pytest.fixture
def run(gradebench):
    row = dict.fromkeys(schema.METRICS_COLUMNS, "x") | {"step": 1, "status": "ok"}
    row |= {"phase": "evaluation", "split": "test", "metric": "reward"}
    rows = [
        row | {"seed": seed, "estimator": name, "value": seed + len(name)} for seed in (0, 1, 2) for name in ("a", "bb")
    ]
    Path("run").mkdir()
    pd.DataFrame(rows).to_parquet("run/metrics.parquet")
    Path("run/config.json").write_text(json.dumps({"cells": ["x"]}))
    Path("file").touch()


def test_text_that_a_spreadsheet_would_run_is_written_as_text(tmp_path):
    risky = ["=cmd|' /C calc'!A0", "+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1"]
    frame = pd.DataFrame({"text": [*risky, "plain", "a=b", None], "value": [-1.5] * 9})
    tables.write_csv(frame, tmp_path / "table.csv")
    back = pd.read_csv(tmp_path / "table.csv", keep_default_na=False, lineterminator="\n")
    assert back["text"].tolist() == [*(f"'{text}" for text in risky), "plain", "a=b", ""]
    assert (back["value"] == -1.5).all()  # numbers are no text
