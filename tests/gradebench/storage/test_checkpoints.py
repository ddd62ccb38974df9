"""A training that was cut off and goes on gives, to the bit, what one in one piece gives."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from gradebench.core.interrupts import Interrupted
from gradebench.experiment import cell_files, harness, loaded
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.training import Trainer
from gradebench.storage import checkpoints
from gradebench.storage.checkpoints import NotPlain
from gradebench.storage.records import SAMPLES

STEPS = 7
STATEFUL = """
import torch
from gradebench import Estimate, Estimator, score

class Attributes(Estimator):
    "A baseline and a history in plain attributes, which every gradient reads."
    def __init__(self):
        super().__init__()
        self.baseline, self.history = 0.0, {"rewards": [], 3: (1, None)}

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        self.history["rewards"].append(reward.mean())
        self.baseline = 0.5 * self.baseline + 0.5 * float(sum(self.history["rewards"]))
        return Estimate(problem.grad(score(problem, z, reward, reward - self.baseline)))

class Opaque(Attributes):
    "Keeps what nobody can write down."
    def __init__(self):
        super().__init__()
        self.history["stream"] = iter(range(9))

class GlobalNoise(Attributes):
    "Against its contract: draws from torch's own generator."
    def gradient(self, problem, rng):
        self.baseline += float(torch.rand(()))
        return super().gradient(problem, rng)
"""


class Killed(Interrupted):
    """As if the process had ended here."""


@pytest.fixture
def plan(tmp_path):
    facts = {"run_id": "run", "out": str(tmp_path), "device": "cpu", "setting": "kl=0", "checkpoint_every": 0.0}
    return Plan(**facts, steps=STEPS, batch=8, learning_rate=0.02, checkpoints=0)


@pytest.fixture
def cell_of(tiny, tmp_path):
    def build(estimator):
        (tmp_path / "mine.py").write_text(STATEFUL)
        spec = f"{tmp_path}/mine.py:{estimator}" if estimator in STATEFUL else estimator
        return Cell("tiny", tiny(), {"kl": 0.0}, estimator, spec, 0)

    return build


@pytest.fixture
def run(monkeypatch):
    """Run a cell as a new process would, killed before its step of that number; returns the steps made."""

    def call(plan, cell, killed_before=None, key="key"):
        loaded.worker.forget()
        made, step = [], Trainer.step

        def counted(self, *arguments, **keywords):
            if len(made) == killed_before:
                raise Killed
            made.append(1)
            return step(self, *arguments, **keywords)

        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "step", counted)
            if killed_before is None:
                assert harness.run_cell(plan, cell, key) == ("ok", "")
            else:
                with pytest.raises(Killed):
                    harness.run_cell(plan, cell, key)
        return len(made)

    return call


def result(plan, cell):
    """Rows but for the clock's, samples, and the parameters at the end."""
    folder = cell_files.training_file(plan, cell).parent
    rows = pd.read_feather(folder / "metrics.arrow")
    rows = rows[
        ~rows["metric"].isin(
            ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]
        )
    ].reset_index(drop=True)
    params = [p.detach().clone() for p in loaded.worker.loaded.task.params]
    return rows, (folder / SAMPLES).read_bytes(), params


@pytest.mark.parametrize("estimator", ["rloo", "ppo", "grpo", "relax", "rebar", "Attributes", "GlobalNoise"])
def test_a_training_that_was_cut_off_twice_ends_as_one_in_one_piece(plan, cell_of, run, estimator):
    cell, whole = cell_of(estimator), replace(plan, out=plan.out + "/whole", checkpoint_every=1e9)
    assert run(whole, cell) == STEPS
    expected = result(whole, cell)
    assert run(plan, cell, killed_before=2) == 2
    assert run(plan, cell, killed_before=3) == 3
    assert cell_files.training_file(plan, cell).is_file()
    assert run(plan, cell) == STEPS - 5
    rows, samples, params = result(plan, cell)
    pd.testing.assert_frame_equal(rows, expected[0], check_exact=True)
    assert samples == expected[1]
    assert all(torch.equal(p, q) for p, q in zip(params, expected[2], strict=True))
    assert cell_files.training_file(plan, cell).is_file()  # for more steps


