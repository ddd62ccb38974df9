"""A problem that takes notes of what an estimator does with it, and can change the reward: what `check` looks through."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gradebench.core.problem import Choose, Ledger, Problem, Relax


@dataclass
class Notes:
    """What was seen: counts as a ledger's, methods called, and the rollouts with their logits and tokens."""

    ledger: Ledger = field(default_factory=Ledger)
    called: set[str] = field(default_factory=set)
    steps: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # logits and tokens, (n, B, V) each, by position
    detached: bool = False  # a rollout's token that doesn't depend on its logits
    rolled: Tensor | None = None  # tokens of the last rollout (n, B, T, V)
    expected: tuple[Tensor, ...] | None = None  # derivative of the reward along it


class Watched:
    """The problem with its reward replaced by factor * f + offset, taking notes."""

    def __init__(self, problem: Problem, factor: float = 1.0, offset: float = 0.0, notes: Notes | None = None):
        self._problem, self._factor, self._offset = problem, factor, offset
        self.notes = notes or Notes()
        self._value: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        self.notes.called.add(name)
        return getattr(self._problem, name)

    def select(self, index: Tensor) -> "Watched":
        return Watched(self._problem.select(index), self._factor, self._offset, self.notes)

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        z = self._problem.sample(n, rng)
        self.notes.called.add("sample")
        self.notes.ledger.tokens_sampled += z.numel()
        return z

    def draw(self, choose: Choose, n: int) -> Tensor:
        z = self._problem.draw(choose, n)
        self.notes.called.add("draw")
        self.notes.ledger.tokens_sampled += z.numel()
        return z

    def reward(self, z: Tensor) -> Tensor:
        self.notes.called.add("reward")
        return self._rewarded(self._problem.reward(z))

    @property
    def beta(self) -> float:
        return self._factor * self._problem.beta

    def raw_reward(self, z: Tensor) -> Tensor:
        self.notes.called.add("raw_reward")
        return self._rewarded(self._problem.raw_reward(z))

    def soft_reward(self, y: Tensor) -> Tensor:
        self.notes.called.add("soft_reward")
        value = self._rewarded(self._problem.soft_reward(y))
        self._value = value if y is self.notes.rolled else None
        return value

    def _rewarded(self, value: Tensor) -> Tensor:
        self.notes.ledger.reward_calls += value.numel()
        return self._factor * value + self._offset

    def rollout(
        self,
        relax: Relax,
        n: int,
        together: bool = False,
        rng: torch.Generator | None = None,
        hard: bool = False,
    ) -> Tensor:
        self.notes.called.add("rollout")
        self.notes.steps = []

        def noted(logits: Tensor) -> Tensor:
            tokens = relax(logits)
            self.notes.steps.append((logits.detach(), tokens.detach()))
            self.notes.detached |= not _depends(tokens, logits)
            return tokens

        self.notes.rolled = y = self._problem.rollout(noted, n)
        self.notes.ledger.tokens_sampled += n * y.shape[1] * y.shape[2]
        return y

    def exact_gradient(self) -> tuple[Tensor, ...]:
        self.notes.called.add("exact_gradient")
        return tuple(self._factor * g for g in self._problem.exact_gradient())

    def grad(
        self,
        value: Tensor,
        weights: Tensor | None = None,
        create_graph: bool = False,
        of: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        if self._value is not None and self._value.requires_grad:
            mean = self._value.mean()
            self.notes.expected = torch.autograd.grad(
                mean, self._problem.params, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            self._value = None
        self.notes.ledger.backward_passes += 1
        return self._problem.grad(value, weights, create_graph, of)

    @contextmanager
    def shifted(self, delta: Any) -> Iterator[None]:
        with self._problem.shifted(delta):
            yield


def _depends(tokens: Tensor, logits: Tensor) -> bool:
    """Whether a gradient reaches the logits through these tokens."""
    if not (tokens.requires_grad and logits.requires_grad):
        return False
    weights = torch.arange(tokens.shape[-1], device=tokens.device, dtype=tokens.dtype)
    (gradient,) = torch.autograd.grad((tokens * weights).sum(), logits, retain_graph=True, allow_unused=True)
    return gradient is not None and bool(gradient.abs().sum() > 0)
