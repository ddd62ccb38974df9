"""Score-function estimators, exactly: a context for every joint outcome of their samples makes each moment a sum."""

import itertools
import math

import pytest
import torch

from gradebench import Estimate, score
from gradebench.core.sampling import generator
from gradebench.estimators.score_function import Reinforce, Rloo


def fixed(problem, z):
    """The problem with its samples replaced by z (n, B, T)."""
    problem.sample = lambda n, rng: z if n == len(z) else pytest.fail(f"{n} samples asked, {len(z)} given")
    return problem


def all_outcomes(bernoulli_toy, estimator, t, k, theta=0.5):
    """Estimates (2^k,) of the logit's gradient and their probabilities, for all outcomes of k samples of one bit."""
    outcomes = torch.tensor(list(itertools.product([0, 1], repeat=k)))  # (2^k, k)
    problem = fixed(bernoulli_toy(t, contexts=2**k, theta=theta), outcomes.T.unsqueeze(-1))
    gradient = estimator.gradient(problem, None).grad[0]  # a mean over contexts, of which each has its own logit
    ones, theta = outcomes.sum(1), torch.tensor(theta, dtype=torch.float64)
    return gradient[:, 0, 1] * 2**k, theta**ones * (1 - theta) ** (k - ones)


def moments(estimates, probability):
    mean = (probability * estimates).sum()
    return float(mean), float((probability * (estimates - mean).square()).sum())


class WrongFactor(Rloo):
    """A baseline that averages over all k samples, its own included."""

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward - reward.mean(0))))


# --- the anchors of the Bernoulli toy


@pytest.mark.parametrize(
    ("estimator", "k", "t", "log_variance"),
    [
        (Reinforce("none"), 1, 0.45, -4.139),
        (Reinforce("none"), 1, 0.499, -4.159),
        (Rloo(2), 2, 0.45, -7.378),
        (Rloo(4), 4, 0.45, -9.170),
        (Rloo(2), 2, 0.499, -15.202),
        (Rloo(4), 4, 0.499, -16.994),
    ],
)
def test_mean_and_variance_on_the_bernoulli_toy_are_the_known_ones(bernoulli_toy, estimator, k, t, log_variance):
    mean, variance = moments(*all_outcomes(bernoulli_toy, estimator, t, k))
    assert mean == pytest.approx((1 - 2 * t) / 4, rel=1e-12)
    assert math.log(variance) == pytest.approx(log_variance, abs=5e-4)  # the three decimals they are known to


@pytest.mark.parametrize("theta", [0.02, 0.3, 0.9])
@pytest.mark.parametrize("k", [2, 3, 4])
def test_rloo_is_unbiased_over_all_joint_outcomes(bernoulli_toy, theta, k):
    mean, _ = moments(*all_outcomes(bernoulli_toy, Rloo(k), 0.45, k, theta))
    assert mean == pytest.approx(theta * (1 - theta) * (1 - 2 * 0.45), rel=1e-12)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_a_baseline_that_sees_its_own_sample_shrinks_the_gradient(bernoulli_toy, k):
    mean, _ = moments(*all_outcomes(bernoulli_toy, WrongFactor(k), 0.45, k, 0.3))
    assert mean == pytest.approx((1 - 1 / k) * 0.3 * 0.7 * (1 - 2 * 0.45), rel=1e-12)


# --- formulas on sequences


def score_vectors(problem, z):
    """grad log p of every sample and context, (n, B, d)."""
    log_prob = problem.log_prob(z).sum(-1)
    rows = [torch.autograd.grad(x, problem.params, retain_graph=True) for x in log_prob.flatten()]
    return torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).view(*log_prob.shape, -1)


