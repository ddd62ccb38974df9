"""Mutants of the oracle."""

from gradebench import Estimate
from gradebench.estimators.oracle import Exact

TRUE = {
    "exact": Exact,
}
WITHOUT_GRAD_F: dict[str, str] = {}


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
}
