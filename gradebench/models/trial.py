"""Trials of a model when it is loaded: families of models differ in what the harness relies on, and don't declare it."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# The difference by rounding between two ways to compute the same, relative to the largest output.
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float64: 1e-9}
_TRIED = 3  # tokens of the trial


@torch.no_grad()
def trial_features(policy: Any) -> int:
    """The width D of the features, which configurations don't state reliably."""
    first = torch.zeros(1, 1, dtype=torch.int64, device=next(policy.parameters()).device)
    return int(policy(policy.embed(first))[1].shape[-1])


def try_policy(policy: Any) -> None:
    """Raises ValueError unless the policy is causal, continues from its cache, ignores padding, and can be differentiated
    twice."""
    ids = _trial_ids(policy.model, policy.categories)
    one_hots = _one_hots(policy.model, ids, policy.categories)
    whole, _, cache = policy(policy.embed(one_hots))
    if not hasattr(cache, "layers"):
        raise ValueError("it isn't causal, or keeps no cache of keys and values")
    by_ids = policy.model(input_ids=ids).logits[..., : policy.categories]
    _check_close(whole, by_ids, "its outputs for tokens and for their embeddings differ")
    steps: list[Tensor] = []
    cache = None
    for t in range(_TRIED):
        logits, _, cache = policy(policy.embed(one_hots[:, t : t + 1]), cache)
        steps.append(logits)
    _check_close(torch.cat(steps, 1), whole, "it isn't causal, or doesn't continue from its cache")
    behind = policy.embed(torch.cat([one_hots[:, :1], one_hots], 1))
    padded, _, _ = policy(behind, pads=torch.ones(1, dtype=torch.int64))
    _check_close(padded[:, 1:], whole, "it reads the padding before a text")
    _differentiate_twice(steps[-1], one_hots)


def try_reward(reward: Any, categories: int) -> None:
    """Raises ValueError unless the reward is the same for tokens and for their embeddings, and can be differentiated twice."""
    ids = _trial_ids(reward.model, categories)
    one_hots = _one_hots(reward.model, ids, categories)
    by_embeddings = reward.model(inputs_embeds=reward.embed(one_hots)).logits
    _check_close(
        by_embeddings, reward.model(input_ids=ids).logits, "its outputs for tokens and for their embeddings differ"
    )
    whole = reward(reward.embed(one_hots))
    keep = torch.ones(1, len(ids[0]) + 1).index_fill_(1, torch.tensor([len(ids[0])]), 0)
    longer = reward.embed(torch.cat([one_hots, one_hots[:, :1]], 1))
    _check_close(reward(longer, keep), whole, "it reads what follows the end of a text")
    _differentiate_twice(whole, one_hots)


def _trial_ids(model: nn.Module, categories: int) -> Tensor:
    """The last ids (1, L) of the vocabulary, without the padding token, which classifiers may treat in another way."""
    padding = model.config.get_text_config().pad_token_id  # type: ignore[union-attr, operator]
    return torch.tensor([[i for i in range(categories) if i != padding][-_TRIED:]])


def _one_hots(model: nn.Module, ids: Tensor, categories: int) -> Tensor:
    return functional.one_hot(ids, categories).to(next(model.parameters()).dtype).requires_grad_()


def _check_close(a: Tensor, b: Tensor, otherwise: str) -> None:
    tolerance = max(_TOLERANCE[a.dtype], _TOLERANCE[b.dtype])
    if not (a - b).abs().max() <= tolerance * max(1.0, float(b.detach().abs().max())):  # so that NaN is refused
        raise ValueError(otherwise)


def _differentiate_twice(value: Tensor, by: Tensor) -> None:
    """Raises RuntimeError if a kernel has no second derivative, or overwrites what the first derivative needs."""
    (first,) = torch.autograd.grad(value.square().sum(), by, create_graph=True)
    torch.autograd.grad(first.square().sum(), by)
