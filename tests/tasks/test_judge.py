"""The bag-of-words judge."""

import numpy as np
import pytest
from safetensors import SafetensorError

from gradebench.tasks.judge import load_judge, train_judge

GOOD = ["a superb film with a moving story", "superb cast and a superb script"]
BAD = ["a dull film with a silly story", "dull cast and a dreadful script"]


def trained():
    return train_judge((GOOD + BAD) * 10, np.array([1, 1, 0, 0] * 10, dtype=np.int8))


def test_it_tells_the_sides_apart_on_new_texts():
    positive, negative = trained()(["superb story", "dreadful dull story"])
    assert 0.5 < positive <= 1
    assert 0 <= negative < 0.5


def test_a_stored_judge_gives_the_same_probabilities(tmp_path):
    judge = trained()
    judge.save(tmp_path / "judge.safetensors")
    assert np.array_equal(load_judge(tmp_path / "judge.safetensors")(GOOD + BAD), judge(GOOD + BAD))


def test_a_stored_judge_is_never_a_pickle(tmp_path):
    (tmp_path / "judge.safetensors").write_bytes(b"\x80\x04not safetensors")
    with pytest.raises(SafetensorError):
        load_judge(tmp_path / "judge.safetensors")
