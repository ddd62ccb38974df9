"""Minibatches of one batch over several epochs, and the clipping of ratios that goes with them."""

import torch
from torch import Tensor

from gradebench import Estimator, Problem, Unsupported


class Minibatched(Estimator):
    """Several gradients from one batch: `rollout` splits a new batch into minibatches, and each call uses the next one."""

    def __init__(self, epochs: int, minibatches: int):
        super().__init__()
        self.epochs, self.minibatches = epochs, minibatches
        self.period = epochs * minibatches
        self.queue: list[dict[str, Tensor]] = []

    def init(self, problem: Problem) -> None:
        enough_for(problem, self.minibatches)

    def reset(self) -> None:
        self.queue = []

    def next_minibatch(self, problem: Problem, rng: torch.Generator) -> dict[str, Tensor]:
        if not self.queue:
            self.queue = self.rollout(problem, rng)
        return self.queue.pop(0)

    def rollout(self, problem: Problem, rng: torch.Generator) -> list[dict[str, Tensor]]:
        """A new batch, split into the minibatches of every epoch."""
        raise NotImplementedError


def enough_for(problem: Problem, minibatches: int) -> None:
    """Raises Unsupported if the problem has fewer contexts than minibatches."""
    if problem.contexts < minibatches:
        raise Unsupported(f"{problem.contexts} contexts can't fill {minibatches} minibatches")


def shuffled(problem: Problem, epochs: int, minibatches: int, rng: torch.Generator) -> list[Tensor]:
    """Indices of contexts, shuffled in every epoch: one tensor (about B / minibatches,) for each minibatch."""
    enough_for(problem, minibatches)  # because a probe with a smaller batch doesn't call init
    device = problem.params[0].device
    return [
        index
        for _ in range(epochs)
        for index in torch.randperm(problem.contexts, generator=rng, device=device).tensor_split(minibatches)
    ]


def outside(ratio: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """Where the minimum of ratio A and clip(ratio) A is the clipped term, whose derivative with respect to the ratio is zero."""
    return ((ratio > 1 + high) & (advantage > 0)) | ((ratio < 1 - low) & (advantage < 0))


# Statistics of the tokens in `alive` (n, B, T), without indexing by it: a GPU would wait until their number is known.


def share(flags: Tensor, alive: Tensor) -> Tensor:
    """The share of tokens in `alive` whose flag is set: flags (n, B, T) bool to a scalar."""
    return (flags & alive).sum() / alive.sum()


def mean_of(values: Tensor, alive: Tensor) -> Tensor:
    """The mean over the tokens in `alive`: values (n, B, T) to a scalar."""
    return values.where(alive, 0.0).sum() / alive.sum()


def variance_of(values: Tensor, alive: Tensor) -> Tensor:
    """The unbiased variance over the tokens in `alive`: values (n, B, T) to a scalar. The others are set to the mean."""
    filled = values.where(alive, mean_of(values, alive))
    return filled.var() * ((filled.numel() - 1) / (alive.sum(dtype=values.dtype) - 1))
