"""Every built-in estimator passes `gradebench check`, and every wrong twin of one fails the check that is meant for it.

A twin counts as caught only if it is caught with every one of SEEDS seeds (a few for the dear ones). True estimators
pass with TRUE_SEEDS seeds here; one that is right fails with probability 1e-3 a seed. benchmarks/check_study.py runs
all of both with 20 seeds (results/check).
"""

from unittest import mock

import pytest
import torch

from gradebench import Estimate, gumbel, harden, score, straight_through
from gradebench.conformance import check
from gradebench.estimators import rebar, relaxed
from gradebench.estimators.oracle import Exact
from gradebench.estimators.ppo import Ppo
from gradebench.estimators.rebar import Rebar
from gradebench.estimators.relaxed import Grade, GradeSte, StraightThrough
from gradebench.estimators.score_function import Reinforce, Rloo
from gradebench.sampling import exponential

SEEDS = range(20)
DEAR_SEEDS = range(3)
DEAR = ("rebar", "ppo")  # half a second a seed and more
TRUE_SEEDS = range(2)
TRUE = {
    "exact": Exact,
    "grade": Grade,
    "grade-ste": GradeSte,
    "ppo": Ppo,
    "rebar": Rebar,
    "reinforce": Reinforce,
    "reinforce, no baseline": lambda **options: Reinforce(baseline="none"),
    "rloo": Rloo,
    "rloo, two samples": lambda **options: Rloo(n=2),
    "st": StraightThrough,
}


@pytest.mark.parametrize("seed", TRUE_SEEDS)
@pytest.mark.parametrize("name", TRUE)
def test_built_in_estimator_keeps_its_contract(name, seed):
    assert [finding for finding in check(TRUE[name], seed) if finding.status == "fail"] == []


# --- the wrong twins


class BlackBox:
    """A problem that hides how the reward depends on the parameters."""

    def __init__(self, problem):
        self._problem = problem
        self.offers = problem.offers | {"fixed_reward"}

    def __getattr__(self, name):
        return getattr(self._problem, name)

    def reward(self, z):
        return self._problem.reward(z).detach()

    def select(self, index):
        return BlackBox(self._problem.select(index))


class NoRewardGradient:
    """grad f is left out."""

    def gradient(self, problem, rng):
        return super().gradient(BlackBox(problem), rng)


class ReinforceNoRewardGradient(NoRewardGradient, Reinforce):
    pass


class ReinforceOwnBaseline(Reinforce):
    """The baseline is the mean of the draws it is subtracted from."""

    n = 2

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward - reward.mean(0))))


class ReinforcePeekingBaseline(Reinforce):
    """The baseline reads the last token of the sample it is subtracted from."""

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward - (z[..., -1] == 0) * 0.1)))


class RlooNoRewardGradient(NoRewardGradient, Rloo):
    pass


class RlooWrongFactor(Rloo):
    """Divided by k where k - 1 others were summed."""

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        others = (reward.sum(0) - reward) / (self.n - 1)
        return Estimate(problem.grad(score(problem, z, reward, (reward - others) * (self.n - 1) / self.n)))


class RlooReusedNoise(Rloo):
    """All samples of a context come from one noise, so the others are the sample itself."""

    def gradient(self, problem, rng):
        z = problem.sample(1, rng).expand(self.n, -1, -1)
        reward = problem.reward(z)
        others = (reward.sum(0) - reward) / (self.n - 1)
        return Estimate(problem.grad(score(problem, z, reward, reward - others)))


class PpoNoRewardGradient(NoRewardGradient, Ppo):
    pass


class PpoPeekingValue(Ppo):
    """The value of a position has read its token."""

    def rollout(self, problem, rng):
        features = problem.features
        ahead = mock.Mock(wraps=problem, contexts=problem.contexts)
        ahead.features = lambda z: features(z).roll(-1, 2)
        return super().rollout(ahead, rng)


class RebarNoRewardGradient(NoRewardGradient, Rebar):
    pass


class RebarRawLogits(Rebar):
    """Unnormalised logits in the conditional Gumbel: right argmax, wrong law."""

    def gradient(self, problem, rng):
        def raw(logits, index, noise):
            top = noise.gather(-1, index.unsqueeze(-1))
            others = -(noise / logits.exp() + top).log()
            return others.scatter(-1, index.unsqueeze(-1), -top.log())

        with mock.patch.object(rebar, "gumbel_given", raw):
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

        with mock.patch.object(rebar, "exponential", one_position):
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


class PpoRatioOne(Ppo):
    """The policy that drew the batch is taken to be the present one, at later epochs too."""

    def gradient(self, problem, rng):
        if not self.queue:
            self.queue = self.rollout(problem, rng)
        batch = self.queue[0]
        batch["log_prob"] = problem.select(batch["index"]).log_prob(batch["z"]).detach()
        return super().gradient(problem, rng)


class PpoAlwaysWhitens(Ppo):
    def __init__(self, **options):
        super().__init__(**(options | {"whiten": True}))


class PpoShortTrace(Ppo):
    def __init__(self, **options):
        super().__init__(**(options | {"lam": 0.5}))


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


def one_noise(cls):
    """All positions of a rollout share their Gumbel noise."""

    class Twin(cls):
        def gradient(self, problem, rng):
            state = rng.get_state()

            def same(like, rng):
                rng.set_state(state)
                return gumbel(like, rng)

            with mock.patch.object(relaxed, "gumbel", same):
                return super().gradient(problem, rng)

    return Twin


