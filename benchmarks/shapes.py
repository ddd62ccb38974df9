"""Problems of a given shape with random weights, and how times are taken: shared by the scripts beside it.

What a step costs doesn't depend on what the models have learnt, but for the terms of a parallel rollout's feedback.
"""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gradebench.models.transformer import ScratchClassifier, ScratchPolicy
from gradebench.problems.sequence import SequenceProblem


class Scorer(ScratchClassifier):
    differentiable = True


@dataclass(frozen=True)
class Shape:
    """The default is the small GPT of most tables: 0.9 M parameters, 32 sequences a step."""

    horizon: int = 24
    batch: int = 32
    prompt: int = 8
    width: int = 128
    layers: int = 4
    heads: int = 4
    vocabulary: int = 1000

    def problem(self, device: str = "cpu", dtype: torch.dtype = torch.float32, beta: float = 0.0) -> SequenceProblem:
        torch.manual_seed(0)
        sizes = (self.vocabulary, self.width, self.layers, self.heads, self.prompt + self.horizon)
        policy = ScratchPolicy(*sizes).to(device, dtype)
        reward = Scorer(*sizes).to(device, dtype).requires_grad_(False)
        reference = copy.deepcopy(policy).requires_grad_(False) if beta else None
        prompts = torch.randint(self.vocabulary, (self.batch, self.prompt), device=device)
        return SequenceProblem(policy, reward, prompts, self.horizon, self.vocabulary, reference, beta)

    @property
    def forward_operations(self) -> float:
        """Of one pass over all tokens but the last: products with weights, the attention's own, and the logits read."""
        positions = self.batch * (self.prompt + self.horizon - 1)
        length = (self.prompt + self.horizon) / 2  # what a causal position reads, on average
        per_layer = 2 * positions * (12 * self.width**2 + 2 * length * self.width)
        return self.layers * per_layer + 2 * self.batch * self.horizon * self.vocabulary * self.width

    @property
    def floor_operations(self) -> float:
        """Sampling, and one forward and backward pass at three times the operations."""
        return 4 * self.forward_operations


def matrix_rate(device: str = "cpu", dtype: torch.dtype = torch.float32, size: int = 1024) -> float:
    """Operations a second of a square product, the median of several."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / seconds_of([lambda: a @ b], device)[0]


def seconds_of(tasks: Sequence[Callable[[], object]], device: str = "cpu", rounds: int = 9) -> list[float]:
    """Median seconds of each, taken in turn, so that what slows the machine for a while slows all of them."""
    taken: list[list[float]] = [[] for _ in tasks]
    for number in range(rounds + 2):
        for task, mine in zip(tasks, taken, strict=True):
            _wait(device)
            start = time.perf_counter()
            task()
            _wait(device)
            if number >= 2:  # the first ones warm up
                mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in taken]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
