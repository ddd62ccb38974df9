"""A cache of the policy's last pass over tokens and of its last draw."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradebench.core.mixture import Mixture
from gradebench.models.recorded import Recording

Passed = Callable[[], tuple[Tensor, Tensor]]  # logits (n, B, T, V) and features (n, B, T, D)


class Pass(NamedTuple):
    """One parallel pass of the policy over tokens."""

    tokens: Tensor | Mixture
    state: tuple[int, ...]
    passed: Passed
    log_p: Callable[[], Tensor]  # log_softmax of the logits


class Drawn(NamedTuple):
    """Sampled tokens, and what was computed to sample them."""

    tokens: Tensor
    versions: tuple[int, ...]
    recording: Recording


class PassCache:
    """The last pass and the last draw. Both become invalid if tokens or parameters are written to; a pass also if gradients
    are enabled or disabled."""

    def __init__(self) -> None:
        self.last: Pass | None = None
        self.drawn: Drawn | None = None

    def over(self, tokens: Tensor | Mixture, params: Sequence[Tensor]) -> Pass | None:
        """The last pass if it was over these tokens, else None."""
        last = self.last
        return last if last is not None and last.tokens is tokens and last.state == _state(tokens, params) else None

    def remember(self, tokens: Tensor | Mixture, params: Sequence[Tensor], passed: Passed) -> Pass:
        passed = functools.cache(passed)
        log_p = functools.cache(lambda: passed()[0].log_softmax(-1))
        self.last = Pass(tokens, _state(tokens, params), passed, log_p)
        return self.last

    def recording_of(self, tokens: Tensor | Mixture, params: Sequence[Tensor]) -> Recording | None:
        """The recording of the last draw if these are its tokens, else None."""
        drawn = self.drawn
        fresh = drawn is not None and drawn.tokens is tokens and drawn.versions == _versions(tokens, params)
        return drawn.recording if drawn is not None and fresh else None

    def drew(self, tokens: Tensor, params: Sequence[Tensor], recording: Recording | None) -> None:
        """Remember a draw, with its recording if there is one."""
        self.last = None
        self.drawn = None if recording is None else Drawn(tokens, _versions(tokens, params), recording)

    def forget(self) -> None:
        """Drop the pass and the draw, because their graphs have been freed."""
        self.last = self.drawn = None


def _state(tokens: Tensor | Mixture, params: Sequence[Tensor]) -> tuple[int, ...]:
    return (int(torch.is_grad_enabled()), *_versions(tokens, params))


def _versions(tokens: Tensor | Mixture, params: Sequence[Tensor]) -> tuple[int, ...]:
    return (tokens._version, *(p._version for p in params))
