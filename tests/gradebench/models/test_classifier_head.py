"""Which output of a classifier is the reward: what its configuration says, as the library reads it, or an option."""

import json
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, TextClassificationPipeline

from gradebench import InputError
from gradebench.models.classifier_head import Head, head_of
from gradebench.models.pretrained import load_policy, load_reward
from gradebench.rewards.text_reward import load_text_classifier

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))

STARS = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
# Labels, problem type, the options, the rewarded label and what is applied to the outputs.
KINDS = {
    "single": (["bad", "POSITIVE"], None, {}, 1, "softmax"),
    "positive first": (["pos", "neg"], "single_label_classification", {}, 0, "softmax"),
    "unnamed": (["LABEL_0", "LABEL_1"], None, {}, 1, "softmax"),
    "three": (["negative", "neutral", "Positive"], None, {}, 2, "softmax"),
    "five": (STARS, None, {"label": "5 STARS"}, 4, "softmax"),
    "by number": (["opposed", "supportive"], None, {"label": "1"}, 1, "softmax"),
    "multi-label": (["toxic", "positive", "rude"], "multi_label_classification", {}, 1, "sigmoid"),
    "several values": (["helpful", "safe"], "regression", {"label": "safe"}, 1, "none"),
    "one output": (["LABEL_0"], None, {}, 0, "none"),
    "regression": (["score"], "regression", {}, 0, "none"),
    "one output, multi-label": (["toxic"], "multi_label_classification", {}, 0, "sigmoid"),
    "raw by option": (["neg", "pos"], None, {"activation": "none"}, 1, "none"),
    "sigmoid by option": (["LABEL_0"], None, {"activation": "sigmoid"}, 0, "sigmoid"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


def labelled(folders, labels, problem_type, family="gpt2", **options):
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return str(folders(family, "classifier", problem_type=problem_type, **named, **options))


def told(folder, texts, index, activation):
    """What the library's own pipeline answers, text by text."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager")
    pipeline = TextClassificationPipeline(model=model, tokenizer=AutoTokenizer.from_pretrained(folder), top_k=None)
    name = model.config.id2label[index]
    answers = [pipeline([text], function_to_apply=activation)[0] for text in texts]
    return [next(one["score"] for one in answer if one["label"] == name) for answer in answers]


@torch.no_grad()
def scores(reward, vocabulary, texts):
    return [float(reward(reward.embed(torch.tensor([ids])))) for ids in vocabulary.encode(texts)]


@pytest.mark.parametrize("kind", KINDS)
def test_reward_is_what_the_librarys_pipeline_answers(folders, kind):
    labels, problem_type, options, index, activation = KINDS[kind]
    folder = labelled(folders, labels, problem_type)
    texts = [text[:30] for text in tiny_models.texts()[:3]]
    expected = told(folder, texts, index, activation)
    if not options and (len(labels) > 1 or problem_type):  # one output without a type is trained as a regression
        assert told(folder, texts, index, None) == expected
    reads_texts = load_text_classifier(folder, **options)
    assert reads_texts.head == Head(index, activation)
    assert reads_texts(texts, [""] * 3) == pytest.approx(expected, abs=1e-5)
    _, vocabulary = load_policy(str(folders("gpt2")))
    reward = load_reward(folder, vocabulary, **options)
    assert scores(reward, vocabulary, texts) == pytest.approx(expected, abs=1e-5)
    assert len({round(value, 4) for value in expected}) == 3


@pytest.mark.parametrize("pad", [None, 0, 2], ids=["no padding token", "one of its own", "the end"])
@pytest.mark.parametrize("template", ["", "<s> $A </s>"])
def test_a_decoder_is_read_where_the_library_reads_it(folders, pad, template):
    """At the last token that isn't padding, so before an end that is the padding token."""
    folder = labelled(folders, ["neg", "pos"], None, pad_token_id=pad, template=template)
    texts = [text[:length] for text, length in zip(tiny_models.texts(), (12, 40, 25), strict=False)]
    expected = told(folder, texts, 1, None)
    assert load_text_classifier(folder)(texts, [""] * 3) == pytest.approx(expected, abs=1e-5)
    _, vocabulary = load_policy(str(folders("gpt2", template="<s> $A" if template else "")))
    reward = load_reward(folder, vocabulary)
    assert scores(reward, vocabulary, texts) == pytest.approx(expected, abs=1e-5)


def config(labels, problem_type=None):
    return SimpleNamespace(id2label=labels, problem_type=problem_type)


def refusal_of(*arguments, **options):
    with pytest.raises(InputError) as refusal:
        head_of(*arguments, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    "labels",
    [["opposed", "supportive"], ["not positive", "positively bad"], STARS, ["POS", "positive"], ["LABEL_0", "LABEL_1", "LABEL_2"]],
)  # fmt: skip
def test_labels_that_say_nothing_are_listed(labels):
    said = refusal_of(config(dict(enumerate(labels))), "m")
    assert "give label=" in said and all(f"{i}: {name}" in said for i, name in enumerate(labels))


def test_options_that_dont_fit_are_refused_with_the_labels():
    two = config({0: "bad", 1: "good"})
    assert "no label has that name or number; they are 0: bad, 1: good" in refusal_of(two, "m", "best")
    assert "no label has that name or number" in refusal_of(two, "m", "2")
    assert "several labels have that name" in refusal_of(config({0: "a", 1: "a"}), "m", "a")
    assert "always 1; give activation=" in refusal_of(config({0: "x"}), "m", activation="softmax")
    assert "are numbered [1, 2]; mend" in refusal_of(config({1: "pos", 2: "neg"}), "m")


names = st.one_of(
    st.sampled_from(["POSITIVE", "pos", "Positive", "not positive", "opposed", "LABEL_0", "LABEL_1", "0", "1", "neg"]),
    st.text("posPOS,\n1", max_size=4),
)


@settings(deadline=None, database=None, derandomize=True)
@given(st.lists(names, min_size=1, max_size=5), st.one_of(st.just("auto"), names))
def test_a_label_is_rewarded_by_its_whole_name_or_not_at_all(labels, label):
    try:
        head = head_of(config(dict(enumerate(labels))), "m", label)
    except InputError as refusal:
        assert "\n" not in str(refusal)
        if label == "auto":
            assert len(labels) > 1 and sum(name.casefold() in ("positive", "pos") for name in labels) != 1
        else:
            assert sum(name == label for name in labels) != 1
        return
    named = labels[head.index].casefold()
    if label != "auto":
        assert named == label.casefold() or (label.isdecimal() and head.index == int(label))
    elif len(labels) > 1:
        assert named in ("positive", "pos") or labels == ["LABEL_0", "LABEL_1"]


# --- where texts end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "known"),
    [
        ([2, 7], (2, 7)),
        ([7, 9], (2, 7, 9)),  # the tokenizer's own ends a text too, and fills it up
        (7, (2, 7)),
        (2, 2),
        ([2], 2),
        ([2, 319, 320, 9999, -1], (2, 319)),  # the tokenizer has 320 ids: what is never drawn ends nothing
        (None, 2),
    ],
)
def test_every_end_that_the_generation_lists_ends_a_text(folders, tmp_path, listed, known):
    folder = tmp_path / "model"
    shutil.copytree(folders("gpt2"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    assert load_policy(str(folder))[1].end == known


def test_without_a_configuration_of_generation_the_models_own_lists_them(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders("llama", eos_token_id=[7, 8]), folder)
    (folder / "generation_config.json").unlink()
    assert load_policy(str(folder))[1].end == (2, 7, 8)


def test_an_end_that_is_no_number_is_refused(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders("gpt2"), folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": "</s>"}))
    with pytest.raises(InputError, match="eos_token_id"):
        load_policy(str(folder))
