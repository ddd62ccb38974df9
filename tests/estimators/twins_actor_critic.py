"""Wrong twins of PPO."""

from unittest import mock

from gradebench.estimators.actor_critic import Ppo

TRUE = {
    "ppo": Ppo,
}
WITHOUT_GRAD_F = {"ppo": "unbiased if"}


class PpoPeekingValue(Ppo):
    """The value of a position has read its token."""

    def rollout(self, problem, rng):
        features = problem.features
        ahead = mock.Mock(wraps=problem, contexts=problem.contexts)
        ahead.features = lambda z: features(z).roll(-1, 2)
        return super().rollout(ahead, rng)


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


MUTANTS = {
    "ppo, value that has read the token": (PpoPeekingValue, "unbiased if"),
    "ppo, ratio fixed at 1": (PpoRatioOne, "unbiased if"),
    "ppo, whitens unasked": (PpoAlwaysWhitens, "unbiased if"),
    "ppo, lambda 0.5 unasked": (PpoShortTrace, "unbiased if"),
}
