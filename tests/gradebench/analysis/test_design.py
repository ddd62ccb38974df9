"""Sweeps and instances: what they make of tasks, what is refused, and whole runs with their tables and reports."""

import json

import pandas as pd
import pytest

from gradebench.analysis import design, frontier, instances
from gradebench.core import schema
from gradebench.core.options import with_values
from gradebench.plugins import registry
from gradebench.storage import formats


def made(*tasks, sweep=(), count=None):
    resolved = [registry.resolve("tasks", task) for task in tasks]
    return design.variants(resolved, design.parse_sweep(sweep), count)


def test_a_sweep_makes_a_task_of_each_value_and_leaves_the_default_as_it_is():
    found = made("enumerable-lm", sweep=["kl=0.02,0.05,0.15"])
    assert [one.resolved.label for one in found] == ["enumerable-lm:kl=0.02", "enumerable-lm", "enumerable-lm:kl=0.15"]
    assert found[1].resolved.spec == "enumerable-lm"  # so its cells are those of a plain run
    assert found[0].facts == {"task": "enumerable-lm", "values": {"kl": "0.02"}}


def test_sweeps_and_instances_combine_and_each_has_a_label_of_its_own():
    found = made("enumerable-lm:horizon=3", sweep=["kl=0.1,0.2", "learning_rate=1e-3,0.01"], count=2)
    labels = [one.resolved.label for one in found]
    assert len(set(labels)) == len(labels) == 8
    assert labels[1] == "enumerable-lm:horizon=3,kl=0.1,instance=1,learning-rate=0.001"
    assert found[1].resolved.params["instance"] == 1 and found[1].rate == 0.001
    assert registry.resolve("tasks", found[1].resolved.spec).params == found[1].resolved.params


