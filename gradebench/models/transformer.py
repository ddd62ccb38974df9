"""A small transformer for hard and relaxed tokens: causal as a policy, bidirectional as a reward model.

It isn't taken from a library, for two reasons: its attention can be differentiated twice, unlike fused kernels, which
learned control variates need; and its rollouts can be recorded (`gradebench.models.recorded`).
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

Pair = tuple[Tensor, Tensor]  # keys and values (N, heads, length, width / heads)


Cache = Sequence[Pair]  # one for each layer


def embed_tokens(weight: Tensor, tokens: Tensor) -> Tensor:
    """Embeddings (..., D) of ids (...) or of relaxed one-hots (..., V), with weight (V, D)."""
    return tokens.to(weight.dtype) @ weight if tokens.is_floating_point() else functional.embedding(tokens, weight)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, keep: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(width / heads) + mask + log keep) v, (N, heads, L, width / heads).

    `keep` (N, S) in [0, 1] is the weight of each of the S positions, and is differentiable, also at 0. A fused kernel is
    used if no graph is recorded, because it can't be differentiated twice.
    """
    if not torch.is_grad_enabled():
        mask = mask if keep is None else keep.log()[:, None, None]
        return functional.scaled_dot_product_attention(q, k, v, mask)
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = (scores if mask is None else scores + mask).softmax(-1)
    if keep is not None:
        weights = weights * keep[:, None, None]
        weights = weights / weights.sum(-1, keepdim=True)
    return weights @ v


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, x: Tensor, mask: Tensor | None, past: Pair | None, keep: Tensor | None = None
    ) -> tuple[Tensor, Pair]:
        batch, length, width = x.shape
        q, k, v = (
            self.query_key_value(self.attention_norm(x))
            .view(batch, length, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )  # each (N, heads, L, width / heads)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        mixed = attention(q, k, v, mask, keep)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.feed_forward(self.feed_forward_norm(x)), (k, v)


def hidden_by(pads: Tensor, length: int, dtype: torch.dtype) -> Tensor:
    """The mask (N, length) that is added to attention scores, so that the first `pads` (N,) positions, padding, aren't read.

    Finite rather than minus infinity, because padding can attend only to padding, and its softmax would be NaN.
    """
    hidden = torch.arange(length, device=pads.device) < pads[:, None]
    return torch.zeros_like(hidden, dtype=dtype).masked_fill_(hidden, torch.finfo(dtype).min / 2)


class Transformer(nn.Module):
    """Embeddings to features: (N, L, D) to (N, L, D), with learned positions and an optional cache."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int, causal: bool):
        super().__init__()
        self.causal = causal
        self.length = length
        self.feature_size = width
        self.token = nn.Parameter(torch.randn(vocabulary, width) * 0.02)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def embed(self, tokens: Tensor) -> Tensor:
        """(N, L) ids or (N, L, V) relaxed one-hots to (N, L, D)."""
        return embed_tokens(self.token, tokens)

    def features(
        self,
        embeddings: Tensor,
        cache: Cache | None = None,
        pads: Tensor | None = None,
        keep: Tensor | None = None,
    ) -> tuple[Tensor, Cache]:
        """Features (N, L, D), and the cache with L more positions.

        `pads` (N,): the number of padding positions at the beginning of each text. `keep` (N, L), only without a cache:
        see `attention`.
        """
        length, start = embeddings.shape[1], 0
        if cache:
            start = cache[0][0].shape[2]
        position = self.position[start : start + length]
        if pads is not None:
            places = torch.arange(start, start + length, device=pads.device) - pads[:, None]
            position = self.position[places.clamp_min(0)]
        x = embeddings + position
        mask = None
        if self.causal and length > 1:
            mask = torch.full((length, start + length), float("-inf"), device=x.device, dtype=x.dtype)
            mask = mask.triu(start + 1)
        if pads is not None:
            hidden = hidden_by(pads, start + length, x.dtype)[:, None, None]
            mask = hidden if mask is None else hidden + mask
        grown: list[Pair] = []
        for i, block in enumerate(self.blocks):
            x, pair = block(x, mask, cache[i] if cache else None, keep)
            grown.append(pair)
        return self.norm(x), grown


class ScratchPolicy(Transformer):
    """A causal language model with tied input and output embeddings."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int):
        super().__init__(vocabulary, width, layers, heads, length, causal=True)

    def forward(
        self, embeddings: Tensor, cache: Cache | None = None, last: int | None = None, pads: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Cache]:
        """Logits (N, L, V), features (N, L, D) and the longer cache; of the last L = `last` positions only, if given."""
        features, cache = self.features(embeddings, cache, pads=pads)
        features = features if last is None else features[:, -last:]
        return features @ self.token.T, features, cache

    def features_of(self, embeddings: Tensor) -> Tensor:
        """Features (N, L, D) alone."""
        return self.features(embeddings)[0]

    def frozen(self) -> "ScratchPolicy":
        """A copy with the present parameters, which aren't trainable."""
        return copy.deepcopy(self).requires_grad_(False)

    def reordered(self, cache: Cache, rows: Tensor) -> Cache:
        """The cache of the rows (M,) of the batch."""
        return [(keys.index_select(0, rows), values.index_select(0, rows)) for keys, values in cache]


class ScratchClassifier(Transformer):
    """Probability (N,) that a text is positive, from mean-pooled features."""

    weighs = True  # `keep` may lie between 0 and 1

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, length: int):
        super().__init__(vocabulary, width, layers, heads, length, causal=False)
        self.head = nn.Linear(width, 1)

    def logit(self, embeddings: Tensor, keep: Tensor | None = None) -> Tensor:
        """The log-odds (N,) of positive, from embeddings (N, L, D); `keep` (N, L) is the weight of each position."""
        features, _ = self.features(embeddings, keep=keep)
        if keep is None:
            return self.head(features.mean(1)).squeeze(-1)
        return self.head((features * keep.unsqueeze(-1)).sum(1) / keep.sum(1, keepdim=True)).squeeze(-1)

    def forward(self, embeddings: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.logit(embeddings, keep).sigmoid()
