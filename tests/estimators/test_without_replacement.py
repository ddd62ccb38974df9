"""Estimates from distinct samples, exactly: a context for every set, its probability a factor on the reward."""

import itertools

import pytest
import scipy.stats
import torch

from gradebench import Unsupported
from gradebench.core.sampling import generator
from gradebench.estimators.score_function import Rloo
from gradebench.estimators.without_replacement import UnorderedSet, distinct_draws, set_weights


def in_order(p, order):
    """Probability of outcomes drawn one after the other without replacement, in this order."""
    probability, left = 1.0, 1.0
    for i in order:
        probability *= p[i] / left
        left -= p[i]
    return probability


def of_set(p, members):
    return sum(in_order(p, order) for order in itertools.permutations(members))


def by_permutations(p, members):
    """Both weights of `set_weights`, (n,) and (n, n), summed over the orders that the set may have come in."""
    n = len(members)
    total = of_set(p, members)
    first, second = torch.zeros(n, dtype=torch.float64), torch.zeros(n, n, dtype=torch.float64)
    for order in itertools.permutations(range(n)):
        probability = in_order(p, [members[i] for i in order])
        first[order[0]] += probability / total
        second[order[0], order[1]] += probability  # given the first, its own part of E f and the next as a sample
    second /= second.sum(1, keepdim=True)
    own = torch.tensor([p[i] for i in members], dtype=torch.float64)
    return first, second * (1 - own).unsqueeze(1) + own.diag()


def random_law(outcomes, sharpness=1.0, seed=0):
    return (
        (sharpness * torch.randn(outcomes, generator=generator("cpu", seed), dtype=torch.float64)).softmax(0).tolist()
    )


# --- weights


@pytest.mark.parametrize("n", [2, 3, 4, 5])
@pytest.mark.parametrize("sharpness", [0.1, 1.0, 4.0])
def test_weights_are_the_sums_over_permutations(n, sharpness):
    p = random_law(7, sharpness)
    sets = list(itertools.combinations(range(7), n))
    first, second = set_weights(
        torch.tensor([[p[i] for i in members] for members in sets], dtype=torch.float64).T.log()
    )
    for column, members in enumerate(sets):
        expected_first, expected_second = by_permutations(p, members)
        torch.testing.assert_close(first[:, column], expected_first, rtol=0, atol=1e-11)
        torch.testing.assert_close(second[:, :, column], expected_second, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [2, 3, 8, 16, 64])
