"""Relaxed paths against a plain loop with the same noise, and what the wrong twins of it would give."""

import pytest
import torch
from torch.nn import functional

from gradebench import gumbel, harden
from gradebench.estimators.relaxed import Grade, GradeSte
from gradebench.problem import Guarded
from gradebench.sampling import generator

TAU = 0.7
ESTIMATORS = [Grade, GradeSte]


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def by_plain_loop(problem, estimator, seed, detach_feedback=False, noisy=True, reuse=False, penalty=True, soft=None):
    """The gradient, one sequence after another: no cache, no batch, no memo. The flags make the wrong twins."""
    rng = generator("cpu", seed)
    like = torch.empty(1, problem.contexts, problem.categories, dtype=torch.float64)
    noise = torch.stack([gumbel(like, rng) for _ in range(problem.horizon)], 2)[0]  # (B, T, V)
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
            y = ((logits + noisy * noise[b, 0 if reuse else t]) / TAU).softmax(-1)
            if not soft:
                y = functional.one_hot(y.argmax(), problem.categories).double() + y - y.detach()
            text = torch.cat([text, y[None]])
            read = torch.cat([read, (y.detach() if detach_feedback else y)[None]])
        reward = problem.reward_model(problem.reward_model.embed(text[None]))[0]
        total = total + (reward - penalty * problem.beta * reference_kl) / problem.contexts
    return flat(torch.autograd.grad(total, problem.params, allow_unused=True, materialize_grads=True))


def found_by(problem, estimator, seed):
    guarded = Guarded(problem, estimator.needs)
    return flat(estimator(TAU).gradient(guarded, generator("cpu", seed)).grad)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("estimator", ESTIMATORS)
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


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_of_a_constant_reward_is_zero(categoricals, estimator):
    weight = torch.randn(2, 3, 4, generator=generator("cpu", 0), dtype=torch.float64, requires_grad=True)
    constant = categoricals(weight, lambda y: 5.0 * y.sum(-1).mean(-1))  # constant on the simplex
    torch.testing.assert_close(found_by(constant, estimator, 0), torch.zeros(24, dtype=torch.float64))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_costs_a_call_are_those_declared(tiny_problem, estimator):
    problem = tiny_problem()
    estimator().gradient(problem, generator("cpu", 0))
    ledger = problem.ledger
    assert (ledger.reward_calls, ledger.tokens_sampled) == (4, 12)
    assert (ledger.forward_passes, ledger.backward_passes) == (1, 1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_come_without_a_graph_and_leave_the_parameters_alone(tiny_problem, estimator):
    problem = tiny_problem(beta=0.1)
    estimate = estimator().gradient(problem, generator("cpu", 0))
    assert not any(g.requires_grad for g in estimate.grad)
    assert all(p.grad is None for p in problem.params)
