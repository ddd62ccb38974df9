"""Pathwise estimators: the reward is differentiated through relaxed or straight-through tokens, which are fed back into the
policy. They differ only in `relax`."""

from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from gradebench import (
    Estimate,
    Estimator,
    Problem,
    Range,
    exponential,
    gumbel,
    gumbel_given,
    harden,
    straight_through,
)
from gradebench.core.mixture import Mixture, likeliest, relaxed_tokens

Temperature = Annotated[float, Range(0, low_open=True), "temperature of the Gumbel-softmax"]
LastTemperature = Annotated[float | None, Range(0, low_open=True), "final temperature; none: tau is constant"]
Steps = Annotated[int, Range(1), "training calls until tau_end is reached, in equal steps"]
TopK = Annotated[int | None, Range(1), "the relaxation is over so many of the likeliest tokens; none: over all"]


class Relaxed(Estimator):
    """Gradient of f along a differentiable rollout whose tokens are `relax(logits)`."""

    family = "relaxed path"
    needs = frozenset({"soft_reward"})
    pathwise = True
    hard: ClassVar[bool] = False  # whether tokens are one-hots, which allows faster rollouts
    topk: int | None = None  # tokens of a position that `relax` mixes; None: all

    calls: Tensor  # number of training calls, for annealing

    def __init__(self, tau: Temperature = 1.0, tau_end: LastTemperature = None, anneal: Steps = 1000):
        super().__init__()
        self.first, self.last, self.anneal = tau, tau_end, anneal
        if tau_end is not None:
            self.register_buffer("calls", torch.zeros(()))

    @property
    def tau(self) -> float | Tensor:
        """The current temperature."""
        if self.last is None:
            return self.first
        return self.first + (self.last - self.first) * (self.calls.double() / self.anneal).clamp_max(1)

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor | Mixture:
        """The relaxed one-hots (n, B, V) drawn from logits (n, B, V) at one position, or at several at once."""
        raise NotImplementedError

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        told: dict[str, Any] = {"together": True, "rng": rng, "hard": self.hard}
        if self.topk is not None and self.topk < problem.categories:
            told["sparse"] = True
        y = problem.rollout(lambda logits: self.relax(logits, rng), self.n, **told)  # (n, B, T, V)
        grad = problem.grad(problem.soft_reward(y).mean())
        if self.last is None:
            return Estimate(grad)
        info = {"tau": self.tau}
        if self.training:
            self.calls += 1
        return Estimate(grad, info=info)


class OfTheLikeliest(Relaxed):
    """Those of GRADE, which can leave all but the likeliest tokens of a position out."""

    def __init__(
        self,
        tau: Temperature = 1.0,
        tau_end: LastTemperature = None,
        anneal: Steps = 1000,
        topk: TopK = None,
    ):
        super().__init__(tau, tau_end, anneal)
        self.topk = topk


class Grade(OfTheLikeliest):
    """GRADE: soft Gumbel-softmax tokens, fed back into the policy and read by the reward.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  y_t = softmax((l_t(y_<t) + G_t) / tau); with topk, over the likeliest tokens alone
    Requires      differentiable reward.
    Bias          yes; it falls as tau -> 0, while the variance grows. With topk, that of never drawing other tokens is left.
    Cost a call   B reward calls, BT relaxed tokens, 1 backward pass through the whole rollout.
    Source        Jang et al. 2017, eq. 2; Maddison et al. 2017; Nel 2025 (GRADE).  Deviates: tau is constant
                  unless tau_end is given; all tokens are relaxed unless topk is given (256 in the paper).
    """

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor | Mixture:
        top, ids = likeliest(logits, self.topk)
        return relaxed_tokens(((top + gumbel(top, rng)) / self.tau).softmax(-1), ids)


class GradeSte(OfTheLikeliest):
    """GRADE-STE: hard tokens forward, Gumbel-softmax backward, through the reward and the token fed back.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(argmax(l_t + G_t)), gradient: that of softmax((l_t + G_t) / tau);
                  with topk, over the likeliest tokens alone
    Requires      differentiable reward.
    Bias          yes.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass through the whole rollout.
    Source        Jang et al. 2017, section 2.2; Nel 2025 (GRADE-STE).  Deviates: tau is constant unless
                  tau_end is given; all tokens are relaxed unless topk is given (256 in the paper).
    """

    hard = True

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor | Mixture:
        top, ids = likeliest(logits, self.topk)
        soft = ((top + gumbel(top, rng)) / self.tau).softmax(-1)
        return relaxed_tokens(straight_through(harden(soft), soft), ids)


class StraightThrough(Relaxed):
    """Straight-through: a sampled token forward, the softmax backward, no Gumbel noise in the gradient.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(z_t), z_t ~ pi_t, gradient: that of softmax(l_t / tau)
    Requires      differentiable reward.
    Bias          yes; none at tau = 1 if f is linear and decisions are independent.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass through the whole rollout.
    Source        Bengio et al. 2013; Liu et al. 2023, eq. 2.
    """

    hard = True
    unbiased_if: ClassVar = {"linear": {"tau": 1.0}}

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        return straight_through(harden(logits + gumbel(logits, rng)), (logits / self.tau).softmax(-1))


