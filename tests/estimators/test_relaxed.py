"""Relaxed paths against a plain loop with the same noise, their Jacobians, and what mutants of them would give.

Long because one file tests one module.
"""

import itertools
from unittest import mock

import pytest
import torch
from torch.nn import functional

from gradebench import exponential, gumbel, gumbel_given, harden, straight_through
from gradebench.core.sampling import generator
from gradebench.core.view import Guarded
from gradebench.estimators import relaxed
from gradebench.estimators.relaxed import DecoupledSt, GappedSt, Grade, GradeSte, GumbelRao, ReinMax, StraightThrough
from gradebench.plugins import registry

TAU = 0.7
ESTIMATORS = [Grade, GradeSte]
FIRST = {GumbelRao: 3, GappedSt: 1.2, DecoupledSt: 1.5}  # the option before the backward temperature
ALL = [Grade, GradeSte, StraightThrough, GumbelRao, GappedSt, ReinMax, DecoupledSt]


def made(estimator):
    """With options that aren't the defaults."""
    return estimator(FIRST[estimator], TAU) if estimator in FIRST else estimator(TAU)


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def noise_of(problem, estimator, seed):
    """Gumbel noise (B, T, V), and the exponentials (B, T, k, V) that Gumbel-Rao draws between positions."""
    rng, k = generator("cpu", seed), FIRST[GumbelRao] if estimator is GumbelRao else 0
    like = torch.empty(1, problem.contexts, problem.categories, dtype=torch.float64)
    noise, given = [], []
    for _ in range(problem.horizon):
        noise.append(gumbel(like, rng)[0])
        given.append(exponential(like.expand(k, *like.shape), rng)[:, 0].transpose(0, 1))  # (B, k, V)
    return torch.stack(noise, 1), torch.stack(given, 1)


def backward(estimator, logits, noise, token, given):
    """What the backward pass differentiates, for one decision (V,), entry by entry."""
    pi, others = logits.detach().softmax(-1), [i for i in range(len(logits)) if i != token]
    if estimator is GumbelRao:
        shifts = []
        for e in given:
            z = -(e / pi + e[token]).log()
            z[token] = -e[token].log()
            shifts.append(z - pi.log())
        return torch.stack([((logits + shift) / TAU).softmax(-1) for shift in shifts]).mean(0)
    if estimator is GappedSt:
        moved, top = logits.detach().clone(), logits.detach().max()
        moved[token] = top
        for i in others:
            moved[i] = min(moved[i], top - FIRST[GappedSt])
        return ((logits + moved - logits.detach()) / TAU).softmax(-1)
    if estimator is ReinMax:
        m = ((logits.detach() / TAU).softmax(-1) + functional.one_hot(torch.tensor(token), len(pi))) / 2
        jacobian = 2 * (m.diag() - torch.outer(m, m)) - (pi.diag() - torch.outer(pi, pi)) / 2
        return jacobian @ logits
    if estimator in (StraightThrough, DecoupledSt):
        return (logits / TAU).softmax(-1)
    return ((logits + noise) / TAU).softmax(-1)


def by_plain_loop(problem, estimator, seed, detach_feedback=False, noisy=True, reuse=False, penalty=True, soft=None):
    """The gradient, one sequence after another: no cache, no batch, no memo. The flags make the mutants."""
    noise, given = noise_of(problem, estimator, seed)
    soft = estimator is Grade if soft is None else soft
    total = 0.0
    for b, prompt in enumerate(problem.prompts):
        text = functional.one_hot(prompt, problem.categories).double()
        reference_kl = 0.0
        read = text  # what the policy reads; the reward reads `text`
        for t in range(problem.horizon):
            logits = problem.policy(problem.policy.embed(read[None]))[0][0, -1]
            prior = problem.reference(problem.reference.embed(read[None]))[0][0, -1]
            p = logits.softmax(-1)
            reference_kl = reference_kl + (p * (p.log() - prior.log_softmax(-1))).sum()
            g = noisy * noise[b, 0 if reuse else t]
            token = int((logits / (FIRST[DecoupledSt] if estimator is DecoupledSt else 1) + g).argmax())
            y = backward(estimator, logits, g, token, given[b][t])
            if not soft:
                y = functional.one_hot(torch.tensor(token), problem.categories).double() + y - y.detach()
            text = torch.cat([text, y[None]])
            read = torch.cat([read, (y.detach() if detach_feedback else y)[None]])
        reward = problem.reward_model(problem.reward_model.embed(text[None]))[0]
        total = total + (reward - penalty * problem.beta * reference_kl) / problem.contexts
    return flat(torch.autograd.grad(total, problem.params, allow_unused=True, materialize_grads=True))


