"""Rewards that read texts: how a function is called, what is refused, and classifiers with tokenizers of their own."""

import itertools
import runpy
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradebench import InputError, SequenceProblem
from gradebench.models.transformer import ScratchPolicy
from gradebench.rewards.text_reward import (
    RewardFunction,
    TextReward,
    load_function,
    load_text_classifier,
    names_function,
    shares_tokens,
)

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))
LETTERS = "abcd"
PROMPTS, COMPLETIONS = ["ab", "b"], ["cd", ""]


def decode(rows):
    return ["".join(LETTERS[i] for i in row) for row in rows]


@pytest.fixture
def function(tmp_path):
    """The reward function that a file with this body defines."""

    def build(body):
        path = tmp_path / "mine.py"
        path.write_text(body)
        return load_function(f"{path}:score")

    return build


def refusal_of(call, *arguments):
    with pytest.raises(InputError) as refusal:
        call(*arguments)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --- how a function is called -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "seen"),
    [
        ("texts", ["abcd", "b"]),
        ("whatever", ["abcd", "b"]),
        ("prompts, completions", (PROMPTS, COMPLETIONS)),
        ("completions, prompts", (COMPLETIONS, PROMPTS)),
        ("completions, **others", (PROMPTS, COMPLETIONS)),  # as TRL's reward functions are written
        ("completions, weight=2.0", COMPLETIONS),
    ],
)
def test_a_function_gets_what_its_signature_asks_for(function, head, seen):
    body = f"def score({head}):\n    seen.append(dict(locals()))\n    return [1.0, 2.0]\nseen = []\n"
    reward = function(body)
    assert reward(PROMPTS, COMPLETIONS) == [1.0, 2.0]
    (got,) = reward.function.__globals__["seen"]
    got.pop("weight", None)
    flat = [*got.pop("others", {}).values(), *got.values()]
    assert flat == ([*seen] if isinstance(seen, tuple) else [seen])


def test_arrays_and_tensors_are_numbers_too(function):
    reward = function("import numpy as np, torch\ndef score(texts): return np.array([1, 2])\n")
    assert reward(PROMPTS, COMPLETIONS) == [1.0, 2.0]
    assert function("import torch\ndef score(texts): return torch.tensor([1.5, 2])\n")(PROMPTS, COMPLETIONS) == [1.5, 2]


def test_an_importable_function_is_one_too(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text("def score(texts): return [float(len(text)) for text in texts]\n")
    monkeypatch.syspath_prepend(tmp_path)
    reward = load_function("my_rewards:score")
    assert reward(PROMPTS, COMPLETIONS) == [4.0, 1.0] and len(reward.digest) == 64
    assert "no attribute 'nothing'" in refusal_of(load_function, "my_rewards:nothing")
    assert "No module named 'no_such'" in refusal_of(load_function, "no_such.module:score")


def test_names_of_functions_are_told_from_folders_and_hub_ids(tmp_path):
    assert names_function("./mine.py:score") and names_function("package.module:score")
    assert not any(map(names_function, ("trained", "org/model", "./folder", str(tmp_path))))


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def score(texts): return [1.0]", "gave 1 number for 2 texts"),
        ("def score(texts): return [1.0, float('nan')]", "gave nan for 'b'"),
        ("def score(texts): return 1.0", "gave float; it has to give one number for each text"),
        ("def score(texts): return [1.0, None]", "gave None among its numbers, for 'b'"),
        ("def score(texts): return [1.0, 1e39]", "gave 1e+39 for 'b'; it has to be a finite number in float32"),
        ("def score(texts): return 1 / 0", "raised ZeroDivisionError: division by zero (mine.py, line 1)"),
        ("def score(texts): raise SystemExit('over')", "raised SystemExit: over"),
    ],
)
def test_answers_that_are_no_rewards_are_refused_in_one_line(function, body, said):
    reward = function(body)
    assert said in refusal_of(reward, PROMPTS, COMPLETIONS)


async def _later(values):
    return values


FORMS = {  # of the same numbers: what may be given for a list of them, and what may not
    "list": list, "tuple": tuple, "map": lambda values: (value for value in values), "generator": lambda values: (v for v in values),
    "deque": deque, "array": np.array, "tensor": torch.tensor, "series": pd.Series, "objects": lambda v: np.array(v, object),
    "column": lambda values: torch.tensor(values, dtype=torch.float64).reshape(-1, 1), "scalars": lambda v: list(np.array(v)),
    "zero-dimensional tensors": lambda values: [torch.tensor(float(v), dtype=torch.float64) for v in values],
}  # fmt: skip
WRONG = {
    "dictionary": dict.fromkeys, "set": set, "text": str, "bytes": bytes, "none": lambda values: None,
    "one number": lambda values: 1.0, "nested": lambda values: [list(values)], "each nested": lambda v: [[x] for x in v],
    "table": lambda values: np.zeros((len(values), 2)), "scalar array": lambda values: np.array(1.0), "coroutine": _later,
    "texts": lambda values: [str(v) for v in values], "complex": lambda v: [complex(x) for x in v], "class": lambda v: list,
    "with none": lambda values: [*values[:-1], None], "too few": lambda values: values[1:], "empty": lambda values: [],
    "too many": lambda values: [*values, 1.0], "endless": lambda values: itertools.count(), "strings": np.array(["1"] * 3).tolist,
}  # fmt: skip
NOT_FINITE = [float("nan"), float("inf"), 1e39, -3.5e38, 10**400]
CHANGES = {
    "nothing": lambda texts: None,
    "emptied": list.clear,
    "longer": lambda texts: texts.append("x"),
    "other": list.sort,
}


