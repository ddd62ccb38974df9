"""The truth, where a task can be enumerated: what every estimator approximates."""

import torch

from gradebench import Estimate, Estimator, Problem


class Exact(Estimator):
    """The exact gradient, by listing every outcome.

    Approximates  grad E_{z~p}[f(z)]
    With          grad sum_z p(z) f(z), or the closed form that the problem knows
    Requires      an enumerable problem, or one with a closed form.
    Bias          none; no sampling variance either, only that of the choice of contexts.
    Cost a call   V^T B reward calls, forward and backward passes over V^T B sequences.
    Source        the definition.
    """

    family = "oracle"
    unbiased = True
    needs = frozenset({"exact"})

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        return Estimate(problem.exact_gradient())