@pytest.mark.parametrize("estimator", ["rloo", "ppo", "Attributes"])
def test_a_finished_training_goes_on_to_more_steps_as_one_in_one_piece(plan, cell_of, run, estimator):
    """7 steps are evaluated at 0 and 7, and 12 at 0, 10 and 12: what the shorter one has at 7 is left out."""
    cell, longer = cell_of(estimator), replace(plan, steps=12)
    whole = replace(longer, out=plan.out + "/whole", checkpoint_every=1e9)
    assert run(whole, cell) == 12
    expected = result(whole, cell)
    assert run(plan, cell) == STEPS
    assert run(longer, cell) == 12 - STEPS
    rows, samples, params = result(longer, cell)
    pd.testing.assert_frame_equal(rows, expected[0], check_exact=True)
    assert samples == expected[1] and set(rows["step"]) == {0, 10, 12}
    assert all(torch.equal(p, q) for p, q in zip(params, expected[2], strict=True))
    assert run(plan, cell) == STEPS  # what has gone further is no start for fewer steps


def test_a_training_evaluated_elsewhere_than_is_wanted_starts_over(plan, cell_of, run):
    cell = cell_of("rloo")
    run(replace(plan, evaluations=2), cell)  # at 0, 4 and 7
    assert run(replace(plan, steps=12), cell) == 12


def test_a_state_that_is_too_large_is_not_kept(plan, cell_of, run, monkeypatch):
    monkeypatch.setattr(checkpoints, "KEPT", 100)
    run(plan, cell_of("rloo"))
    assert not cell_files.training_file(plan, cell_of("rloo")).exists()


def test_what_keeps_no_plain_data_starts_over(plan, cell_of, run):
    cell, whole = cell_of("Opaque"), replace(plan, out=plan.out + "/whole")
    run(whole, cell)
    expected = result(whole, cell)
    assert run(plan, cell, killed_before=4) == 4
    assert not cell_files.training_file(plan, cell).exists()
    assert run(plan, cell) == STEPS
    pd.testing.assert_frame_equal(result(plan, cell)[0], expected[0], check_exact=True)


def test_a_checkpoint_of_another_key_or_a_damaged_one_is_not_used(plan, cell_of, run):
    cell = cell_of("rloo")
    path = cell_files.training_file(plan, cell)
    run(plan, cell, killed_before=4)
    kept = path.read_bytes()
    assert run(plan, cell, key="another") == STEPS
    for damaged in (kept[: len(kept) // 2], b"", b"\x00" * 100, kept[8:]):
        path.write_bytes(damaged)
        assert run(plan, cell) == STEPS
    path.write_bytes(kept)
    assert run(plan, cell) == STEPS - 4


def test_a_checkpoint_is_written_when_its_time_has_come(plan, cell_of, run):
    cell = cell_of("rloo")
    run(replace(plan, checkpoint_every=1e6), cell, killed_before=4)
    assert not cell_files.training_file(plan, cell).exists()


def test_plain_data_comes_back_to_the_bit_and_nothing_else_is_taken(tmp_path):
    path = tmp_path / "state"
    tensor = torch.randn(3, dtype=torch.float64)
    state = {
        "a": [1, 0.1 + 0.2, float("nan"), None, True, "é"],
        3: (tensor, tensor.view(3, 1)),
        "empty": torch.zeros(0),
    }
    checkpoints.save(state, path)
    back = checkpoints.load(path, "cpu")
    assert str(back["a"]) == str(state["a"]) and isinstance(back[3], tuple)
    assert torch.equal(back[3][0], tensor) and back[3][1].shape == (3, 1) and back["empty"].shape == (0,)
    for bad in (object(), {1, 2}, iter([]), torch.ones(1, requires_grad=True) * 2, torch.nn.Linear(1, 1)):
        with pytest.raises(NotPlain):
            checkpoints.save({"bad": bad}, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