@pytest.mark.parametrize("top", [-1e-12, -0.1, -3.0, -60.0, -2000.0])
def test_weights_sum_to_one_at_any_scale(n, top):
    """Whoever came first came first; and of a constant f, any baseline is that constant."""
    spread = torch.linspace(0, 30, n - 1, dtype=torch.float64)
    rest = (-30 - spread if top > -0.01 else top - 5 - spread).unsqueeze(1)
    log_p = torch.cat([torch.full((1, 1), top, dtype=torch.float64), rest])
    first, second = set_weights(log_p)
    torch.testing.assert_close(first.sum(0), torch.ones(1, dtype=torch.float64), rtol=0, atol=1e-11)
    torch.testing.assert_close(second.sum(1), torch.ones(n, 1, dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.parametrize("log_p", [-20.0, -60.0, -700.0, -2000.0])
def test_tiny_probabilities_tend_to_equal_weights_as_with_replacement(log_p):
    n = 4
    first, second = set_weights(log_p - torch.tensor([0.0, 1.0, 2.0, 5.0], dtype=torch.float64).unsqueeze(1))
    torch.testing.assert_close(first, torch.full_like(first, 1 / n), rtol=1e-7, atol=0)
    others = ~torch.eye(n, dtype=torch.bool)
    torch.testing.assert_close(second[others], torch.full_like(second[others], 1 / (n - 1)), rtol=1e-7, atol=0)


def test_a_set_of_everything_is_weighted_by_its_probabilities():
    log_p = torch.tensor([[0.5, 1.0], [0.3, 0.0], [0.2, 0.0]], dtype=torch.float64).clamp_min(1e-300).log()
    first, second = set_weights(log_p)
    torch.testing.assert_close(first, log_p.exp(), rtol=0, atol=1e-12)
    torch.testing.assert_close(second, log_p.exp().expand(3, 3, 2), rtol=0, atol=1e-12)


# --- expectations


SEED = 1  # of a policy whose decisions are open and heed their prefix


def expectation(estimator, problem, z, probability):
    """E of the estimate: context i of (n, B, T) has the outcome z[:, i], with this probability (B,)."""
    reward = problem.reward
    problem.draw = lambda choose, n: z if n == len(z) else pytest.fail(f"{n} samples asked, {len(z)} given")
    problem.reward = lambda z: reward(z) * probability
    return torch.cat([g.flatten() for g in estimator.gradient(problem, None).grad])


def enumerated(tiny_problem, estimator, vocabulary, horizon, beta=0.0, contexts=2):
    """E of an estimate over all sets of outcomes, with the probabilities of drawing them one after the other."""
    small = tiny_problem(vocabulary, horizon, contexts, beta, SEED)
    support = small.support()
    p = small.log_prob(support.unsqueeze(1).expand(-1, contexts, -1)).detach().sum(-1).exp()  # (V^T, B)
    sets = list(itertools.combinations(range(len(support)), estimator.n))
    law = torch.tensor([[of_set(column, members) for column in p.T.tolist()] for members in sets], dtype=torch.float64)
    z = support[torch.tensor(sets)].transpose(0, 1).repeat_interleave(contexts, 1)  # (n, J B, T)
    problem = tiny_problem(vocabulary, horizon, contexts, beta, SEED, len(sets))
    return expectation(estimator, problem, z, law.flatten() * len(sets))


@pytest.mark.parametrize(
    ("n", "vocabulary", "horizon", "beta"),
    [(2, 4, 1, 0.0), (3, 4, 1, 0.0), (2, 3, 3, 0.0), (2, 3, 3, 0.3), (3, 2, 3, 0.0), (4, 2, 3, 0.3), (8, 2, 3, 0.0)],
)
def test_it_is_unbiased_over_all_sets_of_outcomes(tiny_problem, exact_gradient, n, vocabulary, horizon, beta):
    found = enumerated(tiny_problem, UnorderedSet(n), vocabulary, horizon, beta)
    truth = exact_gradient(tiny_problem(vocabulary, horizon, 2, beta, SEED))
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-11)


def set_weights_without_itself(log_p):
    """The baseline of the others alone, their weights renormalised to the domain without s."""
    first, second = set_weights(log_p)
    itself = torch.eye(len(log_p), dtype=torch.bool).unsqueeze(-1)
    return first, (second / (1 - log_p.exp()).unsqueeze(1)).masked_fill(itself, 0)


def set_weights_of_the_full_domain(log_p):
    """A baseline from R on the whole domain: it does not know that s was drawn first."""
    first, _ = set_weights(log_p)
    return first, first.expand(len(log_p), -1, -1)


@pytest.mark.parametrize("wrong", [set_weights_without_itself, set_weights_of_the_full_domain])
def test_other_baselines_are_biased(tiny_problem, exact_gradient, monkeypatch, wrong):
    monkeypatch.setattr(f"{UnorderedSet.__module__}.set_weights", wrong)
    truth = exact_gradient(tiny_problem(3, 2, 2, seed=SEED))
    found = enumerated(tiny_problem, UnorderedSet(3), 3, 2)
    assert (found - truth).norm() > 0.02 * truth.norm()


def test_a_set_of_all_outcomes_gives_the_exact_gradient(tiny_problem, exact_gradient):
    problem = tiny_problem(2, 3, 4, 0.3, SEED)
    found = torch.cat([g.flatten() for g in UnorderedSet(8).gradient(problem, generator("cpu", 0)).grad])
    torch.testing.assert_close(found, exact_gradient(problem), rtol=0, atol=1e-12)


def test_of_countless_outcomes_it_is_leave_one_out(categoricals):
    """Where no outcome is ever drawn twice, both estimators agree on every draw."""
    table = torch.randn(16, 64, 2, generator=generator("cpu", 0), dtype=torch.float64).requires_grad_()
    problem = categoricals(table, lambda y: (y[..., 1].mean(-1) - 0.45).square())
    z = problem.sample(4, generator("cpu", 1))
    problem.sample, problem.draw = lambda n, rng: z, lambda choose, n: z
    found, expected = (estimator(4).gradient(problem, None).grad[0] for estimator in (UnorderedSet, Rloo))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-12)


