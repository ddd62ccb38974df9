"""Rewards of a task: a function of texts, one given by name, or one with a derivative of the author's own."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradebench.core.errors import InputError
from gradebench.models.transformer import embed_tokens
from gradebench.rewards.text_reward import (
    RewardFunction,
    TextReward,
    load_function,
    load_text_classifier,
    names_function,
    shares_tokens,
)

_TRIED = 8  # tokens of the trial, at most
_TOLERANCE = 1e-4  # of two ways to one reward, relative to the largest


class DifferentiableReward(nn.Module):
    """A reward of texts whose tokens may lie between those of the vocabulary, with a derivative there.

    `weight` (V, D) embeds the tokens, and isn't trained: token i, and a mixture of tokens alike, as its row or the
    mixture of its rows. A subclass says what embedded texts are worth, in `worth`.
    """

    differentiable = True
    weighs = True  # `keep` may be anything in [0, 1]
    weight: Tensor

    def __init__(self, weight: Tensor):
        super().__init__()
        self.register_buffer("weight", weight)

    def worth(self, embedded: Tensor, keep: Tensor) -> Tensor:
        """Rewards (N,) of texts (N, L, D), prompt and continuation, differentiable in both arguments.

        `keep` (N, L), in [0, 1]: how much each position counts. It is 0 behind the end of a text.
        """
        raise NotImplementedError

    def embed(self, tokens: Tensor) -> Tensor:
        """(N, L) ids or (N, L, V) mixtures to (N, L, D)."""
        return embed_tokens(self.weight, tokens)

    def forward(self, embedded: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.worth(embedded, torch.ones_like(embedded[..., 0]) if keep is None else keep)


def own_reward(name: str, score: Callable[..., Any], vocabulary: Any, prompt: int) -> TextReward:
    """A function of texts as a reward; `prompt`: tokens of a prompt, padding included. See `RewardFunction`."""
    return TextReward(RewardFunction(name, "", score), vocabulary.decode, prompt, vocabulary.end)


def load_reward(name: str, vocabulary: Any, prompt: int, horizon: int, half: bool = False, **head: str) -> Any:
    """The reward that is given by name: a function, FILE.py:NAME or MODULE:NAME, or a classifier, a folder or hub id.

    A classifier that shares the policy's tokens has a derivative; others read texts. `half`: it computes in bfloat16.
    `head`: its `label` and `activation`.

    Raises        InputError, in one line, for whatever keeps it from serving as a reward.
    """
    if names_function(name):
        function = load_function(name)
        function(["A film"], [" that I saw"])
        return TextReward(function, vocabulary.decode, prompt, vocabulary.end)
    if not shares_tokens(name, vocabulary):
        return TextReward(load_text_classifier(name, **head), vocabulary.decode, prompt, vocabulary.end)
    from gradebench.models import pretrained  # the library of models takes seconds to load

    return pretrained.load_reward(name, vocabulary, prompt + horizon, half, **head)


def try_reward(reward: Any, name: str, categories: int, length: int, counted: bool) -> None:
    """Raises InputError unless a reward with a derivative has one, and reads one-hots as it reads their ids.

    `counted`: whether texts end or are padded, so that it will be told which positions count.
    """
    length = min(length, _TRIED)
    device = next((tensor.device for tensor in (*reward.parameters(), *reward.buffers())), torch.device("cpu"))
    ids = torch.arange(2 * length, device=device).view(2, length) % categories
    one_hots = functional.one_hot(ids, categories).float().requires_grad_()
    keep = [torch.ones(2, length, device=device)] if counted else []
    try:
        of_ids, of_one_hots = reward(reward.embed(ids), *keep), reward(reward.embed(one_hots), *keep)
        derivative = torch.autograd.grad(of_one_hots.sum(), one_hots)[0]
    except Exception as error:  # the author's own code
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"{name} has no derivative by the tokens: {lines[0][:200]}") from error
    if of_ids.shape != (2,):
        raise InputError(f"{name} gave the shape {list(of_ids.shape)} for two texts; it has to be [2]")
    if not bool(derivative.isfinite().all() and of_ids.isfinite().all()):
        raise InputError(f"{name} gave a reward or a derivative that isn't finite")
    if bool((of_ids - of_one_hots).abs().max() > _TOLERANCE * of_ids.abs().max().clamp_min(1)):
        raise InputError(f"{name} reads one-hots in another way than their ids")
