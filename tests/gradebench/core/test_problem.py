"""What every problem inherits: counted derivatives, shifted parameters, and the guard on what wasn't declared."""

import pytest
import torch
from torch import nn

from gradebench.core.estimator import NEEDS, FunctionEstimator, score
from gradebench.core.problem import Ledger, RolloutHints
from gradebench.core.sampling import generator
from gradebench.core.view import Guarded
from gradebench.plugins import registry


@pytest.fixture
def problem(categoricals):
    """Two contexts, three positions, three values, and a reward that multiplies positions."""
    weight = torch.randn(2, 3, 3, generator=generator("cpu", "weight"), dtype=torch.float64, requires_grad=True)
    value = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    return categoricals(weight, lambda y: (y @ value).prod(-1).exp())


# --- grad


def test_grad_is_the_weighted_sum_of_the_gradients_of_each_value(problem):
    z = problem.sample(5, generator("cpu", 0))
    values = problem.log_prob(z).sum(-1)  # (n, B)
    weights = torch.randn(values.shape, generator=generator("cpu", 1), dtype=torch.float64)
    expected = sum(
        w * torch.autograd.grad(v, problem.weight, retain_graph=True)[0]
        for v, w in zip(values.flatten(), weights.flatten(), strict=True)
    )
    torch.testing.assert_close(problem.grad(values, weights)[0], expected)


def test_grad_without_weights_is_of_the_sum(problem):
    z = problem.sample(5, generator("cpu", 0))
    expected = problem.grad(problem.log_prob(z).sum())
    torch.testing.assert_close(problem.grad(problem.log_prob(z)), expected)


def test_grad_is_differentiable_only_when_asked_and_then_also_in_the_weights(problem):
    values = problem.soft_reward(problem.logits(torch.zeros(1, 2, 3, dtype=torch.int64)).softmax(-1))
    weights = torch.ones_like(values, requires_grad=True)
    (plain,) = problem.grad(values.clone(), weights.detach())
    assert not plain.requires_grad
    values = problem.soft_reward(problem.logits(torch.zeros(1, 2, 3, dtype=torch.int64)).softmax(-1))
    (kept,) = problem.grad(values, weights, create_graph=True)
    torch.testing.assert_close(kept, plain)
    by_weight, by_parameter = torch.autograd.grad(kept.square().sum(), [weights, problem.weight])
    assert by_parameter.abs().max() > 0
    (unweighted,) = torch.autograd.grad(problem.soft_reward(problem.weight.softmax(-1)[None]).sum(), problem.weight)
    torch.testing.assert_close(by_weight[0], 2 * unweighted.square().sum((1, 2)))  # each context has its own logits


def test_grad_frees_its_graph_unless_asked_to_keep_it(problem):
    value = problem.log_prob(torch.zeros(1, 2, 3, dtype=torch.int64)).sum()
    problem.grad(value, create_graph=True)
    problem.grad(value)
    with pytest.raises(RuntimeError, match="second time"):
        problem.grad(value)


def test_grad_is_zero_for_parameters_that_were_not_used(problem):
    problem.params = (*problem.params, nn.Parameter(torch.ones(4)))
    used, unused = problem.grad(problem.log_prob(problem.sample(1, generator("cpu", 0))).sum())
    assert used.abs().max() > 0
    assert torch.equal(unused, torch.zeros(4))


def test_grad_of_a_constant_is_zero_and_still_counted(problem):
    gradients = problem.grad(torch.ones(3))
    assert [g.abs().max().item() for g in gradients] == [0.0]
    assert [g.shape for g in gradients] == [p.shape for p in problem.params]
    assert problem.ledger == Ledger(backward_passes=1)


def test_every_differentiation_is_counted_once(problem):
    for _ in range(3):
        problem.grad(problem.log_prob(problem.sample(1, generator("cpu", 0))), create_graph=True)
    assert problem.ledger.backward_passes == 3


def test_a_ledger_that_was_handed_in_is_the_one_that_counts(categoricals):
    ledger = Ledger()
    other = categoricals(torch.zeros(1, 1, 2, requires_grad=True), lambda y: y[..., 0].sum(-1), ledger)
    other.grad(other.log_prob(torch.zeros(1, 1, 1, dtype=torch.int64)))
    assert ledger.backward_passes == 1


# --- exact, names, copies


@pytest.mark.parametrize("at_once", [1, 5, 8192])
def test_the_exact_gradient_sums_over_all_outcomes_whatever_fits_in_a_pass(
    problem, exact_gradient, monkeypatch, at_once
):
    monkeypatch.setattr("gradebench.core.problem.ENUMERATED_AT_ONCE", at_once)
    torch.testing.assert_close(problem.exact_gradient()[0].flatten(), exact_gradient(problem))


def test_what_a_subclass_does_not_know_is_not_offered_and_says_so(problem):
    assert problem.parameter_names == ["0"]
    with pytest.raises(NotImplementedError, match="Categoricals can't be replicated"):
        problem.replicated(2)


# --- log_prob and score


