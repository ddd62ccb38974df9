"""Score-function estimators on distinct sequences, sampled without replacement by stochastic beam search."""

import math
from typing import Annotated

import torch
from torch import Tensor

from gradebench import Estimate, Estimator, Problem, Range, Unsupported, exponential


class UnorderedSet(Estimator):
    """Unordered set estimator with its built-in baseline.

    Approximates  grad E_{z~p}[f(z)]
    With          sum_{s in S} p(s) R(S, s) [(f(s) - B(s)) grad log p(s) + grad f(s)],  S = n sequences without
                  replacement
                  R(S, s) = P(S | s came first) / P(S), so that p(s) R(S, s) sums to 1
                  B(s) = p(s) f(s) + sum_{s' != s} p(s') R^{-s}(S, s') f(s'),  R^{-s} = R without s in the domain
    Requires      n >= 2, and at least n possible sequences; black-box reward.
    Bias          none.
    Cost a call   nB reward calls, nBT sampled tokens, 1 backward pass.
    Source        Kool et al. 2020, section 3; stochastic beam search: Kool et al. 2019 (ICML), algorithm 1.
                  Deviates: the set's probability is integrated by the trapezoid rule over the log time of exponential
                  clocks.
    """

    family = "score function"
    unbiased = True

    def __init__(self, n: Annotated[int, Range(2), "distinct samples per context"] = 4):
        super().__init__()
        self.n = n

    def init(self, problem: Problem) -> None:
        outcomes = problem.categories**problem.horizon
        if outcomes < self.n:
            raise Unsupported(f"{self.n} distinct samples from {outcomes} outcomes")

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = distinct_draws(problem, self.n, rng)  # (n, B, T)
        reward = problem.reward(z)  # (n, B)
        log_prob = problem.log_prob(z).sum(-1)  # (n, B)
        first, second = (weight.to(reward.dtype) for weight in set_weights(log_prob.detach().double()))
        baseline = (second * reward.detach()).sum(1)  # (n, B)
        terms = (reward - baseline).detach() * log_prob + reward
        return Estimate(problem.grad((first * terms).sum(0).mean()))


def distinct_draws(problem: Problem, n: int, rng: torch.Generator) -> Tensor:
    """n distinct sequences (n, B, T) for every context, in the order of sampling without replacement.

    Every sequence has a clock that rings at time Exp(1) / p(s); the first n to ring are the sample. A prefix rings with
    the first of its continuations, so a beam of the first n prefixes is exact (Kool et al. 2019, whose Gumbel variables
    are minus the log times). While there are fewer than n prefixes, the beam holds placeholders that never ring.
    """
    beam: list[Tensor] = []  # log p, and log time, of the prefixes kept, (n, B) each

    def choose(logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p = logits.double().log_softmax(-1)  # (n, B, V)
        if not beam:
            only = torch.full_like(log_p[..., 0], math.inf)
            only[0] = 0  # all draws share the empty prefix; one entry represents it, ringing at time 1
            beam[:] = -only, only
        prefix, time = (x.unsqueeze(-1) for x in beam)
        # The first continuation rings with its prefix. Clocks are memoryless, so the delays of the others after it
        # are distributed as those of independent clocks after the first of them.
        free = exponential(log_p, rng).log() - log_p  # log times
        delay = free + (-torch.expm1(free.amin(-1, keepdim=True) - free)).log()  # its log; -inf for the first
        times = torch.logaddexp(time, delay - prefix).masked_fill(prefix == -math.inf, math.inf)
        flat = times.permute(1, 0, 2).flatten(1)  # (B, n V)
        soonest, index = (x.T for x in flat.topk(n, largest=False))  # (n, B)
        reached = (prefix + log_p).permute(1, 0, 2).flatten(1).gather(1, index.T).T
        beam[:] = torch.where(soonest == math.inf, -math.inf, reached), soonest
        return index % log_p.shape[-1], index // log_p.shape[-1]

    return problem.draw(choose, n)


@torch.no_grad()
def set_weights(log_p: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the n sequences of a set in E f, and in E f given that one of them was drawn first.

    log_p (n, B) float64, of distinct sequences. Returns
    first   (n, B): p(s) R(S, s), the probability that s was drawn first given the set
    second  (n, n, B): row s has p(s) for s itself, and p(s') R^{-s}(S, s') for the others; it sums to 1 as well

    The clocks of the set must ring before any other, so with q = 1 - sum_S p and a_s = p(s) / q
        P(S) = I(S),  I(A) = integral of e^-t prod_{s in A} (1 - e^{-a_s t}) dt over t > 0.
    Removing s from the domain scales all rates equally: the a's stay the same, R(S, s) = I(S - s) / I(S), and
    p(s') R^{-s}(S, s') = p(s') I(S - s - s') / I(S - s).
    """
    n = len(log_p)
    log_a = log_p - log_rest(log_p)
    # With t = e^x the integrand decays double exponentially or like e^x, so the trapezoid rule is exact up to rounding
    # if its step is well below the width 1 / sqrt(n + 1) of the narrowest peak.
    step = 0.4 / math.sqrt(n + 1)
    x = torch.arange(-40, math.log(2 * n + 60), step, dtype=log_p.dtype, device=log_p.device)  # (G,)
    factor = log_one_minus_exp(log_a.unsqueeze(-1) + x)  # (n, B, G)
    total = factor.sum(0) + x - x.exp()  # (B, G)
    without = (total - factor).logsumexp(-1)  # log I(S - s) up to the step, (n, B)
    without_two = (total - factor.unsqueeze(1) - factor).logsumexp(-1)  # (n, n, B)
    first = (log_p + without - total.logsumexp(-1)).exp()
    second = (log_p + without_two - without.unsqueeze(1)).exp()
    itself = torch.eye(n, dtype=torch.bool, device=log_p.device).unsqueeze(-1)
    return first, torch.where(itself, log_p.exp(), second)


def log_rest(log_p: Tensor) -> Tensor:
    """log(1 - sum p) over the first axis, finite even if the set holds all probability up to rounding."""
    return (-torch.expm1(log_p.logsumexp(0).clamp_max(-1e-300))).log()


def log_one_minus_exp(y: Tensor) -> Tensor:
    """log(1 - exp(-exp(y))), accurate also where exp(y) is negligible against 1: it is close to y there."""
    return torch.where(y < -30, y, (-torch.expm1(-y.exp())).log())
