"""What the command line says: one clear line and status 2 for bad input, and tables on stdout only.

Long because one file tests one module.
"""

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from gradebench.cli import renamed
from gradebench.core.schema import PROBES_COLUMNS

NAN_REVIEW = "a film of many words "


@pytest.fixture
def in_process(in_process, monkeypatch):
    """As everywhere, with few draws in `run`, which has no option for them."""
    from gradebench.experiment.plan import Plan

    monkeypatch.setattr(Plan, "probe_draws", 4, raising=False)


@pytest.fixture
def refused(command, tmp_path, monkeypatch):
    """Run a command that must be refused with one line on stderr and nothing left behind; returns that line."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def call(*arguments, name="run"):
        status, out, err = command(name, *arguments)
        assert status == 2, err
        assert out == ""
        assert "Traceback" not in err
        assert len(err.splitlines()) == 1 and err.startswith("gradebench: "), err
        assert not list(Path().iterdir())
        return err

    return call


# --- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-e", "reinforse"], ["'reinforse'", "did you mean reinforce", "gradebench list estimators"]),
        (["-t", "imbd"], ["'imbd'", "imdb", "gradebench list tasks"]),
        (["-e", "rloo:k=4"], ["no option 'k'", "n (int >= 2, default 4)"]),
        (["-e", "rloo:n=one"], ["n=one won't do", "int >= 2"]),
        (["-e", "rloo:n=1"], ["n=1 won't do", "int >= 2"]),
        (["-e", "grade:tau=nan"], ["tau=nan won't do", "float > 0"]),
        (["-e", "rloo:n"], ["'n' isn't key=value"]),
        (["-t", "imdb:size=huge"], ["size=huge won't do", "auto, mini, small"]),
        (["--seeds", "3-1"], ["--seeds 3-1", "0-9"]),
        (["--seeds", "a-b"], ["--seeds a-b", "0-9"]),
        (["--seeds", ""], ["--seeds", "nothing"]),
        (["--steps", "0"], ["--steps 0: at least 1"]),
        (["--batch", "0"], ["--batch 0: at least 1"]),
        (["--jobs", "0"], ["--jobs 0: at least 1"]),
        (["--timeout", "0"], ["--timeout 0: a number above 0"]),
        (["--timeout", "-1"], ["--timeout -1: a number above 0"]),
        (["--learning-rate", "-1"], ["--learning-rate -1: a number above 0"]),
        (["--learning-rate", "nan"], ["--learning-rate nan: a number above 0"]),
        (["--by", "kl"], ["--by kl: ranks go by objective, reward, gold_reward"]),
        (["--against", "rloo"], ["--against rloo: it isn't among the estimators, reinforce; add -e rloo"]),
        (["--against", "reinforce"], ["--against reinforce: nothing else is left"]),
        (["--device", "toaster"], ["--device 'toaster'", "auto, cpu or cuda"]),
        (["--device", "meta"], ["--device 'meta'", "auto, cpu or cuda"]),
        (["-e", "nowhere.py:Mine"], ["nowhere.py", "No such file"]),
        (["--batch", "6", "-e", "rloo"], ["rloo takes 4 samples a prompt", "--batch 6"]),
        (["--batch", "4", "-e", "ppo:minibatches=8"], ["ppo:minibatches=8", "4 contexts", "8 minibatches"]),
    ],
)
def test_a_request_that_cannot_be_used_is_one_line(refused, tiny, arguments, said):
    task = [] if "-t" in arguments else ["-t", tiny()]
    estimator = [] if "-e" in arguments else ["-e", "reinforce"]
    line = refused(*arguments, *task, *estimator)
    assert all(words in line for words in said), line


def test_a_device_that_is_not_there_is_one_line(refused, tiny, monkeypatch):
    def no_driver(*arguments, **keywords):
        raise RuntimeError("Found no NVIDIA driver\nand more")

    monkeypatch.setattr("torch.empty", no_driver)
    line = refused("-t", tiny(), "-e", "reinforce", "--device", "cuda")
    assert "--device cuda can't be used: Found no NVIDIA driver; try --device auto" in line


@pytest.mark.parametrize(
    ("content", "said"),
    [("class Other: ...", "has no object 'Mine'; it defines Other"), ("def (", "SyntaxError"), ("1 / 0", "by zero")],
)
def test_a_file_without_the_estimator_is_one_line(refused, tiny, tmp_path, content, said):
    (tmp_path / "mine.py").write_text(content)
    assert said in refused("-t", tiny(), "-e", f"{tmp_path}/mine.py:Mine")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FailsToBuild", "estimator tiny.py:FailsToBuild can't be used: ZeroDivisionError"),
        (
            "FailsToInit",
            "estimator tiny.py:FailsToInit can't be used: RuntimeError: no room for the value head (tiny.py",
        ),
    ],
)
def test_an_estimator_that_fails_to_build_is_one_line_with_the_place(refused, tiny, name, said):
    assert said in refused("-t", tiny(), "-e", tiny(name))


def test_a_task_that_fails_to_prepare_is_one_line_with_the_place(refused, tiny):
    line = refused("-t", tiny("Careless"), "-e", "reinforce")
    assert "task tiny.py:Careless can't be used: RuntimeError: the disk of the task is full (tiny.py, line" in line


def test_a_folder_below_a_file_is_refused_before_the_task_is_prepared(refused, tiny, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for out in ("file", "file/below"):
        line = refused("-t", tiny("Careless"), "-e", "reinforce", "--out", tmp_path / out)
        assert f"can't write into {tmp_path}/{out}" in line and "--out" in line


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.csv", None, "No such file"),
        ("empty.csv", b"", "empty.csv"),
        ("columns.csv", b"words,stars\ngood film,9\n", "lacks a column"),
        ("one.csv", "\n".join(["text,label", *(f"{NAN_REVIEW}{i},1" for i in range(200))]).encode(), "the label 1"),
        ("latin.csv", b"text,label\ncaf\xe9,1\n", "isn't UTF-8"),
        ("reviews.docx", b"x", "unknown suffix"),
    ],
)
def test_a_corpus_that_cannot_be_used_is_one_line(refused, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    line = refused("-t", f"imdb:corpus={path}", "-e", "reinforce")
    assert name in line and said in line, line


def test_a_cache_that_cannot_be_written_is_one_line(refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "file"))
    line = refused("-t", "imdb:corpus=embedded", "-e", "reinforce")
    assert f"can't write into the cache {tmp_path}/file" in line and "GRADEBENCH_CACHE" in line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--stepz", "3"], ["no such option: --stepz; did you mean --steps", "gradebench run --help"]),
        (["run", "--zzz"], ["no such option: --zzz (gradebench run --help"]),
        (["run", "--steps", "x"], ["'--steps'", "integer"]),
        (["run", "--steps"], ["'--steps' requires an argument"]),
        (["run", "--launcher", "walk"], ["'--launcher'", "'walk' is not one of 'local', 'ray', 'slurm'"]),
        (["run", "twice"], ["unexpected extra argument", "(twice)"]),
        (["compare"], ["missing argument 'RUN'", "gradebench compare --help"]),
        (["rnu"], ["no such command 'rnu'; did you mean 'run'", "gradebench --help"]),
        (["list", "seeds"], ["'seeds' is not one of"]),
    ],
)
def test_a_command_line_that_cannot_be_read_is_refused_in_one_line(refused, arguments, said):
    name, *rest = arguments
    err = refused(*rest, name=name)
    assert all(part in err for part in said), err


def test_without_a_command_the_help_is_shown(command):
    status, out, err = command()
    assert status == 2 and "Usage: gradebench" in out + err and "leaderboard" in out + err


# --- what goes where --------------------------------------------------------------------------------------------


def test_a_dry_run_lists_its_cells_on_stdout_and_writes_nothing(command, tiny, tmp_path):
    status, out, err = command(
        "run", "-t", tiny(), "-e", "rloo", "--seeds", "0-2", "--dry-run", "--out", tmp_path / "run"
    )
    assert status == 0 and len(out.splitlines()) == 3
    assert all(line.startswith("tiny.py_TinyTask--rloo--s") for line in out.splitlines())
    assert "1 estimator x 3 seeds" in err
    assert not (tmp_path / "run").exists()


def test_the_leaderboard_is_on_stdout_and_the_rest_on_stderr(command, tiny, tmp_path, in_process, no_report):
    status, out, err = command(
        "run", "-t", tiny(), "-e", "rloo", "--seeds", "0-1", "--steps", 2, "--out", tmp_path / "r"
    )
    assert status == 0
    assert "rloo" in out and "[kl=0]" in out and f"tables: {tmp_path}/r/leaderboard.csv" in out
    assert "learning rates" in err and "learning rates" not in out
    assert "\x1b" not in out + err  # neither colours nor a bar that is drawn anew


def test_a_run_against_a_baseline_says_so_everywhere(command, tiny, tmp_path, in_process):
    """The family of two comparisons is kept for the report, and its command asks for the same."""
    out = tmp_path / "r"
    named = [word for name in ("rloo", "reinforce", "grpo") for word in ("-e", name)]
    family = ("--against", "rloo", "--by", "reward")
    status, shown, _ = command("run", "-t", tiny(), *named, "--seeds", "0-1", "--steps", 2, "--out", out, *family)
    assert status == 0 and "at 2 steps, by reward" in shown
    assert re.search(r" p vs .*\n.* baseline ", shown) and not re.search(r" p vs .*\n.* best ", shown)
    tests, board = (pd.read_csv(out / f"{name}.csv") for name in ("tests", "leaderboard"))
    assert set(tests["family"]) == {2} and set(board["ranked_by"]) == {"reward"}
    assert board.set_index("estimator")["verdict"].dropna().to_dict() == dict.fromkeys(
        ["reinforce", "grpo"], "not significantly different from rloo"
    )
    assert "--by reward --against rloo" in (out / "report.html").read_text()
    assert command("report", out)[0] == 0
    assert "At 2 steps, by reward, with 2 seeds: not significantly" in (out / "report.html").read_text()


def test_a_failed_cell_ends_in_status_1_with_its_reason_and_the_tables(command, tiny, tmp_path, in_process):
    status, out, err = command(
        "run", "-t", tiny(), "-e", "rloo", "-e", tiny("Raises"), "--seeds", "0", "--steps", 1, "--out", tmp_path / "r"
    )
    assert status == 1
    assert "failed: ArithmeticError: the third law of the estimator" in err and "Traceback" not in err
    board = pd.read_csv(tmp_path / "r" / "leaderboard.csv").set_index("estimator")["status"]
    assert board.to_dict() == {"rloo": "ok", "tiny.py:Raises": "failed 1"}
    assert "tiny.py:Raises" in out


def test_a_skipped_cell_is_no_failure(command, tiny, tmp_path, in_process):
    estimators = ["-e", "rloo", "-e", tiny("NeedsBinary")]
    assert command("run", "-t", tiny(), *estimators, "--seeds", "0", "--steps", 1, "--out", tmp_path / "r")[0] == 0


# --- probe ------------------------------------------------------------------------------------------------------

LANGUAGE = "enumerable-lm:vocabulary=3,horizon=3,layers=1,width=4"  # 27 sequences
PLACE = ["estimator", "step", "group", "samples", "metric"]


@pytest.fixture
def probe(command, in_process, tiny, tmp_path):
    """Probe in this process; returns exit status, stdout, stderr and probes.csv."""

    def call(*estimators, task=None, out="probes", draws=8, checkpoints=2, options=()):
        numbers = ["--draws", draws, "--checkpoints", checkpoints, "--steps", 2, "--out", tmp_path / out]
        named = [part for name in estimators for part in ("-e", name)]
        status, said, err = command("probe", "-t", task or tiny(), *named, *numbers, *options)
        path = tmp_path / out / "probes.csv"
        return status, said, err, pd.read_csv(path, keep_default_na=False, na_values=[""]).fillna({"group": ""})

    return call


def timeless(rows):
    """Without what a clock says."""
    return rows[~rows["metric"].str.contains("seconds")].drop(columns=["run_id"]).reset_index(drop=True)


@pytest.mark.parametrize("task", [None, LANGUAGE], ids=["tiny", "enumerable"])
def test_probing_writes_one_row_a_metric_with_ends_around_its_value(probe, task, tmp_path):
    status, _, _, rows = probe("rloo", "grade", task=task, draws=12)
    assert status == 0
    written = {path.name for path in (tmp_path / "probes").iterdir()}
    assert written == {
        "cells",
        "config.json",
        "digests.json",
        "environment.json",
        "metrics.csv",
        "metrics.parquet",
        "probes.csv",
    }
    assert list(rows) == PROBES_COLUMNS
    assert not rows.duplicated(PLACE).any() and set(rows["run_id"]) == {"probes"}
    assert set(rows["estimator"]) == {"rloo", "grade"} and set(rows["step"]) == {0, 2}
    assert set(rows["along"]) == {"reference"} and set(rows["seed"]) == {0} and rows["unit"].notna().all()
    measured = rows.dropna(subset=["ci_low", "ci_high"])
    assert ((measured["ci_low"] <= measured["value"]) & (measured["value"] <= measured["ci_high"])).all()
    assert (measured["ci_low"] < measured["ci_high"])[measured["metric"] == "gradient_variance"].all()
    metrics = pd.read_csv(tmp_path / "probes" / "metrics.csv")
    assert set(metrics["phase"]) == {"probe"} and set(metrics["status"]) == {"ok"}


def test_probing_measures_the_whole_its_groups_its_batches_and_its_costs(probe):
    rows = probe("rloo", draws=12)[3]
    found = {key: part.set_index("metric")["value"] for key, part in rows.groupby(["step", "group"])}
    groups = {"token", "position", "blocks.0", "norm"}
    assert set(found) == {(step, group) for step in (0, 2) for group in {"", *groups}}
    for step in (0, 2):
        for metric in ("gradient_variance", "gradient_variance_sampling", "gradient_bias_squared"):
            parts = sum(found[step, group][metric] for group in groups)
            assert parts == pytest.approx(found[step, ""][metric], rel=1e-9, abs=1e-12)
        whole = found[step, ""]
        assert whole["cost_reward_calls"] == 8 and whole["cost_tokens_sampled"] == 24
        assert whole["gradient_variance_times_tokens_sampled"] == pytest.approx(24 * whole["gradient_variance"])
    batches = rows[rows["metric"] == "gradient_variance_by_batch"]
    assert batches["samples"].tolist() == [4, 8] and set(batches["step"]) == {0}  # 2 is no multiple of 4 samples
    assert (rows["metric"] == "gradient_variance_slope").sum() == 1


def test_along_an_estimators_own_training_the_start_is_shared_and_the_rest_is_not(probe):
    """For an estimator without a state, which would be warmed up on the shared trajectory alone."""
    shared, own = (timeless(probe("rloo", options=["--along", along], out=along)[3]) for along in ("reference", "own"))
    assert set(own["along"]) == {"own"}
    one, other = (rows.drop(columns=["along", "cell_id"]) for rows in (shared, own))
    pd.testing.assert_frame_equal(one[one["step"] == 0], other[other["step"] == 0])
    at_the_end = [rows[(rows["step"] == 2) & (rows["metric"] == "gradient_variance")] for rows in (one, other)]
    assert at_the_end[0]["value"].tolist() != at_the_end[1]["value"].tolist()


def test_the_same_probe_gives_the_same_file_elsewhere(probe):
    estimators, few = ("rloo", "rebar", "ppo"), {"draws": 4, "checkpoints": 1}
    one, other = (timeless(probe(*estimators, **few, out=out)[3]) for out in ("one", "two"))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    another = timeless(probe("rloo", **few, options=["--seed", 1], out="three")[3])
    assert not another["value"].equals(one[one["estimator"] == "rloo"]["value"].reset_index(drop=True))


def test_a_probe_goes_on_with_what_is_finished(probe):
    first = probe("rloo")[3]
    status, _, err, more = probe("rloo", "grade")
    assert status == 0 and "2 cells were finished by an earlier run and kept" in err  # one a checkpoint
    pd.testing.assert_frame_equal(more[more["estimator"] == "rloo"].reset_index(drop=True), first, check_exact=True)
    assert "with draws of a probe" in probe("rloo", draws=10)[2]
    assert "kept" not in probe("rloo", draws=10, options=["--fresh"])[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--draws", "2"], "--draws 2: at least 4"),
        (["--checkpoints", "0"], "--checkpoints 0: at least 1"),
        (["-e", "reinforse"], "did you mean reinforce"),
        (["-e", "rloo", "--batch", "6"], "rloo takes 4 samples a prompt, which does not divide --batch 6"),
        (["-t", "enumerable-lm:vocabulary=9"], "9^4 = 6,561 sequences are more than 4,096"),
    ],
)
def test_a_probe_that_cannot_be_made_is_one_line(refused, tiny, arguments, said):
    task = [] if "-t" in arguments else ["-t", tiny()]
    estimator = [] if "-e" in arguments else ["-e", "reinforce"]
    assert said in refused(*arguments, *task, *estimator, name="probe")


@pytest.mark.parametrize("arguments", [["--along", "neither"], ["--seed", "-1"], ["--draws", "many"]])
def test_a_probe_with_an_option_of_the_wrong_kind_is_a_usage_error(command, arguments):
    status, out, err = command("probe", *arguments)
    assert (status, out, len(err.splitlines())) == (2, "", 1) and arguments[0] in err


def test_an_odd_number_of_draws_is_made_even(probe):
    assert set(probe("rloo", draws=7)[3].query("metric == 'gradient_variance'")["draws"]) == {8}


def test_an_estimator_that_raises_is_a_failed_row_and_the_others_are_measured(probe, tiny, tmp_path):
    status, out, err, rows = probe("rloo", tiny("Raises"))
    assert status == 1 and "Traceback" not in err
    assert "failed: ArithmeticError: the third law of the estimator" in err
    assert set(rows["estimator"]) == {"rloo"} and "rloo" in out
    metrics = pd.read_csv(tmp_path / "probes" / "metrics.csv")
    found = metrics.groupby("estimator")["status"].unique().apply(list).to_dict()
    assert found == {"rloo": ["ok"], "tiny.py:Raises": ["failed"]}


def test_an_estimator_that_the_task_cannot_serve_is_skipped_without_an_error(probe, tiny):
    status, _, err, rows = probe("rloo", tiny("NeedsBinary"))
    assert status == 0 and set(rows["estimator"]) == {"rloo"}
    assert "skipped: tiny.py:NeedsBinary on tiny.py:TinyTask: this task's choices aren't between two outcomes" in err


def test_biases_are_found_where_they_are(probe):
    """By 95 % intervals that are conservative near zero: of the four unbiased estimators, one is off at 1 % or less."""
    rows = probe("exact", "reinforce", "rloo", "rebar", "grade", "grade-ste", task=LANGUAGE, draws=120, checkpoints=1)[
        3
    ]
    bias = rows[(rows["metric"] == "gradient_bias_relative") & (rows["group"] == "")].set_index("estimator")
    assert set(bias.index[bias["ci_low"] > 0]) == {"grade", "grade-ste"}
    assert (bias["ci_high"][["exact", "reinforce", "rloo", "rebar"]] > 0).all()
    sampling = rows[(rows["metric"] == "gradient_variance_sampling") & (rows["group"] == "")].set_index("estimator")
    assert sampling["value"]["exact"] == 0 and (sampling["value"].drop("exact") > 0).all()


def test_the_exact_gradient_trains_and_is_probed_like_any_estimator(command, in_process, tmp_path):
    out = tmp_path / "run"
    arguments = ["-t", LANGUAGE, "-e", "exact", "-e", "rloo", "--steps", 3, "--seeds", "0-1", "--out", out]
    assert command("run", *arguments)[0] == 0
    board = pd.read_csv(out / "leaderboard.csv").set_index("estimator")
    assert board["status"].to_dict() == {"exact": "ok", "rloo": "ok"}
    rewards = pd.read_csv(out / "metrics.csv").query("estimator == 'exact' and metric == 'reward' and split == 'train'")
    assert (rewards.groupby("seed")["value"].last() > rewards.groupby("seed")["value"].first()).all()
    probes = pd.read_csv(out / "probes.csv")
    assert list(probes) == PROBES_COLUMNS and set(probes["step"]) == {0, 3}
    assert set(probes["seed"]) == {0, 1} and probes["group"].isna().all()  # parts are for `probe`
    variance = probes[probes["metric"] == "gradient_variance"].groupby("estimator")["value"].mean()
    assert variance["exact"] < variance["rloo"]


# --- processes of their own -------------------------------------------------------------------------------------


def script(*arguments, **keywords):
    code = "from gradebench.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *arguments], check=False, stderr=subprocess.PIPE, **keywords)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list"], ["list", "tasks", "--json"]])
def test_help_and_list_do_not_import_torch(arguments):
    code = (
        f"import sys; sys.argv = ['gradebench', *{arguments}]\n"
        "from gradebench.cli import main\n"
        "try: main()\n"
        "except SystemExit as ended: assert not ended.code\n"
        "heavy = {'torch', 'pandas', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_help_takes_a_fifth_of_a_second():
    """Of a processor, the least of three: 0.12 s on two slow cores."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert script("--help", stdout=subprocess.DEVNULL).returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(taken) < 0.2, taken


