"""Seeds that a difference needs: the power against an oracle, and the whole promise on simulated runs."""

import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.power import TTestPower

from gradebench import planning, statistics, tables
from gradebench.errors import InputError


def pilot(rewards):
    """A run's metrics from test rewards: estimator to one a seed."""
    identity = {"run_id": "run", "task": "imdb", "setting": "a", "estimator_params": "{}", "estimator_source": "here"}
    place = {"phase": "evaluation", "split": "test", "step": 4, "metric": "reward", "unit": "1", "status": "ok"}
    rows = [
        identity | place | {"cell_id": f"{name}-{seed}", "estimator": name, "seed": seed, "value": value}
        for name, values in rewards.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)[tables.METRICS_COLUMNS]


@pytest.mark.parametrize("level", [0.05, 0.05 / 253])
@pytest.mark.parametrize(("n", "effect"), [(14, 1.0), (14, 1.5), (20, 0.8), (60, 0.4), (1000, 0.1)])
def test_power_is_that_of_the_t_test(n, effect, level):
    """At the largest multiple of 2 / 2^n below the level. The oracle counts the wrong side too, below 1e-4 here."""
    step = 2.0 ** (1 - n)
    reached = step * (math.ceil(level / step) - 1) if n < 30 else level
    expected = TTestPower().power(effect, n, reached)
    assert planning.power_of(n, effect, level) == pytest.approx(expected, abs=1e-4)


def test_too_few_seeds_have_no_power_at_all():
    assert planning.power_of(5, 100.0, 0.05) == 0.0  # p is 1/16 at least
    assert planning.power_of(6, 100.0, 0.05) == pytest.approx(1.0)


@pytest.mark.parametrize(("effect", "family"), [(0.5, 1), (1.0, 6), (1.5, 253), (0.02, 1)])
def test_seeds_are_the_fewest_with_that_power(effect, family):
    seeds = planning.seeds_for(effect, family)
    level = statistics.ALPHA / family
    assert planning.power_of(seeds, effect, level) >= planning.POWER
    assert planning.power_of(seeds - 1, effect, level) < planning.POWER


def test_the_test_itself_needs_some_seeds_however_large_the_difference():
    assert planning.seeds_for(1000.0, 253) == statistics.seeds_needed(253) == 14
    assert planning.seeds_for(1e-6, 253) == math.inf
    assert planning.detectable_at(13, 253) == math.inf
    assert 1 < planning.detectable_at(14, 253) < 2


def test_what_is_detectable_has_the_power_promised():
    effect = planning.detectable_at(20, 10)
    assert planning.power_of(20, effect, statistics.ALPHA / 10) == pytest.approx(planning.POWER, abs=1e-6)


@pytest.mark.parametrize("effect", [0.9, 0.6])
def test_sign_flip_tests_with_the_seeds_planned_reach_the_power(effect):
    """300 simulated comparisons with normal differences: 0.8 within 4 standard errors, 0.7 to 0.9."""
    seeds = planning.seeds_for(effect, 3)
    rng = np.random.default_rng(0)
    p = [statistics.paired_permutation_p(rng.normal(effect, 1.0, seeds), rng, 4000) for _ in range(300)]
    assert 0.7 < np.mean(np.array(p) < statistics.ALPHA / 3) < 0.9


def test_a_plan_reads_the_spread_of_the_pilot():
    rng = np.random.default_rng(1)
    common = rng.normal(0, 1, 400)  # what seeds share drops out of their differences
    rewards = {"a": common, "b": common + rng.normal(0, 0.3, 400), "c": common + rng.normal(0, 0.6, 400)}
    plan = planning.plan(pilot(rewards), ["a", "b", "c"], 0.3)
    assert [(row.estimator_a, row.estimator_b) for row in plan.itertuples()] == [("b", "c"), ("a", "c"), ("a", "b")]
    assert plan["spread"].iloc[-1] == pytest.approx(0.3, rel=0.1)
    assert set(plan["family"]) == {3}
    assert plan["seeds_needed"].iloc[-1] == pytest.approx(planning.seeds_for(1.0, 3), abs=2)
    assert (plan["seeds_needed_high"] >= plan["seeds_needed"]).all()
    assert plan["seeds_needed"].is_monotonic_decreasing


def test_small_pilots_are_not_trusted():
    rewards = {"a": [0.0, 0.1, 0.2], "b": [0.0, 0.2, 0.1]}
    row = planning.plan(pilot(rewards), ["a", "b"], 0.1).iloc[0]
    assert row["pilot_seeds"] == 3
    assert row["seeds_needed_high"] > 2 * row["seeds_needed"]


@pytest.mark.parametrize(
    ("rewards", "said"), [({"a": [0.1, 0.2]}, "compared with nothing"), ({"a": [0.1], "b": [0.2]}, "two seeds")]
)
def test_pilots_that_say_nothing_are_refused(rewards, said):
    with pytest.raises(InputError, match=said):
        planning.plan(pilot(rewards), list(rewards), 0.1)


def test_the_command_plans_and_runs_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pilot").mkdir()
    rng = np.random.default_rng(2)
    rewards = {name: 0.5 + rng.normal(0, 0.02, 8) for name in ("rloo", "grpo", "ppo")}
    tables.write_parquet(pilot(rewards), tmp_path / "pilot" / "metrics.parquet")
    status, out, err = command("run", "-e", "rloo", "-e", "grpo", "--plan", "pilot", "--difference", "0.05")
    assert status == 0, err
    assert "over 1 pairs" in out and "0.05 between" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pilot"]
    status, out, err = command("run", "-e", "rloo", "-e", "grpo", "-e", "st", "--plan", "pilot")
    assert status == 0 and "over 3 pairs" in out
    assert "pilot lacks st" in err
    status, out, err = command("run", "-t", "polynomial", "--plan", "pilot")
    assert (status, out) == (2, "")
    assert err.startswith("gradebench: pilot has no polynomial")
    assert command("run", "--plan", "pilot", "--difference", "0")[0] == 2
