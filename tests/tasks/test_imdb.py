"""The task imdb at a size that trains in a second: its prompts, its films, its settings, its cache."""

import os
from pathlib import Path

import pandas as pd
import pytest
import torch

from gradebench import InputError
from gradebench.core.sampling import generator
from gradebench.experiment import harness
from gradebench.experiment.plan import Cell, Plan
from gradebench.kit import making
from gradebench.tasks import grammar, imdb, sentiment
from gradebench.tasks.corpora import HubUnreachable, read_corpus, split_corpus

REAL = (Path(__file__).parents[2] / "../shared/data/imdb.parquet").resolve()
TINY = imdb.Size(
    width=8,
    layers=1,
    heads=2,
    vocabulary=1000,
    prompt=4,
    horizon=4,
    prompts=48,
    policy_steps=30,
    reward_steps=30,
    steps=2,
)
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def tiny_size(tmp_path_factory):
    """One cache for the module, so that each corpus is built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADEBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(imdb.SIZES, "mini", TINY)
        patch.setitem(imdb.SIZES, "small", TINY)
        patch.setattr(imdb, "embedded_corpus", few_reviews)
        yield


def few_reviews(seed=imdb.SPLIT_SEED):
    reviews = grammar.generate_reviews(1500, seed)
    labels = imdb.np.array([review.label for review in reviews], dtype=imdb.np.int8)
    return imdb.Corpus("embedded", [review.text for review in reviews], labels, [review.film for review in reviews])


def prepared(log=lambda message: None, strict=False, **options):
    task = imdb.Imdb(**options)
    task.prepare(CPU, log, strict)
    task.load(CPU)
    return task


@pytest.fixture(scope="module")
def task(tiny_size):
    return prepared(corpus="embedded")


# --- prompts ----------------------------------------------------------------------------------------------------


def test_no_prompt_is_in_two_splits_or_twice_in_one(task):
    prompts = [tuple(row) for split in task.splits for row in task.prompts[split].tolist()]
    assert len(prompts) == len(set(prompts)) == sum(task.sizes.values())
    assert all(len(prompt) == TINY.prompt for prompt in prompts)


def test_no_film_is_in_two_parts_and_no_text_either():
    corpus = few_reviews()
    parts = split_corpus(corpus, imdb.SPLIT_SEED)
    films = [{corpus.groups[i] for i in rows} for rows in parts.values()]
    assert sum(map(len, films)) == len(set.union(*films))
    texts = [corpus.texts[i] for rows in parts.values() for i in rows]
    assert len(texts) == len(set(texts))


def test_prompts_are_openings_of_their_own_part(task):
    corpus = few_reviews()
    parts = split_corpus(corpus, imdb.SPLIT_SEED)
    for split in task.splits:
        openings = [corpus.texts[i] for i in parts[split]]
        for text in task.vocabulary.decode(task.prompts[split].tolist()):
            assert any(opening.startswith(text) for opening in openings)


def test_a_corpus_with_too_few_prompts_is_refused_with_the_count(monkeypatch):
    monkeypatch.setitem(imdb.SIZES, "mini", imdb.Size(**vars(TINY) | {"prompt": 200}))
    with pytest.raises(InputError, match=r"only 0 test prompts of reviews with at least 204 tokens"):
        prepared(corpus="embedded")


# --- what ran ---------------------------------------------------------------------------------------------------


def test_the_setting_names_what_ran(task):
    digest = few_reviews().digest[:8]
    assert task.setting == f"corpus=embedded:{digest} policy=scratch-mini reward=trained kl=0.05"
    assert prepared(corpus="embedded", kl=0.0).setting.endswith(" kl=0")
    assert "policy=scratch-small" in prepared(corpus="embedded", size="small").setting


def test_auto_falls_back_to_the_embedded_corpus_loudly(monkeypatch, task):
    def out_of_reach():
        raise HubUnreachable("the hub did not answer")

    monkeypatch.setattr(imdb, "hub_corpus", out_of_reach)
    lines = []
    fallen = prepared(log=lines.append)
    assert fallen.options["corpus"] == "embedded" and fallen.setting == task.setting
    assert fallen.notices == [lines[0]]
    assert "the hub did not answer" in lines[0] and "EMBEDDED" in lines[0]
    for options in ({"strict": True}, {"corpus": "hub"}):
        with pytest.raises(HubUnreachable):
            prepared(**options)


def test_describing_the_task_tells_how_good_its_models_are(task):
    facts = task.describe()
    assert facts["prompts"] == {"train": 48, "validation": 48, "test": 48}
    assert facts["judge_accuracy_on_openings"] > 0.5  # the grammar's own parser, on openings of eight tokens
    assert 0 <= facts["reward_accuracy_on_openings"] <= 1


# --- the cache --------------------------------------------------------------------------------------------------


def test_the_second_preparation_reads_the_cache(task, monkeypatch):
    monkeypatch.setattr(making, "pretrain_policy", None)  # calling it would raise
    monkeypatch.setattr(sentiment, "train_classifier", None)
    lines = []
    again = prepared(log=lines.append, corpus="embedded")
    assert again.folder == task.folder and not lines
    assert all(torch.equal(a, b) for a, b in zip(again.params, task.params, strict=True))


def test_building_twice_gives_the_same_bytes(task, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path))
    again = prepared(corpus="embedded")
    files = sorted(path.name for path in task.folder.iterdir())
    assert files == sorted(path.name for path in again.folder.iterdir())
    assert all((task.folder / name).read_bytes() == (again.folder / name).read_bytes() for name in files)


# --- cells ------------------------------------------------------------------------------------------------------


def test_a_cell_starts_from_the_policys_own_parameters_whatever_ran_before(task, tmp_path):
    options = {"corpus": "embedded"}
    plan = Plan("run", str(tmp_path), "cpu", 2, 8, 0.1, evaluations=1, checkpoints=0, setting=task.setting)
    cells = [Cell("imdb", "imdb", options, name, name, seed) for name in ("rloo", "grade-ste") for seed in (0, 1)]
    at_start, at_end = set(), set()
    for cell in cells:
        assert harness.run_cell(plan, cell, "key")[0] == "ok"
        rows = pd.read_feather(tmp_path / "cells" / cell.id / "metrics.arrow")
        nll = rows[(rows["metric"] == "kl") & (rows["split"] == "train")].set_index("step")["value"]
        at_start.add(round(nll[0], 6))
        at_end.add(round(nll[2], 6))
    assert at_start == {0.0}  # policy and reference are one
    assert len(at_end) == len(cells) and min(at_end) > 0


def test_the_gold_judge_of_the_embedded_corpus_is_the_grammars_parser(task, monkeypatch):
    monkeypatch.setattr(grammar, "sentiment", lambda text: 0.25)
    metrics = task.evaluate("test", torch.Generator().manual_seed(0))
    assert metrics["gold_reward"] == 0.25
    assert {"reward", "kl", "entropy", "distinct_2", "reference_nll"} < set(metrics)


# --- the real reviews -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not REAL.is_file(), reason="the IMDB reviews (shared/data/imdb.parquet) are not on this machine")
def test_the_real_reviews_make_a_task_of_disjoint_prompts(tmp_path):
    whole = pd.read_parquet(REAL)
    path = tmp_path / "imdb.parquet"
    whole.groupby("label").sample(1000, random_state=0).to_parquet(path)
    real = prepared(corpus=os.fspath(path))
    assert real.options["size"] == "small" and real.setting.startswith("corpus=imdb")
    prompts = [tuple(row) for split in real.splits for row in real.prompts[split].tolist()]
    assert len(prompts) == len(set(prompts)) == 3 * TINY.prompts
    gold = real.evaluate("test", torch.Generator().manual_seed(0))["gold_reward"]
    assert 0 < gold < 1  # a probability from the judge, and no longer the grammar's verdict
    corpus = read_corpus(os.fspath(path))
    assert sum(map(len, split_corpus(corpus, imdb.SPLIT_SEED).values())) == len(corpus.texts)


def test_samples_are_continuations_of_the_first_prompts_with_their_rewards(task):
    texts = task.samples("test", generator("cpu", 0))
    openings = task.vocabulary.decode(task.prompts["test"][:4].tolist())
    assert [one["prompt"] for one in texts] == openings
    assert all(one["text"].startswith(one["prompt"]) and one["text"] != one["prompt"] for one in texts)
    assert all(0 <= one["reward"] <= 1 for one in texts)
    assert texts == task.samples("test", generator("cpu", 0))


# --- instances ----------------------------------------------------------------------------------------------------


def test_an_instance_has_its_own_reviews_prompts_and_models(task):
    other = prepared(corpus="embedded", instance=1)
    assert other.setting.endswith(" instance=1") and "instance" not in task.setting
    assert other.setting.split()[0] != task.setting.split()[0]  # the corpus's digest
    openings = [{tuple(row) for row in one.vocabulary.decode(one.prompts["train"].tolist())} for one in (task, other)]
    assert openings[0] != openings[1]
    first, second = task.policy.state_dict(), other.policy.state_dict()
    assert any(first[name].shape != second[name].shape or not torch.equal(first[name], second[name]) for name in first)


def test_neither_beta_nor_the_first_instance_makes_the_models_anew(task):
    """A sweep over kl pretrains once, and instance 0 is what a task without instances was."""
    assert prepared(corpus="embedded", kl=0.5).folder == prepared(corpus="embedded", instance=0).folder == task.folder
    facts = (task.folder / "facts.json").read_text()
    assert "instance" not in facts and '"kl"' not in facts