@pytest.mark.parametrize("arguments", [["list"], ["--help"]])
def test_a_reader_that_has_gone_is_no_error(arguments):
    """As in `gradebench list | head -1`, with the reader gone before the first byte."""
    reading, writing = os.pipe()
    os.close(reading)
    done = script(*arguments, stdout=writing)
    os.close(writing)
    assert done.stderr == b""


def test_a_hub_out_of_reach_is_one_line_if_strict(tmp_path):
    environment = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = script("run", "-e", "rloo", "--strict", stdout=subprocess.PIPE, cwd=tmp_path, env=environment)
    assert done.returncode == 2 and done.stdout == b""
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 1 and "127.0.0.1:9" in lines[0], lines
    assert not (tmp_path / "results").exists()


# --- memory, policies, dry runs -----------------------------------------------------------------------------------


def test_a_cell_without_memory_says_what_takes_less_and_the_others_go_on(
    command, tiny, tmp_path, in_process, no_report
):
    arguments = ("-t", tiny(), "-e", tiny("Greedy"), "-e", "rloo", "--seeds", "0", "--steps", "1", "--out", tmp_path)
    status, _, said = command("run", *arguments)
    assert status == 1
    assert re.search(
        r"oom: OutOfMemoryError: CUDA .* 20.00 GiB. \(tiny.py, line \d+\); take a smaller --batch, or", said
    )
    statuses = pd.read_csv(tmp_path / "leaderboard.csv").set_index("estimator")["status"].to_dict()
    assert statuses == {"tiny.py:Greedy": "oom 1", "rloo": "ok"}


