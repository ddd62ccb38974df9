"""The tables against numbers worked out by hand, and against every way in which a run can be incomplete.

Long because one file tests one module.
"""

import math
import os
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from gradebench.analysis import pairwise, statistics, tables
from gradebench.core import schema
from gradebench.measurement.gradient_columns import COLUMNS

SEEDS = range(8)
LAST_STEP = 60
CHECKPOINTS = (0, 30, 60)
PROBES = {
    "gradient_variance": 4.0,
    "gradient_snr": 0.5,
    "gradient_norm_squared": 2.0,
    "gradient_reference_dot": 1.0,
    "gradient_reference_norm_squared": 2.0,
    "gradient_bias_squared": 0.5,
}


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def row(estimator, seed, phase="", split="", step=np.nan, metric="", value=np.nan, **other):
    """One row of metrics; `other` replaces any column."""
    names = {"run_id": "run", "cell_id": f"{estimator}-{seed}", "task": "imdb", "setting": "embedded"}
    measured = {"phase": phase, "split": split, "step": step, "metric": metric, "value": value}
    source = {"estimator_params": "{}", "estimator_source": "gradebench 0.1.0", "status": "ok"}
    unit = {"unit": schema.METRIC_UNITS.get(metric, "")}
    return {**names, "estimator": estimator, "seed": seed, **source, **measured, **unit, **other}


def cell(estimator, seed, reward, probes=PROBES, gold_gap=0.2, **other):
    """The rows of one cell that went well. Train reward is 0.1 above and gold by gold_gap below test reward."""
    rows = []
    for step, share in ((0, 0.0), (30, 0.5), (LAST_STEP, 1.0)):
        for split, shift in (("train", 0.1), ("validation", 0.05), ("test", 0.0)):
            for metric, value in (("reward", reward + shift), ("gold_reward", reward - gold_gap), ("kl", 3.0)):
                rows.append(row(estimator, seed, "evaluation", split, step, metric, share * value, **other))
    for step in CHECKPOINTS:
        rows += [row(estimator, seed, "probe", "train", step, name, value, **other) for name, value in probes.items()]
    for metric, value in (("seconds_per_step", 0.5), ("peak_memory_bytes", 1e9 + seed), ("reward_calls", 64.0)):
        rows.append(row(estimator, seed, "train", "train", LAST_STEP, metric, value, **other))
    return rows


def broken(estimator, seed, status, **other):
    """The one row of a cell that gave nothing."""
    return [row(estimator, seed, status=status, **other)]


def frame(*cells):
    return pd.DataFrame([line for rows in cells for line in rows], columns=schema.METRICS_COLUMNS)


def simulated(shifts, seeds=SEEDS, noise=0.05, spread=0.2, stream=0, **other):
    """A run in which the test reward is shift + seed effect + noise and ln variance is -shift + noise, per cell."""
    generator = np.random.default_rng(stream)
    effects = generator.normal(0, spread, size=len(seeds))
    cells = []
    for estimator, shift in shifts.items():
        for seed, effect in zip(seeds, effects, strict=True):
            variance = math.exp(-shift + noise * generator.normal())
            reward = shift + effect + noise * generator.normal()
            gold_gap = 0.2 + noise * generator.normal()
            cells.append(cell(estimator, seed, reward, {**PROBES, "gradient_variance": variance}, gold_gap, **other))
    return frame(*cells)


def board_of(metrics):
    return tables.leaderboard(metrics, tables.comparisons(metrics)).set_index("estimator")


def with_probe(values_of):
    """The board of one estimator "a", whose probes at (seed, step) are PROBES updated by values_of(seed, step)."""
    rows = frame(*(cell("a", seed, 1.0) for seed in (0, 1)))
    for (seed, step), _ in rows[rows["phase"] == "probe"].groupby(["seed", "step"]):
        for name, value in values_of(seed, step).items():
            here = (rows["seed"] == seed) & (rows["step"] == step) & (rows["phase"] == "probe")
            rows.loc[here & (rows["metric"] == name), "value"] = value
    return board_of(rows).loc["a"]


# --- the contract


def test_columns_are_the_contract():
    metrics = simulated({"a": 1.0, "b": 0.0})
    tests = tables.comparisons(metrics)
    assert list(tests.columns) == schema.TESTS_COLUMNS
    assert list(tables.leaderboard(metrics, tests).columns) == schema.LEADERBOARD_COLUMNS
    assert len(schema.METRICS_COLUMNS) == 15
    assert len(schema.TESTS_COLUMNS) == 20
    assert len(schema.LEADERBOARD_COLUMNS) == 71


def test_every_metric_that_is_simulated_has_a_unit():
    assert (simulated({"a": 1.0})["unit"] != "").all()


@pytest.mark.parametrize(("estimators", "seeds"), [(1, 3), (2, 6), (3, 7), (6, 10), (12, 12)])
def test_default_seed_count_can_decide_all_pairs(estimators, seeds):
    assert tables.default_seed_count(estimators) == seeds


# --- the leaderboard by hand


