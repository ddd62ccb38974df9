"""Batches in parts: what a part is, and several processes that give what one gives."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from gradebench import Unsupported
from gradebench.core import parallel
from gradebench.core.sampling import generator
from gradebench.experiment import cell_files, cell_setup, harness, loaded, references
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry
from gradebench.problems.sharded import Sharded

SCRIPT = Path(__file__).with_name("sharded_gradients.py")
shared = SimpleNamespace(**runpy.run_path(str(SCRIPT)))  # the tests' folders are no packages to import from
TINY = Path(__file__).parents[1] / "tiny.py"
COMMON = ["run", "-e", "ppo", "-e", f"{TINY}:Raises", "-t", f"{TINY}:TinyTask", "--seeds", "0", "--steps", "1"]
COMMON += ["--device", "cpu"]


# --- parts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shared.MISSION)
def test_a_sharded_gradient_is_the_mean_of_the_parts_own(name, tiny_problem):
    problem = tiny_problem(copies=2)  # 8 contexts
    inner = registry.resolve("estimators", name).create()
    torch.manual_seed(0)
    inner.init(problem)
    whole = Sharded(inner, 2).eval()
    found = whole.gradient(problem, generator("cpu", 7)).grad
    seeds = torch.randint(2**62, (2,), generator=generator("cpu", 7)).tolist()
    parts = torch.arange(8).split(4)
    inner.reset()
    by_hand = []
    for part, seed in zip(parts, seeds, strict=True):
        inner.reset()
        by_hand.append(inner.gradient(problem.select(part), generator("cpu", seed)).grad)
    for got, *each in zip(found, *by_hand, strict=True):
        assert torch.allclose(got, sum(each) / 2, rtol=1e-9, atol=1e-12)


def test_running_state_is_that_of_the_whole_batch(tiny_problem):
    problem = tiny_problem(copies=2)
    estimator = Sharded(registry.resolve("estimators", "reinforce:decay=0.5").create(), 4).train()
    estimator.gradient(problem, generator("cpu", 1))
    seeds = torch.randint(2**62, (4,), generator=generator("cpu", 1)).tolist()
    parts = [problem.select(part) for part in torch.arange(8).split(2)]
    rewards = [p.reward(p.sample(1, generator("cpu", seed))) for p, seed in zip(parts, seeds, strict=True)]
    assert float(estimator.inner.total) == pytest.approx(0.5 * float(torch.cat(rewards).mean()))
    assert float(estimator.inner.weight) == pytest.approx(0.5)


def test_one_shard_is_the_estimator_itself_and_several_are_wrapped(tmp_path):
    task = loaded.worker.task(_plan(tmp_path), _cell("rloo"))
    assert not isinstance(cell_setup.make_estimator("rloo", task, _plan(tmp_path)), Sharded)
    estimator = cell_setup.make_estimator("ppo", task, _plan(tmp_path, shards=2))
    assert isinstance(estimator, Sharded) and estimator.period == 8 and estimator.inner.value is not None
    with pytest.raises(Unsupported, match="1 contexts can't fill 2 minibatches"):
        cell_setup.make_estimator("ppo", task, _plan(tmp_path, shards=8))


def _plan(folder, **options):
    return Plan("run", str(folder), "cpu", 1, 8, 0.05, probe_draws=4, reference_draws=2, warm_up=1, **options)


def _cell(estimator):
    return Cell("tiny", f"{TINY}:TinyTask", {"kl": 0.1}, estimator, estimator, 0)


def test_a_cell_runs_in_parts_from_training_to_its_probes(tmp_path):
    for folder, shards in (("whole", 1), ("parts", 2)):
        plan = _plan(tmp_path / folder, shards=shards)
        for number in range(len(cell_files.checkpoint_steps(plan))):
            references.reference_cell(plan, _cell("ppo"), number)
        assert harness.run_cell(plan, _cell("ppo"), "key") == ("ok", "")
    whole, parts = (
        pd.read_feather(next((tmp_path / folder / "cells").glob("tiny--ppo*")) / "metrics.arrow")
        .groupby("metric")
        .last()
        for folder in ("whole", "parts")
    )
    for name in ("reward_calls", "tokens_sampled"):
        assert whole.loc[name, "value"] == parts.loc[name, "value"]
    assert parts.loc["backward_passes", "value"] == 2 * whole.loc["backward_passes", "value"]


# --- processes --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of what two processes found, and how they ended."""
    folder = tmp_path_factory.mktemp("two")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(SCRIPT), str(folder / "found"), *COMMON, "--out", str(folder / "run")]
    few = {**os.environ, "OMP_NUM_THREADS": "1"}
    return folder, subprocess.run(
        [*launcher, *arguments], check=False, env=few, capture_output=True, text=True, timeout=600
    )


def test_two_processes_give_the_gradients_of_one(two_processes):
    folder, _ = two_processes
    alone = shared.gradients()
    first, second = (torch.load(folder / f"found-{rank}") for rank in (0, 1))
    for name in shared.MISSION:
        assert torch.equal(first[name], second[name]), name  # both go on from the same parameters
        assert torch.allclose(first[name], alone[name], rtol=1e-5, atol=1e-7), name  # temperatures are in float32
        assert len(alone[name]) > 100 and alone[name].abs().sum() > 1


def test_a_run_of_two_processes_writes_what_one_writes(two_processes, tmp_path, in_process, no_report, command):
    folder, ended = two_processes
    assert "ArithmeticError: the third law" in ended.stderr
    status, _, _ = command(*COMMON, "--micro-batches", "2", "--out", tmp_path / "run")
    assert status == 1  # the broken estimator's cell has failed, and nothing else
    timed = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]
    frames = [pd.read_csv(place / "run" / "metrics.csv") for place in (tmp_path, folder)]
    one, two = (frame[~frame["metric"].isin(timed)].reset_index(drop=True) for frame in frames)
    assert set(one["status"]) == {"ok", "failed"} and len(one) > 30
    pd.testing.assert_frame_equal(one, two, rtol=1e-4)


@pytest.mark.parametrize("shards", [3])
def test_shards_that_processes_cant_share_are_refused(monkeypatch, shards, command):
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    status, _, said = command("run", "-e", "rloo", "-t", "bernoulli-toy", "--micro-batches", shards)
    assert status == 2 and "--micro-batches 3: 2 processes can't share them; give a multiple" in said
