"""Minibatches cover a batch once an epoch, and say so where there are too few contexts for them; statistics of tokens."""

import pytest
import torch

from gradebench import Unsupported
from gradebench.core.sampling import generator
from gradebench.estimators.minibatches import mean_of, share, shuffled, variance_of


def test_every_epoch_reads_every_context_once(tiny_problem):
    parts = shuffled(tiny_problem(contexts=5), 3, 2, generator("cpu", 0))
    assert [len(part) for part in parts] == [3, 2] * 3
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert sorted([*first.tolist(), *second.tolist()]) == list(range(5))
    assert not torch.equal(torch.cat(parts[:2]), torch.cat(parts[2:4]))  # chance: 1 in 120


def test_too_few_contexts_are_no_empty_minibatch(tiny_problem):
    with pytest.raises(Unsupported, match="2 contexts can't fill 3 minibatches"):
        shuffled(tiny_problem(contexts=2), 1, 3, generator("cpu", 0))


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
def test_statistics_of_counted_tokens_are_those_of_the_tokens_alone(kind):
    rng = generator("cpu", 0)
    values = 3 + torch.randn(2, 4, 5, generator=rng, dtype=kind)
    alive = torch.arange(5) <= torch.randint(5, (2, 4, 1), generator=rng)
    assert not alive.all()
    torch.testing.assert_close(mean_of(values, alive), values[alive].mean())
    torch.testing.assert_close(variance_of(values, alive), values[alive].var())
    torch.testing.assert_close(share(values > 3, alive), (values > 3)[alive].float().mean())


def test_statistics_of_texts_without_an_end_are_the_plain_ones_to_the_bit():
    values = torch.randn(3, 4, 5, generator=generator("cpu", 1))
    whole = torch.ones_like(values, dtype=torch.bool)
    assert torch.equal(mean_of(values, whole), values.mean())
    assert torch.equal(variance_of(values, whole), values.var())
