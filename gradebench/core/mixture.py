"""Relaxed tokens of which only a few entries aren't 0: those entries, in place of rows as long as the vocabulary.

Axis letters: n draws, B contexts, T positions, V categories, D features, k entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Mixture:
    """Relaxed one-hots (..., V) whose entries are `weights` (..., k) at the categories `ids` (..., k), and 0 elsewhere.

    What is read of relaxed tokens can be read of a mixture by the same names; an id that is there twice counts with the
    sum of its weights.
    """

    ids: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> "Mixture":
        """A part of the leading axes."""
        return Mixture(self.ids[index], self.weights[index])

    def flatten(self, first: int, last: int) -> "Mixture":
        """Leading axes joined."""
        return Mixture(self.ids.flatten(first, last), self.weights.flatten(first, last))

    def is_floating_point(self) -> bool:
        return True

    @property
    def requires_grad(self) -> bool:
        return self.weights.requires_grad

    @property
    def _version(self) -> int:
        return self.weights._version

    def argmax(self, axis: int = -1) -> Tensor:
        """The category of the largest weight, (...)."""
        return self.ids.gather(axis, self.weights.argmax(axis, keepdim=True)).squeeze(axis)

    def dense(self, categories: int) -> Tensor:
        """The relaxed one-hots themselves, (..., V)."""
        zeros = self.weights.new_zeros(*self.ids.shape[:-1], categories)
        return zeros.scatter_add(-1, self.ids, self.weights)

    def embedded(self, table: Tensor) -> Tensor:
        """Their product with a table (V, D), (..., D); neither they nor the rows that they take are written out."""
        bags, weights = self.ids.flatten(0, -2), self.weights.flatten(0, -2).to(table.dtype)
        found = functional.embedding_bag(bags, table, mode="sum", per_sample_weights=weights)
        return found.view(*self.ids.shape[:-1], table.shape[1])


def likeliest(logits: Tensor, k: int | None) -> tuple[Tensor, Tensor | None]:
    """The k largest logits (..., k) of (..., V) and their ids; the logits as they are, and None, if k leaves none out."""
    if k is None or k >= logits.shape[-1]:
        return logits, None
    return logits.topk(k, -1)


def relaxed_tokens(weights: Tensor, ids: Tensor | None) -> Tensor | Mixture:
    """Weights of all categories, or of those that `likeliest` named, as relaxed tokens."""
    return weights if ids is None else Mixture(ids, weights)


def dense(tokens: Tensor | Mixture, categories: int) -> Tensor:
    """Relaxed one-hots (..., V), whichever they are given as."""
    return tokens.dense(categories) if isinstance(tokens, Mixture) else tokens


def stacked(tokens: Sequence[Tensor | Mixture]) -> Any:
    """Tokens (n, B, ...) of T positions as (n, B, T, ...); mixtures get the entries of the largest, at weight 0."""
    mixtures = [token for token in tokens if isinstance(token, Mixture)]
    if not mixtures:
        return torch.stack(list(tokens), 2)  # type: ignore[arg-type]
    most = max(one.ids.shape[-1] for one in mixtures)
    missing = [(0, most - one.ids.shape[-1]) for one in mixtures]
    ids, weights = (
        torch.stack([functional.pad(part, pad) for part, pad in zip(parts, missing, strict=True)], 2)
        for parts in zip(*((one.ids, one.weights) for one in mixtures), strict=True)
    )
    return Mixture(ids, weights)
