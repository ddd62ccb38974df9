"""A problem that records what an estimator does with it, and that can rescale the reward: for `gradebench check`."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradebench.core.mixture import dense
from gradebench.core.problem import Choose, Ledger, MixedRelax, Problem
from gradebench.core.view import View


@dataclass
class Notes:
    """What an estimator did: costs as in a ledger, methods called, and rollouts with their logits and tokens."""

    ledger: Ledger = field(default_factory=Ledger)
    called: set[str] = field(default_factory=set)
    steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # logits and tokens, (n, B, V) each, by position
    detached: bool = False  # whether a token of a rollout had no gradient with respect to its logits
    rolled: Tensor | None = None  # tokens of the last rollout (n, B, T, V)
    value: Tensor | None = None  # their reward, from soft_reward until the call of grad
    expected: tuple[Tensor, ...] | None = None  # the gradient of that reward by autograd


class Watched(View):
    """The problem with the reward factor * f + offset, which records what is done with it in `notes`.

    With `plain`, rollouts get no arguments but `relax` and n, so that autograd differentiates them, and the gradient of
    their reward is recorded.
    """

    def __init__(self, problem: Problem, factor: float = 1.0, offset: float = 0.0, plain: bool = False):
        super().__init__(problem)
        self._factor, self._offset, self._plain = factor, offset, plain
        self.notes = Notes()

    def __getattr__(self, name: str) -> Any:
        self.notes.called.add(name)
        return super().__getattr__(name)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        z = self._problem.sample(n, rng)
        self.notes.ledger.tokens_sampled += z.numel()
        return z

    def draw(self, choose: Choose, n: int) -> Tensor:
        z = self._problem.draw(choose, n)
        self.notes.ledger.tokens_sampled += z.numel()
        return z

    @property
    def beta(self) -> float:
        return self._factor * self._problem.beta

    def reward(self, z: Tensor) -> Tensor:
        return self._rewarded(self._problem.reward(z))

    def raw_reward(self, z: Tensor) -> Tensor:
        return self._rewarded(self._problem.raw_reward(z))

    def soft_reward(self, y: Tensor) -> Tensor:
        self.notes.called.add("soft_reward")
        value = self._rewarded(self._problem.soft_reward(y))
        self.notes.value = value if self._plain and y is self.notes.rolled else None
        return value

    def _rewarded(self, value: Tensor) -> Tensor:
        self.notes.ledger.reward_calls += value.numel()
        return self._factor * value + self._offset

    def rollout(self, relax: MixedRelax, n: int, *unnamed: Any, **hints: Any) -> Tensor:
        self.notes.called.add("rollout")
        self.notes.steps = []
        with_graph = torch.is_grad_enabled()

        def noted(logits: Tensor) -> Tensor:
            tokens = dense(relax(logits), logits.shape[-1])
            if torch.is_grad_enabled() == with_graph:  # a parallel rollout first samples without a graph
                self.notes.steps.append((logits.detach(), tokens.detach()))
                self.notes.detached |= not _depends(tokens, logits)
            return tokens

        hints["sparse"] = False  # because mixtures are written out above
        if self._plain:
            unnamed, hints = (), {}
        self.notes.rolled = y = self._problem.rollout(noted, n, *unnamed, **hints)
        self.notes.ledger.tokens_sampled += n * y.shape[1] * y.shape[2]
        return y

    def exact_gradient(self) -> tuple[Tensor, ...]:
        self.notes.called.add("exact_gradient")
        return tuple(self._factor * g for g in self._problem.exact_gradient())

    def grad(self, value: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, ...]:
        if self.notes.value is not None and self.notes.value.requires_grad:
            mean = self.notes.value.mean()
            self.notes.expected = torch.autograd.grad(
                mean, self._problem.params, retain_graph=True, allow_unused=True, materialize_grads=True
            )
        self.notes.value = None
        self.notes.ledger.backward_passes += 1
        return self._problem.grad(value, *arguments, **named)


def _depends(tokens: Tensor, logits: Tensor) -> bool:
    """Whether a gradient reaches the logits through these tokens."""
    if not (tokens.requires_grad and logits.requires_grad):
        return False
    weights = torch.arange(tokens.shape[-1], device=tokens.device, dtype=tokens.dtype)
    (gradient,) = torch.autograd.grad((tokens * weights).sum(), logits, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.abs().sum() > 0)
