"""What a probe stands on: an estimator's own state, and the policy that moves between the calls of a batch."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from gradebench.core.sampling import generator
from gradebench.experiment import cell_files, cell_setup, harness, loaded, references
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.training import Trainer
from gradebench.experiment.warm_up import FIRST, needs_warm_up, warm_up
from gradebench.measurement.probes import by_call, calls
from gradebench.plugins import registry

OFF_POLICY = ["ppo", "dapo:n=2,minibatches=2", "gspo:n=2,minibatches=2", "cispo:n=2,minibatches=2", "reinforce-pp"]


class Losses:
    """A trainer whose own loss is a function of the batch's number; None: it has none."""

    def __init__(self, loss, noise=0.0):
        self.loss, self.noise, self.batches = loss, noise, []
        self.estimator, self.rng = SimpleNamespace(period=1), generator("cpu", 0)

    def step(self, problem, rng, update_policy):
        self.batches.append(problem)
        if self.loss is None:
            return []
        noise = self.noise * torch.randn((), generator=self.rng, dtype=torch.float64)
        return [torch.tensor(self.loss(len(self.batches)), dtype=torch.float64) + noise]


NUMBERED = SimpleNamespace(contexts=lambda number: number, problem=lambda index, ledger: index, generator=lambda n: n)


@pytest.mark.parametrize(
    ("loss", "noise", "batches"),
    [
        (None, 0.0, FIRST),  # nothing of its own but running state
        (lambda batch: 1.0, 0.0, 3 * FIRST),
        (lambda batch: 1.0 + batch, 0.0, 3 * FIRST),  # it rises
        (lambda batch: math.nan, 0.0, FIRST),
        (lambda batch: -float(batch), 0.0, 256),  # it falls for ever
        (lambda batch: math.exp(-batch / 20), 0.1, 256),
        (lambda batch: math.exp(-batch / 2), 0.1, 7 * FIRST),
    ],
)
def test_it_ends_where_the_own_loss_no_longer_falls(loss, noise, batches):
    trainer = Losses(loss, noise)
    assert warm_up(trainer, NUMBERED, 256) == batches
    assert trainer.batches == list(range(batches))  # each batch once


def test_it_ends_at_the_most_batches():
    for most in (1, 15, 100):
        assert warm_up(Losses(lambda batch: -float(batch)), NUMBERED, most) == most


@pytest.fixture
def plan(tmp_path):
    facts = {"run_id": "run", "out": str(tmp_path), "device": "cpu", "setting": "kl=0", "details": True}
    return Plan(**facts, steps=2, batch=8, checkpoints=1, learning_rate=0.05, probe_draws=8, warm_up=4, train=False)


@pytest.fixture
def cell_of(tiny):
    return lambda spec, seed=0: Cell("tiny", tiny(), {"kl": 0.0}, spec, spec, seed)


def probed(plan, cell):
    """The rows of probes.csv of a cell's file, without what a clock says."""
    loaded.worker.forget()
    references.reference_cell(plan, cell, 0)
    assert harness.run_cell(plan, cell, "key") == ("ok", "")
    rows = pd.read_feather(f"{plan.out}/cells/{cell.id}/probes.arrow")
    return rows[~rows["metric"].str.contains("seconds")].reset_index(drop=True)


def trainer_of(plan, cell, rate=0.0):
    task = loaded.worker.task(plan, cell)
    return Trainer(cell_setup.make_estimator(cell.estimator_spec, task, plan), task, plan, rate)


@pytest.mark.parametrize(("spec", "needed"), [("rloo", False), ("reinforce", True), ("a2c", True), ("dapo:n=2", True)])
def test_who_is_warmed_up(plan, cell_of, spec, needed):
    assert needs_warm_up(trainer_of(plan, cell_of(spec))) == needed


