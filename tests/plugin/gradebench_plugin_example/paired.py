"""A score-function estimator in pairs, on the public API alone."""

from typing import Annotated

import torch

from gradebench import Estimate, Estimator, Problem, Range, score


class Paired(Estimator):
    """REINFORCE in pairs: each sample of a pair is the other's baseline.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_i (f_i - f_partner(i)) grad log p(z_i)
    Requires      black-box reward.
    Bias          none: a sample and its partner are independent.
    Cost a call   2B reward calls, 2BT sampled tokens for each pair, 1 backward pass.
    Source        Kool et al. 2019, eq. 8, at two samples.  Deviates: several pairs are averaged.
    """

    unbiased = True

    def __init__(self, pairs: Annotated[int, Range(low=1), "pairs of samples per context"] = 2):
        super().__init__()
        self.pairs = pairs
        self.n = 2 * pairs

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(z)  # (n, B)
        partner = reward.roll(self.pairs, 0)
        return Estimate(problem.grad(score(problem, z, reward, reward - partner)))
