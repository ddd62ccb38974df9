"""Evolution strategies against finite differences, quadrature, and a plain loop over copies of the weights."""

import copy
import math
from unittest import mock

import numpy as np
import pytest
import torch

from gradebench import Estimate, generator
from gradebench.core.view import Guarded
from gradebench.estimators import zeroth_order
from gradebench.estimators.zeroth_order import Es
from gradebench.measurement.probes import Source, entries_at_once
from gradebench.problems.factorised import FactorisedProblem


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def found_by(problem, estimator, seed=0):
    guarded = Guarded(problem, estimator.needs)
    return flat(estimator.gradient(guarded, generator("cpu", seed)).grad)


def without_sampling_noise(problem):
    """Every reward replaced by the exact J at the parameters of the moment."""
    reward, log_prob, support = problem.reward, problem.log_prob, problem.support()
    z = support.unsqueeze(1).expand(-1, problem.contexts, -1)
    problem.reward = lambda drawn: (log_prob(z).sum(-1).exp() * reward(z)).sum(0).mean().expand(drawn.shape[:2])
    return problem


def directions(monkeypatch, rows):
    """The perturbations of one parameter, in order, instead of random ones."""
    steps = iter(rows)
    monkeypatch.setattr(zeroth_order.torch, "randn", lambda shape, **_: next(steps).expand(shape).clone())


# --- the mean


class EsMissingTwo(Es):
    """Divided by sigma where the two halves are 2 sigma apart."""

    def gradient(self, problem, rng):
        return Estimate([2 * g for g in super().gradient(problem, rng).grad])


class EsForgetsSigma(Es):
    """Not divided by sigma: as often in code that leaves the scale to the learning rate."""

    def gradient(self, problem, rng):
        return Estimate([self.sigma * g for g in super().gradient(problem, rng).grad])


class EsRewardsUnshifted(Es):
    """Tokens of the shifted policy, rewards at the parameters as they are: what f itself owes to them is lost."""

    def gradient(self, problem, rng):
        here = copy.deepcopy(problem)
        with mock.patch.object(problem, "reward", here.reward):
            return super().gradient(problem, rng)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 2.0])
def test_the_mean_is_the_gradient_of_the_smoothed_objective(monkeypatch, sigma):
    """One logit: the mean over Gauss-Hermite nodes of e against E J'(theta + sigma e), by the same rule."""
    nodes, weights = (torch.tensor(x) for x in np.polynomial.hermite_e.hermegauss(60))
    weights = weights / weights.sum()
    logit = torch.tensor(0.3, dtype=torch.float64).requires_grad_()

    def logits_of(table):
        return torch.stack([torch.zeros_like(table), table]).expand(1, 2)

    problem = without_sampling_noise(FactorisedProblem(logit, logits_of, lambda y: (y[..., 1] - 0.2).square().sum(-1)))
    directions(monkeypatch, nodes)
    rng = generator("cpu", 0)
    mean = sum(float(w * Es(1, sigma).gradient(problem, rng).grad[0]) for w in weights)
    p = (0.3 + sigma * nodes).sigmoid()
    smoothed = float((weights * p * (1 - p)).sum() * (0.8**2 - 0.2**2))
    assert mean == pytest.approx(smoothed, rel=1e-6 if sigma < 2 else 1e-3)  # the rule's own error
    exact = math.exp(0.3) / (1 + math.exp(0.3)) ** 2 * (0.8**2 - 0.2**2)
    bias = abs(mean - exact) / exact
    assert bias < 1e-4 if sigma == 0.01 else bias > 0.01


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_on_sequences_every_pair_is_the_derivative_along_its_direction(tiny_problem, exact_gradient, beta):
    """e (e . grad J) in the limit of small sigma, with the KL penalty's own share; mutants miss it."""
    problem = tiny_problem(beta=beta)
    rng, gradient, expected = generator("cpu", 0), exact_gradient(problem), 0.0
    for _ in range(3):
        e = flat([torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in problem.params])
        expected = expected + e * (e @ gradient) / 3
        problem.sample(1, rng)
    problem = without_sampling_noise(problem)
    error = (found_by(problem, Es(3, 1e-4)) - expected).norm() / expected.norm()
    assert error < 1e-5
    for mutant in (EsMissingTwo, EsForgetsSigma):
        assert (found_by(problem, mutant(3, 1e-4)) - expected).norm() > 0.1 * expected.norm()


