"""Independent categoricals: sums over all outcomes are the judge of everything that they answer."""

import itertools
import math

import pytest
import torch
from torch.nn import functional

from gradebench import Ledger
from gradebench.core.sampling import generator
from gradebench.problems.factorised import FactorisedProblem

WORTH = torch.linspace(-1, 1.5, 9, dtype=torch.float64).sin().view(3, 3)


def cubic(y):
    """Neither a sum over positions nor quadratic in them."""
    return (y * WORTH.to(y)).sum((-1, -2)).pow(3)


def start():
    return torch.linspace(0, 2, 9, dtype=torch.float64).cos().view(3, 3).requires_grad_()


def doubled(table):
    """Logits that are not the table itself, so that the map between them counts."""
    return 2 * table


def brute_force(p):
    """E cubic of probabilities (3, 3): a plain sum over the 27 outcomes."""
    total = p.new_zeros(())
    for z in itertools.product(range(3), repeat=3):
        probability = p[0, z[0]] * p[1, z[1]] * p[2, z[2]]
        total = total + probability * (WORTH[0, z[0]] + WORTH[1, z[1]] + WORTH[2, z[2]]) ** 3
    return total


def problem_of(table=None, contexts=2, expectation=None, ledger=None):
    return FactorisedProblem(start() if table is None else table, doubled, cubic, contexts, expectation, ledger)


@pytest.fixture
def problem():
    return problem_of()


def test_support_lists_every_outcome_once(problem):
    assert problem.support().tolist() == [list(z) for z in itertools.product(range(3), repeat=3)]


def test_support_of_one_position_is_the_categories():
    single = FactorisedProblem(torch.zeros(1, 4, requires_grad=True), lambda table: table, lambda y: y[..., 0].sum(-1))
    assert single.support().tolist() == [[0], [1], [2], [3]]


def test_log_prob_is_that_of_the_tables_logits_in_every_context(problem):
    z = problem.support().unsqueeze(1).expand(-1, 2, -1)  # (27, B, T)
    log_p = (2 * problem.table).log_softmax(-1)
    expected = torch.stack([log_p[t, z[..., t]] for t in range(3)], -1)
    assert torch.equal(problem.log_prob(z), expected)


def test_samples_have_the_probabilities_of_the_outcomes(problem):
    n = 4000
    z = problem.sample(n, generator("cpu", "draws"))
    assert z.shape == (n, 2, 3)
    assert z.dtype == torch.int64
    code = z @ torch.tensor([9, 3, 1])  # (n, B), the row of `support`
    counts = functional.one_hot(code, 27).sum((0, 1)).double()
    support = problem.support().unsqueeze(1).expand(-1, 2, -1)
    expected = 2 * n * problem.log_prob(support).sum(-1).exp()[:, 0].detach()
    assert expected.min() > 5  # where the statistic is chi-square to good accuracy
    assert (
        float(((counts - expected).square() / expected).sum()) < 80
    )  # of 26 degrees of freedom: alpha 2e-7, and the seed is fixed


def test_contexts_are_independent_draws(problem):
    z = problem.sample(4000, generator("cpu", "draws"))
    agreement = float((z[:, 0] == z[:, 1]).double().mean())
    p = (2 * problem.table).softmax(-1).detach()
    # 12,000 pairs of decisions: six standard errors; equal draws would agree always
    assert agreement == pytest.approx(float(p.square().sum(-1).mean()), abs=0.03)


def test_reward_of_ids_equals_soft_reward_of_their_one_hots_and_has_no_graph(problem):
    z = problem.support().unsqueeze(1).expand(-1, 2, -1)
    reward, soft = problem.reward(z), problem.soft_reward(functional.one_hot(z, 3).double().requires_grad_())
    assert torch.equal(reward, soft)
    assert soft.requires_grad
    assert not reward.requires_grad


def test_relax_is_called_once_a_position_in_order_with_its_logits(problem):
    seen = []

    def relax(logits):
        seen.append(logits)
        return logits.softmax(-1)

    y = problem.rollout(relax, 5)
    assert y.shape == (5, 2, 3, 3)
    for t, logits in enumerate(seen):
        assert torch.equal(logits, 2 * problem.table[t].expand(5, 2, 3))
        assert torch.equal(y[:, :, t], logits.softmax(-1))
    assert len(seen) == 3


