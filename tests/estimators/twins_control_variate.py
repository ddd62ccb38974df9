"""Wrong twins of REBAR."""

from unittest import mock

import torch

from gradebench import Estimate
from gradebench.estimators import control_variate
from gradebench.estimators.control_variate import Rebar
from gradebench.sampling import exponential

TRUE = {
    "rebar": Rebar,
}
WITHOUT_GRAD_F = {"rebar": "unbiased"}


class RebarRawLogits(Rebar):
    """Unnormalised logits in the conditional Gumbel: right argmax, wrong law."""

    def gradient(self, problem, rng):
        def raw(logits, index, noise):
            top = noise.gather(-1, index.unsqueeze(-1))
            others = -(noise / logits.exp() + top).log()
            return others.scatter(-1, index.unsqueeze(-1), -top.log())

        with mock.patch.object(control_variate, "gumbel_given", raw):
            return super().gradient(problem, rng)


class RebarDetachedTied(Rebar):
    """G~ doesn't move with the parameters."""

    def soft_chain(self, problem, noise):
        return super().soft_chain(problem, noise.detach())


class RebarReusedNoise(Rebar):
    """One noise for all positions."""

    def gradient(self, problem, rng):
        def one_position(like, rng):
            return exponential(like[:, :, :1], rng).expand_as(like)

        with mock.patch.object(control_variate, "exponential", one_position):
            return super().gradient(problem, rng)


class RebarHardPrefix(Rebar):
    """The relaxation runs along the sampled prefix in place of its own: fine for independent decisions only."""

    def gradient(self, problem, rng):
        state = rng.get_state()
        self.z = problem.sample(self.n, rng)
        rng.set_state(state)
        return super().gradient(problem, rng)

    def soft_chain(self, problem, noise):
        log_prob = problem.logits(self.z).log_softmax(-1)
        y = ((log_prob.repeat(2, 1, 1, 1) + noise) / self.log_tau.exp()).softmax(-1)
        return problem.soft_reward(y)


class RebarLeaks(Rebar):
    """The loss of the control variate reaches the policy's gradient while it learns."""

    def gradient(self, problem, rng):
        estimate = super().gradient(problem, rng)
        if estimate.own_loss is not None:
            leak = torch.autograd.grad(estimate.own_loss, problem.params, retain_graph=True)
            estimate.grad = [g + 0.1 * x for g, x in zip(estimate.grad, leak, strict=True)]
        return estimate


class RebarLearnsNothing(Rebar):
    """A detach cuts the loss off from tau and eta."""

    def gradient(self, problem, rng):
        estimate = super().gradient(problem, rng)
        loss = None if estimate.own_loss is None else estimate.own_loss.detach() + 0 * self.eta
        return Estimate(estimate.grad, loss)


MUTANTS = {
    "rebar, raw logits": (RebarRawLogits, "unbiased"),
    "rebar, detached noise": (RebarDetachedTied, "unbiased"),
    "rebar, hard prefix": (RebarHardPrefix, "unbiased"),
    "rebar, reused noise": (RebarReusedNoise, "unbiased"),
    "rebar, leaking loss": (RebarLeaks, "frozen by eval()"),
    "rebar, loss cut off": (RebarLearnsNothing, "own loss"),
}
