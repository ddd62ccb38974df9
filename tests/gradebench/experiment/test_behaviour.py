"""Runs whose samples don't come from the policy that learns: what is stale by how much, and that everything else isn't touched."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from gradebench import Estimate, Estimator, InputError, generator
from gradebench.core.sampler import Sampler
from gradebench.experiment import cell_files, loaded, probe, references, train
from gradebench.experiment.behaviour import Past, require_sampler
from gradebench.experiment.cell_setup import identity_of, make_estimator
from gradebench.experiment.plan import Cell, Plan
from gradebench.measurement.moments import flatten
from gradebench.storage import records
from gradebench.storage.checkpoints import Checkpoint
from gradebench.tasks.enumerable_lm import EnumerableLm

TASK = {"vocabulary": 2, "horizon": 3, "layers": 1, "width": 4, "kl": 0.1}
CELL = Cell("enumerable-lm", "enumerable-lm:vocabulary=2,horizon=3,layers=1,width=4,kl=0.1", TASK | {"instance": 0, "end": False},
            "policy-gradient", "policy-gradient:n=2,importance=token", 0)  # fmt: skip


@pytest.fixture
def plan(tmp_path):
    facts = {"run_id": "run", "out": str(tmp_path), "device": "cpu", "setting": "x"}
    return Plan(
        **facts, steps=6, batch=8, learning_rate=0.05, probe_draws=8, warm_up=2, reference_draws=4, checkpoints=3
    )


def test_the_past_is_as_long_as_it_should_be():
    p = torch.zeros(2)
    past = Past(2)
    for step in range(4):
        past.add([p + step])
        assert [float(params[0][0]) for params in past.steps] == list(range(max(0, step - 1), step + 1))
    nothing = Past(0)
    nothing.add([p])
    assert nothing.steps == []


class Watching(Estimator):
    """Tells at which parameters its samples' log-probabilities were those of the sampler."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    def gradient(self, problem, rng):
        z = problem.sample(4, rng)
        self.seen.append((flatten(problem.params).clone(), z, problem.behaviour_log_prob(z)))
        return Estimate(problem.grad(problem.log_prob(z).sum()))


@pytest.mark.parametrize("stale", [0, 1, 3])
def test_samples_come_from_the_policy_of_so_many_steps_ago(plan, stale):
    """At each step the sampler's log-probabilities are those of the policy at the parameters of then."""
    plan = replace(plan, sampler=Sampler(stale=stale))
    task, seen = loaded.worker.task(plan, CELL), []
    train.train(Watching(seen), task, plan, CELL, records.CellRecord(identity_of(plan, CELL)))
    assert len(seen) == plan.steps
    for step, (_, z, found) in enumerate(seen):
        earlier = seen[max(0, step - stale)][0]
        sizes = [p.numel() for p in task.params]
        with torch.no_grad():
            for p, value in zip(task.params, earlier.split(sizes), strict=True):
                p.copy_(value.view_as(p))
        problem = _batch(task, plan, step)
        torch.testing.assert_close(found, problem.log_prob(z).detach(), rtol=0, atol=1e-10)


def _batch(task, plan, step):
    from gradebench.experiment.training import batches

    prompts = batches(task, plan, 1, CELL.seed)
    for _ in range(step):
        next(prompts)
    return task.problem("train", next(prompts))


def trained(plan, checkpoint=None):
    task = loaded.worker.task(plan, CELL)
    record = records.CellRecord(identity_of(plan, CELL))
    train.train(make_estimator(CELL.estimator_spec, task, plan), task, plan, CELL, record, checkpoint)
    rows = record.frame("ok")
    return rows[~rows["metric"].isin(["seconds", "seconds_per_step", "peak_memory_bytes"])].reset_index(drop=True)


def test_an_interrupted_training_goes_on_from_the_same_past(plan, tmp_path):
    plan = replace(plan, sampler=Sampler(stale=3, temperature=0.8), evaluations=2)
    whole = trained(plan)

    def checkpoint():
        return Checkpoint(tmp_path / "state", "key", 0.0, "cpu")

    task = loaded.worker.task(plan, CELL)
    calls = 0
    plain = task.problem

    def problem(split, index, ledger=None):
        nonlocal calls
        calls += ledger is not None
        if calls == 5:
            raise KeyboardInterrupt
        return plain(split, index, ledger)

    task.problem = problem
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(plan, checkpoint())
    finally:
        del task.problem
    loaded.worker.forget()
    pd.testing.assert_frame_equal(trained(plan, checkpoint()), whole, check_exact=True)


