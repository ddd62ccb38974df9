"""REBAR's identities: what it reduces to, how its noise is coupled, and that its own loss is its variance."""

from types import SimpleNamespace

import pytest
import torch

from gradebench.estimators import control_variate
from gradebench.estimators.control_variate import Rebar
from gradebench.estimators.score_function import Reinforce
from gradebench.harness import Plan, Trainer
from gradebench.probes import one_estimate
from gradebench.sampling import generator


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def estimate_of(problem, seed=0, **options):
    return Rebar(**options).gradient(problem, generator("cpu", seed))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_without_control_variate_it_is_the_plain_score_function(tiny_problem, beta):
    problem = tiny_problem(beta=beta)
    plain = flat(Reinforce("none").gradient(problem, generator("cpu", 0)).grad)
    torch.testing.assert_close(flat(estimate_of(problem, eta=0.0).grad), plain)
    assert (flat(estimate_of(problem, eta=1.0).grad) - plain).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_each_term_is_where_the_formula_has_it(tiny_problem, beta):
    """One context, one draw: the three terms differentiated apart, with the chains of noise written out."""
    problem, tau, eta = tiny_problem(contexts=1, beta=beta), 0.6, 0.8
    rng = generator("cpu", 0)
    z = problem.sample(1, rng)
    logits = problem.logits(z).log_softmax(-1)
    noise = control_variate.exponential(logits, rng)
    top = noise.gather(-1, z[..., None])
    tied = -(noise / logits.exp() + top).log()  # a function of theta at given z; the winner's entry isn't
    tied = tied.scatter(-1, z[..., None], -top.log()) - logits

    def chain(g):
        """f on the soft chain, by parallel passes over a growing prefix."""
        y = torch.zeros(1, 1, problem.horizon, problem.categories, dtype=torch.float64)
        for t in range(problem.horizon):
            step = ((problem.logits(y).log_softmax(-1)[:, :, t] + g[:, :, t]) / tau).softmax(-1)
            y = torch.cat([y[:, :, :t], step[:, :, None], y[:, :, t + 1 :]], 2)
        return problem.soft_reward(y)

    def gradient(value):
        return flat(torch.autograd.grad(value.sum(), problem.params, retain_graph=True, materialize_grads=True))

    free_control, tied_control, reward = chain(tied.detach()), chain(tied), problem.reward(z)
    assert torch.allclose(free_control, tied_control)
    expected = (reward - eta * tied_control).item() * gradient(logits.gather(-1, z[..., None]))
    expected = expected + eta * gradient(free_control) - eta * gradient(tied_control)
    if beta:
        expected = expected + gradient(reward)
    found = flat(estimate_of(problem, tau=tau, eta=eta).grad)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)  # tau and eta are kept in float32


def soft_tokens(problem, tau, seed=0):
    """The tokens of the free and the tied chain, (n, B, T, V) each, and the sample they belong to."""
    seen = []
    soft_reward = problem.soft_reward
    problem.soft_reward = lambda y: seen.append(y.detach()) or soft_reward(y)
    estimate_of(problem, seed, tau=tau)
    del problem.soft_reward
    return *seen[0].chunk(2), problem.sample(1, generator("cpu", seed))


def test_both_chains_run_on_the_same_noise_and_lead_to_the_sample(tiny_problem):
    problem = tiny_problem(copies=50)
    free, tied, _ = soft_tokens(problem, tau=1.0)
    assert torch.equal(free, tied)
    free, tied, z = soft_tokens(problem, tau=1e-4)
    assert torch.equal(free, tied)
    assert ((tied.argmax(-1) == z).all(-1)).double().mean() > 0.99  # near-ties bend a few chains away
    assert (tied.max(-1).values > 0.99).double().mean() > 0.99


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gradient_is_the_same_frozen_training_or_not_learning(tiny_problem, beta):
    problem = tiny_problem(beta=beta)
    frozen = Rebar(0.6, 0.8).eval().gradient(problem, generator("cpu", 0))
    for other in (Rebar(0.6, 0.8), Rebar(0.6, 0.8, learn=False)):
        found = other.gradient(problem, generator("cpu", 0))
        torch.testing.assert_close(flat(found.grad), flat(frozen.grad), rtol=1e-10, atol=1e-12)
        assert (found.own_loss is not None) == other.eta.requires_grad
    assert frozen.own_loss is None


