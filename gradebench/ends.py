"""What becomes of a text after its end: nothing but the end token again, so that all texts have one length.

Axis letters: n draws, B contexts, T positions, V categories.
"""

import torch
from torch import Tensor

ABSENT = -1000.0  # logit of what can't follow an end: a probability of exactly 0, and noise is still told apart there


def up_to_end(ids: Tensor, end: int) -> Tensor:
    """Whether each of the ids (..., T) is in its text, (..., T) bool: up to the first end token, it included."""
    ends = (ids == end).long()
    return ends.cumsum(-1) == ends


def ended_logits(logits: Tensor, ended: Tensor, end: int) -> Tensor:
    """Logits (..., V), but where a text has `ended` (...), constants that leave nothing but the end token."""
    certain = torch.full(logits.shape[-1:], ABSENT, dtype=logits.dtype, device=logits.device)
    certain[end] = 0
    return torch.where(ended.unsqueeze(-1), certain, logits)


def ending_token(token: Tensor, ended: Tensor, end: int) -> Tensor:
    """A relaxed token (..., V), mixed with the end token by how far its text has `ended` (...), in [0, 1]."""
    certain = torch.zeros(token.shape[-1:], dtype=token.dtype, device=token.device)
    certain[end] = 1
    ended = ended.unsqueeze(-1)
    return (1 - ended) * token + ended * certain
