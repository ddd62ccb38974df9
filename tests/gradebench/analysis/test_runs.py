"""`leaderboard`, `compare` and `status` on run folders: the run's own tables, and plain refusals."""

import json

import pandas as pd
import pytest

from gradebench.analysis import tables
from gradebench.core import schema

REWARDS = {"rloo": 0.7, "grpo": 0.6, "ppo": 0.5}


def rows_of(estimator, seed, task, setting, status):
    identity = {"run_id": "run", "cell_id": f"{task}-{estimator}-{seed}", "task": task, "setting": setting}
    identity |= {"estimator": estimator, "estimator_params": "{}", "estimator_source": "gradebench 0.1.0", "seed": seed}
    values = [("evaluation", "test", 4, "reward", REWARDS[estimator] + 0.01 * ((7 * seed + len(estimator)) % 5))]
    values += [("probe", "train", step, "gradient_variance", 2.0 + seed + len(estimator)) for step in (0, 4)]
    if status != "ok":
        values = [("train", "train", 0, "", float("nan"))]
    for phase, split, step, metric, value in values:
        unit = schema.METRIC_UNITS.get(metric, "")
        fact = {"phase": phase, "split": split, "step": step, "metric": metric, "value": value, "unit": unit}
        yield identity | fact | {"status": status}


@pytest.fixture
def run_of(tmp_path):
    """Writes a run's folder as `gradebench run` leaves it."""

    def build(name, estimators, seeds=range(8), task="imdb", setting="a", steps=40, torch="2.13.0", status="ok"):
        folder = tmp_path / name
        folder.mkdir()
        cells = [(estimator, seed) for estimator in estimators for seed in seeds]
        frame = pd.DataFrame([row for cell in cells for row in rows_of(*cell, task, setting, status)])
        tables.write_parquet(frame[schema.METRICS_COLUMNS], folder / "metrics.parquet")
        config = {"cells": [f"{task}-{e}-{s}" for e, s in cells], "plans": {task: {"steps": steps, "batch": 32}}}
        (folder / "config.json").write_text(json.dumps(config))
        versions = {"packages": {"gradebench": "0.1.0", "torch": torch}}
        (folder / "environment.json").write_text(json.dumps(versions))
        return folder

    return build


def table(path):
    return pd.read_csv(path, keep_default_na=False, na_values=[""])


# --- leaderboard ------------------------------------------------------------------------------------------------


def test_runs_merge_into_the_board_of_one_run(command, run_of, tmp_path):
    whole, left, right = run_of("whole", REWARDS), run_of("left", ["rloo"]), run_of("right", ["grpo", "ppo"])
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    assert command("leaderboard", whole, "--csv", one)[0] == 0
    status, out, _ = command("leaderboard", left, right, "--csv", two)
    assert status == 0
    assert one.read_bytes() == two.read_bytes()
    assert list(table(two)["estimator"]) == ["rloo", "grpo", "ppo"]
    assert list(table(two).columns) == schema.LEADERBOARD_COLUMNS
    assert "rloo" in out and "underpowered" not in out


def test_seeds_of_two_runs_add_up(command, run_of, tmp_path):
    first, second = run_of("first", REWARDS, range(4)), run_of("second", REWARDS, range(4, 8))
    assert command("leaderboard", first, second, "--csv", tmp_path / "board.csv")[0] == 0
    assert (table(tmp_path / "board.csv")["n_seeds"] == 8).all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"setting": "b"}, "differ in their setting"),
        ({"steps": 60}, "differ in their steps"),
        ({"torch": "2.8.0"}, "differ in their version of torch"),
    ],
)
def test_runs_that_differ_are_refused_or_ranked_apart(command, run_of, tmp_path, change, said):
    first, second = run_of("first", ["rloo", "grpo"]), run_of("second", ["ppo", "grpo"], **change)
    status, out, err = command("leaderboard", first, second)
    assert status == 2 and out == ""
    assert said in err and "--apart" in err and len(err.splitlines()) == 1
    assert command("leaderboard", first, second, "--apart", "--csv", tmp_path / "board.csv")[0] == 0
    board = table(tmp_path / "board.csv")
    assert {name.rsplit("run=")[-1] for name in board["setting"]} == {"first", "second"}
    assert list(board["rank"]) == [1, 2, 1, 2]


