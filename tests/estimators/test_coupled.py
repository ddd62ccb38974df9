"""Coupled samples, exactly: a context for every joint outcome, its probability a factor on the reward."""

import itertools
import math

import pytest
import scipy.stats
import torch

from gradebench.core.sampling import generator
from gradebench.estimators.coupled import Carms, Disarm

SEED = 9  # of policies whose decisions are open and heed their prefix, at two tokens and at three


def every(support, n):
    """All joint outcomes of n samples, (n, J, T)."""
    index = torch.cartesian_prod(*[torch.arange(len(support))] * n).view(-1, n)
    return support[index].transpose(0, 1)


def expectation(estimator, problem, z, probability):
    """E of the estimate: context i of (n, B, T) has the outcome z[:, i], with this probability (B,).

    Estimates are linear in f, so what multiplies it weighs the outcome.
    """
    reward = problem.reward
    problem.draw = lambda choose, n: z if n == len(z) else pytest.fail(f"{n} samples asked, {len(z)} given")
    problem.reward = lambda z: reward(z) * probability
    return torch.cat([g.flatten() for g in estimator.gradient(problem, None).grad])


def enumerated(tiny_problem, estimator, joint, vocabulary, horizon, beta=0.0, contexts=2):
    """E of an estimate on sequences, `joint` giving probabilities (B, T) of the tokens of a step given prefixes."""
    small = tiny_problem(vocabulary, horizon, contexts, beta, SEED)
    z = every(small.support(), estimator.n)  # (n, J, T)
    outcomes = z.shape[1]
    problem = tiny_problem(vocabulary, horizon, contexts, beta, SEED, outcomes)
    z = z.repeat_interleave(contexts, 1)  # context i belongs to prompt i % contexts
    p = problem.logits(z).detach().softmax(-1)
    probability = joint(p, z).prod(-1)
    torch.testing.assert_close(probability.sum(), torch.tensor(float(contexts), dtype=torch.float64))
    return expectation(estimator, problem, z, probability * outcomes)


def antithetic(p, z):
    """Probability (B, T) of pairs z (2, B, T) from u and 1 - u, under the probabilities p (2, B, T, 2) of one of them."""
    theta = p[0, ..., 1]
    same = torch.where(z[0] == 1, 2 * theta - 1, 1 - 2 * theta).clamp_min(0)
    return torch.where(z[0] == z[1], same, torch.minimum(theta, 1 - theta))


def own(p, z):
    return p.gather(-1, z.unsqueeze(-1)).squeeze(-1)


def tied_pairs(p, z):
    """The law of DisARM's pairs on sequences."""
    parted = torch.zeros(z.shape[1], dtype=torch.bool)
    steps = []
    for t in range(z.shape[-1]):
        here, tokens = p[:, :, t : t + 1], z[:, :, t : t + 1]
        apart = own(here, tokens).prod(0)
        steps.append(torch.where(parted.unsqueeze(-1), apart, antithetic(here, tokens)))
        parted |= z[0, :, t] != z[1, :, t]
    return torch.cat(steps, -1)


def dirichlet_copula(mix):
    """The law of CARMS: the mixed probability (B, T) of the box of all n tokens of a step."""

    def joint(p, z):
        n = len(z)
        high = p.cumsum(-1)
        edges = own(high - p, z), own(high, z)  # (n, B, T) each
        box = torch.zeros_like(edges[0][0])
        for corner in itertools.product([0, 1], repeat=n):
            roots = sum((1 - edges[side][m]).clamp_min(0).pow(1 / (n - 1)) for m, side in enumerate(corner))
            box += (-1) ** sum(corner) * (roots - (n - 1)).clamp_min(0).pow(n - 1)
        return (1 - mix) * box + mix * own(p, z).prod(0)

    return joint


# --- DisARM


@pytest.mark.parametrize("t", [0.45, 0.499])
def test_disarm_has_no_variance_on_a_fair_bit(bernoulli_toy, t):
    problem = bernoulli_toy(t, contexts=64)
    gradient = Disarm().gradient(problem, generator("cpu", 0)).grad[0][:, 0, 1] * 64
    torch.testing.assert_close(gradient, torch.full_like(gradient, (1 - 2 * t) / 4), rtol=1e-12, atol=0)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_disarm_is_unbiased_on_enumerable_sequences(tiny_problem, exact_gradient, beta):
    found = enumerated(tiny_problem, Disarm(), tied_pairs, 2, 3, beta)
    torch.testing.assert_close(found, exact_gradient(tiny_problem(2, 3, 2, beta, SEED)), rtol=0, atol=1e-12)


