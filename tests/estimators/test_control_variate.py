"""Identities of REBAR, RELAX and MuProp: what they reduce to, how their noise is coupled, what they are on average over
all outcomes, and that what they learn lowers their variance.

Long because one file tests one module.
"""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch

from gradebench.core.sampling import generator
from gradebench.estimators import control_variate
from gradebench.estimators.control_variate import MuProp, Rebar, Relax
from gradebench.estimators.score_function import Reinforce
from gradebench.experiment.plan import Plan
from gradebench.experiment.training import Trainer
from gradebench.measurement.probes import one_estimate
from gradebench.problems.factorised import FactorisedProblem


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def built(estimator, problem, size=0.5):
    """With its parts; RELAX with a random c and moving averages that have seen rewards."""
    estimator.init(problem)
    if isinstance(estimator, Relax):
        rng = generator("cpu", "c")
        with torch.no_grad():
            for p in estimator.parameters():
                p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * size)
        estimator.averages = torch.tensor([1.0, 0.4, 0.5], dtype=torch.float64)
    return estimator.double()


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


def descend(estimator, problem, steps, learning_rate):
    """Steps on the own loss at a fixed policy."""
    own = list(estimator.parameters())
    optimizer = torch.optim.Adam(own, lr=learning_rate)
    estimator.train()
    for step in range(steps):
        own_loss = estimator.gradient(problem, generator("cpu", "learn", step)).own_loss
        for p, g in zip(own, torch.autograd.grad(own_loss, own), strict=True):
            p.grad = g
        optimizer.step()


def in_standard_errors(difference):
    return float(difference.mean() / difference.std() * len(difference) ** 0.5)


def test_descending_own_loss_lowers_the_variance(tiny_problem, exact_gradient):
    """60 steps at a fixed policy from a poor start, by paired differences: 4 standard errors are a false-alarm rate of
    3e-5, and the drops, from 0.56 to 0.07 and below the plain 0.18, are near 7 and 6 of them: a power of 0.98."""
    problem = tiny_problem(copies=4)
    truth = exact_gradient(problem)
    estimator = Rebar(tau=1.0, eta=2.0)
    before = squared_errors(estimator, problem, truth)
    descend(estimator, problem, 60, 0.05)
    after = squared_errors(estimator, problem, truth)
    plain = squared_errors(Reinforce("none"), problem, truth)
    assert in_standard_errors(before - after) > 4
    assert in_standard_errors(plain - after) > 4  # and it pays


# --- what is applied


@pytest.mark.parametrize("make", [Rebar, Relax, MuProp])
def test_the_gradient_has_no_graph_and_touches_no_parameter(tiny_problem, make):
    problem = tiny_problem(beta=0.1)
    estimate = built(make(), problem).gradient(problem, generator("cpu", 0))
    assert not any(g.requires_grad for g in estimate.grad)
    assert all(p.grad is None for p in problem.params)


@pytest.mark.parametrize("make", [Rebar, Relax])
def test_the_applied_gradient_is_the_returned_one(tiny_problem, make):
    """A step of the harness: the control variate's loss, whose graph reads the policy, must not leak into it."""
    problem = tiny_problem()
    plan = Plan("", "", "cpu", steps=1, batch=4, clip=1e9)
    estimator = built(make(), problem)
    before = copy.deepcopy(estimator)
    expected = flat(copy.deepcopy(estimator).eval().gradient(problem, generator("cpu", 0)).grad)
    trainer = Trainer(estimator, SimpleNamespace(params=problem.params), plan, learning_rate=0.0)
    trainer.step(problem, generator("cpu", 0))
    torch.testing.assert_close(flat([-p.grad for p in problem.params]), expected, rtol=1e-10, atol=1e-12)
    for p, start in zip(estimator.parameters(), before.parameters(), strict=True):
        assert not torch.equal(p, start)  # the own parameters did step


