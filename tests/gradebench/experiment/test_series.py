"""The series of a training: what every step tells by the way, kept whatever became of the run's folder."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gradebench import Ledger
from gradebench.analysis.run_files import read_steps
from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.core.sampling import generator
from gradebench.experiment import cell_setup, harness, loaded, train, training
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.series import Series
from gradebench.storage import records

STEPS = 4


@pytest.fixture
def plan(tmp_path):
    facts = {"run_id": "run", "out": str(tmp_path), "device": "cpu", "setting": "kl=0.1"}
    return Plan(**facts, steps=STEPS, batch=8, learning_rate=0.05, checkpoints=0, clip=0.05)


@pytest.fixture
def cell_of(tiny):
    def build(estimator="rloo", seed=0):
        spec = tiny(estimator) if estimator[0].isupper() else estimator
        return Cell("tiny", tiny(), {"kl": 0.1}, estimator, spec, seed)

    return build


def steps_of(plan, cell):
    """The series that a cell's folder holds, and how it ended."""
    loaded.worker.forget()
    status, _ = harness.run_cell(plan, cell, "key")
    return pd.read_feather(f"{plan.out}/cells/{cell.id}/{records.STEPS}"), status


def test_each_step_has_what_its_own_batch_says(plan, cell_of):
    """Replayed beside it: the same draws, asked again by the test, and the norm and factor of the same gradient."""
    found, status = steps_of(plan, cell_of())
    assert status == "ok" and found["step"].tolist() == list(range(STEPS)) and set(found["status"]) == {"ok"}
    assert list(found.columns) == schema.TRAINING_COLUMNS
    task = loaded.worker.task(plan, cell_of())
    estimator = cell_setup.make_estimator("rloo", task, plan)
    trainer = training.Trainer(estimator, task, plan, 0.05)
    prompts, rng = training.batches(task, plan, estimator.n, 0), generator("cpu", 0, "sampling")
    for row in found.to_dict("records"):
        index, state = next(prompts), rng.get_state()
        drawn = task.problem("train", index, Ledger())
        z = drawn.sample(estimator.n, rng)
        rng.set_state(state)
        gradient = estimator.gradient(task.problem("train", index, Ledger()), rng).grad
        rng.set_state(state)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradient))
        with torch.no_grad():
            expected = {
                "reward": drawn.raw_reward(z).mean(),
                "kl": drawn.divergence(z).sum(-1).mean(),
                "entropy": -drawn.log_prob(z).sum(-1).mean(),
                "gradient_norm": norm,
                "clip_factor": min(1.0, plan.clip / norm),
                "clipped_updates": float(norm > plan.clip),
            }
        assert row["kl"] > 0 or row["step"] == 0
        for name, value in expected.items():
            assert row[name] == pytest.approx(float(value), rel=1e-5, abs=1e-7), name
        trainer.step(task.problem("train", index, Ledger()), rng)
    assert 0 < found["clip_factor"].max() < 1  # all are clipped here


def test_of_several_updates_a_step_has_their_mean(plan, cell_of):
    found, _ = steps_of(plan, cell_of("ppo"))
    task = loaded.worker.task(plan, cell_of("ppo"))
    assert cell_setup.make_estimator("ppo", task, plan).period > 1
    rows = pd.read_feather(f"{plan.out}/cells/{cell_of('ppo').id}/{records.METRICS}").set_index("metric")["value"]
    for name in ("clip_factor", "clipped_updates", "info_clipped_tokens"):
        assert found[name].mean() == pytest.approx(rows[name], rel=1e-5)


def test_values_on_a_device_are_read_in_their_order_and_only_when_asked_for():
    """The meta device has no values: whatever reads one early fails."""
    series = Series()
    for step in range(3):
        series.add("here", float(step), 2)
        series.add("there", torch.tensor(1.0, device="meta"))
        series.add("here", torch.tensor(3.0), 1)
        series.end_step()
    assert series._rows == []
    series._ended = [(parts, torch.tensor([10.0 + step])) for step, (parts, _) in enumerate(series._ended)]
    expected = [{"step": step, "here": (step + 3) / 3, "there": 10.0 + step} for step in range(3)]
    assert series.read() == expected
    other = Series()
    other.restore(series.state())
    assert other.read() == expected


def test_where_all_sequences_are_listed_no_mean_over_them_is_kept(plan, cell_of):
    found, _ = steps_of(plan, cell_of("exact"))
    assert found[["reward", "kl", "entropy"]].isna().all(axis=None)
    assert (found["gradient_norm"] > 0).all()


LATE = """
from gradebench import Estimate, Estimator, score

class Late(Estimator):
    "Diverges at its third step."
    calls = 0

    def gradient(self, problem, rng):
        self.calls += 1
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        grad = problem.grad(score(problem, z, reward, reward))
        return Estimate([g * float("nan") for g in grad] if self.calls > 2 else grad)
"""