class GumbelRao(Relaxed):
    """Gumbel-Rao: GRADE-STE with the backward pass averaged over the Gumbel noise given the token.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(b_t), b_t ~ pi_t, gradient: that of
                  mean_k softmax((l_t + G^k) / tau), k fixed draws of the Gumbel noise given b_t = argmax(l_t + G^k)
    Requires      differentiable reward.
    Bias          yes: for one decision the same as GRADE-STE at the same tau, with less variance.
    Cost a call   B reward calls, BT sampled tokens, kBT softmaxes kept for the backward pass, 1 backward pass.
    Source        Paulus et al. 2021 (Gumbel-Rao).  Deviates: nowhere.
    """

    hard = True

    def __init__(
        self,
        k: Annotated[int, Range(1), "draws of the noise given the token"] = 10,
        tau: Temperature = 1.0,
        tau_end: LastTemperature = None,
        anneal: Steps = 1000,
    ):
        super().__init__(tau, tau_end, anneal)
        self.k = k

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        hard = harden(logits + gumbel(logits, rng))
        log_pi = logits.detach().log_softmax(-1).expand(self.k, *logits.shape)  # (k, n, B, V)
        token = hard.argmax(-1).expand(self.k, *hard.shape[:-1])  # (k, n, B)
        noise = (
            gumbel_given(log_pi, token, exponential(log_pi, rng)) - log_pi
        )  # without a graph: only l is differentiated
        return straight_through(hard, ((logits + noise) / self.tau).softmax(-1).mean(0))


class GappedSt(Relaxed):
    """Gapped straight-through: in the backward softmax, the sampled token's logit leads by at least a gap.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(b_t), b_t ~ pi_t, gradient: that of softmax((l_t + m1 - m2) / tau)
                  m1  max l - l_b at the sampled entry, which becomes the largest
                  m2  (l_i + gap - max l)_+ at the others, which are then at least gap below; both are constants
    Requires      differentiable reward.
    Bias          yes.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass through the whole rollout.
    Source        Fan et al. 2022 (GST).  Deviates: nowhere.
    """

    hard = True

    def __init__(
        self,
        gap: Annotated[float, Range(0), "minimum lead of the sampled logit over the others"] = 1.0,
        tau: Annotated[float, Range(0, low_open=True), "temperature of the backward softmax"] = 1.0,
        tau_end: LastTemperature = None,
        anneal: Steps = 1000,
    ):
        super().__init__(tau, tau_end, anneal)
        self.gap = gap

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        hard = harden(logits + gumbel(logits, rng))
        behind = logits.detach().amax(-1, keepdim=True) - logits.detach()  # (n, B, V), not negative
        move = torch.where(hard > 0, behind, -(self.gap - behind).clamp_min(0.0))  # m1 - m2
        return straight_through(hard, ((logits + move) / self.tau).softmax(-1))


class ReinMax(Relaxed):
    """ReinMax: a second-order straight-through estimate, by Heun's method instead of Euler's.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(b_t) = D, b_t ~ pi_t, gradient: 2 S((softmax(l / tau) + D) / 2)
                  - S(pi) / 2 with S(q) = diag q - q q^T; at tau = 1 that is
                  (diag pi + D D^T - pi D^T - D pi^T) / 2
    Requires      differentiable reward.
    Bias          yes; none at tau = 1 if f is quadratic and decisions are independent.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass through the whole rollout.
    Source        Liu et al. 2023, algorithm 2.  Deviates: nowhere.
    """

    hard = True
    unbiased_if: ClassVar = {"linear": {"tau": 1.0}, "quadratic": {"tau": 1.0}}

    def __init__(self, tau: Annotated[float, Range(0, low_open=True), "temperature of the averaged softmax"] = 1.0):
        super().__init__(tau)

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        hard = harden(logits + gumbel(logits, rng))
        middle = ((logits / self.tau).softmax(-1) + hard) / 2
        at_middle = logits + (middle.log() - logits).detach()  # the value of log middle, the gradient of logits
        return straight_through(hard, 2 * at_middle.softmax(-1) - logits.softmax(-1) / 2)


class DecoupledSt(Relaxed):
    """Decoupled straight-through: one temperature for sampling the token, another for the gradient.

    Approximates  grad E_{z~p}[f(z)]
    With          grad f(y),  value of y_t: one_hot(z_t), z_t ~ softmax(l_t / tau_forward), gradient: that of
                  softmax(l_t / tau_backward).  `st` is the case tau_forward = 1; its tau is tau_backward
    Requires      differentiable reward.
    Bias          yes. At tau_forward != 1 the sampled policy isn't the trained one, and f is differentiated at its
                  tokens. None at tau_backward = 1 if f is linear and decisions are independent: the derivative of f
                  then doesn't depend on the tokens.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass through the whole rollout.
    Source        Shah et al. 2024 (Decoupled ST).  Deviates: tokens follow the policy by default, tau_forward = 1;
                  the paper tunes both.
    """

    hard = True
    unbiased_if: ClassVar = {"linear": {"tau_forward": 1.0, "tau_backward": 1.0}}

    def __init__(
        self,
        tau_forward: Annotated[float, Range(0, low_open=True), "temperature of sampling"] = 1.0,
        tau_backward: Annotated[float, Range(0, low_open=True), "temperature of the backward softmax"] = 2.0,
    ):
        super().__init__(tau_backward)
        self.tau_forward = tau_forward

    def relax(self, logits: Tensor, rng: torch.Generator) -> Tensor:
        hard = harden(logits / self.tau_forward + gumbel(logits, rng))
        return straight_through(hard, (logits / self.tau).softmax(-1))
