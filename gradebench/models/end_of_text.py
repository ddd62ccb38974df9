"""Texts of one length: after its end token, a text is filled up with end tokens.

A policy may have several end tokens, each of which ends a text; the first of them fills it up.
Axis letters: n draws, B contexts, T positions, V categories.
"""

import functools
import operator

import torch
from torch import Tensor

from gradebench.core.mixture import Mixture

ABSENT = (
    -1000.0
)  # logit of what can't follow an end: its probability is exactly 0, yet added Gumbel noise isn't rounded away

Ends = int | tuple[int, ...]  # usually one


def filler(ends: Ends) -> int:
    """The token that fills up a text after its end."""
    return ends if isinstance(ends, int) else ends[0]


def is_end(ids: Tensor, ends: Ends) -> Tensor:
    """(...) bool: which of the ids (...) are end tokens."""
    if isinstance(ends, int):
        return ids == ends
    return functools.reduce(operator.or_, (ids == end for end in ends))


def share_ended(tokens: Tensor | Mixture, ends: Ends) -> Tensor:
    """The total weight of the end tokens in relaxed tokens (..., V): (...) in [0, 1]."""
    if isinstance(tokens, Mixture):
        return (tokens.weights * is_end(tokens.ids, ends)).sum(-1).clamp_max(1)  # despite rounding
    if isinstance(ends, int):
        return tokens[..., ends]
    return functools.reduce(operator.add, (tokens[..., end] for end in ends)).clamp_max(1)  # despite rounding


def up_to_end(ids: Tensor, ends: Ends) -> Tensor:
    """(..., T) bool: which of the ids (..., T) belong to their text, that is, up to and with the first end token."""
    found = is_end(ids, ends).long()
    return found.cumsum(-1) == found


def ended_logits(logits: Tensor, ended: Tensor, ends: Ends) -> Tensor:
    """The logits (..., V); where a text has `ended` (...) bool, constants that give the end token probability 1."""
    certain = torch.full(logits.shape[-1:], ABSENT, dtype=logits.dtype, device=logits.device)
    certain[filler(ends)] = 0
    return torch.where(ended.unsqueeze(-1), certain, logits)


def ending_token(token: Tensor | Mixture, ended: Tensor, ends: Ends) -> Tensor | Mixture:
    """(1 - ended) token + ended one_hot(end), for relaxed tokens (..., V) and `ended` (...) in [0, 1]."""
    if isinstance(token, Mixture):
        end = torch.full_like(token.ids[..., :1], filler(ends))
        share = ended.unsqueeze(-1)
        return Mixture(torch.cat([token.ids, end], -1), torch.cat([(1 - share) * token.weights, share], -1))
    certain = torch.zeros(token.shape[-1:], dtype=token.dtype, device=token.device)
    certain[filler(ends)] = 1
    ended = ended.unsqueeze(-1)
    return (1 - ended) * token + ended * certain