def test_rewards_gaps_and_costs_by_hand():
    metrics = frame(*(cell("a", seed, reward) for seed, reward in enumerate([0.5, 0.6, 1.0])))
    board = board_of(metrics).loc["a"]
    assert board["test_reward_mean"] == pytest.approx(0.7)
    assert board["test_reward_ci_low"] < 0.7 < board["test_reward_ci_high"]
    assert board["test_gold_reward_mean"] == pytest.approx(0.5)
    assert board["generalization_gap"] == pytest.approx(0.1)
    assert board["gold_gap"] == pytest.approx(0.2)
    assert board["kl_mean"] == pytest.approx(3.0)
    assert board["seconds_per_step"] == 0.5
    assert board["peak_memory_bytes"] == 1e9 + 2
    assert (board["rank"], board["tier"], board["n_seeds"], board["status"]) == (1, 1, 3, "ok")
    assert math.isnan(board["p_vs_best_holm"])


def test_cost_of_a_cell_is_the_row_of_its_last_step():
    rows = [*cell("a", 0, 1.0), row("a", 0, "train", "train", 10, "seconds_per_step", 99.0)]
    assert board_of(frame(rows)).loc["a", "seconds_per_step"] == 0.5


def test_variance_is_a_geometric_mean_over_seeds_and_checkpoints():
    board = with_probe(lambda seed, step: {"gradient_variance": math.exp(seed + step / 30)})
    assert board["gradient_variance"] == pytest.approx(math.exp(0.5 + 1.0))


def test_relative_quantities_are_over_the_norm_that_all_estimators_share():
    """Whatever an estimator's own mean is: 4 / 2, and 4 + 0.5 over 2."""
    board = with_probe(lambda seed, step: {"gradient_norm_squared": [3.0, -1.0][seed]})
    assert board["gradient_variance_relative"] == pytest.approx(2.0)
    assert board["gradient_mse_relative"] == pytest.approx(2.25)


def test_relative_variance_is_geometric_over_checkpoints():
    norms = {0: 1.0, 30: 4.0, 60: 16.0}
    board = with_probe(lambda seed, step: {"gradient_reference_norm_squared": norms[step]})
    assert board["gradient_variance_relative"] == pytest.approx(1.0)
    assert board["gradient_mse_relative"] == pytest.approx(4.5 / 4)


def test_the_norm_is_pooled_over_the_seeds_of_all_estimators():
    """The seeds that only b has count for a: 4 / 3, not 4 / 2."""
    other = {**PROBES, "gradient_reference_norm_squared": 4.0}
    metrics = frame(*(cell("a", s, 1.0) for s in range(4)), *(cell("b", s, 1.0) for s in range(4)))
    metrics = pd.concat([metrics, frame(*(cell("b", s, 1.0, other) for s in range(4, 8)))])
    board = board_of(metrics)
    assert board["gradient_variance_relative"].tolist() == pytest.approx([4 / 3, 4 / 3])


def test_estimators_on_trajectories_of_their_own_have_their_own_norms():
    other = {**PROBES, "gradient_reference_norm_squared": 4.0}
    board = board_of(frame(*(cell("a", s, 1.0) for s in SEEDS), *(cell("b", s, 1.0, other) for s in SEEDS)))
    assert board["gradient_variance_relative"].to_dict() == pytest.approx({"a": 2.0, "b": 1.0})


def test_bias_is_relative_to_the_reference():
    board = with_probe(lambda seed, step: {"gradient_bias_squared": [0.21, 0.19][seed]})
    assert board["gradient_bias_squared"] == pytest.approx(0.2 / 2.0)


@pytest.mark.parametrize(("spread", "shown"), [(0.7, 5.0), (0.9, math.nan)])
def test_a_bias_that_is_only_noise_is_empty(spread, shown):
    """Two seeds spread / 2 about the mean, over a reference of 1: half of the interval is 12.7 spread / 2, 5 at most."""

    def values_of(seed, step):
        return {"gradient_bias_squared": 5 + [-0.5, 0.5][seed] * spread, "gradient_reference_norm_squared": 1.0}

    assert with_probe(values_of)["gradient_bias_squared"] == pytest.approx(shown, nan_ok=True)


def test_cosine_pools_the_moments_over_seeds():
    """dot 1 / sqrt(4 * 1) = 0.5, although neither seed has that cosine."""

    def values_of(seed, step):
        own, dot = ([3.8, 4.2][seed], [0.98, 1.02][seed])
        return {"gradient_norm_squared": own, "gradient_reference_dot": dot, "gradient_reference_norm_squared": 1.0}

    assert with_probe(values_of)["gradient_cosine"] == pytest.approx(0.5)


def test_cosine_is_clipped_because_debiased_norms_are_noisy():
    assert with_probe(lambda seed, step: {"gradient_reference_dot": 5.0})["gradient_cosine"] == 1.0


