"""The first screen of a report: what was run, by how much who leads, and what probes say."""

import json
import math

import pandas as pd
import pytest

from gradebench.analysis import pairwise, tables
from gradebench.measurement.gradient_metrics import Interval
from gradebench.reporting import report, sections, summary


@pytest.fixture
def compared(run):
    """The ranked rows and the metrics of the run."""
    metrics = pd.read_parquet(run / "metrics.parquet")
    board = tables.leaderboard(metrics, tables.comparisons(metrics))
    return board[board["rank"].notna()], metrics


def test_the_sizes_are_those_of_the_tests_with_wider_intervals(compared, nasty):
    """Seeds share their luck in this run, but for what is changed here: then means and signs are those of the tests."""
    _, metrics = compared
    last = (metrics["step"] == 40) & (metrics["metric"] == "reward") & (metrics["split"] == "test")
    metrics.loc[last & (metrics["estimator"] == "ppo"), "value"] += [0.01 * seed for seed in range(8)]
    tests = tables.comparisons(metrics)
    board = tables.leaderboard(metrics, tests)
    found = summary.sizes(board[board["rank"].notna()], metrics)
    tests = tests[(tests["metric"] == "reward") & (tests["split"] == "test") & (tests["estimator_a"] == nasty)]
    by_other = tests.set_index("estimator_b")
    assert set(found.leads["of"]) == {nasty} and set(found.leads["over"]) == {"ppo", "rloo"}
    for row in found.leads.to_dict("records"):
        test = by_other.loc[row["over"]]
        assert row["difference"] == pytest.approx(test["mean_difference"])
        assert row["significant"] == ("yes" if test["p_holm"] < 0.05 else "no")
        assert row["low"] <= test["ci_low"] <= row["difference"] <= test["ci_high"] <= row["high"]
    wide = found.leads.set_index("over").loc["ppo"]
    assert wide["high"] - wide["low"] > by_other.loc["ppo", "ci_high"] - by_other.loc["ppo", "ci_low"]
    assert f"all {pairwise.family_size(3)} pairs" in found.note


def test_the_sizes_against_a_baseline_are_differences_to_it(compared, nasty):
    _, metrics = compared
    board = tables.leaderboard(metrics, tables.comparisons(metrics, ["rloo"]), None, ["rloo"])
    found = summary.sizes(board[board["rank"].notna()], metrics, ["rloo"])
    assert found.leads[["of", "over"]].to_numpy().tolist() == [[nasty, "rloo"], ["ppo", "rloo"]]
    assert found.leads["difference"].tolist() == pytest.approx([0.8, 0.4])
    assert set(found.leads["significant"]) == {"yes"} and "all 2 pairs" in found.note
    assert found.sentence.startswith("rloo ends with a test reward of 0.5")


def test_one_alone_leads_nobody(compared):
    ranked, metrics = compared
    assert summary.sizes(ranked.head(1), metrics) is None


def test_the_facts_of_runs_are_said_once_where_they_agree(tmp_path):
    packages = {"gradebench": "1", "torch": "2"}
    known = {"packages": packages, "python": "3.11", "processor": "Xeon", "cpu_count": 2, "date": "2026-01-01"}
    found = summary.facts_of_runs([tmp_path / "a", tmp_path / "b"], [known, known | {"date": "2026-01-02", "gpu": "H"}])
    assert found == {
        "runs": "a, b",
        "date": "2026-01-01; 2026-01-02",
        "versions": "gradebench 1, torch 2, Python 3.11",
        "hardware": "Xeon, 2 cores; H, Xeon, 2 cores",
    }
    assert summary.facts_of_runs([tmp_path], [{}]) == {}


def test_the_facts_of_a_task_are_budget_seeds_and_who_has_no_result(run):
    (run / "config.json").write_text(json.dumps({"plans": {"imdb": {"steps": 40, "batch": 16, "train": True}}}))
    metrics = pd.read_parquet(run / "metrics.parquet")
    board = tables.leaderboard(metrics, tables.comparisons(metrics))
    assert summary.facts_of_task(board, metrics, [run]) == {
        "setting": "corpus=<i>",
        "budget": "40 steps of 16 sequences",
        "seeds": "8 (0 to 7)",
        "estimators": "3 of 4; no result: exact",
    }


def test_a_probe_has_a_report_of_its_own_kind(command, in_process, tmp_path):
    """Bias and variance first, then their numbers; no rank, no tier, and no sentence about a reward that nobody has."""
    task = "enumerable-lm:vocabulary=3,horizon=3,layers=1,width=4"
    words = ["-t", task, "-e", "rloo", "-e", "st", "--draws", 40, "--checkpoints", 1, "--steps", 2]
    status, _, err = command("probe", *words, "--out", tmp_path / "probes")
    assert status == 0, err
    assert command("report", tmp_path / "probes")[0] == 0
    text = (tmp_path / "probes" / "report.html").read_text()
    assert "No estimator has a test reward" not in text and "Gradients in numbers" in text
    assert 'data-column="rank"' not in text and 'data-column="tier"' not in text
    assert text.index("Bias against variance") < text.index("Gradients in numbers")
    assert "Lowest relative" in text and "40 draws of" in text


def test_what_probes_say_is_by_each_interval():
    board = pd.DataFrame({"estimator": ["a", "b"], "same_as": "", "gradient_mse_relative": [2.0, 1.0]})
    board["gradient_variance_relative"] = [0.5, math.nan]
    said = summary.of_probes(board, {"a": Interval(1.5, 1.0, 2.0), "b": Interval(0.1, -0.2, 0.3)})
    assert said == [
        "Lowest relative mean squared error: b 1, a 2. Highest: a 2.",
        "Significant bias at the last checkpoint in 1; squared, relative: a 1.5.",
        "No significant bias there in 1: b.",
    ]


def test_the_leaderboard_has_the_numbers_behind_its_cells(compared):
    board, _ = compared
    table = sections.leaderboard(board)
    place = next(i for i, column in enumerate(table.columns) if column.name == "test_reward_mean")
    for row, record in zip(table.rows, board.to_dict("records"), strict=True):
        assert row.estimator == record["estimator"]
        ends = [float(row.numbers[place][key]) for key in ("value", "low", "high")]
        assert ends == pytest.approx([record[f"test_reward_{end}"] for end in ("mean", "ci_low", "ci_high")], rel=1e-11)
    levels = dict(zip((column.name for column in table.columns), table.levels, strict=True))
    assert [name for name, level in levels.items() if not level] == [
        "named",
        "tier",
        "test_reward_mean",
        "test_reward_ci_low",
    ]
    assert levels["steps"] == levels["n_seeds"] == "extra" and levels["kl_mean"] == "second"


def test_the_report_opens_with_what_was_run_and_by_how_much(run):
    text = report.write_report([run])[0].read_text()
    first = text[: text.index("<h3>Leaderboard</h3>")]
    for said in ("8 (0 to 7)", "Python 3.11", "adjusted 95 % interval", "for all 3 pairs (Bonferroni)", "tier 1"):
        assert said in first