def no_noise(cls):
    """Tokens are the likeliest ones."""

    class Twin(cls):
        def gradient(self, problem, rng):
            gumbel(problem.params[0], rng)
            with mock.patch.object(relaxed, "gumbel", lambda like, rng: 1e-3 * gumbel(like, rng)):
                return super().gradient(problem, rng)

    return Twin


def wrong_sign(cls):
    """The noise is subtracted: close to right for two categories, wrong for more."""

    class Twin(cls):
        def gradient(self, problem, rng):
            with mock.patch.object(relaxed, "gumbel", lambda like, rng: -gumbel(like, rng)):
                return super().gradient(problem, rng)

    return Twin


def no_feedback(cls):
    """The common shortcut: tokens are fed back without a gradient, and relaxed again for the reward alone."""

    class Twin(cls):
        def gradient(self, problem, rng):
            state = rng.get_state()
            y = problem.rollout(lambda logits: self.relax(logits, rng), self.n).detach()
            rng.set_state(state)
            logits = problem.logits(y)
            again = torch.stack([self.relax(step, rng) for step in logits.unbind(2)], 2)
            return Estimate(problem.grad(problem.soft_reward(again).mean()))

    return Twin


def detached_half(cls):
    """Every other token is detached inside `relax`."""

    class Twin(cls):
        def gradient(self, problem, rng):
            self.position = 0
            return super().gradient(problem, rng)

        def relax(self, logits, rng):
            self.position += 1
            y = super().relax(logits, rng)
            return y.detach() if self.position % 2 else y

    return Twin


class StraightThroughNoisy(StraightThrough):
    """Gumbel noise in the backward pass: that is GRADE-STE, and not exact for linear rewards."""

    def relax(self, logits, rng):
        soft = ((logits + gumbel(logits, rng)) / self.tau).softmax(-1)
        return straight_through(harden(soft), soft)


class ExactForgetsOne(Exact):
    """The last outcome is left out."""

    needs = frozenset({"exact", "support"})

    def gradient(self, problem, rng):
        z = problem.support()[:-1].unsqueeze(1).expand(-1, problem.contexts, -1)
        return Estimate(problem.grad((problem.log_prob(z).sum(-1).exp() * problem.reward(z)).sum(0).mean()))


class ExactNoRewardGradient(Exact):
    needs = frozenset({"exact", "support"})

    def gradient(self, problem, rng):
        z = problem.support().unsqueeze(1).expand(-1, problem.contexts, -1)
        p = problem.log_prob(z).sum(-1).exp()
        return Estimate(problem.grad((p * problem.reward(z).detach()).sum(0).mean()))


MUTANTS = {
    "exact, one outcome left out": (ExactForgetsOne, "unbiased"),
    "exact without grad f": (ExactNoRewardGradient, "unbiased"),
    "reinforce without grad f": (ReinforceNoRewardGradient, "unbiased"),
    "reinforce, baseline from its own draws": (ReinforceOwnBaseline, "unbiased"),
    "reinforce, baseline that has seen the last token": (ReinforcePeekingBaseline, "unbiased"),
    "rloo without grad f": (RlooNoRewardGradient, "unbiased"),
    "rloo, factor 1 / k": (RlooWrongFactor, "unbiased"),
    "rloo, reused noise": (RlooReusedNoise, "unbiased"),
    "ppo without grad f": (PpoNoRewardGradient, "unbiased if"),
    "ppo, value that has read the token": (PpoPeekingValue, "unbiased if"),
    "ppo, ratio fixed at 1": (PpoRatioOne, "unbiased if"),
    "ppo, whitens unasked": (PpoAlwaysWhitens, "unbiased if"),
    "ppo, lambda 0.5 unasked": (PpoShortTrace, "unbiased if"),
    "rebar without grad f": (RebarNoRewardGradient, "unbiased"),
    "rebar, raw logits": (RebarRawLogits, "unbiased"),
    "rebar, detached noise": (RebarDetachedTied, "unbiased"),
    "rebar, hard prefix": (RebarHardPrefix, "unbiased"),
    "rebar, reused noise": (RebarReusedNoise, "unbiased"),
    "rebar, leaking loss": (RebarLeaks, "frozen by eval()"),
    "rebar, loss cut off": (RebarLearnsNothing, "own loss"),
    "st, noise in the backward pass": (StraightThroughNoisy, "unbiased if"),
}
for cls in (Grade, GradeSte, StraightThrough):
    MUTANTS |= {
        f"{cls.__name__}, one noise for all positions": (one_noise(cls), "law of the draws"),
        f"{cls.__name__}, no noise": (no_noise(cls), "law of the draws"),
        f"{cls.__name__}, wrong sign of the noise": (wrong_sign(cls), "law of the draws"),
        f"{cls.__name__}, feedback detached": (no_feedback(cls), "pathwise"),
        f"{cls.__name__}, every other token detached": (detached_half(cls), "pathwise"),
    }


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_twin_is_caught_on_every_seed(name):
    make, meant = MUTANTS[name]
    for seed in DEAR_SEEDS if name.startswith(DEAR) else SEEDS:
        statuses = [finding.status for finding in check(make, seed, only=[meant])]
        assert "fail" in statuses, f"seed {seed}: {statuses}"