@pytest.mark.parametrize("unresolved", [-0.1, 0.0])
def test_a_signal_that_cannot_be_told_from_zero_gives_nan(unresolved):
    """At one checkpoint of three; averaging the other two would favour the noisier estimator."""
    board = with_probe(lambda seed, step: {"gradient_norm_squared": unresolved if step == 30 else 2.0})
    assert math.isnan(board["gradient_cosine"])
    assert board["gradient_variance"] == pytest.approx(4.0)
    board = with_probe(lambda seed, step: {"gradient_reference_norm_squared": unresolved if seed == step == 0 else 2.0})
    assert all(math.isnan(board[name]) for name in COLUMNS)


def test_the_intervals_of_the_columns_are_jackknives_over_seeds():
    """Of a mean, the jackknife is the standard error; the direction error's squared product loses its own noise."""
    bias, dots = np.array([0.3, 0.5, 0.4, 0.6]), np.array([0.9, 1.1, 1.2, 0.8])
    cells = (
        cell("a", s, 1.0, {**PROBES, "gradient_bias_squared": bias[s], "gradient_reference_dot": dots[s]})
        for s in range(4)
    )
    board = board_of(frame(*cells)).loc["a"]
    half = scipy.stats.t.isf(0.025, 3) * bias.std(ddof=1) / 2 / 2.0
    assert board["gradient_bias_squared_ci_low"] == pytest.approx(bias.mean() / 2 - half)
    assert board["gradient_bias_squared_ci_high"] == pytest.approx(bias.mean() / 2 + half)
    squared = dots.mean() ** 2 - dots.var(ddof=1) / 4
    assert board["gradient_direction_error"] == pytest.approx(1 - squared / ((4.0 + 2.0) * 2.0))
    assert board["gradient_direction_error_ci_low"] < board["gradient_direction_error"]


@pytest.mark.parametrize(("variances", "expected"), [((0.0, 0.0), 0.0), ((0.0, 2.0), 0.0), ((2.0, math.inf), math.inf)])
def test_variances_of_zero_and_infinity_are_numbers(variances, expected):
    assert with_probe(lambda seed, step: {"gradient_variance": variances[seed]})["gradient_variance"] == expected


@pytest.mark.parametrize("variances", [(0.0, math.inf), (-1.0, -1.0)])
def test_variances_without_a_geometric_mean_give_nan(variances):
    over_seeds = with_probe(lambda seed, step: {"gradient_variance": variances[seed]})
    over_checkpoints = with_probe(lambda seed, step: {"gradient_variance": variances[int(step == 30)]})
    assert math.isnan(over_seeds["gradient_variance"])
    assert math.isnan(over_checkpoints["gradient_variance"])


def test_an_estimator_that_lacks_a_checkpoint_is_not_averaged_over_the_others():
    metrics = simulated({"a": 1.0, "b": 0.0})
    metrics = metrics[~((metrics["estimator"] == "b") & (metrics["phase"] == "probe") & (metrics["step"] == 60))]
    board = board_of(metrics)
    assert board.loc["a", [*COLUMNS, "gradient_variance"]].notna().all()
    assert board.loc["b", [*COLUMNS, "gradient_variance"]].isna().all()
    tests = tables.comparisons(metrics)
    assert tests.loc[tests["metric"] == "gradient_variance", "n_pairs"].tolist() == [0]


# --- ranks, tiers, comparisons


def test_known_differences_are_found():
    """Paired noise 0.05 sqrt(2), differences 0.3: an effect of 4.2 at n = 8. A miss in 6 runs has p < 1e-5.

    The seed effect, forty times the noise, hides it from any test that does not pair the seeds.
    """
    for stream in range(6):
        metrics = simulated({"low": 0.0, "high": 0.6, "middle": 0.3}, spread=2.0, stream=stream)
        tests = tables.comparisons(metrics)
        rewards = tests[tests["metric"] == "reward"]
        found = list(zip(rewards["estimator_a"], rewards["estimator_b"], strict=True))
        assert found == [("high", "middle"), ("high", "low"), ("middle", "low")]
        assert (rewards["verdict"] == "a higher").all()
        assert (rewards["p_holm"] < 0.05).all()
        board = tables.leaderboard(metrics, tests)
        assert board["estimator"].tolist() == ["high", "middle", "low"]
        assert board["tier"].tolist() == [1, 2, 3]


def test_equal_estimators_share_a_tier():
    """Three null pairs at family-wise alpha 0.05: more than 3 alarms in 8 runs have a binomial p below 4e-4."""
    alarms = 0
    for stream in range(8):
        metrics = simulated({"a": 0.0, "b": 0.0, "c": 0.0}, stream=stream)
        tests = tables.comparisons(metrics)
        alarm = (tests.loc[tests["metric"] == "reward", "verdict"] != "not distinguishable").any()
        alarms += alarm
        if not alarm:
            assert tables.leaderboard(metrics, tests)["tier"].tolist() == [1, 1, 1]
    assert alarms <= 3


