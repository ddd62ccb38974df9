"""A mixture says the same as the relaxed one-hots that it stands for, and writes none of them out."""

import pytest
import torch

from gradebench import generator
from gradebench.core.mixture import Mixture, dense, likeliest, relaxed_tokens, stacked
from gradebench.models.end_of_text import ending_token, share_ended

V, D = 11, 5
ENDS = (2, 7)


def drawn(*shape, k=4, seed=0):
    """A mixture (*shape, k), its first two ids the same in every other row, and a graph to its weights."""
    rng = generator("cpu", seed)
    ids = torch.stack([torch.randperm(V, generator=rng)[:k] for _ in range(torch.Size(shape).numel())])
    ids[::2, 1] = ids[::2, 0]
    weights = torch.rand(*shape, k, generator=rng, dtype=torch.float64).softmax(-1).requires_grad_()
    return Mixture(ids.view(*shape, k), weights)


def by_hand(mixture):
    """The one-hots, entry by entry."""
    rows = torch.zeros(*mixture.ids.shape[:-1], V, dtype=mixture.weights.dtype)
    for ids, weights, row in zip(
        mixture.ids.flatten(0, -2).tolist(), mixture.weights.flatten(0, -2).tolist(), rows.view(-1, V), strict=True
    ):
        for category, weight in zip(ids, weights, strict=True):
            row[category] += weight
    return rows


def test_its_one_hots_are_those_of_its_entries():
    mixture = drawn(2, 3)
    torch.testing.assert_close(mixture.dense(V).detach(), by_hand(mixture), rtol=0, atol=1e-15)
    assert torch.equal(dense(mixture, V), mixture.dense(V))
    assert dense(mixture.weights, V) is mixture.weights


def test_embedding_is_the_product_with_the_table_and_so_are_its_gradients():
    mixture, other = drawn(2, 3), drawn(2, 3)
    table = torch.randn(V, D, generator=generator("cpu", 1), dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, D, generator=generator("cpu", 2), dtype=torch.float64)
    found, expected = mixture.embedded(table), other.dense(V) @ table
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((found * weight).sum(), [table, mixture.weights]),
        torch.autograd.grad((expected * weight).sum(), [table, other.weights]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_embedding_in_half_precision():
    mixture = drawn(2, 3)
    table = torch.randn(V, D, generator=generator("cpu", 1))
    found = mixture.embedded(table.bfloat16())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), mixture.dense(V) @ table.double(), rtol=0, atol=0.05)
    (gradient,) = torch.autograd.grad(found.float().sum(), mixture.weights)
    expected = table.double().sum(-1)[mixture.ids]
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0.1)


def test_no_tokens_have_no_embeddings():
    nothing = drawn(2, 3)[:, :0]
    assert nothing.embedded(torch.zeros(V, D, dtype=torch.float64)).shape == (2, 0, D)


@pytest.mark.parametrize("ends", [2, ENDS])
def test_texts_end_as_those_of_the_one_hots(ends):
    mixture, share = drawn(2, 3), torch.rand(2, 3, generator=generator("cpu", 3), dtype=torch.float64)
    torch.testing.assert_close(share_ended(mixture, ends), share_ended(mixture.dense(V), ends))
    found = ending_token(mixture, share, ends).dense(V)
    torch.testing.assert_close(found, ending_token(mixture.dense(V), share, ends), rtol=0, atol=1e-15)


def test_positions_are_stacked_at_the_width_of_the_widest():
    narrow, wide = drawn(2, 3, k=2), drawn(2, 3, k=4)
    both = stacked([narrow, wide])
    assert both.ids.shape == (2, 3, 2, 4)
    assert torch.equal(both.dense(V), torch.stack([narrow.dense(V), wide.dense(V)], 2))
    assert torch.equal(both[:, :, 1:].dense(V), wide.dense(V)[:, :, None])
    assert torch.equal(both.flatten(0, 1).dense(V), both.dense(V).flatten(0, 1))
    dense_ones = [narrow.dense(V), wide.dense(V)]
    assert torch.equal(stacked(dense_ones), torch.stack(dense_ones, 2))


def test_its_category_is_that_of_the_largest_weight():
    mixture = drawn(2, 3, seed=1)
    first = torch.zeros_like(mixture.weights).index_fill(-1, torch.tensor([3]), 1.0)
    assert torch.equal(Mixture(mixture.ids, first).argmax(-1), mixture.ids[..., 3])


def test_the_likeliest_are_the_largest_and_none_are_left_out_of_all():
    logits = torch.randn(2, 3, V, generator=generator("cpu", 4))
    values, ids = likeliest(logits, 3)
    assert torch.equal(values, logits.sort(-1, descending=True).values[..., :3])
    assert torch.equal(logits.gather(-1, ids), values)
    for k in (None, V, V + 1):
        whole, ids = likeliest(logits, k)
        assert whole is logits and ids is None
        assert relaxed_tokens(whole, ids) is logits
