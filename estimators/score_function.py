"""Score-function estimators: the reward is a black box, and baselines reduce the variance."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from gradebench import Estimate, Estimator, Problem, Range, score


class Reinforce(Estimator):
    """REINFORCE with a moving-average baseline, or none.

    Approximates  grad E_{z~p}[f(z)]
    With          (f - c) grad log p(z),  c = moving average of past rewards, or 0
    Requires      black-box reward.
    Bias          none: c is a function of earlier draws only.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass.
    Source        Williams 1992, eq. 11.  Deviates: the average is corrected for its initial zero, as in Adam.
    """

    family = "score function"
    unbiased = True
    score = staticmethod(score)
    total: Tensor  # sum of decay^age * reward * (1 - decay)
    weight: Tensor  # sum of decay^age * (1 - decay)

    def __init__(
        self,
        baseline: Annotated[Literal["ema", "none"], "moving average of past rewards, or none"] = "ema",
        decay: Annotated[float, Range(0, 1, high_open=True), "of the moving average"] = 0.9,
    ):
        super().__init__()
        self.baseline = baseline
        self.decay = decay
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(z)  # (n, B)
        c = self.total / self.weight.clamp_min(1e-12) if self.baseline == "ema" else 0.0
        grad = problem.grad(self.score(problem, z, reward, reward - c))
        if self.training:  # after use: a baseline that saw its own sample would be biased
            self.total.mul_(self.decay).add_(reward.detach().mean() * (1 - self.decay))
            self.weight.mul_(self.decay).add_(1 - self.decay)
        return Estimate(grad)


class Rloo(Estimator):
    """Leave-one-out REINFORCE.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_i (f_i - mean_{j != i} f_j) grad log p(z_i)
    Requires      n >= 2; black-box reward.
    Bias          none.
    Cost a call   nB reward calls, nBT sampled tokens, 1 backward pass.
    Source        Kool et al. 2019, eq. 8.  Deviates: nowhere.
    """

    family = "score function"
    unbiased = True

    def __init__(self, n: Annotated[int, Range(2), "samples per context"] = 4):
        super().__init__()
        self.n = n

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(z)  # (n, B)
        others = (reward.sum(0) - reward) / (self.n - 1)
        return Estimate(problem.grad(score(problem, z, reward, reward - others)))
