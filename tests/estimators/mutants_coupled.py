"""Mutants of the estimators with coupled samples."""

import torch

from gradebench import Estimate
from gradebench.core.view import View
from gradebench.estimators.coupled import Carms, Disarm, stepwise_score

TRUE = {
    "disarm": Disarm,
    "carms": Carms,
    "carms, two samples": lambda **options: Carms(n=2),
}
WITHOUT_GRAD_F = {"disarm": "unbiased", "carms": "unbiased"}


class DisarmSmallerProbability(Disarm):
    """sigmoid(-|l|) for sigmoid(|l|)."""

    def weight(self, problem, z):
        smaller = problem.logits(z)[0].detach().softmax(-1).amin(-1)
        return torch.where(self.tied(problem, z), smaller, 1)


class DisarmUnweighted(Disarm):
    """Leave-one-out on antithetic pairs, as if they were independent."""

    def weight(self, problem, z):
        return torch.ones_like(z[0], dtype=problem.params[0].dtype)


class DisarmOnlyTied(Disarm):
    """Nothing is learned from the steps after the pair has parted."""

    def weight(self, problem, z):
        return super().weight(problem, z) * self.tied(problem, z)


class DisarmKeptAntithetic(Disarm):
    """The paper's rule and formula at every position, though the prefixes differ."""

    def gradient(self, problem, rng):
        return super().gradient(Unread(problem), rng)


class Unread(View):
    """A problem that claims that no decision reads another."""

    def __init__(self, problem):
        super().__init__(problem)
        self.offers = problem.offers | {"independent"}


class CarmsClipped(Carms):
    """Weights are clipped, as importance weights often are."""

    def weight(self, logits, z):
        return super().weight(logits, z).clamp_max(1.0)


class CarmsUnweighted(Carms):
    """Leave-one-out on coupled samples, as if they were independent."""

    def weight(self, logits, z):
        return torch.ones_like(super().weight(logits, z))


class CarmsOneUniform(Carms):
    """The uniforms of the first position serve all others too."""

    def draw(self, problem, rng):
        self.first = None
        return super().draw(problem, rng)

    def uniforms(self, like, rng):
        self.first = super().uniforms(like, rng) if self.first is None else self.first
        return self.first


class CarmsDividedByAll(Carms):
    """M where there are M - 1 others."""

    def gradient(self, problem, rng):
        z = self.draw(problem, rng)
        reward = problem.reward(z)
        weight = self.weight(problem.logits(z).detach(), z)
        advantage = (weight * (reward.unsqueeze(1) - reward).unsqueeze(-1)).mean(1)
        return Estimate(problem.grad(stepwise_score(problem, z, reward, advantage)))


MUTANTS = {
    "disarm, sigmoid(-|l|)": (DisarmSmallerProbability, "unbiased"),
    "disarm, weight 1": (DisarmUnweighted, "unbiased"),
    "disarm, nothing after the pair parts": (DisarmOnlyTied, "unbiased"),
    "disarm, antithetic after the pair parts": (DisarmKeptAntithetic, "unbiased"),
    # of two samples, which are coupled the most
    "carms, weights clipped": (lambda **options: CarmsClipped(n=2), "unbiased"),
    "carms, weight 1": (lambda **options: CarmsUnweighted(n=2), "unbiased"),
    "carms, one uniform for all positions": (CarmsOneUniform, "unbiased"),
    "carms, factor 1 / M": (CarmsDividedByAll, "unbiased"),
}