@pytest.mark.parametrize(
    ("make", "rewards", "tokens", "backward"),
    [(Rebar, 4 + 2 * 4, 12 + 2 * 12, 1), (Relax, 4, 12, 1), (MuProp, 4 + 4, 12 + 12, 2)],
)
def test_costs_a_call_are_those_declared(tiny_problem, make, rewards, tokens, backward):
    problem = tiny_problem()
    built(make(), problem).gradient(problem, generator("cpu", 0))
    found = problem.ledger.reward_calls, problem.ledger.tokens_sampled, problem.ledger.backward_passes
    assert found == (rewards, tokens, backward)


# --- exact expectations


def over_all_outcomes(estimator, problem):
    """Estimates (V^T, d) of a problem with one context for each of its outcomes, and the outcomes' probabilities."""
    support, sample = problem.support(), problem.sample
    estimates = []
    for outcome in support:
        problem.sample = lambda n, rng, z=outcome: z.expand(n, 1, -1)
        estimates.append(flat(estimator.gradient(problem, generator("cpu", "outcome")).grad))
    problem.sample = sample
    probability = problem.log_prob(support.unsqueeze(1)).sum(-1).exp().squeeze(1).detach()
    return torch.stack(estimates), probability


def mean_and_variance(estimates, probability):
    mean = probability @ estimates
    return mean, float(probability @ (estimates - mean).square().sum(-1))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_muprop_is_unbiased_over_all_sequences(tiny_problem, exact_gradient, beta):
    problem = tiny_problem(contexts=1, beta=beta)
    mean, variance = mean_and_variance(*over_all_outcomes(MuProp(0.7, learn=False), problem))
    torch.testing.assert_close(mean, exact_gradient(problem), rtol=0, atol=1e-10)
    assert variance > 0


class LateFeatures(Relax):
    """c_t sees b_t, by features of a position later."""

    def control(self, z, features):
        return super().control(z, features.roll(-1, 2))


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_relax_with_a_random_baseline_of_the_prefix_is_unbiased_over_all_sequences(tiny_problem, exact_gradient, beta):
    """A c that reads no relaxed token leaves no noise but the sequence: every expectation is a sum."""
    problem = tiny_problem(contexts=1, beta=beta)
    means = []
    for make in (Relax, LateFeatures):
        estimator = built(make(), problem, size=2.0).eval()
        torch.nn.init.zeros_(estimator.token.weight)
        means.append(mean_and_variance(*over_all_outcomes(estimator, problem))[0])
    truth = exact_gradient(problem)
    torch.testing.assert_close(means[0], truth, rtol=0, atol=1e-10)
    assert (means[1] - truth).norm() > 0.1 * truth.norm()


def test_relax_with_a_random_c_is_unbiased_by_quadrature(categoricals):
    """One decision of two: a context for each outcome and each cell of a grid over its two exponential noises."""
    side = 200
    uniform = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    noise = -(1 - torch.cartesian_prod(uniform, uniform)).log()  # (side^2, 2)
    logits = torch.tensor([0.3, -0.8], dtype=torch.float64)
    weight = logits.expand(2 * side**2, 1, 2).clone().requires_grad_()
    problem = categoricals(weight, lambda y: 0.7 * y[..., 0, 0] ** 2 - 0.2)
    z = torch.tensor([0, 1]).repeat_interleave(side**2).view(1, -1, 1)
    problem.sample = lambda n, rng: z
    estimator = built(Relax(tau=0.7), problem, size=1.0).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control_variate, "exponential", lambda like, rng: noise.repeat(2, 1).view(like.shape))
        (found,) = estimator.gradient(problem, None).grad
    pi = logits.softmax(-1)
    of_outcome = found.view(2, side**2, 2).sum(1) * 2  # a mean over contexts, of which each has logits of its own
    mean = (pi.unsqueeze(-1) * of_outcome).sum(0)
    truth = 0.7 * pi[0] * pi[1]
    torch.testing.assert_close(mean, torch.stack([truth, -truth]), rtol=0, atol=2e-3 * float(truth))
    plain = torch.stack([0.5 * pi[0] * pi[1], -0.5 * pi[0] * pi[1]])  # f(b) grad log p(b) of the first outcome
    assert (pi[0] * of_outcome[0] - plain).norm() > 0.1 * plain.norm()  # c does something