def test_a_sampler_changes_training_but_not_evaluation_at_its_start(plan):
    plain, other = trained(plan), trained(replace(plan, sampler=Sampler(temperature=0.5)))
    evaluated = [rows[rows["phase"] == "evaluation"] for rows in (plain, other)]
    at_start = [rows[rows["step"] == 0]["value"].tolist() for rows in evaluated]
    at_end = [rows[rows["step"] == plan.steps]["value"].tolist() for rows in evaluated]
    assert at_start[0] == at_start[1] and at_end[0] != at_end[1]


@pytest.mark.parametrize("along", ["reference", "own"])
def test_probes_draw_from_a_point_back_along_the_trajectory(plan, along, monkeypatch):
    """And the true gradient is that of the policy itself."""
    plan = replace(plan, sampler=Sampler(stale=2), along=along)
    task = loaded.worker.task(plan, CELL)
    gaps, truths = [], []
    measured = probe._measured

    def watched(estimator, task, source, draws, reference):
        problem = source.problem(source.contexts(0), None)
        z = problem.sample(16, generator("cpu", 0))
        gaps.append(float((problem.behaviour_log_prob(z) - problem.log_prob(z)).abs().max().detach()))
        truths.append(
            torch.equal(
                reference.moments.centre,
                flatten(task.problem("train", torch.arange(task.sizes["train"])).exact_gradient()),
            )
        )
        return measured(estimator, task, source, draws, reference)

    monkeypatch.setattr(probe, "_measured", watched)
    for number in range(len(cell_files.checkpoint_steps(plan))):
        references.reference_cell(plan, CELL, number)
    probe.probe(task, plan, CELL, records.CellRecord(identity_of(plan, CELL)))
    assert gaps[0] == 0 and min(gaps[1:]) > 1e-3
    assert all(truths)


def test_a_task_without_texts_refuses_in_one_line(command, tmp_path):
    status, _, err = command("run", "-e", "rloo", "-t", "bernoulli-toy", "--stale", 2, "--out", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1)
    assert "bernoulli-toy can only sample from its policy" in err


@pytest.mark.parametrize(
    "words", [("--temperature", 0), ("--top-p", 2), ("--noise", "much"), ("--stale", -1), ("--top-k", -1)]
)
def test_an_impossible_sampler_is_one_line(command, tmp_path, words):
    status, _, err = command("run", "-e", "rloo", "-t", "enumerable-lm", *words, "--out", tmp_path / "run")
    assert (status, err.count("\n")) == (2, 1) and words[0] in err


def test_a_run_says_how_it_sampled_and_how_to_repeat_it(command, in_process, tmp_path):
    out = tmp_path / "run"
    words = ("--stale", 2, "--temperature", 0.8, "--noise", "bfloat16")
    task = "enumerable-lm:vocabulary=2,horizon=2,layers=1,width=2"
    status, _, err = command("run", "-e", "rloo", "-t", task, "--seeds", "0", "--steps", 3, *words, "--out", out)
    assert status == 0, err
    assert set(pd.read_csv(out / "metrics.csv")["setting"]) == {
        "vocabulary=2 horizon=2 layers=1 width=2 kl=0.05 instance=0 stale=2 temperature=0.8 noise=bfloat16"
    }
    from gradebench.experiment.repeat import commands_of

    (line,) = commands_of(json.loads((out / "config.json").read_text()))
    assert "--stale 2 --temperature 0.8 --noise bfloat16" in line and "--top-p" not in line


def test_what_can_sample_is_asked_of_the_task(plan):
    require_sampler(EnumerableLm(), "enumerable-lm", Sampler())  # not even loaded: nothing is asked
    task = loaded.worker.task(plan, CELL)
    require_sampler(task, "x", Sampler(stale=1, top_p=0.5))
    with pytest.raises(InputError, match="not with stale=1"):
        task.problem, plain = lambda *_: torch.nn.Identity(), task.problem
        try:
            task.problem = lambda *_: _Refusing()
            require_sampler(task, "x", Sampler(stale=1))
        finally:
            task.problem = plain


class _Refusing:
    def sampled_by(self, behaviour):
        from gradebench import Unsupported

        raise Unsupported("no")
