"""Tables over instances: each counts alike, the test is over them, and a gap is seen."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gradebench.analysis import instances
from gradebench.core import schema


def design_of(count):
    return {f"lm:instance={i}" if i else "lm": {"task": "lm", "values": {"instance": str(i)}} for i in range(count)}


def metrics_of(rewards):
    """Metrics of rewards[estimator] (instances, seeds); kl is half of the reward, and a NaN wasn't measured."""
    rows = []
    for estimator, by_instance in rewards.items():
        for (label, _), values in zip(design_of(len(by_instance)).items(), by_instance, strict=True):
            for seed, reward in enumerate(values):
                for metric, value in (("reward", reward), ("kl", reward / 2), ("objective", reward - 0.1)):
                    row = {"task": label, "setting": f"of {label}", "estimator": estimator, "seed": seed}
                    rows.append(row | {"metric": metric, "value": value})
    frame = pd.DataFrame(rows).assign(phase="evaluation", split="test", step=9, status="ok", estimator_params="{}")
    return frame.reindex(columns=schema.METRICS_COLUMNS)


@pytest.fixture
def rewards():
    """a is above b in all four instances, by what differs between them; c lacks the last instance."""
    rng = np.random.default_rng(0)
    level = rng.normal(size=(4, 1)) + 0.1 * rng.normal(size=(4, 5))
    c = level + 9.0
    c[3] = np.nan
    return {"a": level + np.array([[1.0], [1.2], [0.9], [1.1]]), "b": level, "c": c}


def test_a_pair_is_tested_over_the_means_of_instances(rewards):
    tests = instances.comparisons(metrics_of(rewards), design_of(4))
    assert list(tests) == instances.COLUMNS and set(tests["metric"]) == {"reward", "objective"}
    row = tests[(tests["metric"] == "reward") & (tests["estimator_a"] == "a") & (tests["estimator_b"] == "b")].iloc[0]
    expected = scipy.stats.ttest_1samp([1.0, 1.2, 0.9, 1.1], 0.0)
    assert row["p_value"] == pytest.approx(expected.pvalue) and row["mean_difference"] == pytest.approx(1.05)
    assert (row["n_instances"], row["n_seeds"], row["n_a_higher"], row["verdict"]) == (4, 20, 4, "a higher")
    assert row["sd_within"] == pytest.approx(0, abs=1e-12) and row["sd_between"] == pytest.approx(0.129, abs=1e-3)
    assert 0.01 > row["p_holm"] >= row["p_value"]


def test_the_leaderboard_counts_instances_alike_and_ranks_who_has_them_all(rewards):
    metrics, design = metrics_of(rewards), design_of(4)
    board = instances.leaderboard(metrics, design, instances.comparisons(metrics, design))
    assert list(board) == instances.BOARD_COLUMNS and set(board["metric"]) == {"objective"}
    by = board.set_index("estimator")
    assert by["rank"].tolist() == [1, 2, pd.NA] and list(by.index) == ["a", "b", "c"]
    assert by.loc["a", "mean"] == pytest.approx(rewards["a"].mean() - 0.1)
    assert by.loc["a", "kl_mean"] == pytest.approx(rewards["a"].mean() / 2)
    assert by["n_first"].tolist() == [1, 0, 3] and by["n_seeds"].tolist() == [20, 20, 15]
    assert by.loc["b", "p_vs_best_holm"] < 0.01


def test_two_instances_are_too_few_to_test(rewards):
    metrics = metrics_of({name: values[:2] for name, values in rewards.items()})
    tests = instances.comparisons(metrics, design_of(2))
    assert tests["verdict"].eq("underpowered").all() and tests["p_value"].isna().all()


def test_one_instance_or_none_has_no_table(rewards):
    metrics = metrics_of({name: values[:1] for name, values in rewards.items()})
    assert instances.written(metrics, design_of(1)) == instances.written(metrics, {}) == {}