def test_runs_of_other_tasks_stand_side_by_side(command, run_of, tmp_path):
    first, second = run_of("first", ["rloo", "grpo"]), run_of("second", ["rloo", "grpo"], task="digits", steps=9)
    assert command("leaderboard", first, second, "--csv", tmp_path / "board.csv")[0] == 0
    assert list(table(tmp_path / "board.csv")["task"]) == ["digits", "digits", "imdb", "imdb"]


@pytest.mark.parametrize("seeds", [2, 8])
def test_too_few_seeds_are_said(command, run_of, seeds):
    assert ("underpowered" in command("leaderboard", run_of("run", REWARDS, range(seeds)))[1]) == (seeds == 2)


def test_a_skipped_estimator_makes_no_board_underpowered(command, run_of):
    good, skipped = run_of("good", ["rloo", "grpo"]), run_of("skipped", ["ppo"], status="skipped")
    status, out, _ = command("leaderboard", good, skipped)
    assert status == 0
    assert "skipped 8" in out and "underpowered" not in out


# --- compare ----------------------------------------------------------------------------------------------------


def test_a_pair_is_compared_by_every_metric_in_either_order(command, run_of, tmp_path):
    run, found = run_of("run", REWARDS), {}
    for a, b in (("rloo", "ppo"), ("ppo", "rloo")):
        assert command("compare", run, a, b, "--csv", tmp_path / "pair.csv")[0] == 0
        found[a] = table(tmp_path / "pair.csv").set_index("metric")
        assert set(found[a]["estimator_a"]) == {a} and set(found[a]["estimator_b"]) == {b}
    one, other = found["rloo"], found["ppo"]
    assert set(one.index) == {"reward", "gradient_variance"}
    assert one.loc["reward", "verdict"] == "a higher" and other.loc["reward", "verdict"] == "b higher"
    assert one.loc["reward", "mean_difference"] == pytest.approx(0.2, abs=0.03)
    for low, high in (("ci_low", "ci_high"), ("mean_difference", "mean_difference"), ("effect_size", "effect_size")):
        pd.testing.assert_series_equal(one[low], -other[high], check_names=False)
    pd.testing.assert_series_equal(one["p_holm"], other["p_holm"])


def test_without_names_each_stands_against_the_best(command, run_of, tmp_path):
    status, out, _ = command("compare", run_of("run", REWARDS), "--csv", tmp_path / "all.csv")
    assert status == 0 and "all 3 pairs" in out
    rows = table(tmp_path / "all.csv")
    assert set(rows["estimator_a"]) == {"rloo"} and set(rows["estimator_b"]) == {"grpo", "ppo"}


# --- what ranks, and baselines ----------------------------------------------------------------------------------


def test_baselines_and_what_ranks_are_chosen_or_as_the_run_was_made(command, run_of, tmp_path):
    run, path = run_of("run", REWARDS), tmp_path / "board.csv"
    status, out, err = command("leaderboard", run, "--against", "grpo", "--csv", path)
    assert status == 0 and "at 4 steps, by reward" in out and "above grpo" in out
    assert err == "imdb is ranked by reward: its test prompts have no objective in all cells\n"
    assert list(table(path)["verdict"].fillna("")) == ["above grpo", "", "below grpo"]
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"request": {"by": "reward", "against": ["ppo"]}}))
    status, out, err = command("leaderboard", run, "--csv", path)
    assert (status, err) == (0, "") and list(table(path)["verdict"].fillna("")) == ["above ppo", "above ppo", ""]
    status, out, _ = command("compare", run)
    assert status == 0 and "the 2 pairs with ppo" in out
    assert command("leaderboard", run, "--against", "all", "--csv", path)[0] == 0
    assert list(table(path)["letters"]) == ["a", "b", "c"] and table(path)["verdict"].isna().all()
    assert command("report", run)[0] == 0
    assert "At 4 steps, by reward, with 8 seeds: above ppo: rloo, grpo." in (run / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--by", "beauty"], "--by beauty: ranks go by objective, reward, gold_reward"),
        (["--by", "gold_reward"], "--by gold_reward: nothing here has it on test prompts; there is reward"),
        (["--against", "rlooo"], "--against rlooo: the run has no such estimator; it has grpo, ppo, rloo"),
        (["--against", "rloo", "--against", "ppo", "--against", "grpo"], "nothing else is left"),
    ],
)
@pytest.mark.parametrize("what", ["leaderboard", "compare", "report"])
def test_a_name_that_is_none_is_one_line(command, run_of, what, words, said):
    status, out, err = command(what, run_of("run", REWARDS), *words)
    assert (status, out) == (2, "") and said in err and len(err.splitlines()) == 1


