"""Vocabularies trained on a corpus."""

import random

import pytest

from gradebench.models.vocabulary import load_vocabulary, train_vocabulary

FEW_WORDS = ["the cast is superb .", "the plot is dull , but the cast is superb ."]


def many_words(count: int) -> list[str]:
    rng = random.Random(0)
    letters = "abcdefghijklmnop"
    return [" ".join("".join(rng.choices(letters, k=6)) for _ in range(30)) for _ in range(count)]


def test_a_closed_vocabulary_has_one_token_a_word_and_decodes_without_loss():
    vocabulary = train_vocabulary(FEW_WORDS, size=100)
    ids = vocabulary.encode(FEW_WORDS)
    assert [len(row) for row in ids] == [len(text.split()) for text in FEW_WORDS]
    assert vocabulary.decode(ids) == FEW_WORDS


def test_an_unknown_word_of_a_closed_vocabulary_is_one_marked_token():
    vocabulary = train_vocabulary(FEW_WORDS, size=100)
    assert vocabulary.decode(vocabulary.encode(["the zebra is superb ."])) == ["the <unk> is superb ."]


@pytest.mark.parametrize("text", ["plain words", "Ünïcödé — 映画 🎬", "tabs\tand  spaces"])
def test_an_open_vocabulary_has_the_size_asked_for_and_decodes_any_text(text: str):
    vocabulary = train_vocabulary(many_words(50), size=400)
    assert len(vocabulary) == 400
    assert vocabulary.decode(vocabulary.encode([text])) == [f" {text}"]


def test_more_texts_than_one_part_keep_their_order():
    texts = [f"the cast is superb . {'the plot ' * (i % 7)}".strip() for i in range(2500)]
    vocabulary = train_vocabulary(texts, size=100)
    assert vocabulary.decode(vocabulary.encode(texts)) == texts


def test_a_saved_vocabulary_loads_the_same(tmp_path):
    vocabulary = train_vocabulary(FEW_WORDS, size=100)
    vocabulary.save(tmp_path / "tokenizer.json")
    assert load_vocabulary(tmp_path / "tokenizer.json").encode(FEW_WORDS) == vocabulary.encode(FEW_WORDS)


def test_a_word_that_is_the_mark_of_unknown_ones_is_no_word_of_its_own():
    vocabulary = train_vocabulary(["the <unk> is the cast", "<unk> the"], size=100)
    assert len(vocabulary) == 4
    assert vocabulary.encode(["<unk> zebra the"])[0][:2] == [0, 0]
    assert max(id for row in vocabulary.encode(["the is cast <unk>"]) for id in row) < len(vocabulary)


def test_texts_without_spaces_are_no_closed_vocabulary():
    texts = [f"这部电影很好看我看了{i}次都觉得不错" for i in range(50)]
    vocabulary = train_vocabulary(texts, size=400)
    assert len(vocabulary.encode(["这部电影"])[0]) > 1
    assert [text.strip() for text in vocabulary.decode(vocabulary.encode(texts))] == texts