def test_its_variance_is_below_that_of_as_many_independent_samples(tiny_problem):
    problem = tiny_problem(2, 3, 4, 0.0, SEED)

    def variance(estimator):
        rng = generator("cpu", 0)
        draws = [torch.cat([g.flatten() for g in estimator.gradient(problem, rng).grad]) for _ in range(40)]
        return float(torch.stack(draws).var(0).sum())

    assert variance(UnorderedSet(6)) < 0.5 * variance(Rloo(6))


# --- stochastic beam search


@pytest.mark.parametrize(("n", "vocabulary", "horizon"), [(2, 3, 3), (4, 3, 2), (5, 2, 3)])
def test_beam_search_draws_sets_as_one_after_the_other(tiny_problem, n, vocabulary, horizon):
    small = tiny_problem(vocabulary, horizon, 1, seed=SEED)
    support = small.support()
    p = small.log_prob(support.unsqueeze(1)).detach().sum(-1).exp().flatten().tolist()
    sets = list(itertools.combinations(range(len(support)), n))
    law = torch.tensor([of_set(p, members) for members in sets], dtype=torch.float64)
    assert float(law.sum()) == pytest.approx(1, abs=1e-10)
    many = 10_000
    z = distinct_draws(tiny_problem(vocabulary, horizon, 1, 0.0, SEED, many), n, generator("cpu", 3))
    index = (z * vocabulary ** torch.arange(horizon - 1, -1, -1)).sum(-1).sort(0).values  # (n, many), as in support
    assert bool((index[1:] > index[:-1]).all())
    place = {members: i for i, members in enumerate(sets)}
    counts = torch.bincount(torch.tensor([place[tuple(row)] for row in index.T.tolist()]), minlength=len(sets))
    common = law * many > 5
    observed = torch.cat([counts[common], counts[~common].sum().view(1)]).double()
    expected = torch.cat([law[common], law[~common].sum().view(1)])
    kept = expected > 0
    assert scipy.stats.chisquare(observed[kept], expected[kept] / expected.sum() * many).pvalue > 1e-3


@pytest.mark.parametrize(("n", "vocabulary", "horizon"), [(9, 2, 4), (16, 2, 4), (2, 3, 1), (10, 3, 3)])
@pytest.mark.parametrize("sharpness", [1, 100])
def test_draws_are_distinct_while_prefixes_are_fewer_than_draws(tiny_problem, n, vocabulary, horizon, sharpness):
    problem = tiny_problem(vocabulary, horizon, copies=16)
    with torch.no_grad():
        for p in problem.params:
            p.mul_(sharpness)
    z = distinct_draws(problem, n, generator("cpu", 0))
    assert all(len(torch.unique(one, dim=0)) == n for one in z.transpose(0, 1))
    assert bool(
        torch.cat([g.flatten() for g in UnorderedSet(n).gradient(problem, generator("cpu", 1)).grad]).isfinite().all()
    )


def test_too_few_outcomes_are_told(bernoulli_toy, tiny_problem):
    with pytest.raises(Unsupported, match="4 distinct samples from 2 outcomes"):
        UnorderedSet(4).init(bernoulli_toy())
    UnorderedSet(8).init(tiny_problem(2, 3))


def test_costs_a_call_are_those_declared(tiny_problem):
    problem = tiny_problem()
    UnorderedSet(5).gradient(problem, generator("cpu", 0))
    assert (problem.ledger.reward_calls, problem.ledger.tokens_sampled) == (20, 60)
    assert (problem.ledger.forward_passes, problem.ledger.backward_passes) == (2, 1)


def test_copies_of_the_parameters_leave_each_other_alone(tiny_problem):
    problem, estimator = tiny_problem(copies=4).replicated(4), UnorderedSet(3)
    found = [g[1].clone() for g in estimator.gradient(problem, generator("cpu", 0)).grad]
    reward = problem.reward
    problem.reward = lambda z: reward(z) * (1 + (torch.arange(16) % 4 == 0))
    changed = estimator.gradient(problem, generator("cpu", 0)).grad
    assert all(torch.equal(a, b[1]) for a, b in zip(found, changed, strict=True))
