"""Random numbers and discrete draws as pure functions on tensors; randomness only through the generator passed in.

Axis letters: n draws, B contexts, T positions, V categories. All functions work on any leading shape (..., V).
"""

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """Seed of 63 bits that depends on every named part: derive_seed(3, "data") and derive_seed(3, "noise") differ."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(device: torch.device | str, *parts: object) -> torch.Generator:
    """A generator on `device`, seeded by the named parts."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def exponential(like: Tensor, rng: torch.Generator) -> Tensor:
    """Exp(1) noise with the shape, dtype and device of `like`, never exactly zero (its logarithm is taken).

    -log(1 - u), u = k / 2^63 with 63 random bits: as fine near zero as floating point, where the winners of a
    Gumbel-max race are, and on a CPU three times quicker than `exponential_`.
    """
    wide = torch.promote_types(like.dtype, torch.float32)
    bits = torch.empty(like.shape, dtype=torch.int64, device=like.device).random_(generator=rng)
    uniform = bits.to(wide).mul_(2.0**-63).clamp_max_(1 - torch.finfo(wide).eps / 2)
    noise = uniform.neg_().log1p_().neg_().to(like.dtype)
    return noise.clamp_min_(torch.finfo(noise.dtype).tiny)


def gumbel(like: Tensor, rng: torch.Generator) -> Tensor:
    """Gumbel(0, 1) noise with the shape, dtype and device of `like`."""
    return exponential(like, rng).log_().neg_()


def categorical(logits: Tensor, rng: torch.Generator) -> Tensor:
    """Draws (...) from softmax(logits), logits (..., V), without a graph: the Gumbel-max trick.

    A relaxation that hardens logits + gumbel(logits, rng) so draws the same tokens from the same generator.
    """
    return gumbel(logits, rng).add_(logits.detach()).argmax(-1)


def gumbel_given(logits: Tensor, index: Tensor, exponential: Tensor) -> Tensor:
    """Perturbed log-probabilities z = log_softmax(logits) + Gumbel, conditioned on argmax z = index.

    With E = `exponential` ~ Exp(1)^V and pi = softmax(logits):  z_b = -log E_b  and  z_i = -log(E_i / pi_i + E_b).
    Differentiable in the logits. They are normalised here: with raw ones the argmax stays right and the
    distribution is wrong, silently.

    Shapes: logits (..., V), index (...), exponential (..., V); returns (..., V).
    Source: Tucker et al. 2017, appendix C; Maddison et al. 2014.
    """
    log_prob = logits.log_softmax(-1)
    top = exponential.gather(-1, index.unsqueeze(-1))  # E_b: the winner's arrival time, for every other the floor
    others = -torch.logaddexp(exponential.log() - log_prob, top.log())
    # Rounding may lift a runner-up to the winner's value; the winner is written last, and ties break by a hair below.
    winner = -top.log()
    others = torch.minimum(others, torch.nextafter(winner, winner - 1).expand_as(others))
    return others.scatter(-1, index.unsqueeze(-1), winner)


def harden(perturbed: Tensor) -> Tensor:
    """One-hot of the largest entry: (..., V) to (..., V), without a gradient."""
    return torch.zeros_like(perturbed).scatter_(-1, perturbed.argmax(-1, keepdim=True), 1.0).detach()


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The value of `hard`, the gradient of `soft` (Bengio et al. 2013)."""
    return hard.detach() + (soft - soft.detach())
