"""The built-in estimators that must pass `gradebench check`, and their mutants, broken on purpose, that must not.

Gathered from mutants_*.py beside this file, one a family. Each has TRUE (name to a function of options that makes the
estimator), MUTANTS (name to such a function and the check that is meant to catch it) and, where f may depend on the
parameters, WITHOUT_GRAD_F: names of TRUE, and the check that must notice when grad f is left out.
"""

from pathlib import Path

from gradebench.core.view import View
from gradebench.plugins import registry

TRUE = {}
MUTANTS = {}


class BlackBox(View):
    """A problem that hides how the reward depends on the parameters."""

    def __init__(self, problem):
        super().__init__(problem)
        self.offers = problem.offers | {"fixed_reward"}

    def reward(self, z):
        return self._problem.reward(z).detach()


class NoRewardGradient:
    def gradient(self, problem, rng):
        return super().gradient(BlackBox(problem), rng)


def without_grad_f(make):
    """The estimator that `make` builds, with grad f left out."""

    def mutant(**options):
        estimator = make(**options)
        estimator.__class__ = type("Mutant", (NoRewardGradient, type(estimator)), {})
        return estimator

    return mutant


for file in sorted(Path(__file__).parent.glob("mutants_*.py")):
    true, mutants, blind = (
        registry.load_file(str(file), name).factory for name in ("TRUE", "MUTANTS", "WITHOUT_GRAD_F")
    )
    TRUE |= true
    MUTANTS |= mutants | {
        f"{name} without grad f": (without_grad_f(true[name]), check) for name, check in blind.items()
    }
