"""Task `imdb` on given models: their vocabulary makes the prompts, all estimators train them, keys name their content."""

import csv
import re
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from gradebench import InputError, Unsupported
from gradebench.core.estimator import Estimator
from gradebench.core.sampling import generator
from gradebench.experiment import cell_setup, harness
from gradebench.experiment.loaded import worker
from gradebench.experiment.plan import Cell, Plan
from gradebench.kit import making
from gradebench.kit.language_model_task import PRETRAINED_LEARNING_RATE
from gradebench.plugins import registry
from gradebench.tasks import imdb
from gradebench.tasks.grammar import generate_reviews
from gradebench.tasks.imdb import Imdb, Size
from gradebench.tasks.judge import BagOfWordsJudge

# The tests' folders are no packages to import from.
tiny_models, llama2c = (
    SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / f"{name}.py")))
    for name in ("tiny_models", "llama2c")
)
DATA = Path(__file__).parents[3] / "shared" / "data"
STORIES, STORIES_TOKENS = DATA / "stories260K.bin", DATA / "tok512.bin"

MISSION = ("grade", "grade-ste", "ppo", "rebar", "reinforce", "rloo")
PROMPT, HORIZON = 8, 5
REVIEWS = 1000
TINY = Size(16, 1, 2, 300, PROMPT, HORIZON, 64, 5, 5, 3)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "reviews.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream)
        rows.writerow(["text", "label", "film"])
        rows.writerows([review.text, review.label, review.film] for review in generate_reviews(REVIEWS, seed=1))
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def tiny_and_apart(tmp_path_factory):
    """A tiny size, a judge that needs no seconds of training, and nothing read from the user's cache or left in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(imdb.SIZES, "mini", TINY)
        patch.setattr(imdb, "train_judge", lambda texts, labels: BagOfWordsJudge(np.zeros(2**18), 0.0))
        patch.setenv("GRADEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def loaded(corpus, **options) -> Imdb:
    task = Imdb(corpus, "mini", **{name: str(value) for name, value in options.items()})
    task.prepare(CPU, log=lambda message: None)
    task.load(CPU)
    return task


def refusal_of(corpus, **options) -> str:
    with pytest.raises(InputError) as refusal:
        loaded(corpus, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.fixture(scope="module")
def llama_task(folders, corpus):
    """A policy whose tokenizer adds BOS, with the reward trained here."""
    return loaded(corpus, policy=folders("llama", template="<s> $A"))


@pytest.fixture(scope="module")
def given_task(folders, corpus):
    """Policy and reward given."""
    return loaded(corpus, policy=folders("gpt2"), reward=folders("gpt2", "classifier"))


@pytest.fixture(scope="module")
def features_task(folders, corpus):
    """A policy whose frozen features a trained head rewards."""
    return loaded(corpus, policy=folders("llama"), reward="features")


@pytest.mark.parametrize("name", MISSION)
@pytest.mark.parametrize("kind", ["llama_task", "given_task", "features_task"])
def test_every_estimator_of_the_mission_makes_a_gradient(kind, name, request):
    task = request.getfixturevalue(kind)
    problem = task.problem("train", torch.arange(4))
    estimator: Estimator = registry.resolve("estimators", name).create()
    estimator.init(problem)
    estimate = estimator.gradient(problem, generator(CPU, name))
    assert len(estimate.grad) == len(task.params)
    for gradient, parameter in zip(estimate.grad, task.params, strict=True):
        assert gradient.shape == parameter.shape
        assert gradient.isfinite().all()
    assert sum(float(gradient.abs().sum()) for gradient in estimate.grad) > 1e-4
    if estimate.own_loss is not None:
        estimate.own_loss.backward()
        assert all(p.grad.isfinite().all() for p in estimator.parameters() if p.requires_grad)


def test_prompts_are_openings_in_the_policys_tokens(llama_task, given_task, corpus):
    texts = {review.text for review in generate_reviews(REVIEWS, seed=1)}
    for task, first in ((llama_task, [1]), (given_task, [])):
        for prompts in task.prompts.values():
            assert prompts.shape[1] == PROMPT
            for ids, text in zip(prompts.tolist(), task.vocabulary.decode(prompts.tolist()), strict=True):
                assert ids[: len(first)] == first
                assert not {0, 1, 2} & set(ids[len(first) :])
                assert any(review.startswith(text) for review in texts)


def test_reference_is_a_frozen_copy_of_the_policy(given_task):
    task = given_task
    assert task.evaluate("test", generator(CPU))["kl"] == pytest.approx(0, abs=1e-6)
    assert not any(p.requires_grad for p in (*task.reference.parameters(), *task.reward.parameters()))
    assert all(p.requires_grad for p in task.params)
    rng = generator(CPU, "shift")
    delta = [0.1 * torch.randn(p.shape, generator=rng) for p in task.params]
    with task.problem("test", torch.arange(2)).shifted(delta):
        assert task.evaluate("test", generator(CPU))["kl"] > 0.01


def test_setting_names_the_models_by_content(llama_task, given_task, folders):
    policy, reward = folders("gpt2").name, folders("gpt2", "classifier").name
    assert re.search(rf" policy={policy}:[0-9a-f]{{8}} reward={reward}:[0-9a-f]{{8}} kl=0.05$", given_task.setting)
    assert re.search(r" policy=llama-causal-\d+:[0-9a-f]{8} reward=trained kl=0.05$", llama_task.setting)


def test_a_reward_by_features_is_trained_once_for_a_policy_and_what_it_reads(features_task, folders, corpus):
    assert " reward=features " in features_task.setting
    again = loaded(corpus, policy=folders("llama"), reward="features")
    assert again.folder == features_task.folder and 0 <= again.describe()["reward_accuracy_on_openings"] <= 1
    alone = loaded(corpus, policy=folders("llama"), reward="features", scored="continuation")
    assert " scored=continuation " in alone.setting and alone.folder != again.folder
    one, other = (torch.cat([task.prompts["test"][:4], torch.full((4, HORIZON), 9)], 1) for task in (alone, again))
    with torch.no_grad():
        by_text, by_continuation = again.reward(again.reward.embed(other)), alone.reward(alone.reward.embed(one))
    assert by_continuation.std() < 1e-6 < by_text.std()  # all continuations are the same


def test_what_is_scored_is_said_of_features_alone(corpus, folders):
    assert "scored=continuation is for reward=features" in refusal_of(corpus, scored="continuation")
    assert "label=positive is for a given classifier" in refusal_of(corpus, reward="features", label="positive")


def test_nothing_tuned_for_scratch_models_is_used_on_given_ones(llama_task, given_task):
    assert Imdb("embedded").tuned("rloo") is not None
    assert Imdb("embedded", policy="some/model").tuned("rloo") is None
    assert Imdb("embedded", reward="some/model").tuned("rloo") is None
    for task in (given_task, llama_task):
        assert task.learning_rate == PRETRAINED_LEARNING_RATE


def test_what_was_built_is_kept_by_the_content_of_the_models(given_task, folders, corpus, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folders("gpt2"), moved)
    reward = folders("gpt2", "classifier")
    assert loaded(corpus, policy=moved, reward=reward).folder == given_task.folder
    config = (moved / "config.json").read_text(encoding="utf-8")
    (moved / "config.json").write_text(config.replace('"layer_norm_epsilon": 1e-05', '"layer_norm_epsilon": 1e-04'))
    changed = loaded(corpus, policy=moved, reward=reward)
    assert changed.folder != given_task.folder
    assert changed.setting != given_task.setting


def test_defaults_keep_their_key_and_setting(corpus, monkeypatch):
    keyed = []
    plain = imdb.cached_folder

    def recording(name, facts, build, log):
        keyed.append((name, sorted(facts)))
        return plain(name, facts, build, log)

    monkeypatch.setattr(imdb, "cached_folder", recording)
    monkeypatch.setitem(sys.modules, "gradebench.models.pretrained", None)  # importing it raises
    task = loaded(corpus)
    assert keyed == [("imdb", ["corpus", "size", "splits", "version"])]
    assert task.setting.endswith(" policy=scratch-mini reward=trained kl=0.05")
    assert task.learning_rate == Imdb.learning_rate


def test_films_that_come_later_are_not_ignored_for_what_is_cached(corpus, tmp_path):
    """The texts are the same, and so is the setting; the splits aren't."""
    films = pd.read_csv(corpus, dtype=str)
    films.drop(columns="film").to_csv(tmp_path / "c.csv", index=False)
    before = loaded(str(tmp_path / "c.csv"))
    pd.DataFrame({"movie": films["film"]}).to_parquet(tmp_path / "c_meta.parquet")
    after = loaded(str(tmp_path / "c.csv"))
    assert before.folder != after.folder and before.setting == after.setting
    assert before.digests() != after.digests()


