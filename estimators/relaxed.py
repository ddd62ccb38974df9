"""Relaxed paths: backpropagate through sampling, the reward and the tokens fed back; they differ in `relax` alone."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from gradebench import Estimate, Estimator, Problem, Range, gumbel, harden, straight_through

Temperature = Annotated[float, Range(0, low_open=True), "temperature of the Gumbel-softmax"]


class Relaxed(Estimator):
    """Gradient of f along a differentiable rollout whose tokens are `relax(logits)`."""

    family = "relaxed path"
    needs = frozenset({"soft_reward"})
    pathwise = True

    def __init__(self, tau: Temperature = 1.0):
        super().__init__()
        self.tau = tau

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        """The relaxed one-hot (n, B, V) drawn from logits (n, B, V) at one position."""
        raise NotImplementedError

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        y = problem.rollout(lambda logits: self.relax(logits, rng), self.n)  # (n, B, T, V)
        return Estimate(problem.grad(problem.soft_reward(y).mean()))


class Grade(Relaxed):
    """GRADE: soft Gumbel-softmax tokens, fed back into the policy and read by the reward.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  y_t = softmax((l_t(y_<t) + G_t) / tau)
    Requires      differentiable reward.
    Bias          yes, also in the limit of many draws; falls as tau -> 0 while the variance grows.
    Cost a call   B reward calls, BT relaxed tokens, 1 backward pass through the whole rollout.
    Source        Jang et al. 2017, eq. 2; Maddison et al. 2017; Nel 2025 (GRADE).  Deviates: tau is constant.
    """

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        return ((logits + gumbel(logits, rng)) / self.tau).softmax(-1)


class GradeSte(Relaxed):
    """GRADE-STE: hard tokens forward, Gumbel-softmax backward, through the reward and the token fed back.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(argmax(l_t + G_t)), gradient: that of softmax((l_t + G_t) / tau)
    Requires      differentiable reward.
    Bias          yes.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass through the whole rollout.
    Source        Jang et al. 2017, section 2.2; Nel 2025 (GRADE-STE).  Deviates: tau is constant.
    """

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        soft = ((logits + gumbel(logits, rng)) / self.tau).softmax(-1)
        return straight_through(harden(soft), soft)


class StraightThrough(Relaxed):
    """Straight-through: a sampled token forward, the softmax backward, no Gumbel noise in the gradient.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(z_t), z_t ~ pi_t, gradient: that of softmax(l_t / tau)
    Requires      differentiable reward.
    Bias          yes; none at tau = 1 where f is linear and decisions are independent.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass through the whole rollout.
    Source        Bengio et al. 2013; Liu et al. 2023, eq. 2.
    """

    unbiased_if: ClassVar = {"linear": {"tau": 1.0}}

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        return straight_through(harden(logits + gumbel(logits, rng)), (logits / self.tau).softmax(-1))