@settings(deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from([*FORMS, *WRONG]),
    st.lists(st.one_of(st.integers(-9, 9), st.floats(width=32, allow_nan=False, allow_infinity=False)), min_size=1, max_size=4),
    st.one_of(st.none(), st.sampled_from(NOT_FINITE)),
    st.sampled_from(list(CHANGES)),
    st.booleans(),
)  # fmt: skip
def test_whatever_a_function_answers_is_its_numbers_or_one_line(form, values, odd, change, named):
    prompts, completions = [f"p{i}" for i in range(len(values))], ["c"] * len(values)
    given_ones = [*values[:-1], odd] if odd is not None and form in FORMS else values

    def by_texts(texts):
        CHANGES[change](texts)
        return answer()

    def by_names(prompts, completions):
        CHANGES[change](prompts), CHANGES[change](completions)
        return answer()

    def answer():
        try:
            return {**FORMS, **WRONG}[form](given_ones)
        except (ValueError, OverflowError, RuntimeError, TypeError):  # what no array or bytes can hold
            return list(given_ones) if form in FORMS else None

    reward = RewardFunction("mine.py:score", "", by_names if named else by_texts)
    if form in FORMS and odd is None:
        assert reward(prompts, completions) == pytest.approx([float(value) for value in values], rel=1e-6)
    else:
        said = refusal_of(reward, prompts, completions)
        assert said.startswith("reward mine.py:score gave ") and len(said) < 300
        if form in FORMS:
            assert f"for 'p{len(values) - 1}c'" in said
    assert prompts == [f"p{i}" for i in range(len(values))] and completions == ["c"] * len(values)


def test_a_generator_that_fails_is_told_like_a_function_that_does(function):
    reward = function("def score(texts):\n    for text in texts:\n        yield 1 / 0\n")
    assert "raised ZeroDivisionError: division by zero (mine.py, line 3)" in refusal_of(reward, PROMPTS, COMPLETIONS)


def test_functions_that_cant_be_called_are_refused_when_they_are_loaded(function):
    assert "asks for a, b, c" in refusal_of(function, "def score(a, b, c): pass")
    assert "asks for completion_ids" in refusal_of(function, "def score(*, completion_ids): pass")
    assert "asks for p, c" in refusal_of(function, "def score(p, c): pass")
    assert "asks for weights" in refusal_of(function, "def score(completions, weights): pass")
    assert "asks for response" in refusal_of(function, "def score(response): pass")
    assert "is of type int" in refusal_of(function, "score = 3")
    assert "has no object 'score'" in refusal_of(function, "def other(texts): pass")


# --- inside a problem -------------------------------------------------------------------------------------------


def problem_of(score):
    torch.manual_seed(0)
    policy = ScratchPolicy(len(LETTERS), 8, 1, 2, 6)
    prompts = torch.tensor([[0, 1], [2, 3]])
    return SequenceProblem(policy, TextReward(score, decode, 2), prompts, 4, len(LETTERS))


def test_a_problem_scores_prompts_and_completions_in_their_order():
    calls = []

    def score(prompts, completions):
        calls.append((prompts, completions))
        return [float(text.count("d")) for text in completions]

    problem = problem_of(score)
    z = torch.tensor([[[0, 3, 3, 3], [1, 1, 1, 1]], [[3, 0, 0, 0], [2, 2, 2, 3]]])  # (n, B, T)
    assert problem.reward(z).tolist() == [[3, 0], [1, 1]]
    assert calls == [(["ab", "cd", "ab", "cd"], ["addd", "bbbb", "daaa", "cccd"])]
    assert problem.offers == {"support", "exact", "fixed_reward"}
    with pytest.raises(TypeError, match="can't read relaxed tokens"):
        problem.raw_reward(torch.nn.functional.one_hot(z, 4).float())


def test_a_token_that_the_prompts_end_cuts_in_two_is_left_to_the_completion_alone():
    whole = {(0, 1): "é", (0,): "�", (1,): "�"}  # a character of two byte tokens
    reward = TextReward(
        lambda prompts, completions: [len(prompts[0]), 0], lambda rows: [whole[tuple(r)] for r in rows], 1
    )
    seen = []
    reward.score = lambda prompts, completions: seen.append((prompts, completions)) or [0.0]
    reward(torch.tensor([[0, 1]]))
    assert seen == [(["�"], ["�"])]


# --- classifiers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_a_classifier_reads_padded_texts_as_it_reads_each_alone(folders, family):
    options = {"pad_token_id": 0} if family == "bert" else {}
    score = load_text_classifier(str(folders(family, "classifier", trained=5, **options)))
    texts = ["a film", "a very good film that I saw twice with my family and would see again", "bad"]
    together = score(texts, ["", "", ""])
    for text, value in zip(texts, together, strict=True):
        ids = torch.tensor([score.tokenizer(text)["input_ids"]])
        alone = score.model(input_ids=ids).logits.softmax(-1)[0, score.head.index]
        assert value == pytest.approx(float(alone), abs=1e-5)
    assert len(set(together)) == 3


def test_texts_beyond_the_classifiers_context_are_cut(folders):
    score = load_text_classifier(str(folders("bert", "classifier", trained=5, pad_token_id=0)))
    (value,) = score(["good " * 500], [""])
    assert 0 <= value <= 1


def test_a_shared_tokenizer_is_told_from_another(folders):
    policy = SimpleNamespace(tokenizer=load_text_classifier(str(folders("gpt2", "classifier"))).tokenizer)
    assert shares_tokens(str(folders("gpt2", "classifier")), policy)
    assert not shares_tokens(str(folders("gpt2", "classifier", trained=5)), policy)