NEED_A_DERIVATIVE = {"grade", "grade-ste", "rebar"}


def held_to_what_a_text_reward_allows(task, spec):
    """Estimators that need no derivative make a gradient; the others say why not."""
    plan = Plan("run", "", "cpu", 2, 8, 0.1)
    for name in MISSION:
        if name in NEED_A_DERIVATIVE:
            with pytest.raises(Unsupported, match=rf"{name} needs soft_reward, .*reward={re.escape(spec)} reads texts"):
                cell_setup.make_estimator(name, task, plan)
            continue
        problem = task.problem("train", torch.arange(8))
        estimate = cell_setup.make_estimator(name, task, plan).gradient(problem, generator(CPU, name))
        assert sum(float(gradient.abs().sum()) for gradient in estimate.grad) > 1e-4


def test_a_reward_with_another_tokenizer_reads_the_texts(folders, corpus):
    spec = str(folders("bert", "classifier", trained=5, pad_token_id=0))
    task = loaded(corpus, policy=folders("gpt2"), reward=spec)
    held_to_what_a_text_reward_allows(task, spec)
    problem = task.problem("test", torch.arange(3))
    z = problem.sample(1, generator(CPU))
    texts = task.vocabulary.decode(torch.cat([problem.prompts, z[0]], 1).tolist())
    encoded = task.reward.score.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.no_grad():
        expected = task.reward.score.model(**encoded).logits.softmax(-1)[:, task.reward.score.head.index]
    assert torch.allclose(problem.raw_reward(z)[0], expected, atol=1e-5)
    assert 0 <= task.evaluate("test", generator(CPU))["reward"] <= 1
    assert 0 <= task.describe()["reward_accuracy_on_openings"] <= 1