def test_a_rollout_is_differentiable_in_the_table(problem):
    y = problem.rollout(lambda logits: logits.softmax(-1), 1)
    (gradient,) = problem.grad(problem.soft_reward(y).mean())
    (expected,) = torch.autograd.grad(cubic((2 * problem.table).softmax(-1)), problem.table)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("contexts", [1, 3])
def test_exact_gradient_is_that_of_the_sum_over_outcomes_with_and_without_a_closed_form(contexts):
    table = start()
    (expected,) = torch.autograd.grad(brute_force((2 * table).softmax(-1)), table)
    for expectation in (None, brute_force):
        (gradient,) = problem_of(table, contexts, expectation).exact_gradient()
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-14)


def test_exact_gradient_in_several_batches_of_outcomes_is_the_same(problem, monkeypatch):
    whole = problem.exact_gradient()[0]
    monkeypatch.setattr("gradebench.core.problem.ENUMERATED_AT_ONCE", 10)
    torch.testing.assert_close(problem.exact_gradient()[0], whole, rtol=1e-12, atol=1e-14)
    assert problem.ledger.backward_passes == 1 + math.ceil(27 / 5)


def test_offers_say_what_can_be_done():
    assert problem_of().offers == {"soft_reward", "fixed_reward", "independent", "support", "exact"}
    many = torch.zeros(13, 2, requires_grad=True)  # 8192 outcomes
    arguments = many, lambda table: table, lambda y: y[..., 1].sum(-1)
    assert FactorisedProblem(*arguments).offers == {"soft_reward", "fixed_reward", "independent", "binary"}
    closed = FactorisedProblem(*arguments, expectation=lambda p: p[:, 1].sum())
    assert closed.offers == {"soft_reward", "fixed_reward", "independent", "binary", "exact"}
    with pytest.raises(NotImplementedError, match="enumerated"):
        closed.support()


def test_a_closed_form_serves_where_outcomes_are_too_many():
    table = torch.zeros(100, 2, dtype=torch.float64, requires_grad=True)
    problem = FactorisedProblem(
        table, lambda table: table, lambda y: y[..., 1].sum(-1), expectation=lambda p: p[:, 1].sum()
    )
    expected = torch.tensor([-0.25, 0.25], dtype=torch.float64).expand(100, 2)
    torch.testing.assert_close(problem.exact_gradient()[0], expected)


def test_features_are_a_constant_and_the_position_without_a_graph(problem):
    features = problem.features(problem.support().unsqueeze(1).expand(-1, 2, -1))
    assert features.shape == (27, 2, 3, problem.feature_size)
    assert features[5, 1].tolist() == [[1, 0], [1, pytest.approx(1 / 3)], [1, pytest.approx(2 / 3)]]
    assert not features.requires_grad


def test_a_part_of_the_contexts_shares_table_and_ledger(problem):
    part = problem.select(torch.tensor([1]))
    assert part.contexts == 1
    assert part.params[0] is problem.params[0]
    part.sample(4, generator("cpu", 0))
    assert problem.ledger.tokens_sampled == 4 * 1 * 3


def test_ledger_counts_draws_that_are_chosen():
    problem = problem_of(ledger=Ledger())
    z = problem.draw(lambda logits: logits.argmax(-1), 4)
    assert z.shape == (4, 2, 3) and problem.ledger == Ledger(tokens_sampled=24, forward_passes=1)


def test_ledger_counts_draws_rewards_and_passes():
    ledger = Ledger()
    problem = problem_of(ledger=ledger)
    z = problem.sample(4, generator("cpu", 0))
    assert ledger == Ledger(tokens_sampled=24, forward_passes=1)
    reward = problem.reward(z)
    assert ledger == Ledger(tokens_sampled=24, forward_passes=1, reward_calls=8)
    problem.grad((reward * problem.log_prob(z).sum(-1)).mean())
    assert ledger == Ledger(tokens_sampled=24, forward_passes=2, reward_calls=8, backward_passes=1)
    problem.soft_reward(problem.rollout(lambda logits: logits.softmax(-1), 2))
    assert ledger == Ledger(tokens_sampled=36, forward_passes=3, reward_calls=12, backward_passes=1)
