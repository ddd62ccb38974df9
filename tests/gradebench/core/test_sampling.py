"""Draws against their laws: exact identities where there are any, Kolmogorov-Smirnov at a stated level elsewhere."""

import pytest
import scipy.stats
import torch
from scipy.stats import ks_1samp, ks_2samp

from gradebench.core.sampling import (
    derive_seed,
    exponential,
    generator,
    gumbel,
    gumbel_given,
    harden,
    straight_through,
)

PROBABILITY = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
ALPHA = 1e-3  # false alarms of each statistical test, over all its comparisons together
DRAWS = 20_000  # a shift of 0.05 in a Gumbel's location is then missed by ks_2samp with probability below 1e-4


def perturbed(shift, given, seed):
    """(DRAWS, V) draws of z, free or from `given`, and their argmax; the logits are moved by `shift`."""
    rng = generator("cpu", seed)
    log_prob = PROBABILITY.log().expand(DRAWS, -1)
    free = log_prob + gumbel(log_prob, rng)
    index = free.argmax(-1)
    return (free, index) if given is None else (given(log_prob + shift, index, exponential(log_prob, rng)), index)


def smallest_p(given, shift):
    """Smallest p-value, Bonferroni-corrected, of z given its argmax against free Gumbels that had that argmax."""
    (free, free_index), (tied, index) = perturbed(0.0, None, "free"), perturbed(shift, given, "tied")
    assert not torch.equal(free_index, index)
    p_values = []
    for b in range(3):
        a, c = free[free_index == b], tied[index == b]
        views = [lambda z, i=i: z[:, i] for i in range(3)] + [lambda z, i=i: z[:, i] - z[:, i - 1] for i in range(3)]
        p_values += [ks_2samp(view(a).numpy(), view(c).numpy()).pvalue for view in views]
    return min(p_values) * len(p_values)


def gumbel_given_raw(logits, index, noise):
    """A mutant with unnormalised logits: right argmax, wrong law."""
    top = noise.gather(-1, index.unsqueeze(-1))
    others = -(noise / logits.exp() + top).log()
    return others.scatter(-1, index.unsqueeze(-1), -top.log())


# --- conditional Gumbel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, 5.0, -30.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
def test_conditional_gumbel_has_the_given_argmax_always(dtype, shift, scale):
    rng = generator("cpu", "argmax", scale)
    logits = torch.randn(20_000, 7, generator=rng, dtype=dtype) * scale + shift
    index = torch.randint(7, (20_000,), generator=rng)
    z = gumbel_given(logits, index, exponential(logits, rng))
    assert torch.equal(z.argmax(-1), index)
    assert (z == z.max(-1, keepdim=True).values).sum() == len(z)  # and no runner-up ties with it


def test_conditional_gumbel_keeps_its_argmax_when_rounding_would_tie():
    noise = torch.full((1, 4), torch.finfo(torch.float32).tiny)
    noise[0, 2] = 1e4  # the winner arrives so late that E_i / pi_i vanishes beside it
    z = gumbel_given(torch.zeros(1, 4), torch.tensor([2]), noise)
    assert z.argmax(-1).item() == 2
    assert z.isfinite().all()


@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_conditional_gumbel_is_distributed_as_a_free_one_with_that_argmax(shift):
    assert smallest_p(gumbel_given, shift) > ALPHA


def test_raw_logits_in_the_conditional_gumbel_are_caught():
    assert smallest_p(gumbel_given_raw, 0.0) > ALPHA  # normalised logits hide the mistake
    assert smallest_p(gumbel_given_raw, 5.0) < 1e-12


def test_conditional_gumbel_ignores_a_shift_of_the_logits():
    rng = generator("cpu", "shift")
    logits = torch.randn(1000, 5, generator=rng, dtype=torch.float64)
    index, noise = torch.randint(5, (1000,), generator=rng), exponential(logits, rng)
    torch.testing.assert_close(gumbel_given(logits + 5, index, noise), gumbel_given(logits, index, noise))