def flat(estimate):
    return torch.cat([g.flatten() for g in estimate.grad])


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_rloo_equals_its_formula(tiny_problem, beta):
    problem = tiny_problem(beta=beta)
    z = problem.sample(4, generator("cpu", 0))
    reward = problem.reward(z)
    scores = score_vectors(problem, z)
    expected = torch.zeros_like(scores[0, 0])
    for i, b in itertools.product(range(4), range(4)):
        others = sum(reward[j, b].item() for j in range(4) if j != i) / 3
        expected += (reward[i, b].item() - others) * scores[i, b] / 16
    if beta:
        expected = expected + torch.cat([g.flatten() for g in problem.grad(problem.reward(z).mean())])
    found = flat(Rloo(4).gradient(problem, generator("cpu", 0)))
    torch.testing.assert_close(found, expected)
    wrong = flat(WrongFactor(4).gradient(problem, generator("cpu", 0)))
    assert (wrong - expected).norm() > 0.1 * expected.norm()


def test_rloo_does_not_change_when_a_constant_is_added_to_the_reward(tiny_problem):
    problem = tiny_problem()
    before = flat(Rloo(4).gradient(problem, generator("cpu", 0)))
    reward = problem.reward
    problem.reward = lambda z: reward(z) + 7
    torch.testing.assert_close(flat(Rloo(4).gradient(problem, generator("cpu", 0))), before)


def reinforce_gradients(estimator, problem, calls):
    """Gradient found, plain score-function gradient, gradient of log p, and mean reward, of each call."""
    rows = []
    for call in range(calls):
        z = problem.sample(1, generator("cpu", call))
        reward = problem.reward(z)
        score_vector = score_vectors(problem, z)[0]
        plain = (reward[0].detach()[:, None] * score_vector).mean(0)
        found = flat(estimator.gradient(problem, generator("cpu", call)))
        rows.append((found, plain, score_vector.mean(0), float(reward.mean())))
    return rows


def test_reinforce_without_baseline_is_the_reward_times_the_score(tiny_problem):
    for found, plain, _, _ in reinforce_gradients(Reinforce("none"), tiny_problem(), 3):
        torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_reinforce_subtracts_the_bias_corrected_average_of_past_rewards_only(tiny_problem, decay):
    past = []
    for found, plain, score_vector, reward in reinforce_gradients(Reinforce(decay=decay), tiny_problem(), 5):
        weights = [decay**age for age in reversed(range(len(past)))]
        c = sum(w * r for w, r in zip(weights, past, strict=True)) / sum(weights) if past else 0.0
        torch.testing.assert_close(found, plain - c * score_vector, rtol=1e-5, atol=1e-7)  # c is kept in float32
        past.append(reward)
    assert abs(c) > 0.1


def test_reinforce_in_eval_mode_keeps_its_baseline(tiny_problem):
    problem, estimator = tiny_problem(), Reinforce()
    reinforce_gradients(estimator, problem, 2)
    kept = {name: value.clone() for name, value in estimator.state_dict().items()}
    assert kept["total"] > 0
    estimator.eval()
    rows = reinforce_gradients(estimator, problem, 2)
    assert all(torch.equal(value, kept[name]) for name, value in estimator.state_dict().items())
    c = float(kept["total"] / kept["weight"])
    for found, plain, score_vector, _ in rows:
        torch.testing.assert_close(found, plain - c * score_vector, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("estimator", [Reinforce(), Rloo(2)])
def test_costs_a_call_are_those_declared(tiny_problem, estimator):
    problem = tiny_problem()
    estimator.gradient(problem, generator("cpu", 0))
    n = estimator.n
    assert (problem.ledger.reward_calls, problem.ledger.tokens_sampled) == (4 * n, 12 * n)
    assert (problem.ledger.forward_passes, problem.ledger.backward_passes) == (2, 1)


@pytest.mark.parametrize("estimator", [Reinforce(), Rloo(2)])
def test_estimates_come_without_a_graph_and_leave_the_parameters_alone(tiny_problem, estimator):
    problem = tiny_problem(beta=0.1)
    estimate = estimator.gradient(problem, generator("cpu", 0))
    assert not any(g.requires_grad for g in estimate.grad)
    assert all(p.grad is None for p in problem.params)
    assert estimate.own_loss is None
