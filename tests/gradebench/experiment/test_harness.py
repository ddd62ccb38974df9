"""One cell, in this process: what is shared between estimators, what is counted, and how a cell can end.

Long because one file tests one module.
"""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gradebench import Estimate, Estimator
from gradebench.core import schema
from gradebench.core.problem import Ledger
from gradebench.core.sampling import generator
from gradebench.experiment import cell_files, cell_setup, facts, harness, loaded, references, train, training
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.training import Trainer
from gradebench.measurement.moments import Reference
from gradebench.plugins import registry
from gradebench.storage import records, sealed


@pytest.fixture
def plan(tmp_path):
    facts = {"run_id": "run", "out": str(tmp_path), "device": "cpu", "setting": "kl=0"}
    return Plan(**facts, steps=3, batch=8, learning_rate=0.02, probe_draws=8, warm_up=2, reference_draws=8)


@pytest.fixture
def cell_of(tiny):
    """A cell of the tiny task with the named estimator; a capital letter names one of the tiny file."""

    def build(estimator="reinforce", seed=0, **task_options):
        spec = tiny(estimator) if estimator[0].isupper() else estimator
        return Cell("tiny", tiny(), {"kl": 0.0} | task_options, estimator, spec, seed)

    return build


@pytest.fixture
def task(plan, cell_of):
    return loaded.worker.task(plan, cell_of())


def ended(plan, cell):
    """Status and reason of the cell, and the rows that it left."""
    loaded.worker.forget()
    status, reason = harness.run_cell(plan, cell, "key")
    return status, reason, pd.read_feather(f"{plan.out}/cells/{cell.id}/metrics.arrow")


def numbers(rows):
    """The rows without what a clock or the system's memory says."""
    return rows[
        ~rows["metric"].isin(
            ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]
        )
    ].reset_index(drop=True)


def trained(plan, cell):
    task = loaded.worker.task(plan, cell)
    record = records.CellRecord(cell_setup.identity_of(plan, cell))
    train.train(cell_setup.make_estimator(cell.estimator_spec, task, plan), task, plan, cell, record)
    return record.frame("ok")


def write_references(plan, cell):
    for number in range(len(cell_files.checkpoint_steps(plan))):
        references.reference_cell(plan, cell, number)


# --- common random numbers --------------------------------------------------------------------------------------


def test_a_cell_gives_the_same_rows_twice_whatever_ran_before(plan, cell_of):
    write_references(plan, cell_of(seed=3))
    first = ended(plan, cell_of(seed=3))[2]
    trained(plan, cell_of("rloo", 5))  # moves parameters, global generators and the clock
    status, _, second = ended(plan, cell_of(seed=3))
    assert status == "ok"
    pd.testing.assert_frame_equal(numbers(first), numbers(second), check_exact=True)
    write_references(plan, cell_of(seed=4))
    assert not numbers(ended(plan, cell_of(seed=4))[2])["value"].equals(numbers(first)["value"])


def test_estimators_of_a_seed_start_from_the_same_evaluation(plan, cell_of):
    def at_start(estimator, seed):
        rows = trained(plan, cell_of(estimator, seed))
        return rows[(rows["phase"] == "evaluation") & (rows["step"] == 0)]["value"].tolist()

    assert at_start("reinforce", 1) == at_start("rloo", 1) == at_start("ppo", 1)
    assert at_start("reinforce", 1) != at_start("reinforce", 2)