def test_variances_are_compared_on_the_log_scale_and_the_test_says_so():
    metrics = frame(*(cell("a", s, 1.0, {**PROBES, "gradient_variance": math.exp(2) * (1 + s)}) for s in SEEDS))
    metrics = pd.concat([metrics, frame(*(cell("b", s, 1.0, {**PROBES, "gradient_variance": 1 + s}) for s in SEEDS))])
    test = tables.comparisons(metrics).set_index("metric").loc["gradient_variance"]
    assert (test["estimator_a"], test["estimator_b"], test["split"]) == ("a", "b", "train")
    assert test["mean_difference"] == pytest.approx(2.0)
    assert test["test"] == "paired sign-flip permutation (exact) of ln gradient_variance"
    assert test["verdict"] == "a higher"


def test_each_metric_is_its_own_family():
    tests = tables.comparisons(simulated({"a": 0.1, "b": 0.0, "c": 0.05, "d": 0.02}))
    assert tests.groupby(["metric", "split"]).size().to_dict() == {
        ("gold_reward", "test"): 6,
        ("gradient_variance", "train"): 6,
        ("reward", "test"): 6,
    }
    for _, family in tests.groupby("metric"):
        assert family["p_holm"].to_numpy() == pytest.approx(statistics.holm(family["p_value"]))


def test_p_against_the_best_is_that_of_the_reward():
    metrics = simulated({"a": 0.0, "b": 0.02, "c": 0.05})
    tests = tables.comparisons(metrics)
    board = tables.leaderboard(metrics, tests).set_index("estimator")["p_vs_best_holm"]
    p_of = {}
    for test in tests.itertuples():
        p_of[test.metric, frozenset((test.estimator_a, test.estimator_b))] = test.p_holm
    assert math.isnan(board["c"])
    for other in ("a", "b"):
        pair = frozenset(("c", other))
        assert board[other] == p_of["reward", pair]
        assert p_of["reward", pair] != p_of["gold_reward", pair]  # else a mix-up could not be seen


def test_seeds_are_paired_by_id():
    """Both have seeds 2 to 5; reward 2 * seed for a and seed for b, so the differences are the ids."""
    cells = [cell("a", seed, 2.0 * seed) for seed in (5, 4, 3, 2, 1)] + [cell("b", seed, seed) for seed in range(2, 7)]
    test = tables.comparisons(frame(*cells)).set_index("metric").loc["reward"]
    assert test["n_pairs"] == 4
    assert (test["estimator_a"], test["mean_difference"]) == ("a", pytest.approx(3.5))
    assert test["verdict"] == "underpowered"
    assert test["smallest_attainable_p"] == 2 / 16


def test_ties_go_by_name():
    metrics = frame(*(cell(name, seed, 1.0) for name in ("c", "a", "b") for seed in SEEDS))
    board = board_of(metrics)
    assert board.index.tolist() == ["a", "b", "c"]
    assert board["tier"].tolist() == [1, 1, 1]
    assert (tables.comparisons(metrics)["p_value"] == 1.0).all()


def test_settings_and_tasks_are_never_mixed():
    """In one setting a leads, in the other b; each half is what it would be alone."""
    first = simulated({"a": 0.05, "b": 0.0}, setting="embedded")
    second = simulated({"a": 0.0, "b": 0.5}, setting="hub", stream=1)
    third = simulated({"a": 0.02, "b": 0.0}, task="arithmetic", setting="embedded", stream=2)
    together = pd.concat([second, third, first])
    tests = tables.comparisons(together)
    assert tests.loc[tests["metric"] == "reward", "p_holm"].nunique() == 3  # else a mix-up could not be seen
    board = tables.leaderboard(together, tests)
    alone = [tables.comparisons(part) for part in (third, first, second)]
    pd.testing.assert_frame_equal(tests, pd.concat(alone, ignore_index=True))
    boards = [tables.leaderboard(part, own) for part, own in zip((third, first, second), alone, strict=True)]
    pd.testing.assert_frame_equal(board, pd.concat(boards, ignore_index=True))
    assert board.loc[board["rank"] == 1, "estimator"].tolist() == ["a", "a", "b"]


# --- incomplete runs


def test_failed_cells_stay_visible_and_give_no_numbers():
    good = [cell("a", seed, 0.5) for seed in range(8)]
    partial = [*cell("a", 8, 50.0), row("a", 8, status="diverged")]
    board = board_of(frame(*good, partial, broken("a", 9, "failed"), *(broken("b", s, "timeout") for s in range(10))))
    assert board.loc["a", "status"] == "ok 8, diverged 1, failed 1"
    assert (board.loc["a", "n_seeds"], board.loc["a", "test_reward_mean"]) == (8, pytest.approx(0.5))
    assert (board.loc["b", "status"], board.loc["b", "n_seeds"]) == ("timeout 10", 0)
    assert board.index.tolist() == ["a", "b"]
    assert board.loc["b", ["rank", "tier", "test_reward_mean", "p_vs_best_holm"]].isna().all()


def test_pairs_with_a_failed_estimator_are_rows_outside_the_family():
    cells = [cell(name, seed, reward + seed) for name, reward in (("a", 0.1), ("b", 0.0)) for seed in range(6)]
    tests = tables.comparisons(frame(*cells, *(broken("c", seed, "oom") for seed in range(6))))
    rewards = tests[tests["metric"] == "reward"].set_index(["estimator_a", "estimator_b"])
    assert rewards.loc[("a", "b"), "p_holm"] == 2 / 64  # not multiplied: the family is one
    assert rewards["n_pairs"].tolist() == [6, 0, 0]
    assert rewards["verdict"].tolist() == ["a higher", "underpowered", "underpowered"]