def test_families_differ_in_nothing_else():
    facts = {one.resolved.label: one.facts for one in made("enumerable-lm", sweep=["kl=0.1,0.2"], count=2)}
    by_instance = design.families(facts, ["instance"])
    assert list(by_instance) == ["enumerable-lm:kl=0.1", "enumerable-lm:kl=0.2"]
    assert design.families(facts, ["kl"])["enumerable-lm:instance=1"] == [
        "enumerable-lm:kl=0.1,instance=1",
        "enumerable-lm:kl=0.2,instance=1",
    ]
    assert design.families(facts, ["horizon"]) == {}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--sweep", "kl"], "--sweep kl: write OPTION=VALUE,VALUE,..., such as kl=0.02,0.05,0.15"),
        (["--sweep", "kl="], "--sweep kl=: write OPTION=VALUE"),
        (["--sweep", "kl=0.1,"], "--sweep kl=0.1,: write OPTION=VALUE"),
        (["--sweep", "=1"], "--sweep =1: write OPTION=VALUE"),
        (["--sweep", "kl=0.02,2e-2"], "a value stands there twice in 0.02,2e-2"),
        (["--sweep", "kl=0.1", "--sweep", "kl=0.2"], "--sweep kl is given twice"),
        (["--sweep", "kl=much"], "kl=much won't do; kl takes float >= 0"),
        (["--sweep", "kl=-1"], "kl=-1 won't do"),
        (["--sweep", "beta=1"], "task enumerable-lm has no option beta; it has vocabulary"),
        (["--sweep", "learning-rate=0"], "'0' won't do; numbers above 0"),
        (["--sweep", "learning-rate=1e-3", "--learning-rate", "1"], "both set learning rates"),
        (["--instances", "0"], "--instances 0: at least 1 is needed"),
        (["--instances", "two"], "--instances"),
        (["-t", "bernoulli-toy", "--instances", "2"], "task bernoulli-toy has no option instance"),
        (["-t", "enumerable-lm:instance=1", "--instances", "2"], "gives instance already; leave it out there"),
        (["-t", "enumerable-lm:kl=0.3", "--sweep", "kl=0.2"], "gives kl already; leave it out there"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line(command, tmp_path, arguments, said):
    tasks = [] if "-t" in arguments else ["-t", "enumerable-lm"]
    status, out, err = command("run", "-e", "rloo", *tasks, *arguments, "--out", tmp_path / "run")
    assert status == 2 and out == "" and said in err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def swept(command, in_process, tiny, tmp_path):
    """A run of the tiny task at two values of kl and at a rate; returns its folder and what it said."""

    def call(*more):
        arguments = ["run", "-e", "reinforce", "-e", "rloo", "-t", tiny(), "--seeds", "0-1", "--steps", "2"]
        arguments += ["--sweep", "kl=0.01,0.1", "--sweep", "learning-rate=0.05", "--out", tmp_path / "run", *more]
        status, out, err = command(*arguments)
        assert status == 0, err
        return tmp_path / "run", out, err

    return call


def test_a_sweep_runs_ranks_each_setting_apart_and_draws_a_frontier_and_resumes(swept, command):
    folder, out, _ = swept()
    metrics = pd.read_parquet(folder / "metrics.parquet")
    assert metrics.groupby("task")["setting"].nunique().eq(1).all() and metrics["setting"].nunique() == 2
    assert any("kl=0.1 learning-rate=0.05" in setting for setting in metrics["setting"].unique())
    assert len(pd.read_csv(folder / "leaderboard.csv")) == 2 * 2
    table, areas = pd.read_csv(folder / "frontier.csv"), pd.read_csv(folder / "frontier_tests.csv")
    assert list(table) == frontier.COLUMNS and list(areas) == frontier.TESTS_COLUMNS
    assert set(table["task"]) == {"tiny.py:TinyTask"} and set(table["metric"]) == {"reward", "gold_reward"}
    assert set(areas["setting"]) == {"sweep kl=0.01,0.1 learning-rate=0.05"}
    config = json.loads((folder / "config.json").read_text())
    assert {rate for task in config["learning_rates"].values() for rate in task.values()} == {0.05}
    report = (folder / "report.html").read_text()
    assert "Frontiers: tiny.py:TinyTask, reward" in report and "--sweep kl=0.01,0.1" in report
    assert "[reward within KL" in out and "leads" in out
    (folder / "frontier.csv").unlink()
    assert command("report", folder)[0] == 0 and pd.read_csv(folder / "frontier.csv").equals(table)
    status, out, err = command("frontier", folder, "--metric", "gold_reward", "--csv", folder / "gold.csv")
    assert status == 0 and "[gold_reward within KL" in out, err
    assert set(pd.read_csv(folder / "gold.csv")["metric"]) == {"gold_reward"}
    assert command("frontier", folder, "--kl", "0.1,x")[0] == 2
    cells = {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*/cell.json")}
    assert len(cells) == 8 and "8 cells were finished by an earlier run" in swept()[2]
    assert cells == {path: path.stat().st_mtime_ns for path in (folder / "cells").glob("*/cell.json")}


def test_a_dry_run_counts_the_cells_and_runs_none(swept):
    folder, out, err = swept("--dry-run")
    assert len(out.splitlines()) == 8 and "dry run: 8 cells" in err
    assert not folder.exists()


def test_instances_are_trained_apart_and_judged_together(command, in_process, tmp_path):
    folder = tmp_path / "run"
    arguments = ["-e", "reinforce", "-e", "rloo", "-t", "enumerable-lm:vocabulary=3,horizon=2,width=4,layers=1"]
    more = ["--instances", "3", "--seeds", "0", "--steps", "1", "--out", folder]
    status, out, err = command("run", *arguments, *more)
    assert status == 0, err
    metrics = pd.read_parquet(folder / "metrics.parquet")
    start = metrics[(metrics["step"] == 0) & (metrics["split"] == "test") & (metrics["metric"] == "reward")]
    assert start["value"].round(12).nunique() == 3  # another policy and reward each
    tests = pd.read_csv(folder / "instances.csv")
    assert list(tests) == instances.COLUMNS and set(tests["metric"]) == {"objective", "reward"}
    assert tests["n_instances"].eq(3).all() and tests["n_seeds"].eq(3).all() and tests["p_value"].notna().all()
    assert list(pd.read_csv(folder / "instances_leaderboard.csv")) == instances.BOARD_COLUMNS
    assert (
        "over 3 instances, by objective" in out
        and "over 3 instances, by objective" in (folder / "report.html").read_text()
    )
    status, out, err = command("leaderboard", folder)
    assert status == 0 and "over 3 instances" in out, err


def test_a_run_without_either_has_none_of_their_tables(command, in_process, tiny, tmp_path):
    assert command("run", "-e", "rloo", "-t", tiny(), "--seeds", "0", "--steps", "1", "--out", tmp_path / "run")[0] == 0
    assert not {"frontier.csv", "frontier_tests.csv", "instances.csv"} & {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert list(pd.read_csv(tmp_path / "run" / "leaderboard.csv")) == schema.LEADERBOARD_COLUMNS
    status, out, err = command("frontier", tmp_path / "run")  # over the steps of training
    assert status == 0 and "[reward within KL" in out, err


def test_runs_that_resolved_to_the_same_have_one_design(tmp_path):
    """As where one was asked for imdb, which fell back to what the other one was given: no label says so."""
    for folder, base, kls in (("a", "imdb", ("0.1", "0.2")), ("b", "imdb:corpus=embedded", ("0.2", "0.3"))):
        labels = {kl: with_values(base, {"kl": kl}) for kl in kls}
        resolved = {"task": "imdb", "setting": "s"}
        config = {
            "design": {label: {"task": base, "values": {"kl": kl}} for kl, label in labels.items()},
            "facts": {
                "tasks": {
                    label: resolved | {"options": {"corpus": "embedded", "kl": float(kl)}}
                    for kl, label in labels.items()
                }
            },
        }
        (tmp_path / folder).mkdir()
        formats.write_json(tmp_path / folder / "config.json", config)
    found = design.read_design([tmp_path / "a", tmp_path / "b"])
    assert design.families(found, ["kl"]) == {"imdb": ["imdb:kl=0.1", "imdb:kl=0.2", "imdb:corpus=embedded,kl=0.3"]}
