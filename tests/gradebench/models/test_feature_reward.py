"""A head on a frozen policy's features: the gradient of a plain computation, and a training that generalises."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from double_precision import in_float64

from gradebench.models.feature_reward import FeatureReward, train_head
from gradebench.models.pretrained import load_policy
from gradebench.models.transformer import ScratchPolicy

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def reward_on(policy, last=None):
    """With a head drawn at random."""
    reward = FeatureReward(policy, last).double()
    with torch.no_grad():
        for p in reward.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=draws(), dtype=p.dtype))  # far from saturated
    return reward


def plainly(reward, model, scale, mixtures, keep):
    """The reward of relaxed texts (N, L, V), written out."""
    table = model.get_input_embeddings().weight[: mixtures.shape[-1]]
    features = model(inputs_embeds=mixtures @ table * scale, output_hidden_states=True).hidden_states[-1]
    mean = torch.einsum("nl,nld->nd", keep / keep.sum(1, keepdim=True), features)
    hidden = torch.tanh(mean @ reward.hidden.weight.T + reward.hidden.bias)
    return (hidden @ reward.output.weight.T + reward.output.bias).softmax(-1)[:, 1]


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen", "gpt-neox", "gemma2"])
def test_its_gradient_is_that_of_a_plain_computation(folders, family):
    policy = load_policy(str(folders(family)))[0].double()
    reward = reward_on(policy)
    mixtures = torch.randn(3, 7, policy.categories, generator=draws(), dtype=torch.float64).softmax(-1)
    keep = torch.rand(3, 7, generator=draws(1), dtype=torch.float64)
    scale = float(getattr(policy.model.get_input_embeddings(), "embed_scale", 1.0))
    one, other = mixtures.clone().requires_grad_(), mixtures.clone().requires_grad_()
    with in_float64():
        ours, theirs = reward(reward.embed(one), keep), plainly(reward, policy.model, scale, other, keep)
        gradients = [torch.autograd.grad(value.sum(), by)[0] for value, by in ((ours, one), (theirs, other))]
    assert torch.allclose(ours, theirs, atol=1e-10, rtol=0)
    assert gradients[1].abs().max() > 1e-4
    assert torch.allclose(*gradients, atol=1e-10, rtol=0)


def scratch():
    torch.manual_seed(0)
    return ScratchPolicy(50, 16, 1, 2, 12).double()


def test_positions_behind_an_end_and_before_a_continuation_do_not_count():
    policy, ids = scratch(), torch.randint(50, (4, 10), generator=draws())
    reward, keep = reward_on(policy), torch.ones(4, 10, dtype=torch.float64)
    keep[:, 6:] = 0
    other = torch.cat([ids[:, :6], (ids[:, 6:] + 1) % 50], 1)
    assert torch.allclose(reward(reward.embed(ids), keep), reward(reward.embed(other), keep))
    assert torch.allclose(reward(reward.embed(ids), keep), reward(reward.embed(ids[:, :6])))
    continuation = reward_on(policy, last=3)
    assert torch.allclose(continuation(continuation.embed(ids)), reward(reward.embed(ids[:, -3:])))
    assert continuation(continuation.embed(ids), torch.zeros(4, 10)).isfinite().all()


def test_with_adapters_it_reads_the_policy_without_them(folders):
    pytest.importorskip("peft", reason="the extra `lora` isn't installed")
    policy, _ = load_policy(str(folders("llama")), lora=4)
    reward = reward_on(policy.frozen()).float()
    ids = torch.tensor([[5, 8, 13, 21]])
    before = reward(reward.embed(ids)).detach()
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=draws()))
    assert torch.equal(reward(reward.embed(ids)), before)
    assert not torch.allclose(policy.features_of(policy.embed(ids)), policy.frozen().features_of(policy.embed(ids)))


def test_its_training_tells_texts_apart_that_it_has_not_read():
    """Half of them are positive, by a direction of the features: guessing would have 50 % right, of 400 at most 60 %."""
    policy, texts = scratch().float(), torch.randint(20, (1400, 12), generator=draws())
    reward = FeatureReward(policy)
    with torch.no_grad():
        along = reward.mean_features(reward.embed(texts)) @ torch.randn(16, generator=draws())
    labels = (along > along.median()).long()
    train_head(reward, texts[:1000], labels[:1000], 20, seed=0)
    with torch.no_grad():
        found = reward(reward.embed(texts[1000:]))
    assert ((found > 0.5) == labels[1000:].bool()).float().mean() > 0.9
    again = FeatureReward(policy)
    again.load_state_dict(reward.state_dict())  # the scales of its training are a part of its weights
    assert torch.allclose(again(again.embed(texts[1000:])), found)
    assert not any("token" in name for name in reward.state_dict())  # nothing of the policy
