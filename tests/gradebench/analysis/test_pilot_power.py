"""Seeds that a difference needs, by the spread of a pilot."""

import numpy as np
import pandas as pd
import pytest

from gradebench.analysis import pilot_power, power, tables
from gradebench.core import schema
from gradebench.core.errors import InputError


def pilot(rewards):
    """A run's metrics from test rewards: estimator to one a seed."""
    identity = {"run_id": "run", "task": "imdb", "setting": "a", "estimator_params": "{}", "estimator_source": "here"}
    place = {"phase": "evaluation", "split": "test", "step": 4, "metric": "reward", "unit": "1", "status": "ok"}
    rows = [
        identity | place | {"cell_id": f"{name}-{seed}", "estimator": name, "seed": seed, "value": value}
        for name, values in rewards.items()
        for seed, value in enumerate(values)
    ]
    return pd.DataFrame(rows)[schema.METRICS_COLUMNS]


def test_the_power_reads_the_spread_of_the_pilot():
    rng = np.random.default_rng(1)
    common = rng.normal(0, 1, 400)  # what seeds share drops out of their differences
    rewards = {"a": common, "b": common + rng.normal(0, 0.3, 400), "c": common + rng.normal(0, 0.6, 400)}
    found = pilot_power.pilot_power(pilot(rewards), ["a", "b", "c"], 0.3)
    assert [(row.estimator_a, row.estimator_b) for row in found.itertuples()] == [("b", "c"), ("a", "c"), ("a", "b")]
    assert found["spread"].iloc[-1] == pytest.approx(0.3, rel=0.1)
    assert set(found["family"]) == {3}
    assert found["seeds_needed"].iloc[-1] == pytest.approx(power.seeds_for(1.0, 3), abs=2)
    assert (found["seeds_needed_high"] >= found["seeds_needed"]).all()
    assert found["seeds_needed"].is_monotonic_decreasing


def test_the_power_for_a_baseline_counts_its_comparisons_alone():
    rng = np.random.default_rng(1)
    rewards = {name: rng.normal(0, 0.3, 12) for name in "abcd"}
    found = pilot_power.pilot_power(pilot(rewards), "abcd", 0.3, against=["c"])
    assert len(found) == 3 and set(found["family"]) == {3} and set(found["metric"]) == {"reward"}
    assert all("c" in (row.estimator_a, row.estimator_b) for row in found.itertuples())
    by_pair = pilot_power.pilot_power(pilot(rewards), "abcd", 0.3)
    assert set(by_pair["family"]) == {6} and found["seeds_needed"].max() < by_pair["seeds_needed"].max()


def test_small_pilots_are_not_trusted():
    rewards = {"a": [0.0, 0.1, 0.2], "b": [0.0, 0.2, 0.1]}
    row = pilot_power.pilot_power(pilot(rewards), ["a", "b"], 0.1).iloc[0]
    assert row["pilot_seeds"] == 3
    assert row["seeds_needed_high"] > 2 * row["seeds_needed"]


@pytest.mark.parametrize(
    ("rewards", "said"), [({"a": [0.1, 0.2]}, "compared with nothing"), ({"a": [0.1], "b": [0.2]}, "two seeds")]
)
def test_pilots_that_say_nothing_are_refused(rewards, said):
    with pytest.raises(InputError, match=said):
        pilot_power.pilot_power(pilot(rewards), list(rewards), 0.1)


def test_the_command_counts_seeds_and_runs_nothing(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pilot").mkdir()
    rng = np.random.default_rng(2)
    rewards = {name: 0.5 + rng.normal(0, 0.02, 8) for name in ("rloo", "grpo", "ppo")}
    tables.write_parquet(pilot(rewards), tmp_path / "pilot" / "metrics.parquet")
    status, out, err = command("run", "-e", "rloo", "-e", "grpo", "--power", "pilot", "--difference", "0.05")
    assert status == 0, err
    assert "over 1 pair)" in out and "0.05 between" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pilot"]
    status, out, err = command("run", "-e", "rloo", "-e", "grpo", "-e", "st", "--power", "pilot")
    assert status == 0 and "over 3 pairs" in out
    assert "pilot lacks st" in err
    words = ("run", "-e", "rloo", "-e", "grpo", "-e", "ppo", "--power", "pilot", "--against")
    status, out, err = command(*words, "ppo")
    assert status == 0 and "over 2 pairs" in out and "difference in test reward" in out
    assert command(*words, "st")[0] == 2
    status, out, err = command("run", "-t", "polynomial", "--power", "pilot")
    assert (status, out) == (2, "")
    assert err.startswith("gradebench: pilot has no polynomial")
    assert command("run", "--power", "pilot", "--difference", "0")[0] == 2