def test_log_prob_is_that_of_the_chosen_values(problem):
    z = problem.sample(4, generator("cpu", 0))
    p = problem.weight.detach().softmax(-1)
    expected = [[[p[b, t, z[i, b, t]].log() for t in range(3)] for b in range(2)] for i in range(4)]
    torch.testing.assert_close(problem.log_prob(z), torch.tensor(expected, dtype=torch.float64))


def test_score_differentiates_log_prob_and_reward_but_not_the_advantage(problem):
    z = problem.sample(4, generator("cpu", 0))
    reward = problem.weight.square().sum((1, 2)).expand(4, -1)  # a reward that depends on the parameters, as a penalty
    advantage = reward * torch.arange(4.0)[:, None]
    found = problem.grad(score(problem, z, reward, advantage))[0]
    by_score = problem.grad((advantage.detach() * problem.log_prob(z).sum(-1)).sum())[0]
    torch.testing.assert_close(found, (by_score + 4 * 2 * problem.weight.detach()) / 8)  # a mean over n and B


# --- shifted


def test_shifted_moves_the_parameters_and_restores_them_bit_by_bit(problem):
    before = problem.weight.detach().clone()
    delta = torch.randn(before.shape, generator=generator("cpu", "delta"), dtype=torch.float64) / 3
    assert not torch.equal(before + delta - delta, before)  # adding and subtracting drifts
    with problem.shifted([delta]):
        assert torch.equal(problem.weight, before + delta)
        assert problem.weight.requires_grad
    assert torch.equal(problem.weight, before)
    assert problem.weight.requires_grad


def test_shifted_restores_after_an_error(problem):
    before = problem.weight.detach().clone()
    with pytest.raises(KeyError), problem.shifted([torch.ones_like(before)]):
        raise KeyError
    assert torch.equal(problem.weight, before)


def test_shifted_refuses_a_delta_of_another_length(problem):
    before = problem.weight.detach().clone()
    with pytest.raises(ValueError), problem.shifted([]):
        pass
    assert torch.equal(problem.weight, before)


# --- the guard

USES = {
    "soft_reward": ("soft_reward", lambda p: p.soft_reward(p.weight.softmax(-1)[None])),
    "rollout": ("soft_reward", lambda p: p.rollout(lambda logits: logits.softmax(-1), 1)),
    "support": ("support", lambda p: p.support()),
    "exact_gradient": ("exact", lambda p: p.exact_gradient()[0]),
}


@pytest.mark.parametrize("method", USES)
def test_a_method_that_was_not_declared_raises(problem, method):
    need, use = USES[method]
    with pytest.raises(PermissionError, match=need):
        use(Guarded(problem, NEEDS - {need}))
    assert use(Guarded(problem, frozenset({need}))).shape == use(problem).shape


def test_what_rollout_is_told_unnamed_counts_and_is_warned_of(tiny_problem):
    problem, rng, seen = tiny_problem(), generator("cpu", 0), []
    problem.relaxed_draws = lambda relax, n, hints: seen.append(hints)
    problem.rollout(None, 1, together=True, rng=rng, hard=True)
    for unnamed in ((True, rng, True), (True, rng)):
        with pytest.warns(DeprecationWarning, match="together="):
            problem.rollout(None, 1, *unnamed, **({} if len(unnamed) == 3 else {"hard": True}))
    assert seen == [RolloutHints(True, rng, True)] * 3


def test_a_problem_that_defines_rollout_itself_serves_as_before(problem):
    class Old(type(problem)):
        def rollout(self, relax, n, together=False, rng=None, hard=False):
            return super().relaxed_draws(relax, n, None)

        def relaxed_draws(self, relax, n, hints):
            raise AssertionError("its own rollout is called")

    found = []
    for one in (problem, Old(problem.weight, problem.of)):
        estimate = registry.resolve("estimators", "grade").create().gradient(one, generator("cpu", 0))
        found.append(estimate.grad[0])
    assert torch.equal(*found)


def test_everything_else_passes_the_guard(problem):
    guarded = Guarded(problem, frozenset())
    z = guarded.sample(2, generator("cpu", 0))
    assert torch.equal(guarded.reward(z), problem.reward(z))
    assert guarded.params is problem.params
    assert guarded.ledger is problem.ledger


def test_a_part_of_a_guarded_problem_is_guarded(tiny_problem):
    part = Guarded(tiny_problem(), frozenset()).select(torch.tensor([1]))
    assert part.contexts == 1
    with pytest.raises(PermissionError):
        part.support()


def test_a_function_may_return_gradients_or_an_estimate(problem):
    def half(problem, rng, scale=0.5):
        return [torch.full_like(p, scale) for p in problem.params]

    estimate = FunctionEstimator(half, {"scale": 2.0}).gradient(problem, generator("cpu", 0))
    assert estimate.grad[0].unique().tolist() == [2.0]
    wrapped = FunctionEstimator(lambda problem, rng: estimate)
    assert wrapped.gradient(problem, generator("cpu", 0)) is estimate