def found_by(problem, estimator, seed):
    guarded = Guarded(problem, estimator.needs)
    return flat(made(estimator).gradient(guarded, generator("cpu", seed)).grad)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("estimator", ALL)
def test_gradient_equals_a_plain_loop_with_the_same_noise(tiny_problem, estimator, beta):
    problem = tiny_problem(beta=beta)
    for seed in range(3):
        expected = by_plain_loop(problem, estimator, seed)
        torch.testing.assert_close(found_by(problem, estimator, seed), expected, rtol=1e-9, atol=1e-12)


MUTANTS = {
    "the token fed back is detached": {"detach_feedback": True},
    "softmax without Gumbel noise": {"noisy": False},
    "one noise for all positions": {"reuse": True},
    "the penalty is dropped": {"penalty": False},
}


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_wrong_path_would_be_seen(tiny_problem, estimator, mutant):
    problem = tiny_problem(beta=0.3)
    found = found_by(problem, estimator, 0)
    assert (by_plain_loop(problem, estimator, 0, **MUTANTS[mutant]) - found).norm() > 0.02 * found.norm()


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_soft_and_hard_forward_values_give_different_gradients(tiny_problem, estimator):
    problem = tiny_problem()
    found = found_by(problem, estimator, 0)
    swapped = by_plain_loop(problem, estimator, 0, soft=estimator is not Grade)
    assert (swapped - found).norm() > 0.02 * found.norm()


