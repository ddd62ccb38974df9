"""Mutants of the score-function estimators."""

from gradebench import Estimate, score
from gradebench.estimators.score_function import Reinforce, Rloo

TRUE = {
    "reinforce": Reinforce,
    "reinforce, no baseline": lambda **options: Reinforce(baseline="none"),
    "rloo": Rloo,
    "rloo, two samples": lambda **options: Rloo(n=2),
}
WITHOUT_GRAD_F = {"reinforce": "unbiased", "rloo": "unbiased"}


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


MUTANTS = {
    "reinforce, baseline from its own draws": (ReinforceOwnBaseline, "unbiased"),
    "reinforce, baseline that has seen the last token": (ReinforcePeekingBaseline, "unbiased"),
    "rloo, factor 1 / k": (RlooWrongFactor, "unbiased"),
    "rloo, reused noise": (RlooReusedNoise, "unbiased"),
}
