"""The exact gradient, which every estimator approximates, for tasks whose outcomes can be enumerated."""

import torch

from gradebench import Estimate, Estimator, Problem


class Exact(Estimator):
    """The exact gradient, by enumerating every outcome.

    Approximates  grad E_{z~p}[f(z)]
    With          grad sum_z p(z) f(z), or the closed form that the problem knows
    Requires      an enumerable problem, or one with a closed form.
    Bias          none, and no sampling variance; only the choice of contexts has variance.
    Cost a call   V^T B reward calls, forward and backward passes over V^T B sequences.
    Source        the definition.
    """

    family = "oracle"
    unbiased = True
    needs = frozenset({"exact"})

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        return Estimate(problem.exact_gradient())