@pytest.mark.parametrize("spec", OFF_POLICY)
def test_warming_up_leaves_the_policy_where_it_is(plan, cell_of, spec):
    trainer = trainer_of(plan, cell_of(spec))
    before = [p.detach().clone() for p in trainer.task.params]
    task = trainer.task
    source = references.source_of(task, plan, cell_of(spec), "x", 0, plan.batch // trainer.estimator.n)
    warm_up(trainer, source, 4)
    assert all(torch.equal(p, q) for p, q in zip(task.params, before, strict=True))
    moments = trainer.optimizer.state_dict()["state"]
    assert moments and all(float(one["exp_avg_sq"].max()) > 0 for one in moments.values())


@pytest.mark.parametrize("spec", OFF_POLICY)
def test_the_policy_moves_between_calls_as_in_training_and_is_put_back(plan, cell_of, spec):
    trained = trainer_of(plan, cell_of(spec), rate=0.05)
    problem = trained.task.problem("train", torch.arange(plan.batch // trained.estimator.n))
    start = [p.detach().clone() for p in trained.task.params]
    seen = []
    update = trained._update
    trained._update = lambda gradient: (seen.append([g.clone() for g in gradient]), update(gradient))[1]
    trained.estimator.eval()
    trained.step(problem, generator("cpu", 1))

    probed = trainer_of(plan, cell_of(spec))  # puts the parameters back to the start
    probed.estimator.eval()
    state = probed.optimizer.state_dict()
    with_updates = calls(probed.estimator, problem, generator("cpu", 1), lambda: probed.moving(0.05))
    assert all(torch.equal(p, q) for p, q in zip(probed.task.params, start, strict=True))
    assert probed.optimizer.state_dict()["state"] == state["state"] == {}
    assert probed.optimizer.param_groups[0]["lr"] == 0.0
    at_rest = calls(probed.estimator, problem, generator("cpu", 1))
    assert len(with_updates) == len(seen) == probed.estimator.period > 1
    learns = any(p.requires_grad for p in probed.estimator.parameters())
    for number, (one, other, still) in enumerate(zip(with_updates, seen, at_rest, strict=True)):
        if (
            not learns
        ):  # a critic that learns in training doesn't in a probe; its advantages are of before, all the same
            assert all(torch.equal(a, b) for a, b in zip(one.grad, other, strict=True))
        same = all(torch.equal(a, b) for a, b in zip(one.grad, still.grad, strict=True))
        assert same == (number == 0)


def test_calls_show_what_clipping_takes(plan, cell_of):
    """Six digits that agree at frozen parameters come apart: GSPO's narrow interval takes tokens away, CISPO's none."""
    rows = {spec.partition(":")[0]: probed(plan, cell_of(spec)) for spec in OFF_POLICY[1:4]}
    shares, variances = {}, set()
    for name, mine in rows.items():
        wide = mine.pivot_table(index="group", columns="metric", values="value", sort=False)
        assert list(wide.index[wide.index.str.startswith("call ")]) == ["call 1", "call 2"]
        shares[name] = wide["info_clipped_tokens"][["call 1", "call 2"]].tolist()
        variances.add(round(float(wide.loc["call 2", "gradient_variance"]), 9))
    assert all(first == 0 for first, _ in shares.values())
    assert shares["gspo"][1] > 0.2 > shares["dapo"][1] >= shares["cispo"][1] == 0
    assert len(variances) == 3


def test_means_by_call_are_the_mean_of_a_batch(plan, cell_of):
    cell = cell_of("dapo:n=2,minibatches=2")
    trainer = trainer_of(plan, cell)
    trainer.estimator.eval()
    source = references.source_of(trainer.task, plan, cell, "x", 0, 4)
    source = replace(source, moving=lambda: trainer.moving(0.05))
    size = sum(p.numel() for p in trainer.task.params)
    centre = torch.zeros(size, dtype=torch.float64)
    found, info = by_call(trainer.estimator, source, 3, centre, [size])
    problems = [source.problem(source.contexts(number), None) for number in range(3)]
    for place in range(2):
        drawn = [
            torch.cat([g.flatten() for g in calls(trainer.estimator, problem, source.generator(2 * n + i),
                                                  source.moving)[place].grad]).double()
            for n, problem in enumerate(problems) for i in (0, 1)
        ]  # fmt: skip
        torch.testing.assert_close(found[place].sums.sum(0) / 3, torch.stack(drawn).mean(0), rtol=0, atol=1e-7)
    assert info[0] == {"clipped_tokens": 0.0} and 0 <= info[1]["clipped_tokens"] <= 1


@pytest.mark.parametrize("spec", ["a2c", "ppo", "relax"])
def test_another_seed_finds_the_state_that_it_would_have_made(plan, cell_of, spec, monkeypatch):
    cell = cell_of(spec, seed=1)
    alone = probed(plan, cell)
    file = cell_files.warm_file(plan, cell, 0)
    assert file.is_file()
    with monkeypatch.context() as patch:
        patch.setattr(references, "warm_up", lambda *_: pytest.fail("it was made again"))
        pd.testing.assert_frame_equal(probed(plan, cell), alone, check_exact=True)
    file.unlink()
    probed(plan, cell_of(spec, seed=0))  # makes it
    pd.testing.assert_frame_equal(probed(plan, cell), alone, check_exact=True)


def test_a_state_of_another_estimator_or_reference_is_made_anew(plan, cell_of, monkeypatch):
    cell, made = cell_of("a2c"), []
    real = warm_up
    monkeypatch.setattr(references, "warm_up", lambda *arguments: made.append(1) or real(*arguments))
    for changed in (plan, plan, replace(plan, reference_key="another")):
        probed(changed, cell)
    probed(plan, replace(cell, params='{"lam": 0.5}'))
    assert len(made) == 3


def test_what_estimates_say_of_themselves_is_a_metric_of_the_training(plan, cell_of):
    cell = cell_of("gspo:n=2,minibatches=2")
    task = loaded.worker.task(plan, cell)
    trainer = Trainer(cell_setup.make_estimator(cell.estimator_spec, task, plan), task, plan, 0.05)
    for _ in range(3):
        trainer.step(task.problem("train", torch.arange(4)), generator("cpu", 1))
    summary = trainer.updates.summary()
    assert trainer.updates.calls == 6 and 0.1 < summary["info_clipped_tokens"] <= 0.5  # of the second calls alone
    assert registry.resolve("estimators", "rloo").create().period == 1