def test_a_pair_outside_of_the_family_is_one_line(command, run_of):
    status, _, err = command("compare", run_of("run", REWARDS), "rloo", "ppo", "--against", "grpo")
    assert status == 2 and "rloo and ppo aren't compared in this family; give --against rloo" in err


def test_runs_made_before_the_objective_was_have_it_where_its_weight_is_known(command, run_of, tmp_path):
    """Rewards .7, .6 and .5 and divergences 3, 1 and 1, at a weight of 0.1: .4, .5 and .4."""
    run = run_of("run", REWARDS)
    metrics = pd.read_parquet(run / "metrics.parquet")
    spent = metrics[metrics["metric"] == "reward"].assign(metric="kl")
    spent["value"] = spent["estimator"].map({"rloo": 3.0, "grpo": 1.0, "ppo": 1.0})
    tables.write_parquet(pd.concat([metrics, spent]), run / "metrics.parquet")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"tasks": {"imdb": {"options": {"kl": 0.1}}}}))
    status, _, err = command("leaderboard", run, "--csv", tmp_path / "board.csv")
    board = table(tmp_path / "board.csv").set_index("estimator")
    assert (status, err) == (0, "") and board.index[0] == "grpo" and set(board["ranked_by"]) == {"objective"}
    for name, kl in (("rloo", 3.0), ("ppo", 1.0)):
        assert board.loc[name, "test_objective_mean"] == pytest.approx(board.loc[name, "test_reward_mean"] - 0.1 * kl)


# --- status -----------------------------------------------------------------------------------------------------


def test_a_status_names_what_is_missing_and_why(command, run_of):
    run = run_of("run", ["rloo"])
    status, out, _ = command("status", run)
    assert status == 0 and "8 cells: 8 ok" in out
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"cells": [*config["cells"], "later", "bad"]}))
    (run / "cells" / "bad").mkdir(parents=True)
    (run / "cells" / "bad" / "cell.json").write_text('{"status": "failed", "reason": "a [b] went wrong"}')
    status, out, _ = command("status", run)
    assert status == 1
    assert "10 cells: 8 ok" in out and "failed 1, as bad: a [b] went wrong" in out and "not run yet 1, as later" in out


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["leaderboard", "nowhere"], "nowhere is no folder"),
        (["leaderboard", "empty"], "empty has no metrics.parquet"),
        (["leaderboard", "garbage"], "can't be read"),
        (["leaderboard", "foreign"], "lacks the columns"),
        (["leaderboard", "run", "run"], "given twice"),
        (["leaderboard", "run", "copy"], "come twice"),
        (["leaderboard", "run", "--csv", "nowhere/board.csv"], "can't write"),
        (["compare", "run", "rloo", "rloh"], "no estimator 'rloh'; it has grpo, ppo, rloo"),
        (["compare", "run", "rloo", "rloo"], "compared with itself"),
        (["compare", "run", "rloo"], "compared with nothing"),
        (["compare", "alone"], "nothing to compare"),
        (["status", "empty"], "holds no run"),
    ],
)
def test_what_cannot_be_read_is_one_line(command, run_of, tmp_path, monkeypatch, words, said):
    run_of("run", REWARDS)
    run_of("copy", ["rloo"])
    run_of("alone", ["rloo"])
    for name, content in (("empty", None), ("garbage", b"PAR1 no"), ("foreign", pd.DataFrame({"x": [1]}).to_parquet())):
        (tmp_path / name).mkdir()
        if content is not None:
            (tmp_path / name / "metrics.parquet").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    status, _, err = command(*words)
    assert status == 2
    assert said in err and err.startswith("gradebench: ") and len(err.splitlines()) == 1