# --- RELAX


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_fresh_relax_is_reinforce_with_a_moving_average(tiny_problem, beta):
    problem = tiny_problem(beta=beta)
    relax, reinforce = Relax(decay=0.8), Reinforce("ema", decay=0.8)
    relax.init(problem)
    for call in range(4):
        found, expected = (e.gradient(problem, generator("cpu", call)).grad for e in (relax, reinforce))
        torch.testing.assert_close(flat(found), flat(expected), rtol=1e-5, atol=1e-8)  # the average is kept in float32


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_each_term_of_relax_is_where_the_formula_has_it(tiny_problem, beta):
    """One context, one draw: the terms differentiated apart, step by step."""
    problem = tiny_problem(contexts=1, beta=beta)
    estimator = built(Relax(), problem).eval()
    rng = generator("cpu", 0)
    b = problem.sample(1, rng)
    log_pi = problem.logits(b).log_softmax(-1)
    noise = control_variate.exponential(log_pi, rng)
    top = noise.gather(-1, b[..., None])
    tied = -(noise / log_pi.exp() + top).log()
    tied = tied.scatter(-1, b[..., None], -top.log())
    free = log_pi + (tied - log_pi).detach()
    assert torch.equal(free.argmax(-1), b)
    c_tied, c_free = (estimator.control(z, problem.features(b))[0, 0] for z in (tied, free))
    reward, log_prob = problem.reward(b), log_pi.gather(-1, b[..., None])[0, 0, :, 0]

    def gradient(value):
        return flat(torch.autograd.grad(value, problem.params, retain_graph=True, materialize_grads=True))

    expected = gradient(reward.sum()) if beta else 0
    for t in range(problem.horizon):
        advantage = reward.item() - c_tied[t].item()
        expected = expected + advantage * gradient(log_prob[t]) + gradient(c_free[t]) - gradient(c_tied[t])
    torch.testing.assert_close(flat(estimator.gradient(problem, generator("cpu", 0)).grad), expected)


def test_relax_reads_relaxed_tokens_that_lead_to_the_sample(tiny_problem):
    problem = tiny_problem(copies=50)
    estimator = built(Relax(), problem)
    seen = []
    control = estimator.control
    estimator.control = lambda z, features: seen.append(z.detach()) or control(z, features)
    estimator.gradient(problem, generator("cpu", 0))
    assert torch.equal(seen[0].argmax(-1), problem.sample(1, generator("cpu", 0)))


def test_slope_of_relax_own_loss_is_that_of_finite_differences(tiny_problem):
    problem = tiny_problem(beta=0.3, copies=2)
    estimator = built(Relax(hidden=3), problem)
    own = list(estimator.parameters())
    start = copy.deepcopy(estimator.state_dict())
    slopes = torch.autograd.grad(estimator.gradient(problem, generator("cpu", 0)).own_loss, own)
    estimator.load_state_dict(start)
    estimator.eval()

    def squared(parameter, step):
        with torch.no_grad():
            parameter.view(-1)[0] += step
        found = flat(estimator.gradient(problem, generator("cpu", 0)).grad)
        with torch.no_grad():
            parameter.view(-1)[0] -= step
        return found.square().sum().item()

    h = 1e-5
    for p, slope in zip(own, slopes, strict=True):
        assert slope.flatten()[0].item() == pytest.approx((squared(p, h) - squared(p, -h)) / (2 * h), rel=1e-5)


def test_descending_own_loss_of_relax_lowers_the_variance(tiny_problem, exact_gradient):
    """From a random c, by paired differences; the moving averages are held, so that nothing else can lower it."""
    problem = tiny_problem(copies=2)
    truth = exact_gradient(problem)
    estimator = built(Relax(), problem, size=1.0)
    estimator.decay = 1.0
    before = squared_errors(estimator, problem, truth, 50)
    descend(estimator, problem, 80, 0.02)
    after = squared_errors(estimator, problem, truth, 50)
    assert in_standard_errors(before - after) > 4
    assert after.mean() < 0.2 * before.mean()


