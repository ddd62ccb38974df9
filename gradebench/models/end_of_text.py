"""What becomes of a text after its end: nothing but the end token again, so that all texts have one length.

A text may have several ends, any of which ends it; the first of them is what fills it up.
Axis letters: n draws, B contexts, T positions, V categories.
"""

import functools
import operator

import torch
from torch import Tensor

ABSENT = -1000.0  # logit of what can't follow an end: a probability of exactly 0, and noise is still told apart there

Ends = int | tuple[int, ...]  # one, as nearly always, or several


def filler(ends: Ends) -> int:
    """The token that stands after an end."""
    return ends if isinstance(ends, int) else ends[0]


def is_end(ids: Tensor, ends: Ends) -> Tensor:
    """Whether each of the ids (...) is an end, (...) bool."""
    if isinstance(ends, int):
        return ids == ends
    return functools.reduce(operator.or_, (ids == end for end in ends))


def share_ended(tokens: Tensor, ends: Ends) -> Tensor:
    """How much of relaxed tokens (..., V) is an end, (...) in [0, 1]."""
    if isinstance(ends, int):
        return tokens[..., ends]
    return functools.reduce(operator.add, (tokens[..., end] for end in ends)).clamp_max(1)  # rounding aside


def up_to_end(ids: Tensor, ends: Ends) -> Tensor:
    """Whether each of the ids (..., T) is in its text, (..., T) bool: up to the first end token, it included."""
    found = is_end(ids, ends).long()
    return found.cumsum(-1) == found


def ended_logits(logits: Tensor, ended: Tensor, ends: Ends) -> Tensor:
    """Logits (..., V), but where a text has `ended` (...), constants that leave nothing but the end token."""
    certain = torch.full(logits.shape[-1:], ABSENT, dtype=logits.dtype, device=logits.device)
    certain[filler(ends)] = 0
    return torch.where(ended.unsqueeze(-1), certain, logits)


def ending_token(token: Tensor, ended: Tensor, ends: Ends) -> Tensor:
    """A relaxed token (..., V), mixed with the end token by how far its text has `ended` (...), in [0, 1]."""
    certain = torch.zeros(token.shape[-1:], dtype=token.dtype, device=token.device)
    certain[filler(ends)] = 1
    ended = ended.unsqueeze(-1)
    return (1 - ended) * token + ended * certain