def test_underpowered_counts_the_family_of_those_that_were_tested():
    """Six seeds decide one pair (2 / 64 < 0.05) and not three; the pairs of a failed estimator don't count."""
    three = simulated({"a": 0.0, "b": 0.0, "c": 0.0}, seeds=range(6))
    assert (tables.comparisons(three)["verdict"] == "underpowered").all()
    failed = frame(*(broken("c", seed, "failed") for seed in range(6)))
    two = tables.comparisons(pd.concat([three[three["estimator"] != "c"], failed]))
    tested = two[two["n_pairs"] > 0]
    assert tested["verdict"].tolist() == ["not distinguishable"] * 3


def test_all_failed():
    metrics = frame(*(broken(name, seed, "failed") for name in ("b", "a") for seed in range(3)))
    tests = tables.comparisons(metrics)
    assert tests.empty
    assert list(tests.columns) == schema.TESTS_COLUMNS
    board = tables.leaderboard(metrics, tests)
    assert board["estimator"].tolist() == ["a", "b"]
    assert board["status"].tolist() == ["failed 3", "failed 3"]
    assert board["rank"].isna().all()


def test_no_rows_at_all():
    metrics = frame()
    tests = tables.comparisons(metrics)
    board = tables.leaderboard(metrics, tests)
    assert (len(tests), len(board)) == (0, 0)
    assert list(board.columns) == schema.LEADERBOARD_COLUMNS


def test_one_estimator_has_an_empty_table_of_tests():
    tests = tables.comparisons(simulated({"a": 1.0}))
    assert tests.empty
    assert list(tests.columns) == schema.TESTS_COLUMNS


def test_one_seed_is_underpowered_and_has_no_interval():
    metrics = simulated({"a": 1.0, "b": 0.0}, seeds=[3])
    assert (tables.comparisons(metrics)["verdict"] == "underpowered").all()
    board = board_of(metrics)
    assert board["test_reward_mean"].notna().all()
    assert board[["test_reward_ci_low", "test_reward_ci_high"]].isna().all(axis=None)


def test_an_ok_cell_without_a_finite_test_reward_is_counted_apart():
    """NaN, infinite, and a cell that stopped before the last step of the group."""
    metrics = simulated({"a": 1.0, "b": 0.0})
    final = (metrics["step"] == LAST_STEP) & (metrics["split"] == "test") & (metrics["metric"] == "reward")
    a = final & (metrics["estimator"] == "a")
    metrics.loc[a & (metrics["seed"] == 0), "value"] = np.nan
    metrics.loc[a & (metrics["seed"] == 1), "value"] = np.inf
    metrics = metrics[~(a & (metrics["seed"] == 2))]
    board = board_of(metrics)
    assert (board.loc["a", "status"], board.loc["a", "n_seeds"]) == ("ok 5, no test reward 3", 5)
    assert np.isfinite(board.loc["a", "test_reward_mean"])
    assert tables.comparisons(metrics).set_index("metric").loc["reward", "n_pairs"] == 5


def test_a_run_of_probes_alone_has_no_ranks():
    metrics = simulated({"a": 1.0, "b": 0.0})
    board = board_of(metrics[metrics["phase"] == "probe"])
    assert board["rank"].isna().all()
    assert board["status"].tolist() == ["ok", "ok"]
    assert board["gradient_variance"].notna().all()


def test_rows_that_come_twice_are_refused():
    metrics = simulated({"a": 1.0, "b": 0.0})
    twice = pd.concat([metrics, metrics.iloc[[5]]])
    with pytest.raises(ValueError, match="1 row of the metrics comes twice"):
        tables.comparisons(twice)
    with pytest.raises(ValueError, match=r"comes? twice"):
        tables.leaderboard(twice, tables.comparisons(metrics))


def test_a_skip_may_stand_there_twice():
    """Probes skip a cell at each checkpoint."""
    metrics = simulated({"a": 1.0, "b": 0.0})
    skip = metrics.iloc[[0]].assign(estimator="c", metric="", value=math.nan, status="skipped")
    board = tables.leaderboard(pd.concat([metrics, skip, skip]), tables.comparisons(metrics)).set_index("estimator")
    assert board.loc["c", "status"] == "skipped 1"


def test_one_label_with_two_sets_of_parameters_is_refused():
    old, new = simulated({"a": 1.0}), simulated({"a": 1.0}, seeds=range(8, 16), estimator_params='{"k": 4}')
    with pytest.raises(ValueError, match="different parameters"):
        tables.comparisons(pd.concat([old, new]))


def test_missing_columns_and_seeds_are_refused():
    metrics = simulated({"a": 1.0})
    with pytest.raises(ValueError, match="status"):
        tables.comparisons(metrics.drop(columns="status"))
    with pytest.raises(ValueError, match="p_holm"):
        tables.leaderboard(metrics, tables.comparisons(metrics).drop(columns="p_holm"))
    with pytest.raises(ValueError, match="no seed"):
        tables.comparisons(pd.concat([metrics, frame(broken("b", None, "skipped"))]))