def test_a_task_that_keeps_no_policies_runs_without(command, tiny, tmp_path, in_process, no_report):
    arguments = ("-t", tiny(), "-e", "rloo", "--seeds", "0", "--steps", "1", "--out", tmp_path, "--save-policies")
    status, _, said = command("run", *arguments)
    assert status == 0 and "--save-policies: tiny.py:TinyTask can't save policies; it runs without" in said


def test_a_dry_run_downloads_nothing_and_says_what_would_be(command, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("gradebench.storage.hub._downloaded", None)  # calling it would raise
    status, out, said = command("run", "-t", "imdb:preset=paper", "-e", "grade-ste", "--dry-run")
    assert (status, out) == (0, "")
    assert "Qwen/Qwen3-4B, 4,022 million parameters" in said and "8,045 MB of weights" in said
    assert "dry run: Qwen/Qwen3-4B would be downloaded first" in said


@pytest.mark.parametrize(
    ("words", "now"),
    [
        (["--shards", "2"], ["--micro-batches", "2"]),
        (["--shards=2"], ["--micro-batches=2"]),
        (["--plan", "run"], ["--power", "run"]),
        (["--control"], ["--aa-test"]),
        (["--out", "--controls", "shards"], ["--out", "--controls", "shards"]),
    ],
)
def test_old_names_of_options_work_and_are_said(words, now, capsys):
    assert renamed.current_names(words) == now
    said = capsys.readouterr().err
    assert said == (
        f"gradebench: {words[0].partition('=')[0]} is called {now[0].partition('=')[0]} now; the old name goes with the next version\n"
        if words != now
        else ""
    )


def test_every_new_name_is_an_option_of_run(command):
    help_text = command("run", "--help")[1]
    assert all(name in help_text for name in renamed.RENAMED.values())
    assert not any(f"{name} " in help_text for name in renamed.RENAMED)


def test_an_old_name_runs_as_the_new_one(command, tmp_path):
    words = ("run", "-e", "rloo", "-t", "bernoulli-toy", "--seeds", "0", "--steps", "1", "--dry-run", "--out")
    old, new = (command(*words, tmp_path / name, option) for name, option in (("a", "--control"), ("b", "--aa-test")))
    assert old[:2] == new[:2] and old[0] == 0 and len(old[1].splitlines()) == 2
    assert "--control is called --aa-test now" in old[2] and "is called" not in new[2]
