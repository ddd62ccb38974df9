"""Frontiers: the envelope, budgets without extrapolation, choices on validation prompts, areas, and who leads where."""

import math

import numpy as np
import pandas as pd
import pytest

from gradebench.analysis import frontier
from gradebench.analysis.frontier import Frontier, envelope
from gradebench.core import schema

DESIGN = {
    "lm:kl=0.1": {"task": "lm", "values": {"kl": "0.1"}},
    "lm": {"task": "lm", "values": {"kl": "0.2"}},
}


def metrics_of(points, status="ok"):
    """Metrics of points (estimator, seed, task, step, kl, reward), the same on validation and test prompts unless a
    seventh value is the test reward."""
    rows = []
    for estimator, seed, task, step, kl, reward, *test in points:
        for split, value in (("validation", reward), ("test", test[0] if test else reward)):
            named = {"task": task, "setting": f"of {task}", "estimator": estimator, "seed": seed, "split": split}
            for metric, one in (("kl", kl), ("reward", value), ("gold_reward", value / 2)):
                rows.append(named | {"step": step, "metric": metric, "value": one})
    frame = pd.DataFrame(rows).assign(phase="evaluation", status=status, estimator_params="{}", unit="1")
    return frame.reindex(columns=schema.METRICS_COLUMNS).assign(run_id="run", cell_id="c", estimator_source="x")


def trained(slopes, seeds=8, reach=4.0):
    """Each estimator's reward is its slope times the root of KL, and each seed's luck; at two swept values."""
    rng = np.random.default_rng(0)
    luck = 0.01 * rng.normal(size=seeds)
    return metrics_of(
        (name, seed, task, step, kl, slope * math.sqrt(kl) + luck[seed] * (step > 0))
        for name, slope in slopes.items()
        for seed in range(seeds)
        for task, part in (("lm:kl=0.1", 1.0), ("lm", 0.5))
        for step, kl in ((0, 0.0), (5, part * reach / 4), (10, part * reach))
    )


# --- one seed's frontier ----------------------------------------------------------------------------------------------


def test_the_envelope_leaves_out_what_spends_more_for_less_and_what_a_line_beats():
    kl = [0.0, 1.0, 2.0, 2.0, 3.0, 4.0]
    value = [0.0, 0.2, 1.0, 0.9, 1.2, 1.1]  # (1, 0.2) is below the line from (0, 0) to (2, 1)
    assert envelope(kl, value) == [0, 2, 4]


def test_the_envelope_is_above_all_points_and_concave():
    rng = np.random.default_rng(1)
    kl, value = rng.random(40), rng.random(40)
    hull = envelope(kl, value)
    inside = kl >= kl[hull[0]]
    assert (np.interp(kl[inside], kl[hull], value[hull]) >= value[inside] - 1e-12).all()
    slopes = np.diff(value[hull]) / np.diff(kl[hull])
    assert (np.diff(slopes) < 0).all() and (slopes > 0).all()


def test_nothing_is_extrapolated_and_what_need_not_be_spent_is_not():
    one = Frontier(np.array([1.0, 4.0]), np.array([0.0, 1.0]), reach=5.0)
    assert one.at([0.9, 2.25, 4.5, 5.0, 5.1]) == pytest.approx([math.nan, 0.5, 1.0, 1.0, math.nan], nan_ok=True)


def test_the_mean_over_a_range_is_exact():
    one = Frontier(np.array([0.0, 1.0]), np.array([0.0, 1.0]), reach=3.0)  # the root of KL up to 1
    assert one.mean_over(0.0, 3.0) == pytest.approx((2 / 3 + 2.0) / 3)
    assert one.mean_over(0.25, 1.0) == pytest.approx((2 / 3) * (1 - 0.125) / 0.75)
    assert math.isnan(one.mean_over(0.0, 3.1))


def test_policies_are_chosen_on_validation_prompts_and_measured_on_test_prompts():
    """The luckiest on test prompts is not the best on validation prompts, and isn't what is reported."""
    points = [("a", 0, "lm", 0, 0.0, 0.0, 0.0), ("a", 0, "lm", 5, 1.0, 0.9, 0.8), ("a", 0, "lm", 9, 1.0, 0.7, 5.0)]
    (one,) = frontier.frontiers(metrics_of(points), ["lm"], "reward")["a"].values()
    assert one.value.tolist() == [0.0, 0.8]
    (gold,) = frontier.frontiers(metrics_of(points), ["lm"], "gold_reward")["a"].values()
    assert gold.value.tolist() == [0.0, 0.4]  # of the same policies: the judge doesn't choose


def test_a_seed_counts_where_all_of_its_trainings_are_ok():
    metrics = trained({"a": 1.0, "b": 0.5}, seeds=3)
    metrics.loc[(metrics["estimator"] == "a") & (metrics["seed"] == 1) & (metrics["task"] == "lm"), "status"] = "failed"
    found = frontier.frontiers(metrics, list(DESIGN), "reward")
    assert set(found["a"]) == {0, 2} and set(found["b"]) == {0, 1, 2}