# --- one call


def by_plain_loop(problem, pairs, sigma, seed, common=True):
    """Weights written into a deep copy, and both halves of a pair sampled from a generator of the same state."""
    rng, total = generator("cpu", seed), 0.0
    for _ in range(pairs):
        e = [torch.randn(p.shape, generator=rng, dtype=p.dtype) for p in problem.params]
        values, start = [], rng.get_state()
        for sign in (1, -1):
            moved = copy.deepcopy(problem)
            with torch.no_grad():
                for p, x in zip(moved.params, e, strict=True):
                    p.copy_(p + sign * sigma * x)
            if common:
                rng.set_state(start)
            values.append(moved.reward(moved.sample(1, rng)).mean())
        total = total + (values[0] - values[1]) / (2 * sigma) * flat(e) / pairs
    return total.detach()


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_equals_a_plain_loop_over_copies_of_the_weights(tiny_problem, beta):
    problem = tiny_problem(beta=beta, copies=3)
    for sigma in (0.05, 0.5):
        found = found_by(problem, Es(2, sigma))
        torch.testing.assert_close(found, by_plain_loop(problem, 2, sigma, 0), rtol=1e-9, atol=1e-12)
        wrong = by_plain_loop(problem, 2, sigma, 0, common=False)
        assert (wrong - found).norm() > 0.1 * found.norm()


def test_rewards_at_the_unshifted_parameters_would_be_seen(tiny_problem):
    problem = tiny_problem(beta=0.3, copies=3)
    expected = by_plain_loop(problem, 2, 0.5, 0)
    wrong = flat(EsRewardsUnshifted(2, 0.5).gradient(problem, generator("cpu", 0)).grad)
    assert (wrong - expected).norm() > 0.02 * expected.norm()


def test_halves_of_a_pair_share_their_random_numbers(tiny_problem):
    """Where the perturbation moves no token, nothing is left, not even noise."""
    assert found_by(tiny_problem(copies=20), Es(2, 1e-9)).abs().max() == 0


def test_pairs_have_directions_and_samples_of_their_own(tiny_problem):
    problem, seen = tiny_problem(copies=20), []
    sample = problem.sample
    problem.sample = lambda n, rng: seen.append(sample(n, rng)) or seen[-1]
    found_by(problem, Es(2, 1e-9))
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[2], seen[3])
    assert not torch.equal(seen[0], seen[2])


def test_one_call_costs_what_is_declared_and_leaves_the_parameters_bit_by_bit(tiny_problem):
    problem = tiny_problem()
    before = [p.detach().clone() for p in problem.params]
    Es(3).gradient(problem, generator("cpu", 0))
    ledger = problem.ledger
    assert (ledger.reward_calls, ledger.tokens_sampled) == (6 * 4, 6 * 12)
    assert ledger.backward_passes == 0
    assert all(torch.equal(p, b) and p.grad is None for p, b in zip(problem.params, before, strict=True))
    assert Es(3).n == 6


def test_copies_that_cannot_be_written_to_are_drawn_one_by_one(tiny_problem):
    problem = tiny_problem()
    source = Source(
        lambda number: torch.arange(4),
        lambda index, ledger: problem.select(index),
        lambda number: generator("cpu", number),
    )
    before = flat(problem.params).detach().clone()
    with pytest.raises(RuntimeError):
        Es().gradient(problem.select(torch.arange(4).repeat(2)).replicated(2), generator("cpu", 0))
    assert not entries_at_once(Es(), source)
    assert torch.equal(flat(problem.params), before)