def tokens_read_by_the_reward(problem, estimator, tau, seed=0):
    """What `soft_reward` is handed, (n, B, T, V)."""
    seen = []
    soft_reward = problem.soft_reward
    problem.soft_reward = lambda y: seen.append(y.detach()) or soft_reward(y)
    estimator(tau).gradient(problem, generator("cpu", seed))
    del problem.soft_reward
    return seen[0]


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_grade_ste_reads_exact_one_hots_drawn_from_the_policy(tiny_problem, tau):
    problem = tiny_problem(copies=50)
    y = tokens_read_by_the_reward(problem, GradeSte, tau)
    assert set(y.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(y.argmax(-1), problem.sample(1, generator("cpu", 0)))  # whatever the temperature


def test_grade_reads_points_inside_the_simplex(tiny_problem):
    y = tokens_read_by_the_reward(tiny_problem(copies=50), Grade, 1.0)
    torch.testing.assert_close(y.sum(-1), torch.ones_like(y[..., 0]))
    assert (y > 0).all()
    assert ((y > 0.1) & (y < 0.9)).double().mean() > 0.2


def test_soft_tokens_approach_hard_ones_as_the_temperature_falls(tiny_problem):
    problem = tiny_problem(copies=50)
    hard = tokens_read_by_the_reward(problem, GradeSte, 1.0)
    gaps = []
    for tau in (1.0, 0.1, 0.01, 0.001):
        y = tokens_read_by_the_reward(problem, Grade, tau)
        gaps.append((y - hard).abs().mean().item())
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[0] > 0.1
    assert gaps[-1] < 0.005
    assert (harden(y) == hard).all(-1).double().mean() > 0.99


@pytest.mark.parametrize("estimator", ALL)
def test_gradient_of_a_constant_reward_is_zero(categoricals, estimator):
    weight = torch.randn(2, 3, 4, generator=generator("cpu", 0), dtype=torch.float64, requires_grad=True)
    constant = categoricals(weight, lambda y: 5.0 * y.sum(-1).mean(-1))  # constant on the simplex
    torch.testing.assert_close(found_by(constant, estimator, 0), torch.zeros(24, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ALL)
def test_costs_a_call_are_those_declared(tiny_problem, estimator):
    problem = tiny_problem()
    estimator().gradient(problem, generator("cpu", 0))
    ledger = problem.ledger
    assert (ledger.reward_calls, ledger.tokens_sampled) == (4, 12)
    assert (ledger.forward_passes, ledger.backward_passes) == (1, 1)


@pytest.mark.parametrize("estimator", ALL)
def test_estimates_come_without_a_graph_and_leave_the_parameters_alone(tiny_problem, estimator):
    problem = tiny_problem(beta=0.1)
    estimate = estimator().gradient(problem, generator("cpu", 0))
    assert not any(g.requires_grad for g in estimate.grad)
    assert all(p.grad is None for p in problem.params)


# --- Jacobians of one decision, for every token that it may draw


LOGITS = torch.tensor([0.4, 1.3, -0.9, 0.1], dtype=torch.float64)
V = len(LOGITS)


def forced(tokens):
    """Gumbel noise that makes position after position draw these tokens (B,)."""
    steps = iter(tokens)
    return mock.patch.object(
        relaxed, "gumbel", lambda like, rng: 1e3 * functional.one_hot(next(steps), like.shape[-1]).expand_as(like)
    )


def jacobians(estimator, seed=0):
    """d y / d l, (V tokens, V, V)."""
    logits = LOGITS.expand(1, V, V).clone().requires_grad_()
    with forced([torch.arange(V)]):
        y = estimator.relax(logits, generator("cpu", seed))
    assert torch.equal(y.detach()[0], torch.eye(V, dtype=torch.float64))
    rows = [torch.autograd.grad(y[0, :, i].sum(), logits, retain_graph=True)[0][0] for i in range(V)]
    return torch.stack(rows, 1)


def slope(q):
    """The Jacobian of the softmax where its value is q."""
    return q.diag() - torch.outer(q, q)


def reinmax_jacobians():
    pi, one_hot = LOGITS.softmax(-1), torch.eye(V, dtype=torch.float64)
    return torch.stack([(pi.diag() + d.diag() - torch.outer(pi, d) - torch.outer(d, pi)) / 2 for d in one_hot])


def test_reinmax_has_the_published_jacobian():
    torch.testing.assert_close(jacobians(ReinMax()), reinmax_jacobians(), rtol=1e-12, atol=1e-14)


def test_reinmax_averages_to_the_jacobian_of_the_softmax():
    pi = LOGITS.softmax(-1)
    torch.testing.assert_close(torch.einsum("b,bij->ij", pi, jacobians(ReinMax())), slope(pi), rtol=1e-12, atol=1e-14)


def gapped_jacobians(gap=1.0):
    """By hand: 1.3 is the largest logit. The token takes its place, the others stay or fall to 1.3 - gap."""
    moved = LOGITS.clamp_max(1.3 - gap).repeat(V, 1)
    moved.fill_diagonal_(1.3)
    return torch.stack([slope((row / TAU).softmax(-1)) / TAU for row in moved])


@pytest.mark.parametrize("gap", [0.0, 1.0, 5.0])
def test_gapped_st_lets_the_token_lead_by_the_gap(gap):
    torch.testing.assert_close(jacobians(GappedSt(gap, TAU)), gapped_jacobians(gap), rtol=1e-12, atol=1e-14)


class GapOnTheWrongSide(GappedSt):
    """The token is lifted by the gap, the others stay."""

    def relax(self, logits, rng):
        hard = harden(logits + relaxed.gumbel(logits, rng))
        lift = (logits.detach().amax(-1, keepdim=True) + self.gap - logits.detach()) * hard
        return straight_through(hard, ((logits + lift) / self.tau).softmax(-1))


class GapWithAGraph(GappedSt):
    """The moves are differentiated too."""

    def relax(self, logits, rng):
        hard = harden(logits + relaxed.gumbel(logits, rng))
        behind = logits.amax(-1, keepdim=True) - logits
        move = torch.where(hard > 0, behind, -(self.gap - behind).clamp_min(0.0))
        return straight_through(hard, ((logits + move) / self.tau).softmax(-1))


@pytest.mark.parametrize("mutant", [GapOnTheWrongSide, GapWithAGraph])
def test_a_wrong_gap_would_be_seen(mutant):
    assert (jacobians(mutant(1.0, TAU)) - gapped_jacobians()).norm() > 0.1 * gapped_jacobians().norm()


# --- Gumbel-Rao: the noise of GRADE-STE, averaged given the token


def test_gumbel_rao_with_the_noise_that_was_drawn_is_grade_ste(tiny_problem):
    """One draw of the conditional noise, from the exponentials that give back the noise the token came from."""
    problem, drawn = tiny_problem(beta=0.3), []

    def noted(like, rng):
        drawn.append(gumbel(like, rng))
        return drawn[-1]

    def inverted(log_pi, rng):
        z = log_pi + drawn[-1]
        top = (-z.amax(-1, keepdim=True)).exp()
        return torch.where(z == z.amax(-1, keepdim=True), top, log_pi.exp() * ((-z).exp() - top))

    with mock.patch.object(relaxed, "gumbel", noted), mock.patch.object(relaxed, "exponential", inverted):
        found = flat(GumbelRao(1, TAU).gradient(problem, generator("cpu", 0)).grad)
    torch.testing.assert_close(found, found_by(problem, GradeSte, 0), rtol=1e-8, atol=1e-11)


def test_gumbel_rao_averages_its_draws():
    rng = generator("cpu", 3)
    noise = torch.stack([exponential(LOGITS.expand(1, V, V), rng) for _ in range(5)])  # (k, 1, V, V)

    def with_noise(e):
        with mock.patch.object(relaxed, "exponential", lambda like, rng: e):
            return jacobians(GumbelRao(len(e), TAU))

    single = torch.stack([with_noise(e[None]) for e in noise])
    torch.testing.assert_close(with_noise(noise), single.mean(0), rtol=1e-12, atol=1e-14)
    assert single.std(0).max() > 0.01


NODES = 4000
MIDPOINTS = (torch.arange(NODES, dtype=torch.float64) + 0.5) / NODES


def rao_means(estimator, logit):
    """E d y_1 / d l_1 of a binary decision with logits (0, logit), given either token (2,), by the midpoint rule.

    Only E_i / E_b counts, which is u / (1 - u) with u uniform.
    """
    means = []
    for token in (0, 1):
        e = torch.stack([MIDPOINTS, 1 - MIDPOINTS] if token else [1 - MIDPOINTS, MIDPOINTS], -1)  # (B, V): E_b = 1 - u
        logits = torch.tensor([0.0, logit], dtype=torch.float64).expand(1, NODES, 2).clone().requires_grad_()
        given = mock.patch.object(relaxed, "exponential", lambda like, rng, e=e: e[None, None])
        with forced([torch.tensor(token)]), given:
            y = estimator.relax(logits, None)
        means.append(torch.autograd.grad(y[..., 1].mean(), logits)[0][..., 1].sum())
    return torch.stack(means)


def ste_means(logit):
    """The same of GRADE-STE: the difference of two Gumbels is logistic, and logit + difference > 0 is token 1."""
    zero = torch.tensor(-logit, dtype=torch.float64).sigmoid()  # P(token 0)
    u = torch.stack([zero * MIDPOINTS, zero + (1 - zero) * MIDPOINTS])
    s = ((logit + u.logit()) / TAU).sigmoid()
    return (s * (1 - s)).mean(1) / TAU


@pytest.mark.parametrize("logit", [-2.0, 0.0, 0.7])
def test_gumbel_rao_is_the_mean_of_grade_ste_given_the_token(logit):
    torch.testing.assert_close(rao_means(GumbelRao(1, TAU), logit), ste_means(logit), rtol=1e-5, atol=0)


class RaoUnconditioned(GumbelRao):
    """Fresh noise that knows nothing of the token."""

    def relax(self, logits, rng):
        hard = harden(logits + relaxed.gumbel(logits, rng))
        noise = -relaxed.exponential(logits.detach().expand(self.k, *logits.shape), rng).log()
        return straight_through(hard, ((logits + noise) / self.tau).softmax(-1).mean(0))


class RaoRawLogits(GumbelRao):
    """Unnormalised logits in the conditional noise: right argmax, wrong law."""

    def relax(self, logits, rng):
        hard = harden(logits + relaxed.gumbel(logits, rng))
        e = relaxed.exponential(logits.detach().expand(self.k, *logits.shape), rng)
        token = hard.argmax(-1, keepdim=True).expand(self.k, *hard.shape[:-1], 1)
        top = e.gather(-1, token)
        z = (-(e / logits.detach().exp() + top).log()).scatter(-1, token, -top.log())
        return straight_through(hard, ((logits + z - logits.detach()) / self.tau).softmax(-1).mean(0))


class RaoMovingNoise(GumbelRao):
    """The conditional noise is differentiated too."""

    def relax(self, logits, rng):
        hard = harden(logits + relaxed.gumbel(logits, rng))
        many = logits.expand(self.k, *logits.shape)
        z = gumbel_given(many, hard.argmax(-1).expand(many.shape[:-1]), relaxed.exponential(many.detach(), rng))
        return straight_through(hard, (z / self.tau).softmax(-1).mean(0))


@pytest.mark.parametrize("mutant", [RaoUnconditioned, RaoRawLogits, RaoMovingNoise])
def test_wrong_conditional_noise_would_be_seen(mutant):
    assert (rao_means(mutant(1, TAU), 0.7) / ste_means(0.7) - 1).abs().max() > 0.1


# --- means over all outcomes of three independent decisions


def mean_of_all_outcomes(categoricals, estimator, reward, tau_forward=1.0):
    """E of the estimate (3, V): a context for each of the V^3 outcomes, weighted by its probability."""
    table = torch.randn(3, 3, generator=generator("cpu", 7), dtype=torch.float64)
    outcomes = torch.tensor(list(itertools.product(range(3), repeat=3)))  # (27, T)
    weight = table.expand(27, 3, 3).clone().requires_grad_()
    with forced(outcomes.T):
        gradient = estimator.gradient(categoricals(weight, reward), None).grad[0] * 27  # (27, T, V)
    log_q = (table / tau_forward).log_softmax(-1)
    q = log_q.expand(27, 3, 3).gather(-1, outcomes.unsqueeze(-1)).sum((1, 2)).exp()
    single = categoricals(table[None].clone().requires_grad_(), reward)
    return torch.einsum("b,btv->tv", q, gradient), single.exact_gradient()[0][0]


def polynomial(degree):
    rng = generator("cpu", 8)
    coefficients = [torch.randn(*[9] * d, generator=rng, dtype=torch.float64) for d in (1, 2, 3)]

    def reward(y):
        flat = y.flatten(-2)
        terms = ["i,...i->...", "ij,...i,...j->...", "ijk,...i,...j,...k->..."]
        return sum(torch.einsum(terms[d], coefficients[d], *[flat] * (d + 1)) for d in range(degree))

    return reward


@pytest.mark.parametrize(
    ("estimator", "degree", "exact"),
    [
        (ReinMax(), 1, True),
        (ReinMax(), 2, True),
        (ReinMax(), 3, False),
        (ReinMax(2.0), 2, False),
        (StraightThrough(), 1, True),
        (StraightThrough(), 2, False),
        (DecoupledSt(1.0, 1.0), 1, True),
        (DecoupledSt(), 1, False),
        (GappedSt(), 1, False),
        (GumbelRao(), 1, False),
    ],
)
def test_exact_where_declared_and_not_beyond(categoricals, estimator, degree, exact):
    if isinstance(estimator, GumbelRao):  # it draws noise besides the tokens
        with mock.patch.object(relaxed, "exponential", lambda like, rng: torch.ones_like(like)):
            found, truth = mean_of_all_outcomes(categoricals, estimator, polynomial(degree))
    else:
        found, truth = mean_of_all_outcomes(categoricals, estimator, polynomial(degree))
    if exact:
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-10)
    else:
        assert (found - truth).norm() > 0.02 * truth.norm()


def test_decoupled_tokens_at_another_temperature_bias_all_but_linear_rewards(categoricals):
    for degree, tau_backward, exact in [(1, 1.0, True), (2, 1.0, False), (1, 1.5, False)]:
        estimator = DecoupledSt(1.5, tau_backward)
        found, truth = mean_of_all_outcomes(categoricals, estimator, polynomial(degree), tau_forward=1.5)
        assert ((found - truth).norm() < 1e-10 * truth.norm()) == exact


def test_decoupled_st_draws_at_its_forward_temperature(tiny_problem):
    problem = tiny_problem(copies=50)
    y = tokens_read_by_the_reward(problem, DecoupledSt, 1.0)
    assert torch.equal(y.argmax(-1), problem.sample(1, generator("cpu", 0)))
    with torch.no_grad():
        first = problem.logits(y.argmax(-1))[:, :, 0]
    warm = tokens_read_by_the_reward(problem, DecoupledSt, 3.0)[:, :, 0]
    assert torch.equal(warm, harden(first / 3 + gumbel(first, generator("cpu", 0))))


def test_decoupled_st_at_forward_temperature_one_is_straight_through(tiny_problem):
    found, expected = (
        flat(e.gradient(tiny_problem(beta=0.3), generator("cpu", 0)).grad)
        for e in (DecoupledSt(1.0, TAU), StraightThrough(TAU))
    )
    assert torch.equal(found, expected)


def test_options_are_spelled_as_documented():
    estimator = registry.resolve("estimators", "gumbel-rao:k=32,tau=0.5").create()
    assert (estimator.k, estimator.tau) == (32, 0.5)


# --- annealed temperatures --------------------------------------------------------------------------------------


ANNEALED = [Grade, GradeSte, StraightThrough, GumbelRao, GappedSt]


@pytest.mark.parametrize("estimator", ANNEALED)
def test_an_annealed_temperature_moves_in_equal_steps_and_stays_at_its_end(estimator, tiny_problem):
    problem, annealed = tiny_problem(), estimator(tau=2.0, tau_end=0.5, anneal=3).train()
    seen = []
    for call in range(5):
        seen.append(annealed.tau)
        found = annealed.gradient(problem, generator("cpu", call)).grad
        constant = estimator(tau=seen[-1]).gradient(problem, generator("cpu", call)).grad
        assert torch.allclose(flat(found), flat(constant), rtol=1e-6, atol=1e-9)
    assert seen == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.5])


def test_a_temperature_is_frozen_in_evaluation_and_kept_with_the_state(tiny_problem):
    problem, annealed = tiny_problem(), GradeSte(tau=2.0, tau_end=0.5, anneal=3).train()
    annealed.gradient(problem, generator("cpu", 0))
    for call in range(3):
        assert annealed.eval().gradient(problem, generator("cpu", call)).info == {"tau": 1.5}
    again = GradeSte(tau=2.0, tau_end=0.5, anneal=3)
    again.load_state_dict(annealed.state_dict())
    assert again.tau == 1.5


def test_without_an_end_nothing_is_counted(tiny_problem):
    assert not GradeSte().state_dict() and not list(GradeSte().buffers())
