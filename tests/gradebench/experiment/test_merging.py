"""Shards of a run, merged: the tables are those of the run made in one piece."""

import json
import os
import signal
from pathlib import Path

import pandas as pd
import pytest

from gradebench.experiment.merging import merge
from gradebench.reporting.report import write_report
from gradebench.storage.formats import read_lines
from gradebench.storage.records import SAMPLES

TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]


@pytest.fixture
def shard(command, tiny, tmp_path, in_process, no_report):
    """Run the tiny task; returns the folder."""

    def call(name, estimators, seeds="0-1", *more):
        out = tmp_path / name
        chosen = [word for estimator in estimators for word in ("-e", estimator)]
        status, _, err = command("run", *chosen, "-t", tiny(), "--seeds", seeds, "--steps", "2", "--out", out, *more)
        assert status == 0, err
        return out

    return call


def table(path):
    return pd.read_csv(path).drop(columns=[*TIMES, "run_id"], errors="ignore")


def test_shards_by_estimator_and_by_seed_make_the_whole_run(command, shard, tmp_path):
    whole = shard("whole", ["rloo", "reinforce"])
    for parts in (
        [shard("a", ["rloo"]), shard("b", ["reinforce"])],
        [shard("c", ["rloo", "reinforce"], "0"), shard("d", ["rloo", "reinforce"], "1")],
    ):
        out = tmp_path / "-".join(part.name for part in parts)
        status, shown, err = command("merge", *parts, "--out", out)
        assert status == 0, err
        assert shown.strip().endswith(str(out))
        for name in ("leaderboard.csv", "tests.csv"):
            pd.testing.assert_frame_equal(table(out / name), table(whole / name))
        metrics = [pd.read_csv(folder / "metrics.csv") for folder in (out, whole)]
        metrics = [m[~m["metric"].isin(TIMES)].drop(columns="run_id") for m in metrics]
        order = list(metrics[0].columns[:-1])
        one, other = (m.sort_values(order, ignore_index=True) for m in metrics)
        pd.testing.assert_frame_equal(one, other)
        assert len(read_lines(out / SAMPLES)) == len(read_lines(whole / SAMPLES))
        config, expected = (json.loads((folder / "config.json").read_text()) for folder in (out, whole))
        assert sorted(config["cells"]) == sorted(expected["cells"])
        assert config["learning_rates"] == expected["learning_rates"] and config["seeds"] == [0, 1]
        assert config["merged"] == [part.name for part in parts]
        assert (out / "report.html").is_file()
        assert command("status", out)[0] == 0


def test_shards_that_cannot_be_one_run_are_refused(command, shard, tmp_path):
    first, other = shard("a", ["rloo"]), shard("b", ["reinforce"], "0-1", "--batch", "4")
    for folders, said in (((first, other), "differ in their batch"), ((first, shard("c", ["rloo"])), "come twice")):
        status, out, err = command("merge", *folders, "--out", tmp_path / "out")
        assert (status, out) == (2, "")
        assert said in err and len(err.splitlines()) == 1
        assert not (tmp_path / "out").exists()


def test_nothing_is_merged_into_a_folder_that_holds_something(command, shard):
    first = shard("a", ["rloo"])
    status, _, err = command("merge", first, "--out", first)
    assert status == 2 and "isn't empty" in err


def test_a_merge_that_was_killed_ends_as_one_in_peace(shard, tmp_path):
    """By itself, ahead of a file: one of the first, and the one that makes the folder a run."""
    first = shard("a", ["rloo", "reinforce"])
    merge([first], tmp_path / "peace" / "whole", reported)
    peace = contents(tmp_path / "peace" / "whole")
    order = sorted(peace, key=lambda name: (tmp_path / "peace" / "whole" / name).stat().st_mtime_ns)
    assert order[-3:] == ["metrics.parquet", "digests.json", "report.html"]
    for name in (order[3], order[-3]):
        out = tmp_path / name / "whole"
        if not (child := os.fork()):
            replace = os.replace

            def killed(draft, path, name=name, replace=replace):
                if Path(path).name == name:
                    os.kill(os.getpid(), signal.SIGKILL)
                replace(draft, path)

            os.replace = killed
            merge([first], out, reported)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL and contents(out) != peace
        merge([first], out, reported)
        assert contents(out) == peace


def reported(folder, metrics, board):
    write_report([folder], metrics, board)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