def test_the_rewarded_label_is_named_where_the_labels_dont_say_it(folders, corpus):
    """By a classifier over the policy's tokens, and by one with a tokenizer of its own."""
    labels = {"id2label": {0: "opposed", 1: "supportive"}, "label2id": {"opposed": 0, "supportive": 1}}
    policy = folders("gpt2")
    shared = folders("gpt2", "classifier", **labels)
    for reward in (shared, folders("bert", "classifier", trained=5, pad_token_id=0, **labels)):
        assert "0: opposed, 1: supportive; give label=" in refusal_of(corpus, policy=policy, reward=reward)
    task = loaded(corpus, policy=policy, reward=shared, label="Opposed")
    assert task.reward.head.index == 0 and " label=Opposed" in task.setting
    raw = loaded(corpus, policy=policy, reward=shared, label="opposed", activation="none")
    assert raw.evaluate("test", generator(CPU))["reward"] != task.evaluate("test", generator(CPU))["reward"]
    assert raw.setting != task.setting and "reward_accuracy_on_openings" not in raw.describe()
    assert "label=x is for a given classifier" in refusal_of(corpus, label="x")
    assert set(Imdb(corpus).options).isdisjoint({"label", "activation"}), "keys of earlier runs stay what they were"


def test_all_ends_that_a_model_lists_end_its_texts(folders, corpus, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders("gpt2"), folder)
    reward = folders("gpt2", "classifier")
    drawn = loaded(corpus, policy=folder, reward=reward).problem("test", torch.arange(32)).sample(1, generator(CPU))
    common = int(drawn[:, :, 1].mode().values)  # a token like any other, which is shown in a text
    (folder / "generation_config.json").write_text(f'{{"eos_token_id": [2, {common}]}}')
    task = loaded(corpus, policy=folder, reward=reward)
    problem = task.problem("test", torch.arange(32))
    z = problem.sample(1, generator(CPU))
    ended = (z == common).any(-1)
    assert ended.any() and not problem.alive(z)[ended].all()
    assert (z[~problem.alive(z)] == 2).all()
    with torch.no_grad():
        for b in ended[0].nonzero()[:3, 0].tolist():
            ids = torch.cat([problem.prompts[b], z[0, b, : z[0, b].tolist().index(common)]])[None]
            alone = task.reward(task.reward.embed(ids))
            torch.testing.assert_close(problem.raw_reward(z)[0, b, None], alone, rtol=0, atol=1e-5)
            assert task.vocabulary.decode(problem.texts(z[0]))[b] == task.vocabulary.decode(ids.tolist())[0]