def test_every_estimator_of_a_seed_reads_the_same_order_of_prompts(task, plan):
    single, four = (training.batches(task, plan, n, seed=7) for n in (1, 4))
    for _ in range(10):
        window = next(single)
        assert len(window) == plan.batch
        assert torch.equal(next(four), window[: plan.batch // 4])


def test_an_epoch_of_windows_holds_every_prompt_once(task, plan):
    windows = training.batches(task, plan, 1, seed=7)
    size = task.sizes["train"]
    first, second = (torch.cat([next(windows) for _ in range(size // plan.batch)]) for _ in range(2))
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(size))
    assert not torch.equal(first, second)
    assert not torch.equal(first[: plan.batch], next(training.batches(task, plan, 1, seed=8)))


def test_a_batch_larger_than_the_prompts_repeats_them(task, plan):
    window = next(training.batches(task, replace(plan, batch=80), 1, seed=0))
    counts = torch.bincount(window, minlength=32)
    assert len(window) == 80 and counts.min() >= 2 and counts.max() <= 3


# --- what a cell records ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "expected"), [(1, {0, 1}), (10, {0, 10}), (13, {0, 10, 13}), (20, {0, 10, 20})])
def test_evaluations_are_a_geometric_series(plan, cell_of, steps, expected):
    rows = trained(replace(plan, steps=steps, evaluations=None), cell_of())
    evaluated = rows[rows["phase"] == "evaluation"]
    assert set(evaluated["step"]) == expected
    for split, least in (("train", {0, steps}), ("validation", expected), ("test", expected)):
        assert set(evaluated.loc[evaluated["split"] == split, "step"]) == least
    metrics = {"reward", "gold_reward", "kl", "entropy", "distinct_2", "reference_nll", "objective"}
    assert metrics == set(evaluated["metric"]) and (evaluated["unit"] != "").all()
    # Beside each, what it took to get there.
    spent = rows[(rows["phase"] == "train") & (rows["metric"] == "tokens_sampled")].set_index("step")["value"]
    assert spent.to_dict() == {step: 3 * plan.batch * step for step in expected}


def test_a_longer_run_is_evaluated_where_a_shorter_one_is(plan):
    for steps in range(1, 200):
        long, short = (replace(plan, steps=n, evaluations=None).evaluation_steps for n in (8 * steps, steps))
        assert set(short) - {steps} <= set(long)
        assert short == sorted(set(short)) and (short[0], short[-1]) == (0, steps)


@pytest.mark.parametrize(("steps", "expected"), [(1, [0, 1]), (3, [0, 2, 3]), (10, [0, 5, 10])])
def test_a_number_of_evaluations_is_spread_evenly(plan, steps, expected):
    assert replace(plan, steps=steps, evaluations=2).evaluation_steps == expected


def test_the_objective_is_the_reward_less_beta_times_the_divergence(plan, cell_of):
    cell = cell_of(kl=0.1)
    rows = trained(plan, cell)
    task = loaded.worker.task(plan, cell)
    wide = rows[rows["phase"] == "evaluation"].pivot_table(index=["split", "step"], columns="metric", values="value")
    assert task.beta == 0.1
    assert (wide["objective"] - wide["reward"] + task.beta * wide["kl"]).abs().max() < 1e-12
    assert wide["kl"].max() > 0


def test_clipped_updates_are_counted(plan, cell_of):
    def figures(clip):
        rows = trained(replace(plan, clip=clip), cell_of("rloo"))
        return rows[rows["phase"] == "train"].groupby("metric")["value"].last()

    tight, wide = figures(1e-6), figures(1e6)
    assert tight["updates"] == wide["updates"] == plan.steps
    assert (tight["clipped_updates"], wide["clipped_updates"]) == (1, 0)
    assert tight["clip_factor"] < 1e-3 and wide["clip_factor"] == 1


def test_the_ledger_counts_what_a_batch_of_sequences_costs(plan, cell_of):
    rows = trained(plan, cell_of("rloo"))
    costs = rows[rows["phase"] == "train"].groupby("metric")["value"].last()
    sequences = plan.steps * plan.batch
    assert costs["reward_calls"] == sequences
    assert costs["tokens_sampled"] == 3 * sequences
    assert costs["backward_passes"] == plan.steps
    assert costs["seconds_per_step"] > 0 and costs["peak_memory_bytes"] > 1e6


def test_every_estimator_samples_the_same_number_of_sequences(plan, cell_of):
    calls = set()
    for estimator in ("reinforce", "rloo", "rloo:n=2", "ppo", "grade-ste"):
        rows = trained(plan, cell_of(estimator)).groupby("metric")["value"].last()
        calls.add(rows["reward_calls"])
    assert calls == {plan.steps * plan.batch}


def test_probes_measure_at_every_checkpoint(plan, cell_of):
    plan = replace(plan, probe_draws=200)
    write_references(plan, cell_of())
    cell = cell_of("rloo")
    status, reason, rows = ended(plan, cell)
    assert (status, reason) == ("ok", "")
    probes = rows[rows["phase"] == "probe"].pivot(index="step", columns="metric", values="value")
    assert probes.index.tolist() == [0, 2, 3]
    assert probes.notna().all(axis=None)
    assert (probes["gradient_variance"] > 0).all() and (probes["gradient_cosine"] > 0.5).all()
    assert probes["gradient_snr"].mul(probes["gradient_variance_relative"]).tolist() == pytest.approx([1, 1, 1])
    kept = pd.read_feather(f"{plan.out}/cells/{cell.id}/probes.arrow")
    assert list(kept) == schema.PROBES_COLUMNS and set(kept["draws"]) == {200} and set(kept["group"]) == {""}
    assert kept.pivot(index="step", columns="metric", values="value").equals(probes)  # the same numbers in both files
    assert ((kept["ci_low"] <= kept["value"]) & (kept["value"] <= kept["ci_high"])).all()


def test_a_cell_of_one_checkpoint_probes_there_alone_and_trains_nothing(plan, cell_of):
    plan = replace(plan, train=False, details=True)
    write_references(plan, cell_of())
    rows = ended(plan, replace(cell_of("rloo"), checkpoint=1))[2]
    assert set(rows["phase"]) == {"probe"} and set(rows["step"]) == {2}
    whole = ended(plan, cell_of("rloo"))[2]
    assert set(whole["step"]) == {0, 2, 3}
    left, right = (numbers(frame[frame["step"] == 2])["value"].to_numpy() for frame in (rows, whole))
    assert np.array_equal(left, right, equal_nan=True)


def test_cells_of_different_checkpoints_have_folders_of_their_own(cell_of):
    ids = {replace(cell_of(), checkpoint=number).id for number in (None, 0, 1)}
    assert len(ids) == 3


def test_an_estimators_own_trajectory_is_its_training(plan, cell_of, monkeypatch):
    """Checkpoint `number` holds the parameters, and the state, that training had after as many steps."""
    cell, seen = cell_of("Remembers"), []
    step = Trainer.step

    def watched(self, *arguments, **keywords):
        seen.append([p.detach().clone() for p in self.task.params])
        return step(self, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", watched)
        trained(plan, cell)
    task = loaded.worker.task(plan, cell)
    for number, steps in enumerate(cell_files.checkpoint_steps(plan)[:2]):
        trainer, reference = references.own_checkpoint(task, plan, cell, number)
        assert all(torch.equal(p, q) for p, q in zip(task.params, seen[steps], strict=True))
        assert trainer.estimator.state_dict().keys() == {"calls"} and reference.exact


def test_a_run_of_one_step_has_two_checkpoints(plan, cell_of):
    plan = replace(plan, steps=1)
    write_references(plan, cell_of())
    rows = ended(plan, cell_of())[2]
    assert not rows.duplicated(["phase", "split", "step", "metric"]).any()
    assert set(rows[rows["phase"] == "probe"]["step"]) == {0, 1}


def stored_reference(plan, cell, task, number=0):
    """The reference of a checkpoint as a cell reads it, its parameters in the task."""
    stored = sealed.read(cell_files.checkpoint_file(plan, cell, number))[0]
    loaded.set_parameters(task, stored)
    return Reference.of_tensors(stored, references.sizes_of(task))


def test_the_reference_is_the_exact_gradient_where_the_task_knows_it(plan, cell_of, task, exact_gradient):
    write_references(plan, cell_of())
    for number in range(3):
        reference = stored_reference(plan, cell_of(), task, number)
        truth = exact_gradient(task.problem("train", torch.arange(32))).double()
        assert reference.exact and truth.norm() > 0
        torch.testing.assert_close(reference.moments.mean, truth, rtol=1e-4, atol=1e-6)


def test_seeds_share_the_parameters_of_a_checkpoint_and_not_the_noise_of_its_gradient(plan, cell_of, task, monkeypatch):
    """Whether or not the first seed's file is there already."""
    without_exact(monkeypatch, task)
    write_references(plan, cell_of(seed=5))
    write_references(plan, cell_of())
    write_references(plan, cell_of(seed=6))
    for number in range(3):
        one, *others = (
            sealed.read(cell_files.checkpoint_file(plan, cell_of(seed=seed), number))[0] for seed in (0, 5, 6)
        )
        for other in others:
            assert all(torch.equal(one[name], other[name]) for name in one if name.startswith("parameter_"))
            assert not torch.equal(one["reference_centre"], other["reference_centre"])


def without_exact(monkeypatch, task):
    """The task as one that is too large to be enumerated."""
    problem = type(task).problem

    def other(self, *arguments):
        answer = problem(self, *arguments)
        answer.offers = answer.offers - {"exact", "support"}
        return answer

    monkeypatch.setattr(type(task), "problem", other)


def test_a_long_run_is_the_reference_elsewhere_within_its_stated_error(
    plan, cell_of, task, exact_gradient, monkeypatch
):
    plan = replace(plan, reference_draws=64, checkpoints=1)
    truth = exact_gradient(task.problem("train", torch.arange(32)))
    without_exact(monkeypatch, task)
    write_references(plan, cell_of())
    reference = stored_reference(plan, cell_of(), task)
    moments = reference.moments
    assert not reference.exact and moments.count == 64
    assert moments.sums.sum(0).abs().max() < 1e-9  # measured from their mean
    # E distance = stated error; its spread over few effective dimensions is about as large as itself.
    distance = float((moments.mean - truth).square().sum())
    assert 0.1 < distance / (float(moments.squares.sum()) / 63 / 64) < 4


@pytest.mark.parametrize(("estimator", "warm_up"), [("Remembers", 2), ("Plain", 0)])
def test_probing_freezes_the_estimator_and_forgets_the_trained_parameters(
    plan, cell_of, tiny, monkeypatch, estimator, warm_up
):
    """After a warm-up of what has a state to warm up."""
    plan = replace(plan, checkpoints=1, warm_up=2)
    monkeypatch.setattr("gradebench.measurement.probes.entries_at_once", lambda estimator, source: 0)  # one by one
    cell = cell_of(estimator)
    write_references(plan, cell)
    plain = registry.resolve("estimators", tiny("Plain")).factory
    seen, gradient = [], plain.gradient

    def watched(self, problem, rng):
        seen.append((self.training, problem.params[0].sum().item()))
        return gradient(self, problem, rng)

    monkeypatch.setattr(plain, "gradient", watched)
    assert ended(plan, cell)[0] == "ok"
    training, probing = seen[: plan.steps], seen[plan.steps :]
    assert [mode for mode, _ in probing] == [True] * warm_up + [False] * plan.probe_draws
    assert {theta for _, theta in probing} == {training[0][1]} and len({theta for _, theta in training}) == plan.steps


# --- a step -----------------------------------------------------------------------------------------------------


class Learner(Estimator):
    """Returns a gradient of our choice, and an own loss that pulls its one parameter to the reward."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.own = torch.nn.Parameter(torch.zeros(()))

    def gradient(self, problem, rng):
        loss = (self.own - problem.reward(problem.sample(1, rng)).mean()).square()
        return Estimate([torch.full_like(p, self.size) for p in problem.params], own_loss=loss)


def stepped(task, plan, size, **keywords):
    trainer = Trainer(Learner(size), task, plan, 0.01)
    order = []
    for name, optimizer in (("own", trainer.own_optimizer), ("policy", trainer.optimizer)):
        optimizer.register_step_pre_hook(lambda *_, name=name: order.append(name))
    trainer.step(task.problem("train", torch.arange(8), Ledger()), generator("cpu", 0), **keywords)
    return trainer, order


def test_the_own_loss_steps_before_the_policy(task, plan):
    trainer, order = stepped(task, plan, 1.0)
    assert order == ["own", "policy"]
    assert trainer.estimator.own.item() > 0


def test_warming_up_moves_the_estimator_and_not_the_policy(task, plan):
    before = [p.clone() for p in task.params]
    trainer, order = stepped(task, plan, 1.0, update_policy=False)
    assert order == ["own"] and trainer.estimator.own.item() > 0
    assert all(torch.equal(p, b) for p, b in zip(task.params, before, strict=True))


@pytest.mark.parametrize(("size", "norm"), [(1e3, 1.0), (1e-4, None)])
def test_the_step_ascends_a_gradient_clipped_to_its_global_norm(task, plan, size, norm):
    count = sum(p.numel() for p in task.params)
    before = task.params[0].detach().clone()
    stepped(task, plan, size)
    gradient = torch.cat([p.grad.flatten() for p in task.params])
    assert float(gradient.norm()) == pytest.approx(norm or size * math.sqrt(count), rel=1e-4)
    assert bool((gradient < 0).all())  # what the optimizer descends is minus the estimate
    assert bool((task.params[0] > before).all())


def test_a_problem_that_outlives_an_update_reads_the_new_parameters(task, plan):
    """A fused optimizer leaves no trace that a problem could see, unless the harness does."""
    kept = task.problem("train", torch.arange(8))
    z = kept.sample(1, generator("cpu", 1))
    before = kept.log_prob(z)
    Trainer(Learner(1.0), task, plan, 0.01).step(kept, generator("cpu", 0))
    after = kept.log_prob(z)
    assert not torch.equal(before, after)
    assert torch.equal(after, task.problem("train", torch.arange(8)).log_prob(z))


def test_a_few_gradients_that_are_not_finite_are_refused_and_forgiven(task, plan):
    plan = replace(plan, steps=20)
    before = [p.clone() for p in task.params]
    trainer = Trainer(Learner(float("inf")), task, plan, 0.01)
    problem = task.problem("train", torch.arange(8))
    for _ in range(plan.patience):
        trainer.step(problem, generator("cpu", 0))
    assert all(torch.equal(p, b) for p, b in zip(task.params, before, strict=True))
    with pytest.raises(training.Diverged):
        trainer.step(problem, generator("cpu", 0))


# --- how a cell can end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 20])
def test_an_estimator_without_a_finite_gradient_diverges(plan, cell_of, steps):
    status, reason, rows = ended(replace(plan, steps=steps), cell_of("Nan"))
    assert status == "diverged" and "not finite" in reason
    assert set(rows["status"]) == {"diverged"}


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [("Raises", "ArithmeticError: the third law of the estimator"), ("Leaves", "SystemExit: leaving")],
)
def test_an_estimator_that_raises_is_a_failed_row_with_its_traceback(plan, cell_of, tmp_path, estimator, reason):
    cell = cell_of(estimator)
    status, said, rows = ended(plan, cell)
    assert (status, said) == ("failed", reason)
    folder = tmp_path / "cells" / cell.id
    assert "in gradient" in (folder / "error.txt").read_text()
    said = json.loads((folder / "cell.json").read_text())
    assert (said["key"], said["status"], said["reason"]) == ("key", "failed", reason)
    assert set(rows["status"]) == {"failed"} and set(rows["setting"]) == {"kl=0"}


@pytest.mark.parametrize(
    ("estimator", "said"), [("Doubled", "2 tensors, and the task has 1"), ("Flat", "the shape (3, 1)")]
)
def test_a_gradient_of_another_shape_than_the_parameters_is_told(plan, cell_of, estimator, said):
    status, reason, _ = ended(plan, cell_of(estimator))
    assert status == "failed" and said in reason


def test_a_task_that_fails_in_a_worker_keeps_the_rows_setting(plan, cell_of, tiny):
    status, reason, rows = ended(plan, replace(cell_of(), task_spec=tiny("Careless")))
    assert (status, reason) == ("failed", "RuntimeError: the disk of the task is full")
    assert rows[["setting", "status"]].to_numpy().tolist() == [["kl=0", "failed"]]


def test_a_cell_whose_estimator_needs_more_than_the_task_offers_is_skipped(plan, cell_of):
    status, reason, rows = ended(plan, cell_of("NeedsBinary"))
    assert (status, reason) == ("skipped", "tiny.py:NeedsBinary needs binary, which the task does not offer")
    assert rows["status"].tolist() == ["skipped"]


def test_a_cell_whose_file_was_edited_after_the_start_fails(plan, cell_of, tiny):
    digests = tuple(registry.resolve(*part).digest for part in (("tasks", tiny()), ("estimators", "rloo")))
    plan = replace(plan, checkpoints=0)
    assert ended(plan, replace(cell_of("rloo"), digests=digests))[0] == "ok"
    status, reason, _ = ended(plan, replace(cell_of("rloo"), digests=(digests[0], "another")))
    assert status == "failed" and "a source of rloo was changed" in reason


def test_updates_that_were_refused_are_counted_and_the_cell_goes_on(plan, cell_of):
    status, _, rows = ended(replace(plan, checkpoints=0), cell_of("NanOnce"))
    counted = rows[rows["metric"].str.contains("refused")].set_index("metric")
    assert status == "ok"
    assert counted["value"].to_dict() == {"updates_refused": 1, "own_updates_refused": 1}
    assert set(counted["unit"]) == {"updates"}
    assert not ended(replace(plan, checkpoints=0), cell_of("rloo"))[2]["metric"].str.contains("refused").any()


def test_the_key_changes_with_whatever_the_numbers_depend_on(plan, cell_of, task, monkeypatch):
    def key(plan=plan, cell=None):
        return cell_setup.cell_key(plan, cell or cell_of(), task)

    assert key(plan=replace(plan, run_id="another", out="elsewhere")) == key()
    assert key(plan=replace(plan, checkpoint_every=1.0)) == key()
    changed = [
        {"device": "cuda"},
        {"steps": 4},
        {"batch": 16},
        {"learning_rate": 0.1},
        {"setting": "kl=1"},
        {"clip": 2.0},
        {"shards": 2},
        {"reference": "reinforce"},
    ]
    keys = [key(plan=replace(plan, **change)) for change in changed]
    keys += [key(cell=replace(cell_of(), **change)) for change in ({"digests": ("a", "b")}, {"params": '{"n": 2}'})]
    keys += [key(cell=cell_of(seed=1)), key(cell=cell_of(kl=1.0)), key(cell=cell_of("rloo"))]
    untuned = replace(plan, learning_rate=None)
    assert key(plan=untuned) == key()  # the task's own rate, given or not
    monkeypatch.setattr(task, "tuned", lambda estimator: {"learning_rate": 0.5}, raising=False)
    keys.append(key(plan=untuned))
    elsewhere = {
        (records, "version"): lambda name: "9.9",
        (facts.torch, "__version__"): "9.9",
        (facts.gradebench, "__version__"): "9.9",
        (facts, "source_digest"): lambda *module: "edited",
        (facts, "processor"): lambda device: "another",
        (facts, "_data"): lambda task: "another",
        (torch, "get_default_dtype"): lambda: torch.float64,
    }
    for (module, name), changed_one in elsewhere.items():
        with monkeypatch.context() as patch:
            patch.setattr(module, name, changed_one)
            keys.append(key())
    assert len({key(), *keys}) == 1 + len(keys)