def test_relax_learns_to_beat_the_moving_average_that_it_starts_from(exact_gradient):
    """A single decision on which a constant is a poor control variate (on others there is less to gain).

    4 standard errors are a false-alarm rate of 3e-5.
    """
    rng = generator("cpu", "one decision", 2)
    table, of = (torch.randn(1, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    problem = FactorisedProblem(table.requires_grad_(), lambda t: t, lambda y: (of * y).sum((-2, -1)), contexts=16)
    truth = exact_gradient(problem)
    estimator, baseline = Relax(), Reinforce("ema")
    estimator.init(problem)
    descend(estimator, problem, 600, 3e-3)
    for call in range(50):
        baseline.gradient(problem, generator("cpu", "learn", call))
    learned, plain = (squared_errors(e, problem, truth, 800) for e in (estimator, baseline))
    assert in_standard_errors(plain - learned) > 4
    assert learned.mean() < 0.7 * plain.mean()


# --- MuProp


def linear_problem(categoricals):
    rng = generator("cpu", "linear")
    weight, of = (torch.randn(1, 3, 3, generator=rng, dtype=torch.float64) for _ in range(2))
    return categoricals(weight.requires_grad_(), lambda y: (of * y).sum((-2, -1)))


def test_muprop_has_no_variance_where_the_reward_is_linear_and_decisions_independent(categoricals, exact_gradient):
    problem = linear_problem(categoricals)
    estimates, _ = over_all_outcomes(MuProp(learn=False), problem)
    torch.testing.assert_close(estimates, exact_gradient(problem).expand_as(estimates), rtol=0, atol=1e-12)


def test_muprop_finds_out_that_a_linear_reward_takes_a_scale_of_one(categoricals):
    problem, estimator = linear_problem(categoricals), MuProp(eta=0.1)
    first = estimator.gradient(problem, generator("cpu", 0))
    assert first.info["eta"] == 0.1
    assert estimator.gradient(problem, generator("cpu", 1)).info["eta"] == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_slopes_of_muprop_are_total_derivatives_along_the_mean_field(tiny_problem, beta):
    """A token moved by h, and all later ones with it."""
    problem = tiny_problem(contexts=2, beta=beta)
    reward, slope = MuProp().mean_field(problem)

    def moved(t, v, h):
        steps = itertools.count()

        def relax(logits):
            y = logits.softmax(-1)
            return y + h * torch.eye(3, dtype=y.dtype)[v] if next(steps) == t else y

        return problem.soft_reward(problem.rollout(relax, 1)).detach()

    torch.testing.assert_close(reward, moved(0, 0, 0.0))
    h = 1e-5
    for t, v in itertools.product(range(3), range(3)):
        torch.testing.assert_close(
            slope[:, :, t, v], (moved(t, v, h) - moved(t, v, -h)) / (2 * h), rtol=1e-6, atol=1e-9
        )


def test_muprop_learns_its_scale_on_past_draws_and_the_variance_falls(tiny_problem):
    """eta is the regression of f(b) - f(y) on M over past calls; the variances are exact, sums over all sequences."""
    problem = tiny_problem(contexts=1)
    many = problem.select(torch.zeros(32, dtype=torch.int64))
    estimator = MuProp()
    for call in range(30):
        estimator.gradient(many, generator("cpu", call))
    learned = estimator.eta
    estimator.eval()
    assert estimator.gradient(many, generator("cpu", 99)).info["eta"] == learned == estimator.eta
    variances = [
        mean_and_variance(*over_all_outcomes(MuProp(eta, learn=False), problem))[1] for eta in (learned, 0.0, 1.0)
    ]
    assert variances[0] < min(variances[1:])


def test_exploding_derivatives_do_not_reach_what_muprop_has_learned(tiny_problem):
    """Slopes 1e8 times as large, a scale 1e-8 times as large: the same estimate from the second call on."""
    problem = tiny_problem()
    plain, exploding = MuProp(), MuProp()
    mean_field = exploding.mean_field

    def exploded(problem):
        reward, slope = mean_field(problem)
        return reward, 1e8 * slope

    exploding.mean_field = exploded
    for call in range(2):
        a, b = (flat(e.gradient(problem, generator("cpu", call)).grad) for e in (plain, exploding))
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