# --- files


def test_csv_is_the_same_for_shuffled_rows_and_for_tables_read_back(tmp_path):
    metrics = simulated({"a": 0.1, "b": 0.05, "c": 0.0}, setting="")
    metrics = pd.concat([metrics, frame(broken("c", 99, "failed", setting=""))], ignore_index=True)
    tables.write_parquet(metrics, tmp_path / "metrics.parquet")
    tables.write_csv(metrics, tmp_path / "metrics.csv")
    variants = {
        "first": metrics,
        "again": metrics,
        "shuffled": metrics.sample(frac=1.0, random_state=1),
        "parquet": pd.read_parquet(tmp_path / "metrics.parquet"),
    }
    for name, rows in variants.items():
        tests = tables.comparisons(rows)
        tables.write_csv(tests, tmp_path / f"tests-{name}.csv")
        if name == "parquet":
            tests = pd.read_csv(tmp_path / "tests-parquet.csv")  # here the setting "" is NaN
        tables.write_csv(tables.leaderboard(rows, tests), tmp_path / f"leaderboard-{name}.csv")
    for table in ("tests", "leaderboard"):
        contents = {name: (tmp_path / f"{table}-{name}.csv").read_bytes() for name in variants}
        assert contents["again"] == contents["first"]
        assert contents["shuffled"] == contents["first"]
    assert (tmp_path / "tests-parquet.csv").read_bytes() == (tmp_path / "tests-first.csv").read_bytes()
    from_csv = tables.comparisons(pd.read_csv(tmp_path / "metrics.csv"))
    pd.testing.assert_frame_equal(from_csv, tables.comparisons(metrics), rtol=1e-9, atol=1e-11)
    read_back = pd.read_csv(tmp_path / "leaderboard-parquet.csv")
    assert read_back["p_vs_best_holm"].notna().tolist() == [False, True, True]


def test_numbers_do_not_depend_on_what_else_is_in_the_table():
    metrics = simulated({"a": 0.1, "b": 0.05, "c": 0.0})
    without = metrics[metrics["estimator"] != "c"]
    columns = ["mean_difference", "ci_low", "ci_high", "p_value"]
    pairs = [tables.comparisons(rows).query("estimator_a == 'a' and estimator_b == 'b'") for rows in (metrics, without)]
    assert pairs[0][columns].to_numpy().tolist() == pairs[1][columns].to_numpy().tolist()


def test_csv_format_is_fixed(tmp_path):
    path = tmp_path / "table.csv"
    table = pd.DataFrame({"x": [0.1 + 0.2, 85_899_345_921.0, math.inf, math.nan], "n": pd.array([1, 2, 3, pd.NA])})
    tables.write_csv(table, path)
    assert path.read_bytes() == b"x,n\n0.3,1\n85899345921,2\ninf,3\n,\n"
    assert pd.read_csv(path)["x"][2] == math.inf