@pytest.fixture
def exclaims(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text("def score(prompts, completions):\n    return [len(text) for text in completions]\n")
    return path


def test_a_function_is_a_reward(corpus, exclaims, folders):
    spec = f"{exclaims}:score"
    task = loaded(corpus, reward=spec)
    held_to_what_a_text_reward_allows(task, spec)
    (sample, *_) = task.samples("test", generator(CPU))
    assert sample["reward"] == len(sample["text"]) - len(sample["prompt"])
    assert re.search(r" reward=mine.py:score:[0-9a-f]{8} kl=", task.setting)
    assert "reward_accuracy_on_openings" not in task.describe()
    assert loaded(corpus, policy=folders("gpt2"), reward=spec).setting.count("mine.py") == 1


def test_editing_the_function_changes_the_setting_and_makes_nothing_anew(corpus, exclaims, monkeypatch):
    first = loaded(corpus, reward=f"{exclaims}:score")
    exclaims.write_text("def score(texts):\n    return [1 for text in texts]\n")
    with pytest.raises(InputError, match="was changed after the run had started; run again"):
        first.load(CPU)
    monkeypatch.setattr(making, "pretrain_policy", None)  # calling it would raise
    second = loaded(corpus, reward=f"{exclaims}:score")
    assert second.folder == first.folder and second.setting != first.setting


def test_a_function_that_fails_is_refused_before_anything_is_trained(corpus, exclaims, monkeypatch):
    exclaims.write_text("def score(texts):\n    return [1 / 0]\n")
    monkeypatch.setattr(making, "pretrain_policy", None)
    assert "raised ZeroDivisionError: division by zero (mine.py, line 2)" in refusal_of(
        corpus, reward=f"{exclaims}:score"
    )


def test_a_function_that_fails_later_fails_its_cell_in_one_line(corpus, exclaims, tmp_path):
    exclaims.write_text("def score(texts):\n    return [1 / (8 - len(texts)) for text in texts]\n")
    task = loaded(corpus, reward=f"{exclaims}:score")
    plan = Plan("run", str(tmp_path), "cpu", 2, 8, 0.1, checkpoints=0, setting=task.setting, prepared=task.prepared)
    status, reason = harness.run_cell(plan, Cell("imdb", "imdb", task.options, "rloo", "rloo", 0), "key")
    assert status == "failed" and "\n" not in reason
    assert "reward mine.py:score raised ZeroDivisionError: division by zero (mine.py, line 2)" in reason


@pytest.mark.parametrize("given", [False, True])
def test_the_trained_policy_of_a_cell_is_kept_and_serves_as_policy(corpus, folders, tmp_path, given):
    task = loaded(corpus, **({"policy": folders("gpt2")} if given else {}))
    plan = Plan("run", str(tmp_path), "cpu", 2, 8, 0.1, checkpoints=0, setting=task.setting, prepared=task.prepared)
    cell = Cell("imdb", "imdb", task.options, "rloo", "rloo", 0)
    assert harness.run_cell(plan, cell, "key") == ("ok", "")
    assert not list(tmp_path.glob("cells/*/policy"))
    assert harness.run_cell(replace(plan, save_policies=True), cell, "key") == ("ok", "")
    (folder,) = tmp_path.glob("cells/*/policy")
    trained = worker.task(plan, cell).policy  # at its start again
    kept = loaded(corpus, policy=folder)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        start, end = (policy(policy.embed(ids))[0] for policy in (trained, kept.policy))
    assert start.shape == end.shape and float((start - end).abs().max()) > 0.1
    assert kept.setting.startswith(task.setting.split(" policy=")[0]) and " policy=policy:" in kept.setting
    assert kept.learning_rate == (PRETRAINED_LEARNING_RATE if given else Imdb.learning_rate)


def test_unusable_models_are_refused(folders, corpus, tmp_path):
    assert "no such folder" in refusal_of(corpus, policy=tmp_path / "nowhere")
    assert "not a causal language model" in refusal_of(corpus, policy=folders("gpt2", "classifier"))
    short = folders("gpt2", n_positions=PROMPT + HORIZON - 1)
    assert f"context of {PROMPT + HORIZON - 1} tokens" in refusal_of(corpus, policy=short)


@pytest.mark.skipif(not STORIES.exists(), reason="the llama2.c model of 260K parameters isn't beside this checkout")
def test_real_pretrained_model_writes_as_its_makers_did_and_serves_as_policy(corpus, tmp_path):
    folder = llama2c.write_folder(STORIES, STORIES_TOKENS, tmp_path / "stories260K")
    task = loaded(corpus, policy=folder)
    ids, cache = torch.tensor([[1]]), None
    with torch.no_grad():
        for t in range(30):
            logits, _, cache = task.policy(task.policy.embed(ids[:, t:]), cache)
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
    (text,) = task.vocabulary.decode(ids.tolist())
    assert text.startswith("Once upon a time, there was a little girl named Lily.")
    assert task.vocabulary.encode([text])[0] == ids[0].tolist(), "text is cut into the tokens that the model writes"
    estimator = registry.resolve("estimators", "grade-ste").create()
    estimate = estimator.gradient(task.problem("train", torch.arange(8)), generator(CPU))
    assert sum(float(gradient.abs().sum()) for gradient in estimate.grad) > 1e-4