def test_pairs_that_stay_antithetic_after_they_part_would_be_biased_under_disarms_formula(tiny_problem, exact_gradient):
    class Kept(Disarm):
        def tied(self, problem, z):
            return torch.ones_like(z[0], dtype=torch.bool)

    def kept(p, z):
        """u < p_t of the one and 1 - u < p_t of the other, whatever their prefixes."""
        q, r = p[0, ..., 1], p[1, ..., 1]
        both = (q + r - 1).clamp_min(0)  # P(1, 1)
        first = torch.where(z[1] == 1, both, q - both)  # P(1, z')
        second = torch.where(z[1] == 1, r - both, 1 - q - r + both)  # P(0, z')
        return torch.where(z[0] == 1, first, second)

    truth = exact_gradient(tiny_problem(2, 3, 2, seed=SEED))
    assert (enumerated(tiny_problem, Kept(), kept, 2, 3) - truth).norm() > 0.05 * truth.norm()


def bits(categoricals, outcomes, seed=0):
    """Three independent bits under a reward that is no sum, one context an outcome, and the exact gradient (3, 2)."""
    rng = torch.Generator().manual_seed(seed)
    table = torch.randn(3, 2, generator=rng, dtype=torch.float64)
    values = torch.randn(2, 2, 2, generator=rng, dtype=torch.float64)
    one = categoricals(table[None].clone().requires_grad_(), lambda y: torch.einsum("...ta->...", y))

    def of(y):
        return torch.einsum("...a,...b,...c,abc->...", *y.unbind(-2), values)

    one.of = of
    (truth,) = one.grad((one.log_prob(one.support()[:, None]).sum(-1).exp() * one.reward(one.support()[:, None])).sum())
    return categoricals(table.expand(outcomes, -1, -1).clone().requires_grad_(), of), truth[0]


def test_disarm_is_antithetic_throughout_where_no_decision_reads_another(categoricals):
    z = every(torch.tensor(list(itertools.product([0, 1], repeat=3))), 2)  # (2, 64, 3)
    problem, truth = bits(categoricals, 64)
    probability = antithetic(problem.logits(z).detach().softmax(-1), z).prod(-1)
    found = expectation(Disarm(), problem, z, probability * 64).view(64, 3, 2).sum(0)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-12)


def p_value_of(z, support, probability):
    """Chi-square of joint draws z (n, N, T) against probabilities (J,) of `every`."""
    code = torch.tensor([int(1 + support.max()) ** t for t in range(z.shape[-1])])
    place = {int(c): i for i, c in enumerate((support * code).sum(-1))}
    index = torch.tensor([[place[int(c)] for c in row] for row in (z * code).sum(-1)])
    cell = sum(row * len(support) ** k for k, row in enumerate(index.flip(0)))
    counts = torch.bincount(cell, minlength=len(probability))
    expected = probability * z.shape[1]
    assert counts[expected < 1e-9].sum() == 0
    common = expected > 5
    observed = torch.cat([counts[common], counts[~common].sum().view(1)]).numpy()
    expected = torch.cat([expected[common], expected[~common].sum().view(1)]).numpy()
    kept = expected > 1e-9
    return scipy.stats.chisquare(observed[kept], expected[kept] * observed.sum() / expected.sum()).pvalue


@pytest.mark.parametrize(
    ("estimator", "joint", "vocabulary", "horizon"),
    [
        (Disarm(), tied_pairs, 2, 3),
        (Carms(2), dirichlet_copula(0.1), 3, 2),
        (Carms(3, 0.5), dirichlet_copula(0.5), 3, 1),
        (Carms(4, 0.0), dirichlet_copula(0.0), 2, 2),
    ],
)
def test_draws_have_the_joint_law_that_the_formulas_assume(tiny_problem, estimator, joint, vocabulary, horizon):
    small = tiny_problem(vocabulary, horizon, 1, seed=SEED)
    outcomes = every(small.support(), estimator.n)
    many = tiny_problem(vocabulary, horizon, 1, 0.0, SEED, outcomes.shape[1])
    probability = joint(many.logits(outcomes).detach().softmax(-1), outcomes).prod(-1)
    drawn = estimator.draw(tiny_problem(vocabulary, horizon, 1, 0.0, SEED, 10_000), generator("cpu", 1))
    assert p_value_of(drawn, small.support(), probability) > 1e-3


# --- CARMS


@pytest.mark.parametrize(
    ("n", "vocabulary", "horizon", "mix", "beta"),
    [
        (2, 3, 3, 0.1, 0.0),
        (2, 3, 3, 0.1, 0.3),
        (2, 2, 3, 0.01, 0.0),
        (3, 3, 2, 0.1, 0.0),
        (4, 2, 2, 0.3, 0.0),
        (3, 3, 2, 1.0, 0.0),
    ],
)
def test_carms_is_unbiased_on_enumerable_sequences(tiny_problem, exact_gradient, n, vocabulary, horizon, mix, beta):
    found = enumerated(tiny_problem, Carms(n, mix), dirichlet_copula(mix), vocabulary, horizon, beta)
    truth = exact_gradient(tiny_problem(vocabulary, horizon, 2, beta, SEED))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-11)