def test_parquet_keeps_every_digit_and_is_the_same_again(tmp_path):
    metrics = simulated({"a": 1.0 / 3.0})
    for name in ("first", "second"):
        tables.write_parquet(metrics, tmp_path / name)
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    assert pd.read_parquet(tmp_path / "first")["value"].tolist() == metrics["value"].tolist()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def half(value):
        if value == 1:
            raise OSError("disk full")
        return str(value)

    monkeypatch.setattr("gradebench.storage.formats._field", half)
    with pytest.raises(OSError, match="disk full"):
        tables.write_csv(pd.DataFrame({"x": [1]}), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_written_files_are_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    tables.write_csv(pd.DataFrame({"x": [1]}), tmp_path / "table.csv")
    assert (tmp_path / "table.csv").stat().st_mode == (tmp_path / "plain").stat().st_mode


# --- controls ---------------------------------------------------------------------------------------------------


def test_controls_raise_false_alarms_at_their_level():
    """200 estimators that differ from their A/A controls in nothing but noise: 10 alarms expected, at most 24 but for 1e-4."""
    rng = np.random.default_rng(0)
    names = [f"e{i:03}" for i in range(200)]
    rows = []
    for name in [*names, *(name + tables.CONTROL for name in names)]:
        for seed in SEEDS:
            rows.append(row(name, seed, "evaluation", "test", LAST_STEP, "reward", rng.normal()))
    found = tables.controls(pd.DataFrame(rows))
    assert len(found) == 200
    assert 1 <= (found["verdict"] == "false alarm").sum() <= 24


def test_a_control_that_differs_is_an_alarm():
    """A mutant: a harness whose second run isn't like its first."""
    rows = []
    for name, shift in (("a", 0.0), ("a" + tables.CONTROL, 0.1)):
        for seed in SEEDS:
            rows.append(row(name, seed, "evaluation", "test", LAST_STEP, "reward", shift + 0.01 * seed))
    (found,) = tables.controls(pd.DataFrame(rows)).to_dict("records")
    assert found["verdict"] == "false alarm"
    assert found["p_value"] == 2 / 2**8


# --- the front --------------------------------------------------------------------------------------------------


def front(*rows):
    columns = ["estimator", "test_reward_mean", "gradient_variance_relative", "seconds_per_step"]
    return tables.pareto_front(pd.DataFrame(rows, columns=columns).assign(ranked_by="reward"))


def test_the_front_is_what_nothing_dominates():
    best, frugal, steady = ("best", 0.9, 5.0, 3.0), ("frugal", 0.6, 5.0, 1.0), ("steady", 0.7, 1.0, 2.0)
    assert front(best, frugal, steady, ("worse", 0.6, 5.0, 2.0)) == ["best", "frugal", "steady"]


def test_equals_share_the_front():
    assert front(("a", 0.9, 1.0, 1.0), ("b", 0.9, 1.0, 1.0)) == ["a", "b"]


def test_what_has_no_number_takes_no_part():
    assert front(("a", 0.5, 1.0, 1.0), ("b", 0.9, math.nan, 0.5), ("c", math.nan, 0.1, 0.1)) == ["a"]
    assert front(("b", 0.9, math.nan, 0.5)) == []


# --- what ranks, baselines, estimators with equal draws


def with_objective(metrics, beta=0.1):
    """The metrics with an objective beside each reward: reward less beta times the divergence."""
    at = ["cell_id", "split", "step"]
    rewards = metrics[(metrics["metric"] == "reward") & (metrics["phase"] == "evaluation")]
    penalty = metrics[metrics["metric"] == "kl"].set_index(at)["value"]
    values = rewards["value"].to_numpy() - beta * penalty.reindex(pd.MultiIndex.from_frame(rewards[at])).to_numpy()
    return pd.concat([metrics, rewards.assign(metric="objective", value=values)], ignore_index=True)


def dear(metrics, estimator, kl):
    """The metrics with another divergence for one estimator."""
    mine = (metrics["estimator"] == estimator) & (metrics["metric"] == "kl") & (metrics["step"] > 0)
    return metrics.assign(value=metrics["value"].mask(mine, kl))


def test_ranks_go_by_the_objective_or_as_asked():
    """b has more reward for so much divergence that its objective is lower: 1.3 - 1.0 against 1.0 - 0.3."""
    metrics = with_objective(dear(simulated({"a": 1.0, "b": 1.3}), "b", 10.0))
    tests = tables.comparisons(metrics)
    assert list(tests["metric"]) == ["objective", "reward", "gold_reward", "gradient_variance"]
    board = tables.leaderboard(metrics, tests)
    assert list(board["estimator"]) == ["a", "b"] and set(board["ranked_by"]) == {"objective"}
    assert list(board["tier"]) == [1, 2] and list(board["letters"]) == ["a", "b"] and set(board["steps"]) == {LAST_STEP}
    first = board.iloc[0]
    assert first["test_objective_mean"] == pytest.approx(first["test_reward_mean"] - 0.1 * 3.0)
    assert first["test_objective_ci_low"] < first["test_objective_mean"] < first["test_objective_ci_high"]
    by_reward = tables.leaderboard(metrics, tests, "reward")
    assert list(by_reward["estimator"]) == ["b", "a"] and set(by_reward["ranked_by"]) == {"reward"}
    assert board["p_vs_best_holm"].iloc[1] == tests["p_holm"].iloc[0]


def test_where_a_cell_lacks_the_objective_the_reward_ranks():
    metrics = with_objective(simulated({"a": 1.0, "b": 0.0}))
    lacking = metrics[~((metrics["metric"] == "objective") & (metrics["cell_id"] == "a-3"))]
    assert tables.ranked_by(metrics) == {("imdb", "embedded"): "objective"}
    assert tables.ranked_by(lacking) == {("imdb", "embedded"): "reward"}
    board = tables.leaderboard(lacking, tables.comparisons(lacking))
    assert set(board["ranked_by"]) == {"reward"} and set(board["n_seeds"]) == {len(SEEDS)}


def test_baselines_against_the_rest_are_the_family():
    metrics = simulated({"low": 0.0, "base": 1.0, "same": 1.0, "high": 2.0})
    tests = tables.comparisons(metrics, ["base"])
    rewards = tests[tests["metric"] == "reward"]
    assert len(rewards) == 3 and set(rewards["family"]) == {3}
    assert all("base" in (row.estimator_a, row.estimator_b) for row in rewards.itertuples())
    np.testing.assert_allclose(rewards["p_holm"], statistics.holm(rewards["p_value"]))
    board = tables.leaderboard(metrics, tests, against=["base"]).set_index("estimator")
    assert board["verdict"].to_dict() == {
        "high": "above base", "same": "not significantly different from base", "base": "", "low": "below base",
    }  # fmt: skip
    assert math.isnan(board.loc["base", "p_vs_baseline_holm"]) and board.loc["high", "p_vs_baseline_holm"] < 0.05
    assert board["tier"].isna().all() and set(board["letters"]) == {""}
    both = tables.comparisons(metrics, ["base", "low"])
    assert len(both[both["metric"] == "reward"]) == 4  # the two with each of the other two
    board = tables.leaderboard(metrics, both, against=["base", "low"]).set_index("estimator")
    assert board.loc["high", "verdict"] == "above base; above low"


def test_estimators_that_drew_the_same_are_one_with_two_names():
    """The family of four names is that of three: 3 pairs and not 6, and p doesn't pay for the second name."""
    metrics = simulated({"a": 1.0, "b": 1.04, "c": 0.0})
    copy = metrics[metrics["estimator"] == "b"]
    copy = copy.assign(estimator="z", cell_id=copy["cell_id"].str.replace("b-", "z-"))
    both = pd.concat([metrics, copy], ignore_index=True)
    alone, tests = (
        frame[frame["metric"] == "reward"] for frame in (tables.comparisons(metrics), tables.comparisons(both))
    )
    assert len(tests) == 6 and set(tests["family"]) == {3}
    pairs = {frozenset((row.estimator_a, row.estimator_b)): row for row in tests.itertuples()}
    assert pairs[frozenset("bz")].verdict == tables.SAME and math.isnan(pairs[frozenset("bz")].p_holm)
    for row in alone.itertuples():
        for name in {"b", "z"} if "b" in (row.estimator_a, row.estimator_b) else {""}:
            pair = frozenset(name if one == "b" else one for one in (row.estimator_a, row.estimator_b))
            assert pairs[pair].p_holm == row.p_holm and pairs[pair].verdict == row.verdict
    board = board_of(both)
    assert board["same_as"].to_dict() == {"b": "", "z": "b", "a": "", "c": ""}
    assert board.loc["b", "letters"] == board.loc["z", "letters"]
    against = tables.comparisons(both, ["z"])
    assert set(against.loc[against["metric"] == "reward", "family"]) == {2}
    board = tables.leaderboard(both, against, against=["z"]).set_index("estimator")
    assert board.loc["b", "same_as"] == "z" and board.loc["b", "verdict"] == ""
    other = both.copy()
    other.loc[(other["estimator"] == "z") & (other["metric"] == "kl") & (other["step"] == 30), "value"] += 1e-15
    assert set(board_of(other)["same_as"]) == {""}


def test_updates_and_clipping_are_columns():
    metrics = frame(*(cell(name, seed, 1.0) for name in "ab" for seed in range(3)))
    rows = []
    for seed, (count, share, factor) in enumerate([(240.0, 0.5, 0.7), (240.0, 0.25, 0.9), (240.0, 0.0, 1.0)]):
        for metric, value in (("updates", count), ("clipped_updates", share), ("clip_factor", factor)):
            rows.append(row("a", seed, "train", "train", LAST_STEP, metric, value))
        rows.append(row("a", seed, "train", "train", 30, "updates", 100.0))
    board = board_of(pd.concat([metrics, pd.DataFrame(rows, columns=schema.METRICS_COLUMNS)], ignore_index=True))
    found = board.loc["a", ["updates_per_step", "clipped_updates", "clip_factor"]].astype(float)
    np.testing.assert_allclose(found, [4.0, 0.25, 2.6 / 3])
    assert board.loc["b", ["updates_per_step", "clipped_updates", "clip_factor"]].isna().all()


@pytest.mark.parametrize(("estimators", "baselines", "seeds"), [(23, 0, 14), (23, 1, 10), (23, 2, 11), (2, 1, 6)])
def test_default_seed_count_is_for_the_family_in_use(estimators, baselines, seeds):
    assert tables.default_seed_count(estimators, baselines) == seeds


@pytest.mark.parametrize(
    ("metric", "verdict", "winner"),
    [
        ("reward", "a higher", "a"),
        ("reward", "b higher", "b"),
        ("gradient_variance", "a higher", "b"),
        ("gradient_variance", "b higher", "a"),
        ("reward", "underpowered", ""),
        ("entropy", "a higher", ""),
        ("info_mine", "a higher", ""),
    ],
)
def test_the_winner_is_the_significantly_better_one_by_the_metrics_direction(metric, verdict, winner):
    row = {"metric": metric, "estimator_a": "a", "estimator_b": "b", "verdict": verdict, "test": "t"}
    assert pairwise.directed(row)["winner"] == winner


def test_the_other_means_have_intervals_and_the_bias_has_the_name_of_metrics():
    board = board_of(simulated({"a": 0.5, "b": 0.3})).loc["a"]
    assert board["test_gold_reward_ci_low"] < board["test_gold_reward_mean"] < board["test_gold_reward_ci_high"]
    assert board["gradient_variance_ci_low"] < board["gradient_variance"] < board["gradient_variance_ci_high"]
    assert board["kl_ci_low"] == board["kl_mean"] == board["kl_ci_high"] == 3.0  # all seeds have the same
    assert board["gradient_bias_relative"] == pytest.approx(0.25)
    for end in ("", "_ci_low", "_ci_high"):
        old, new = board[f"gradient_bias_squared{end}"], board[f"gradient_bias_relative{end}"]
        assert old == new or (pd.isna(old) and pd.isna(new))
