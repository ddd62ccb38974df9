"""The behaviour distribution: what a sampler does to logits, and what it refuses."""

import pytest
import torch

from gradebench import InputError
from gradebench.core.sampler import ON_POLICY, SAMPLER, Sampler, truncated


def test_by_default_it_is_the_policy():
    logits = torch.randn(2, 3, 5)
    assert ON_POLICY.on_policy and str(ON_POLICY) == ""
    assert torch.equal(ON_POLICY.logits(logits), logits)
    assert SAMPLER == ("stale", "temperature", "top_k", "top_p", "noise")


def test_it_says_what_differs():
    assert str(Sampler(stale=4, temperature=0.7, noise="bfloat16")) == "stale=4 temperature=0.7 noise=bfloat16"


@pytest.mark.parametrize("options, option", [({"stale": -1}, "--stale -1"), ({"temperature": 0.0}, "--temperature 0.0"),
    ({"temperature": float("nan")}, "--temperature nan"), ({"temperature": float("inf")}, "--temperature inf"),
    ({"top_k": -2}, "--top-k -2"), ({"top_p": 0.0}, "--top-p 0.0"), ({"top_p": 1.5}, "--top-p 1.5"),
    ({"noise": -0.1}, "--noise -0.1"), ({"noise": "float8"}, "--noise float8"), ({"noise": float("nan")}, "--noise nan")])  # fmt: skip
def test_what_no_sampler_can_be_is_refused_in_one_line(options, option):
    with pytest.raises(InputError, match=option) as caught:
        Sampler(**options)
    assert "\n" not in str(caught.value)


def test_truncation_is_by_temperature_then_likeliest_then_their_mass():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert truncated(logits, 0.5).softmax(-1).tolist() == pytest.approx([16 / 30, 9 / 30, 4 / 30, 1 / 30])
    assert truncated(logits, top_k=2).softmax(-1).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert truncated(logits, top_p=0.65).softmax(-1).tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])
    assert truncated(logits, top_p=0.75).softmax(-1).tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])
    assert truncated(logits, top_k=2, top_p=0.5).softmax(-1).tolist() == pytest.approx([1, 0, 0, 0])  # 4 / 7 of the two
    assert truncated(logits, top_p=1e-6).softmax(-1).tolist() == [1, 0, 0, 0]  # one token is always left


def test_the_error_of_logits_is_fixed_by_position_and_token():
    sampler, logits = Sampler(noise=0.3), torch.zeros(4, 6, 5, dtype=torch.float64)
    whole = sampler.logits(logits)
    assert torch.equal(whole, sampler.logits(logits))
    for t in range(6):
        assert torch.equal(sampler.logits(logits[:, t : t + 1], first=t), whole[:, t : t + 1])
    assert torch.equal(whole[0], whole[3])
    many = Sampler(noise=0.3).logits(torch.zeros(50, 400, dtype=torch.float64))
    assert float(many.std()) == pytest.approx(0.3, rel=0.02)  # of 20,000 draws; standard error 0.5 %
    assert float(many.mean()) == pytest.approx(0, abs=0.01)


def test_logits_are_rounded_to_bfloat16():
    logits = torch.tensor([[1.001, 3.14159]], dtype=torch.float64)
    assert torch.equal(Sampler(noise="bfloat16").logits(logits), logits.bfloat16().double())