@pytest.mark.parametrize("vocabulary", [2, 3])
def test_without_a_mixture_carms_loses_pairs_on_sequences(tiny_problem, exact_gradient, vocabulary):
    truth = exact_gradient(tiny_problem(vocabulary, 2, 2, seed=SEED))
    found = enumerated(tiny_problem, Carms(2, 0.0), dirichlet_copula(0.0), vocabulary, 2)
    assert (found - truth).norm() > 0.01 * truth.norm()


def test_clipped_weights_would_be_biased(tiny_problem, exact_gradient):
    class Clipped(Carms):
        def weight(self, logits, z):
            return super().weight(logits, z).clamp_max(2.0)

    truth = exact_gradient(tiny_problem(3, 2, 2, seed=SEED))
    found = enumerated(tiny_problem, Clipped(2), dirichlet_copula(0.1), 3, 2)
    assert (found - truth).norm() > 0.05 * truth.norm()


def test_carms_of_two_without_a_mixture_is_disarm_outcome_by_outcome(categoricals):
    z = every(torch.tensor(list(itertools.product([0, 1], repeat=3))), 2)
    problem, _ = bits(categoricals, 64)
    possible = antithetic(problem.logits(z).detach().softmax(-1), z).prod(-1) > 0
    problem.draw = lambda choose, n: z
    found, expected = (e.gradient(problem, None).grad[0][possible] for e in (Carms(2, 0.0), Disarm()))
    assert possible.sum() > 10
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_carms_with_independent_uniforms_is_leave_one_out(tiny_problem, n):
    problem, estimator = tiny_problem(), Carms(n, 1.0)
    z = estimator.draw(problem, generator("cpu", 0))
    pairs = estimator.weight(problem.logits(z).detach(), z)
    torch.testing.assert_close(pairs, torch.ones_like(pairs))


def test_weights_stay_bounded_and_right_over_a_large_vocabulary(tiny_problem):
    """1e3 tokens, of which many are so rare that their rectangles are lost in rounding."""
    logits = 4 * torch.randn(2, 500, 1, 1000, generator=generator("cpu", 0), dtype=torch.float64)
    estimator = Carms(2, 0.1)
    z = torch.randint(1000, (2, 500, 1), generator=generator("cpu", 1))
    found = estimator.weight(logits, z)
    assert bool(found.isfinite().all()) and bool((found >= 0).all()) and bool((found <= 10 + 1e-9).all())
    # of two samples, the rectangle is the overlap of one interval with the other's mirror image
    edges = torch.nn.functional.pad(logits.softmax(-1).cumsum(-1), (1, 0))
    low, high = (edges.gather(-1, (z + side).unsqueeze(-1)).squeeze(-1) for side in (0, 1))
    overlap = (torch.minimum(high[0], 1 - low[1]) - torch.maximum(low[0], 1 - high[1])).clamp_min(0)
    p = high - low
    common = p.prod(0) > 1e-9
    assert common.sum() > 20
    expected = p.prod(0) / (0.9 * overlap + 0.1 * p.prod(0))
    torch.testing.assert_close(found[0, 1][common], expected[common], rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [2, 3, 5])
def test_uniforms_are_uniform(n):
    u = Carms(n, 0.0).uniforms(torch.empty(n, 20_000, dtype=torch.float64), generator("cpu", n))
    assert all(scipy.stats.kstest(row.numpy(), "uniform").pvalue > 1e-3 for row in u)
    assert float(torch.corrcoef(u)[0, 1]) < (-0.99 if n == 2 else -0.1)
    assert float(u.min()) >= 0 and float(u.max()) < 1


# --- both


@pytest.mark.parametrize("estimator", [Disarm(), Carms()])
def test_costs_a_call_are_those_declared(tiny_problem, estimator):
    problem = tiny_problem(2)
    estimator.gradient(problem, generator("cpu", 0))
    assert (problem.ledger.reward_calls, problem.ledger.tokens_sampled) == (4 * estimator.n, 12 * estimator.n)
    assert (problem.ledger.forward_passes, problem.ledger.backward_passes) == (2, 1)


@pytest.mark.parametrize("estimator", [Disarm(), Carms()])
def test_copies_of_the_parameters_leave_each_other_alone(tiny_problem, estimator):
    problem = tiny_problem(2, seed=SEED, copies=4).replicated(4)  # prompt i goes to copy i
    found = [g[1].clone() for g in estimator.gradient(problem, generator("cpu", 0)).grad]
    reward = problem.reward
    problem.reward = lambda z: reward(z) * (1 + (torch.arange(16) % 4 == 0))
    changed = estimator.gradient(problem, generator("cpu", 0)).grad
    assert all(torch.equal(a, b[1]) for a, b in zip(found, changed, strict=True))
    assert math.isfinite(float(changed[0].sum()))
