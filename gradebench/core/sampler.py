"""How samples are drawn where it isn't from the policy itself: the behaviour distribution mu of z ~ mu(.|x)."""

import functools
import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import Tensor

from gradebench.core.errors import InputError
from gradebench.core.sampling import generator

BFLOAT16 = "bfloat16"


def _is_size(value: float | str) -> bool:
    return not isinstance(value, str) and 0 <= value < math.inf


@dataclass(frozen=True)
class Sampler:
    """What makes mu differ from the policy; by default nothing does, and mu = p_theta.

    At each position, from the logits of the policy of `stale` training steps ago: `noise` is added, they are divided by
    `temperature`, and all but the `top_k` likeliest tokens, and of these all but the likeliest that make up `top_p`, are
    left out. The order is that of transformers and of inference engines.

    stale         training steps between the parameters that sample and those that learn
    temperature   above 0
    top_k         tokens; 0 for all
    top_p         in (0, 1]
    noise         "bfloat16": logits are rounded to it; a number: the standard deviation, in nats, of a fixed normal error
                  of each logit, the same whenever its position and token come again
    """

    stale: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    noise: float | str = 0.0

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("stale", self.stale >= 0, "training steps, 0 or more, are needed"),
            ("temperature", 0 < self.temperature < math.inf, "a number above 0 is needed"),
            ("top_k", self.top_k >= 0, "a number of tokens is needed, or 0 for all"),
            ("top_p", 0 < self.top_p <= 1, "a probability above 0 and up to 1 is needed"),
            ("noise", self.noise == BFLOAT16 or _is_size(self.noise), "bfloat16 or a number from 0 on is needed"),
        ):
            if not good:
                raise InputError(f"--{name.replace('_', '-')} {getattr(self, name)}: {wanted}")

    @property
    def on_policy(self) -> bool:
        """Whether mu is the policy."""
        return self == ON_POLICY

    def __str__(self) -> str:
        """What differs from the default, "stale=4 temperature=0.7"; "" if nothing does."""
        return " ".join(f"{name}={value}" for name, value in self._different().items())

    def options(self) -> list[str]:
        """The same as the words of a command line, ["--stale", "4"]."""
        given = self._different().items()
        return [word for name, value in given for word in (f"--{name.replace('_', '-')}", str(value))]

    def _different(self) -> dict[str, float | str]:
        plain = asdict(ON_POLICY)
        return {name: value for name, value in asdict(self).items() if value != plain[name]}

    def logits(self, logits: Tensor, first: int = 0) -> Tensor:
        """Unnormalised log mu (..., T, V) at positions `first`, `first` + 1, ..., from the policy's logits; -inf for what is
        left out."""
        if self.noise == BFLOAT16:
            logits = logits.bfloat16().to(logits.dtype)
        elif not isinstance(self.noise, str) and self.noise:
            positions, tokens = first + logits.shape[-2], logits.shape[-1]
            logits = logits + self.noise * _errors(positions, tokens)[first:].to(logits)
        return truncated(logits, self.temperature, self.top_k, self.top_p)


ON_POLICY = Sampler()
SAMPLER = tuple(field.name for field in fields(Sampler))  # as options of a command line, without their dashes


@functools.lru_cache(maxsize=8)
def _errors(positions: int, tokens: int) -> Tensor:
    """Standard normal errors (T, V) in float64; those of a position don't depend on the number of positions."""
    rows = [
        torch.randn(tokens, generator=generator("cpu", "sampler", t), dtype=torch.float64) for t in range(positions)
    ]
    return torch.stack(rows)


def truncated(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits (..., V) over temperature; -inf outside the top_k likeliest, and outside the likeliest of these that make up top_p.

    One token is always left. `top_k` 0 keeps all.
    """
    logits = logits / temperature
    tokens = logits.shape[-1]
    if top_k in (0, tokens) and top_p == 1:
        return logits
    top, ids = logits.topk(min(top_k or tokens, tokens), -1)
    if top_p < 1:
        before = top.softmax(-1).cumsum(-1) - top.softmax(-1)  # the probability of those that are likelier
        top = top.masked_fill(before >= top_p, -torch.inf)
    return torch.full_like(logits, -torch.inf).scatter(-1, ids, top)
