"""Mutants of REBAR, RELAX and MuProp."""

from unittest import mock

import torch

from gradebench import Estimate, gumbel_given, harden
from gradebench.core.sampling import exponential
from gradebench.estimators import control_variate
from gradebench.estimators.control_variate import MuProp, Rebar, Relax

TRUE = {
    "rebar": Rebar,
    "relax": Relax,
    "muprop": MuProp,
}
WITHOUT_GRAD_F = {"rebar": "unbiased", "relax": "unbiased", "muprop": "unbiased"}


def raw(logits, index, noise):
    """The conditional Gumbel of unnormalised logits: right argmax, wrong law."""
    top = noise.gather(-1, index.unsqueeze(-1))
    others = -(noise / logits.exp() + top).log()
    return others.scatter(-1, index.unsqueeze(-1), -top.log())


def leaking(estimate, problem):
    if estimate.own_loss is not None:
        leak = torch.autograd.grad(estimate.own_loss, problem.params, retain_graph=True)
        estimate.grad = [g + 0.1 * x for g, x in zip(estimate.grad, leak, strict=True)]
    return estimate


class RebarRawLogits(Rebar):
    """Unnormalised logits in the conditional Gumbel: right argmax, wrong law."""

    def gradient(self, problem, rng):
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
        return leaking(super().gradient(problem, rng), problem)


class RebarLearnsNothing(Rebar):
    """A detach cuts the loss off from tau and eta."""

    def gradient(self, problem, rng):
        estimate = super().gradient(problem, rng)
        loss = None if estimate.own_loss is None else estimate.own_loss.detach() + 0 * self.eta
        return Estimate(estimate.grad, loss)


# --- RELAX: the wrong laws of z~ with a random c of the size of the rewards, for what is learned in a check is small


class RandomRelax(Relax):
    """RELAX with a random, fixed function added to c: no bias by itself."""

    def control(self, z, features):
        rng = torch.Generator().manual_seed(0)
        token, prefix = (torch.randn(x.shape[-1], generator=rng).to(x) for x in (z, features))
        random = z.softmax(-1) @ token + (features @ prefix).tanh()
        return 0.3 * random + super().control(z, features)


class RelaxRawLogits(RandomRelax):
    """Unnormalised logits in the conditional Gumbel: right argmax, wrong law."""

    def gradient(self, problem, rng):
        with mock.patch.object(control_variate, "gumbel_given", raw):
            return super().gradient(problem, rng)


class RelaxDetachedTied(RandomRelax):
    """z~ doesn't move with the parameters."""

    def gradient(self, problem, rng):
        with mock.patch.object(control_variate, "gumbel_given", lambda *given: gumbel_given(*given).detach()):
            return super().gradient(problem, rng)


class RelaxSeesItsToken(RandomRelax):
    """c_t reads b_t itself in place of its relaxation."""

    def control(self, z, features):
        return super().control(100 * harden(z), features)


class RelaxLeaks(Relax):
    """The loss of the control variate reaches the policy's gradient while it learns."""

    def gradient(self, problem, rng):
        return leaking(super().gradient(problem, rng), problem)


class RelaxLearnsNothing(Relax):
    """A detach cuts the loss off from c."""

    def gradient(self, problem, rng):
        estimate = super().gradient(problem, rng)
        loss = None if estimate.own_loss is None else estimate.own_loss.detach() + 0 * self.log_tau
        return Estimate(estimate.grad, loss)


# --- MuProp, at a scale of one: a learned scale switches a wrong control variate off. Each adds a wrong term.


class MuPropMutant(MuProp):
    def __init__(self):
        super().__init__(learn=False)

    def gradient(self, problem, rng):
        state = rng.get_state()
        z = problem.sample(self.n, rng)
        rng.set_state(state)
        estimate = super().gradient(problem, rng)
        _, slope = self.mean_field(problem)
        extra = problem.grad(self.extra(problem, z, slope).mean())
        return Estimate([g + x for g, x in zip(estimate.grad, extra, strict=True)])


class MuPropMeanField(MuPropMutant):
    """Draws are compared with the mean field, those to come too: fine for independent decisions only."""

    def extra(self, problem, z, slope):
        y = problem.rollout(lambda logits: logits.softmax(-1), 1).detach()
        shift = (slope * (problem.logits(z).softmax(-1) - y)).sum((-2, -1))
        return -shift.detach() * problem.log_prob(z).sum(-1)


class MuPropAlongMeanField(MuPropMutant):
    """The second term runs along the mean field, grad f(y): fine for independent decisions only."""

    def extra(self, problem, z, slope):
        y = problem.rollout(lambda logits: logits.softmax(-1), 1)
        return problem.soft_reward(y) - (slope * problem.logits(z).softmax(-1)).sum((-2, -1))


class MuPropResidualAlone(MuPropMutant):
    """The control variate is subtracted and its mean never added back."""

    def extra(self, problem, z, slope):
        return -(slope * problem.logits(z).softmax(-1)).sum((-2, -1))


class MuPropSawItsDraw(MuProp):
    """eta is learned before it is used."""

    def gradient(self, problem, rng):
        state = rng.get_state()
        super().gradient(problem, rng)
        rng.set_state(state)
        return super().gradient(problem, rng)


MUTANTS = {
    "rebar, raw logits": (RebarRawLogits, "unbiased"),
    "rebar, detached noise": (RebarDetachedTied, "unbiased"),
    "rebar, hard prefix": (RebarHardPrefix, "unbiased"),
    "rebar, reused noise": (RebarReusedNoise, "unbiased"),
    "rebar, leaking loss": (RebarLeaks, "frozen by eval()"),
    "rebar, loss cut off": (RebarLearnsNothing, "own loss"),
    "relax, raw logits": (RelaxRawLogits, "unbiased"),
    "relax, detached noise": (RelaxDetachedTied, "unbiased"),
    "relax, sees its token": (RelaxSeesItsToken, "unbiased"),
    "relax, leaking loss": (RelaxLeaks, "frozen by eval()"),
    "relax, loss cut off": (RelaxLearnsNothing, "own loss"),
    "muprop, mean field": (MuPropMeanField, "unbiased"),
    "muprop, along the mean field": (MuPropAlongMeanField, "unbiased"),
    "muprop, residual alone": (MuPropResidualAlone, "unbiased"),
    "muprop, eta saw its draw": (MuPropSawItsDraw, "frozen by eval()"),
}