def test_a_series_changes_no_number_and_a_diverged_one_is_kept(plan, cell_of, tmp_path):
    def trained(series):
        loaded.worker.forget()
        task = loaded.worker.task(plan, cell_of())
        estimator = cell_setup.make_estimator("rloo", task, plan)
        ledger = Ledger() if series is None else train.ledger_for(estimator, series)
        trainer = training.Trainer(estimator, task, plan, 0.05, series)
        prompts, rng = training.batches(task, plan, estimator.n, 0), generator("cpu", 0, "sampling")
        for _ in range(STEPS):
            trainer.step(task.problem("train", next(prompts), ledger), rng)
        counts = {name: getattr(ledger, name) for name in vars(Ledger())}
        return [p.detach().clone() for p in task.params], counts

    (alone, costs), (with_series, same) = trained(None), trained(Series())
    assert costs == same and all(map(torch.equal, alone, with_series))
    (tmp_path / "late.py").write_text(LATE)
    late = replace(cell_of(), estimator="late", estimator_spec=f"{tmp_path}/late.py:Late")
    found, status = steps_of(replace(plan, patience=0), late)
    assert status == "diverged" and found["step"].tolist() == [0, 1] and set(found["status"]) == {"diverged"}


# --- a run's folder -----------------------------------------------------------------------------------------------


def training_of(folder):
    return (
        pd.read_parquet(folder / records.SERIES)
        .drop(columns="run_id")
        .sort_values(["cell_id", "step"], ignore_index=True)
    )


def test_it_stays_when_seeds_are_added_steps_continued_and_runs_merged(command, tiny, short, tmp_path):
    def run(name, *words):
        status, _, err = command("run", "-e", "rloo", "-e", "ppo", "-t", tiny(), "--out", tmp_path / name, *words)
        assert status == 0, err

    run("whole", "--seeds", "0-1", "--steps", "5")
    run("added", "--seeds", "0", "--steps", "3")
    assert len(training_of(tmp_path / "added")) == 2 * 3
    run("added", "--seeds", "0", "--steps", "5")  # goes on from step 3
    run("added", "--seeds", "1", "--steps", "5")
    whole = training_of(tmp_path / "whole")
    pd.testing.assert_frame_equal(training_of(tmp_path / "added"), whole, check_exact=True)
    run("first", "--seeds", "0", "--steps", "5")
    run("second", "--seeds", "1", "--steps", "5")
    merged = tmp_path / "merged"
    status, _, err = command("merge", tmp_path / "first", tmp_path / "second", "--out", merged)
    assert status == 0, err
    pd.testing.assert_frame_equal(training_of(merged), whole, check_exact=True)
    assert set(read_steps(merged)["run_id"]) == {"merged"}
    assert read_steps(merged)["info_clipped_tokens"].notna().sum() == 2 * 5  # of ppo
    (tmp_path / "first" / records.SERIES).write_bytes((merged / records.SERIES).read_bytes())
    with pytest.raises(InputError, match="has changed since it was written"):
        read_steps(tmp_path / "first")


def test_evaluations_in_between_are_of_their_own_key_and_change_no_other_number(command, tiny, short, tmp_path):
    words = ("run", "-e", "rloo", "-t", tiny(), "--seeds", "0", "--steps", "5", "--out")
    assert command(*words, tmp_path / "plain")[0] == 0
    assert command(*words, tmp_path / "often", "--evaluate-every", "2")[0] == 0
    plain, often = (pd.read_parquet(tmp_path / name / "metrics.parquet") for name in ("plain", "often"))
    evaluated = often[(often["phase"] == "evaluation") & (often["split"] == "test")]
    assert sorted(set(evaluated["step"])) == [0, 2, 4, 5]
    timed = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]
    at = ["phase", "split", "step", "metric"]
    (a, b) = (rows[~rows["metric"].isin(timed)].set_index(at)["value"] for rows in (plain, often))
    np.testing.assert_array_equal(a.to_numpy(), b.reindex(a.index).to_numpy())
    status, _, err = command(*words, tmp_path / "plain", "--evaluate-every", "2")
    assert status == 2 and "evaluations 1, here every 2 and 1" in err
    status, _, _ = command("merge", tmp_path / "plain", tmp_path / "often", "--out", tmp_path / "merged")
    assert status == 2
    page = (tmp_path / "often" / "config.json").read_text()
    assert '"evaluations": "every 2 and 1"' in page
    status, _, err = command(*words, tmp_path / "none", "--evaluate-every", "0")
    assert (status, err.strip()) == (2, "gradebench: --evaluate-every 0: at least 1 is needed")


def test_without_the_option_the_evaluations_are_no_other_fact_than_before(plan):
    from gradebench.experiment import facts, repeat

    (item,) = (one for one in facts.TASK if one.name == "evaluations")
    known = [facts.Known(replace(plan, **how), None, None, 0.1, (0.1, "")) for how in ({}, {"evaluations": 3})]
    assert [item.value(one) for one in known] == [None, 3]
    often = facts.Known(replace(plan, evaluate_every=25), None, None, 0.1, (0.1, ""))
    assert repeat._shared("run", {"evaluations": item.value(often)}) == ("--evaluate-every", "25")
    assert repeat._shared("run", {"evaluations": 3}) == repeat._shared("run", {"evaluations": None}) == ()
