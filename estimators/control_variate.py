"""Control variates through a relaxation: unbiased by construction, tuned on their own variance."""

from collections.abc import Iterator
from typing import Annotated

import torch
from torch import Tensor, nn

from gradebench import Estimate, Estimator, Problem, Range, gumbel_given
from gradebench.sampling import exponential


class Rebar(Estimator):
    """REBAR on sequences, in noise space: f on a fully soft chain as the control variate.

    Approximates  grad E_{z~p}[f(z)]
    With          (f(z) - eta c(G~)) grad log p(z) + eta grad c(G) - eta grad c(G~)
                  c(G)  f on the soft chain y_t = softmax((log pi_t(y_<t) + G_t) / tau)
                  G     free noise;  G~ the same noise as a function of theta given z, along the hard path
    Requires      differentiable reward.
    Bias          none, on sequences too: c reads noise alone, never the hard prefix. eta and tau depend on
                  earlier draws only.
    Cost a call   B reward calls hard and 2B relaxed, BT sampled and 2BT relaxed tokens, 1 backward pass, differentiated
                  once more while tau and eta learn.
    Source        Tucker et al. 2017, eq. 7.  Deviates: whole-sequence form in noise space, because the
                  factorised one is biased on autoregressive policies; tau and eta descend the squared estimate.
    """

    family = "control variate"
    unbiased = True
    needs = frozenset({"soft_reward"})
    own_learning_rate = 0.1  # tau has to travel by factors within tens of steps: at tau = 1 a soft chain may explode

    def __init__(
        self,
        tau: Annotated[float, Range(0, low_open=True), "temperature of the relaxation at the start"] = 1.0,
        eta: Annotated[float, Range(), "scale of the control variate at the start"] = 1.0,
        learn: Annotated[bool, "learn tau and eta on the variance"] = True,
    ):
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor(tau).log(), requires_grad=learn)
        self.eta = nn.Parameter(torch.tensor(eta), requires_grad=learn)

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(z)  # (n, B)
        logits = problem.logits(z)  # (n, B, T, V)
        # Not detached: G~ moves with theta at fixed z. G takes its value, which couples the two controls.
        tied = gumbel_given(logits, z, exponential(logits, rng)) - logits.log_softmax(-1)
        control = self.eta * self.soft_chain(problem, torch.cat([tied.detach(), tied]))  # (2n, B)
        free_control, tied_control = control.chunk(2)
        # One pass for both terms: a weight multiplies a gradient without being differentiated by it, yet own_loss
        # below reaches tau and eta through it.
        values = torch.stack([problem.log_prob(z).sum(-1), reward + free_control - tied_control])  # (2, n, B)
        weights = torch.stack([reward.detach() - tied_control, torch.ones_like(reward)]) / reward.numel()
        learn = self.training and self.eta.requires_grad
        grad = problem.grad(values, weights if learn else weights.detach(), create_graph=learn)
        own_loss = torch.stack([g.square().sum() for g in grad]).sum() if learn else None
        return Estimate(
            [g.detach() for g in grad], own_loss, {"tau": self.log_tau.exp().item(), "eta": self.eta.item()}
        )

    def soft_chain(self, problem: Problem, noise: Tensor) -> Tensor:
        """c (n, B): f along the soft chain driven by noise (n, B, T, V)."""
        steps: Iterator[Tensor] = iter(noise.unbind(2))
        tau = self.log_tau.exp()
        y = problem.rollout(lambda logits: ((logits.log_softmax(-1) + next(steps)) / tau).softmax(-1), len(noise))
        return problem.soft_reward(y)
