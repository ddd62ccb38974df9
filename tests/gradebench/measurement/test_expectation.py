"""Exact means and variances of estimates: against many draws, and what can't be listed is refused."""

import pytest
import torch

from gradebench import Estimate, Estimator, generator
from gradebench.core.problem import Behaviour
from gradebench.core.sampler import Sampler
from gradebench.estimators.group_relative import DrGrpo
from gradebench.estimators.policy_gradient import PolicyGradient
from gradebench.estimators.relaxed import GradeSte
from gradebench.estimators.score_function import Rloo
from gradebench.measurement import expectation as module
from gradebench.measurement.expectation import Expectation, expectation, mixes_contexts
from gradebench.measurement.probes import one_estimate
from gradebench.problems.enumerable import random_sequence_problem

DRAWS = 400


@pytest.mark.parametrize("estimator, jointly", [(Rloo(n=2), False), (DrGrpo(n=3, kl="reward"), False),
                                                (PolicyGradient(n=2, scale="batch", aggregate="token-mean"), True)])  # fmt: skip
def test_it_is_what_many_draws_come_to(estimator, jointly):
    """The mean within 4 standard errors along one random direction, and the variance within 30 %: its standard error is 6 to
    9 %. False alarm rate below 1e-3 a test."""
    problem = random_sequence_problem(2, 2, 2, beta=0.1, end=True).sampled_by(Behaviour(Sampler(temperature=0.8)))
    assert mixes_contexts(estimator, problem) is jointly
    found = expectation(estimator, problem, jointly)
    draws = torch.stack([one_estimate(estimator, problem, generator("cpu", i)) for i in range(DRAWS)])
    direction = torch.randn(draws.shape[1], generator=generator("cpu", "direction"), dtype=torch.float64)
    along = draws @ direction
    assert abs(float(along.mean() - found.mean @ direction)) < 4 * float(along.std()) / DRAWS**0.5
    assert float(draws.var(0).sum()) == pytest.approx(found.variance, rel=0.3)


def test_contexts_together_and_one_by_one_agree():
    problem = random_sequence_problem(2, 2, 2, beta=0.1)
    one, other = (expectation(Rloo(n=2), problem, jointly) for jointly in (False, True))
    torch.testing.assert_close(one.mean, other.mean, rtol=0, atol=1e-13)
    assert one.variance == pytest.approx(other.variance, rel=1e-10)


def test_what_is_compared():
    found = Expectation(torch.tensor([3.0, 1.0], dtype=torch.float64), 8.0)
    truth = torch.tensor([2.0, 0.0], dtype=torch.float64)
    compared = found.compared(truth)
    assert compared["bias_squared"] == pytest.approx((1 + 1) / 4)
    assert compared["variance"] == pytest.approx(2) and compared["mse"] == pytest.approx(2.5)
    assert compared["cosine"] == pytest.approx(3 / 10**0.5)
    assert compared["bias_after_scaling"] == pytest.approx(0.1)
    assert compared["length"] == pytest.approx(10**0.5 / 2)


def test_other_random_numbers_are_refused(tiny_problem):
    with pytest.raises(ValueError, match="random numbers besides"):
        expectation(GradeSte(), tiny_problem())


def test_too_many_samples_are_refused(tiny_problem, monkeypatch):
    monkeypatch.setattr(module, "MOST", 100)
    with pytest.raises(ValueError, match="378 samples, more than 100"):
        expectation(Rloo(n=2), tiny_problem())


class Forgetful(Estimator):
    """Draws fewer samples than it says."""

    n = 2

    def gradient(self, problem, rng):
        return Estimate(problem.grad(problem.log_prob(problem.sample(1, rng)).sum()))


def test_another_number_of_samples_than_declared_is_refused(tiny_problem):
    with pytest.raises(ValueError, match="it has n = 2, and calls"):
        expectation(Forgetful(), tiny_problem())