# --- own loss


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_own_loss_is_the_squared_estimate_and_its_slope_that_of_finite_differences(tiny_problem, beta):
    """The same noise at tau and eta a step apart: a graph cut on the way to either would give another slope."""
    problem = tiny_problem(beta=beta, copies=2)

    def squared(log_tau, eta):
        estimator = Rebar().double().eval()
        with torch.no_grad():
            estimator.log_tau.fill_(log_tau)
            estimator.eta.fill_(eta)
        return flat(estimator.gradient(problem, generator("cpu", 0)).grad).square().sum().item()

    log_tau, eta, h = -0.5, 0.7, 1e-5
    estimator = Rebar().double()
    with torch.no_grad():
        estimator.log_tau.fill_(log_tau)
        estimator.eta.fill_(eta)
    own_loss = estimator.gradient(problem, generator("cpu", 0)).own_loss
    assert own_loss.item() == pytest.approx(squared(log_tau, eta), rel=1e-10)
    by_tau, by_eta = torch.autograd.grad(own_loss, [estimator.log_tau, estimator.eta])
    assert by_tau.item() == pytest.approx((squared(log_tau + h, eta) - squared(log_tau - h, eta)) / (2 * h), rel=1e-6)
    assert by_eta.item() == pytest.approx((squared(log_tau, eta + h) - squared(log_tau, eta - h)) / (2 * h), rel=1e-6)


def squared_errors(estimator, problem, truth, draws=100):
    """|g - grad J|^2 of each draw (draws,), whose mean is the variance; draw i has the same samples z for all."""
    estimator.eval()
    vectors = [one_estimate(estimator, problem, generator("cpu", "variance", i)) for i in range(draws)]
    return (torch.stack(vectors) - truth).square().sum(-1)


def in_standard_errors(difference):
    return float(difference.mean() / difference.std() * len(difference) ** 0.5)


def test_descending_own_loss_lowers_the_variance(tiny_problem, exact_gradient):
    """60 steps at a fixed policy from a poor start, by paired differences: 4 standard errors are a false-alarm rate of
    3e-5, and the drops, from 0.56 to 0.07 and below the plain 0.18, are near 7 and 6 of them: a power of 0.98."""
    problem = tiny_problem(copies=4)
    truth = exact_gradient(problem)
    estimator = Rebar(tau=1.0, eta=2.0)
    before = squared_errors(estimator, problem, truth)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.05)
    estimator.train()
    for step in range(60):
        own_loss = estimator.gradient(problem, generator("cpu", "learn", step)).own_loss
        gradients = torch.autograd.grad(own_loss, list(estimator.parameters()))
        for p, g in zip(estimator.parameters(), gradients, strict=True):
            p.grad = g
        optimizer.step()
    after = squared_errors(estimator, problem, truth)
    plain = squared_errors(Reinforce("none"), problem, truth)
    assert in_standard_errors(before - after) > 4
    assert in_standard_errors(plain - after) > 4  # and it pays


# --- what is applied


def test_the_gradient_has_no_graph_and_touches_no_parameter(tiny_problem):
    problem = tiny_problem(beta=0.1)
    estimate = estimate_of(problem)
    assert not any(g.requires_grad for g in estimate.grad)
    assert all(p.grad is None for p in problem.params)


def test_the_applied_gradient_is_the_returned_one(tiny_problem):
    """A step of the harness: the control variate's loss, whose graph reads the policy, must not leak into it."""
    problem = tiny_problem()
    expected = flat(estimate_of(problem).grad)
    plan = Plan("", "", "cpu", steps=1, batch=4, clip=1e9)
    estimator = Rebar()
    trainer = Trainer(estimator, SimpleNamespace(params=problem.params), plan, learning_rate=0.0)
    trainer.step(problem, generator("cpu", 0))
    torch.testing.assert_close(flat([-p.grad for p in problem.params]), expected, rtol=0, atol=0)
    assert (estimator.log_tau.item(), estimator.eta.item()) != (0.0, 1.0)  # the own parameters did step


def test_costs_a_call_are_those_declared(tiny_problem):
    problem = tiny_problem()
    estimate_of(problem)
    assert (problem.ledger.reward_calls, problem.ledger.tokens_sampled) == (4 + 2 * 4, 12 + 2 * 12)
    assert problem.ledger.backward_passes == 1