def test_a_quick_and_a_slow_estimator_on_one_curve_are_equal_within_any_budget():
    """The quick one's first evaluation is at nine times the KL of the slow one's; reward is the root of KL for both."""
    points = [(name, 0, "lm", step, kl, math.sqrt(kl)) for name, kls in (("quick", (0, 0.9, 2)), ("slow", (0, 0.1, 2)))
              for step, kl in enumerate(kls)]  # fmt: skip
    found = frontier.frontiers(metrics_of(points), ["lm"], "reward")
    quick, slow = (found[name][0].at([0.05, 0.4, 1.5]) for name in ("quick", "slow"))
    assert quick == pytest.approx(np.sqrt([0.05, 0.4, 1.5])) and slow == pytest.approx(quick)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_budgets_rank_estimators_and_say_which_are_not_below_the_leader():
    table = frontier.budgets(trained({"low": 0.4, "high": 0.6, "same": 0.6}), DESIGN)
    assert list(table) == frontier.COLUMNS and set(table["metric"]) == {"reward", "gold_reward"}
    rewards = table[table["metric"] == "reward"]
    assert rewards.groupby("kl").size().eq(3).all() and rewards["kl"].nunique() == frontier.BUDGETS
    assert rewards["kl"].max() == 4.0
    last = rewards[rewards["kl"] == 4.0].set_index("estimator")
    assert last.loc["high", "mean"] == pytest.approx(1.2, abs=0.02) and last.loc["high", "rank"] == 1
    assert last.loc["same", "p_vs_leader_holm"] == 1
    assert last.loc["low", "p_vs_leader_holm"] == pytest.approx(3 * 2 / 2**8)  # all seeds agree, three pairs
    assert frontier.leaders(rewards) == [(0.04, 4.0, "high", ["same"])]


def test_an_estimator_is_at_a_budget_that_all_of_its_seeds_reach():
    points = [(name, seed, task, step, kl, kl) for name in "ab" for seed in range(3) for task in DESIGN
              for step, kl in ((0, 0.0), (5, 1.0 if (name, seed) == ("a", 1) else 2.0))]  # fmt: skip
    table = frontier.budgets(metrics_of(points), DESIGN, given=[0.5, 1.5])
    rows = table[table["metric"] == "reward"].set_index(["estimator", "kl"])
    assert rows.loc[("a", 1.5), "n_seeds"] == 2 and pd.isna(rows.loc[("a", 1.5), "mean"])
    assert pd.isna(rows.loc[("a", 1.5), "rank"]) and rows.loc[("b", 1.5), "rank"] == 1
    assert rows.loc[("a", 0.5), "n_seeds"] == 3


def test_areas_are_paired_by_seed_over_the_range_that_both_reach():
    metrics = trained({"low": 0.4, "high": 0.6})
    metrics.loc[(metrics["estimator"] == "low") & (metrics["metric"] == "kl"), "value"] /= 2
    tests = frontier.areas(metrics, DESIGN)
    assert list(tests) == frontier.TESTS_COLUMNS
    row = tests[tests["metric"] == "reward"].iloc[0]
    assert (row["estimator_a"], row["estimator_b"], row["n_pairs"], row["kl_to"]) == ("high", "low", 8, 2.0)
    assert row["setting"] == "sweep kl=0.1,0.2" and row["verdict"] == "a higher" and row["p_value"] == 2 / 2**8
    found = frontier.frontiers(metrics, list(DESIGN), "reward")
    by_seed = [found["high"][s].mean_over(0.0, 2.0) - found["low"][s].mean_over(0.0, 2.0) for s in range(8)]
    assert row["mean_difference"] == pytest.approx(np.mean(by_seed))


def test_who_leads_changes_with_the_budget():
    table = pd.DataFrame(
        [("t", "reward", name, kl, 5, mean, 0, 0, rank, p) for kl, order in ((1, "ab"), (2, "ab"), (3, "ba"))
         for rank, (name, mean, p) in enumerate(zip(order, (2.0, 1.0), (math.nan, 0.01), strict=True), 1)],
        columns=frontier.COLUMNS,
    )  # fmt: skip
    assert frontier.leaders(table) == [(1.0, 2.0, "a", []), (3.0, 3.0, "b", [])]


def test_another_option_makes_another_frontier():
    design = {
        f"lm:kl={kl},n={n}": {"task": "lm", "values": {"kl": kl, "n": n}} for kl in ("1", "2") for n in ("3", "4")
    }
    assert frontier.swept(design) == {
        "lm:n=3": ["lm:kl=1,n=3", "lm:kl=2,n=3"],
        "lm:n=4": ["lm:kl=1,n=4", "lm:kl=2,n=4"],
    }


def test_a_run_without_a_sweep_or_without_a_divergence_has_no_table():
    metrics = trained({"a": 1.0})
    assert frontier.written(metrics, {}) == {}
    assert frontier.written(metrics[metrics["metric"] != "kl"], DESIGN) == {}