def test_conditional_gumbel_gradient_equals_finite_differences():
    rng = generator("cpu", "gradient")
    logits = torch.randn(6, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    index, noise = torch.randint(4, (6,), generator=rng), exponential(logits, rng)
    assert torch.autograd.gradcheck(lambda x: gumbel_given(x, index, noise), (logits,))
    assert torch.autograd.gradgradcheck(lambda x: gumbel_given(x, index, noise), (logits,))


def test_conditional_gumbel_recovers_z_from_the_noise_that_z_implies():
    rng = generator("cpu", "coupled")
    log_prob = torch.randn(1000, 5, generator=rng, dtype=torch.float64).log_softmax(-1)
    z = log_prob + gumbel(log_prob, rng)
    index = z.argmax(-1)
    top = z.gather(-1, index.unsqueeze(-1))
    noise = log_prob.exp() * ((-z).exp() - (-top).exp())
    noise = noise.scatter(-1, index.unsqueeze(-1), (-top).exp())
    torch.testing.assert_close(gumbel_given(log_prob + 3, index, noise), z, rtol=0, atol=1e-8)


# --- free noise


@pytest.mark.parametrize(("draw", "law"), [(exponential, "expon"), (gumbel, "gumbel_r")])
def test_noise_follows_its_law(draw, law):
    noise = draw(torch.empty(DRAWS, dtype=torch.float64), generator("cpu", law))
    assert ks_1samp(noise.numpy(), getattr(scipy.stats, law).cdf).pvalue > ALPHA
    assert ks_1samp(noise.numpy() * 1.05, getattr(scipy.stats, law).cdf).pvalue < ALPHA  # 5 % of scale would be seen


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [0, 1, 2**63 - 1])
def test_noise_is_finite_at_the_ends_of_the_uniform(monkeypatch, dtype, bits):
    monkeypatch.setattr(torch.Tensor, "random_", lambda self, generator: self.fill_(bits))
    noise = exponential(torch.empty(3, dtype=dtype), generator("cpu", 0))
    assert noise.dtype == dtype
    assert (noise > 0).all()
    assert noise.log().isfinite().all()


def test_noise_is_fine_near_zero_where_the_winners_of_a_race_are():
    noise = exponential(torch.empty(2_000_000), generator("cpu", 0))
    small = noise[noise < 1e-4]  # 200 in expectation: in steps of 2^-24, a tenth of their pairs would collide
    assert 140 < len(small) < 260  # 4 standard deviations
    assert len(small.unique()) == len(small)


def test_noise_has_shape_and_dtype_of_its_model_and_no_graph():
    like = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    noise = gumbel(like, generator("cpu", 0))
    assert noise.shape == (2, 3)
    assert noise.dtype == torch.float64
    assert not noise.requires_grad
    assert len(noise.unique()) == 6


# --- hard tokens


def test_harden_is_the_one_hot_of_the_argmax_without_a_gradient():
    x = torch.tensor([[[0.2, 3.0, -1.0], [5.0, 5.0, 4.0]]], requires_grad=True)
    hard = harden(x)
    assert hard.tolist() == [[[0, 1, 0], [1, 0, 0]]]  # a tie gives one winner
    assert not hard.requires_grad


def test_straight_through_has_the_value_of_hard_and_the_gradient_of_soft():
    rng = generator("cpu", "straight-through")
    x = torch.randn(50, 4, generator=rng, requires_grad=True)
    weight = torch.randn(50, 4, generator=rng)
    soft = x.softmax(-1)
    hard = harden(soft).requires_grad_()
    value = straight_through(hard, soft)
    assert torch.equal(value, hard)
    through, to_hard = torch.autograd.grad((value * weight).sum(), [x, hard], allow_unused=True, retain_graph=True)
    assert to_hard is None
    assert torch.equal(through, torch.autograd.grad((soft * weight).sum(), x)[0])


# --- seeds


def test_seeds_are_the_same_on_every_machine():
    # Pinned, because a change of the derivation changes every recorded number.
    assert derive_seed(3, "data") == 4070596949261473789
    assert all(0 <= derive_seed(i) < 2**63 for i in range(1000))  # what a generator takes


def test_streams_differ_by_every_part_of_their_name_and_its_order():
    names = [(3, "data"), (3, "noise"), (4, "data"), ("data", 3), (3,), (3, "data", 0)]
    streams = [torch.rand(4, generator=generator("cpu", *name)) for name in names]
    assert len({tuple(stream.tolist()) for stream in streams}) == len(names)
    assert all(
        torch.equal(stream, torch.rand(4, generator=generator("cpu", *name)))
        for name, stream in zip(names, streams, strict=True)
    )
