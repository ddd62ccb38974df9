"""Mutants of A2C and PPO."""

from unittest import mock

from gradebench import Estimate
from gradebench.core.view import View
from gradebench.estimators import actor_critic
from gradebench.estimators.actor_critic import A2c, Ppo

TRUE = {
    "a2c": A2c,
    "a2c, lambda 0.9": lambda **options: A2c(lam=0.9),
    "ppo": Ppo,
    "ppo, penalty inside f": lambda **options: Ppo(**({"kl": "reward"} | options)),
}
WITHOUT_GRAD_F = {"a2c": "unbiased", "ppo, penalty inside f": "unbiased if"}


class Altered(View):
    """A problem with some of its methods replaced."""

    def __init__(self, problem, **replaced):
        super().__init__(problem)
        vars(self).update(replaced)


def reading_ahead(problem):
    """The problem, the features of each position moved back by one: those of the last come first."""
    return Altered(problem, features=lambda z: problem.features(z).roll(-1, 2))


class A2cPeekingValue(A2c):
    """The value of a position has read its token."""

    def gradient(self, problem, rng):
        return super().gradient(reading_ahead(problem), rng)


class A2cShortTrace(A2c):
    """Trusts its value without saying so."""

    def __init__(self, **options):
        super().__init__(lam=0.5)
        self.unbiased = True


class A2cOneAdvantage(A2c):
    """The advantage of the last token for all of them: its baseline has read the ones before."""

    def gradient(self, problem, rng):
        def last(reward, value, lam, alive, charge=None):
            return (reward - value[..., -1]).unsqueeze(-1).expand_as(value)

        with mock.patch.object(actor_critic, "generalised_advantage", last):
            return super().gradient(problem, rng)


class A2cMovingTarget(A2c):
    """The target moves with the value that is fitted to it: nothing to learn."""

    def gradient(self, problem, rng):
        estimate = super().gradient(problem, rng)
        return Estimate(estimate.grad, estimate.own_loss.detach() + 0 * self.value.bias.sum())


class PpoPeekingValue(Ppo):
    """The value of a position has read its token."""

    def rollout(self, problem, rng):
        return super().rollout(reading_ahead(problem), rng)


class PpoRatioOne(Ppo):
    """The policy that drew the batch is taken to be the present one, at later epochs too."""

    def gradient(self, problem, rng):
        if not self.queue:
            self.queue = self.rollout(problem, rng)
        batch = self.queue[0]
        batch["log_prob"] = problem.select(batch["index"]).log_prob(batch["z"]).detach()
        return super().gradient(problem, rng)


class PpoNoCharge(Ppo):
    """The penalty is taken out of f and charged to nobody."""

    def rollout(self, problem, rng):
        return super().rollout(Altered(problem, reference_log_prob=problem.log_prob), rng)


class PpoAlwaysWhitens(Ppo):
    def __init__(self, **options):
        super().__init__(**(options | {"whiten": True}))


class PpoShortTrace(Ppo):
    def __init__(self, **options):
        super().__init__(**(options | {"lam": 0.5}))


MUTANTS = {
    "a2c, value that has read the token": (A2cPeekingValue, "unbiased"),
    "a2c, lambda 0.5 undeclared": (A2cShortTrace, "unbiased"),
    "a2c, one advantage for all tokens": (A2cOneAdvantage, "unbiased"),
    "a2c, target that moves along": (A2cMovingTarget, "own loss"),
    "ppo, value that has read the token": (PpoPeekingValue, "unbiased if"),
    "ppo, ratio fixed at 1": (PpoRatioOne, "unbiased if"),
    "ppo, charged for nothing": (PpoNoCharge, "unbiased if"),
    "ppo, whitens unasked": (PpoAlwaysWhitens, "unbiased if"),
    "ppo, lambda 0.5 unasked": (PpoShortTrace, "unbiased if"),
}
