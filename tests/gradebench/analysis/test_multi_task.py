"""Several tasks at once: the score by hand, the aggregate against its definition, ranks against an oracle."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gradebench.analysis import multi_task
from gradebench.core import schema


def metrics(rewards, start=0.5, setting="a"):
    """Rows of runs: rewards[task][estimator] is one test reward a seed."""
    rows = []
    for task, by_name in rewards.items():
        for name, values in by_name.items():
            for seed, value in enumerate(values):
                identity = {"run_id": "run", "cell_id": f"{task}-{name}-{seed}", "task": task, "setting": setting}
                identity |= {"estimator": name, "estimator_params": "{}", "estimator_source": "x", "seed": seed}
                place = {"phase": "evaluation", "split": "test", "metric": "reward", "unit": "1", "status": "ok"}
                rows += [identity | place | {"step": step, "value": v} for step, v in ((0, start), (4, value))]
    return pd.DataFrame(rows)[schema.METRICS_COLUMNS]


def test_a_score_is_the_share_of_the_best_estimators_gain():
    (found,) = multi_task.scores(metrics({"t": {"a": [0.7, 0.9], "b": [0.6, 0.6]}})).values()
    assert found["a"].to_list() == pytest.approx([2 / 3, 4 / 3])
    assert found["b"].to_list() == pytest.approx([1 / 3, 1 / 3])


def test_a_task_that_nobody_learns_gives_no_scores():
    assert multi_task.scores(metrics({"t": {"a": [0.4], "b": [0.3]}})) == {}


def test_the_table_is_the_interquartile_mean_over_tasks_and_seeds():
    rng = np.random.default_rng(0)
    rewards = {
        task: {name: 0.6 + rng.normal(0.1 * place, 0.05, 8) for place, name in enumerate("abc")} for task in "tuv"
    }
    rewards["t"]["only here"] = np.full(8, 0.7)
    table = multi_task.across_tasks(metrics(rewards))
    assert list(table.columns) == multi_task.COLUMNS
    assert list(table["estimator"]) == ["c", "b", "a"]
    scores = multi_task.scores(metrics(rewards))
    for row in table.to_dict("records"):
        pooled = np.concatenate([frame[row["estimator"]] for frame in scores.values()])
        middle = np.sort(pooled)[6:18]
        assert row["iqm"] == pytest.approx(middle.mean())
        assert row["ci_low"] < row["iqm"] < row["ci_high"]
        assert row["above_0.5"] == pytest.approx(np.mean(pooled > 0.5))
        assert (row["tasks"], row["runs"]) == (3, 24)


def test_the_interval_resamples_the_seeds_of_each_task():
    """Tasks whose seeds agree leave nothing to resample, however much the tasks differ; pooled resampling would."""
    rewards = {task: {"a": [0.5 + gain] * 6, "b": [0.9] * 6} for task, gain in (("t", 0.1), ("u", 0.2), ("v", 0.3))}
    table = multi_task.across_tasks(metrics(rewards)).set_index("estimator")
    assert table.loc["a", "ci_low"] == pytest.approx(table.loc["a", "ci_high"])


def test_one_task_has_no_table():
    assert multi_task.across_tasks(metrics({"t": {"a": [0.7], "b": [0.6]}})).empty


def test_few_tasks_have_no_critical_difference_and_say_why():
    said = multi_task.ranks(metrics({task: {"a": [0.7], "b": [0.6], "c": [0.6]} for task in "tuvw"}))
    assert said == "4 tasks are too few to compare ranks (Friedman, Nemenyi): 10 are needed"
    said = multi_task.ranks(metrics({f"t{i}": {"a": [0.7], "b": [0.6]} for i in range(10)}))
    assert "2 estimators" in said


def test_ranks_over_ten_tasks_by_friedman_and_nemenyi():
    """The critical difference of 4 treatments and 10 tasks at 5 % is 2.569 sqrt(4 5 / 60) (Demsar 2006, table 5)."""
    rng = np.random.default_rng(1)
    rewards = {
        f"t{i}": {name: [0.6 + 0.1 * k + rng.normal(0, 0.03)] for k, name in enumerate("abcd")} for i in range(10)
    }
    found = multi_task.ranks(metrics(rewards))
    columns = np.array([[values[0] for values in task.values()] for task in rewards.values()])
    assert found.p == pytest.approx(scipy.stats.friedmanchisquare(*columns.T).pvalue)
    assert found.critical_difference == pytest.approx(2.569 * np.sqrt(4 * 5 / 60), abs=1e-3)
    assert found.apart == 3  # a-c, a-d and b-d: ranks two or three apart
    assert next(iter(found.mean_ranks.items())) == ("d", pytest.approx(1, abs=0.3))


def test_no_pair_differs_where_friedman_sees_nothing():
    rng = np.random.default_rng(2)
    rewards = {f"t{i}": {name: [0.7 + rng.normal(0, 0.03)] for name in "abc"} for i in range(12)}
    found = multi_task.ranks(metrics(rewards))
    assert found.p > 0.05 and found.apart == 0


def test_profiles_fall_from_one_and_count_tasks_alike():
    """A task of many seeds counts no more than one of few."""
    rewards = {"t": {"a": [0.9] * 8, "b": [0.7] * 8}, "u": {"a": [0.6, 0.6], "b": [0.7, 0.7]}}
    table = multi_task.profiles(metrics(rewards)).set_index(["estimator", "score"])["share_above"]
    assert table["a"].iloc[0] == 1.0 and table["a"].is_monotonic_decreasing
    assert table["a"][0.7] == pytest.approx(0.5)  # 1 on t and 0.5 on u
