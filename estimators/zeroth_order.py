"""Zeroth-order estimators: policy and reward are black boxes; only rewards under perturbed weights are compared."""

from typing import Annotated

import torch

from gradebench import Estimate, Estimator, Problem, Range


class Es(Estimator):
    """Evolution strategies: antithetic perturbations of the weights, rewards of hard samples, no backward pass.

    Approximates  grad E_e[J(theta + sigma e)],  e ~ N(0, 1) for every weight; J = E_{z~p}[f(z)]
    With          mean over pairs of (f(theta + sigma e) - f(theta - sigma e)) e / (2 sigma),
                  f(theta) the mean reward of one sample per context; a pair shares its direction and random numbers
    Requires      black-box reward; writable weights.
    Bias          yes, O(sigma^2): it estimates the gradient of J smoothed over sigma. A smaller sigma gives more
                  variance: fewer tokens change, and each change is weighted by 1 / sigma.
    Cost a call   2 pairs B reward calls, 2 pairs BT sampled tokens, no backward pass; two more copies of the weights.
    Source        Salimans et al. 2017, sections 2 and 2.1.  Deviates: raw rewards instead of ranks, which would
                  change the objective; no weight decay.
    """

    family = "zeroth order"

    def __init__(
        self,
        pairs: Annotated[int, Range(1), "directions per call, each with two samples per context"] = 4,
        sigma: Annotated[float, Range(0, low_open=True), "standard deviation of a perturbation"] = 0.01,
    ):
        super().__init__()
        self.pairs, self.sigma = pairs, sigma
        self.n = 2 * pairs

    @torch.no_grad()
    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        grad = [torch.zeros_like(p) for p in problem.params]
        for _ in range(self.pairs):
            direction = [torch.randn(p.shape, generator=rng, dtype=p.dtype, device=p.device) for p in problem.params]
            state = rng.get_state()
            value = []
            for step in (self.sigma, -self.sigma):
                rng.set_state(state)  # the same random numbers for both: tokens differ only where the policies do
                with problem.shifted([step * e for e in direction]):
                    value.append(problem.reward(problem.sample(1, rng)).mean())  # f may depend on theta too
            slope = (value[0] - value[1]) / (2 * self.sigma * self.pairs)
            for g, e in zip(grad, direction, strict=True):
                g.add_(slope * e)
        return Estimate(grad)
