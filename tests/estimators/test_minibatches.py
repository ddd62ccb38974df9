"""Minibatches cover a batch once an epoch, and say so where there are too few contexts for them."""

import pytest
import torch

from gradebench import Unsupported
from gradebench.core.sampling import generator
from gradebench.estimators.minibatches import shuffled


def test_every_epoch_reads_every_context_once(tiny_problem):
    parts = shuffled(tiny_problem(contexts=5), 3, 2, generator("cpu", 0))
    assert [len(part) for part in parts] == [3, 2] * 3
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(5))
    assert not torch.equal(torch.cat(parts[:2]), torch.cat(parts[2:4]))  # chance: 1 in 120


def test_too_few_contexts_are_no_empty_minibatch(tiny_problem):
    with pytest.raises(Unsupported, match="2 contexts can't fill 3 minibatches"):
        shuffled(tiny_problem(contexts=2), 1, 3, generator("cpu", 0))
