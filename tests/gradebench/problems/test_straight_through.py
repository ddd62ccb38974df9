"""Straight-through gradients by three roads: the plain graph, which autograd alone makes, is what the others must equal."""

import functools

import pytest
import torch

from gradebench.core.sampling import generator
from gradebench.estimators.relaxed import GradeSte
from gradebench.measurement.moments import flatten
from gradebench.plugins import registry
from gradebench.problems.sequence import SequenceProblem

HARD = ("grade-ste", "st", "gumbel-rao", "gapped-st", "reinmax", "decoupled-st")


@pytest.fixture
def go(monkeypatch):
    """Sets how straight-through rollouts are differentiated; in parallel, with the series to its end by default."""

    def setting(how, residual=0.0):
        monkeypatch.setattr(SequenceProblem, "straight_through", how)
        monkeypatch.setattr(SequenceProblem, "residual", residual)

    return setting


def hints(rng):
    """What a straight-through estimator tells of its relax."""
    return {"together": True, "rng": rng, "hard": True}


def gradient(problem, name="grade-ste", samples=1):
    estimator = registry.resolve("estimators", name).create()
    estimator.n = samples
    return flatten(estimator.gradient(problem, generator("cpu", "draws")).grad)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("name", HARD)
def test_all_roads_give_one_gradient(tiny_problem, go, name, horizon, beta):
    found = {}
    for how in ("plain", "recorded", "parallel"):
        go(how)
        found[how] = gradient(tiny_problem(horizon=horizon, beta=beta), name, samples=3)
    torch.testing.assert_close(found["recorded"], found["plain"], rtol=0, atol=1e-10)
    torch.testing.assert_close(found["parallel"], found["plain"], rtol=0, atol=1e-10)
    assert found["plain"].norm() > 1e-3


def test_without_the_feedback_the_gradient_is_another_one(tiny_problem, go):
    """A mutant: the shortcut of detaching the tokens fed back, as many implementations do."""
    go("plain")
    whole = gradient(tiny_problem(horizon=5))
    go("parallel")
    problem, rng, estimator = tiny_problem(horizon=5), generator("cpu", "draws"), GradeSte()
    y = problem.rollout(lambda x: estimator.relax(x, rng), 1, **hints(rng))
    problem._feedback = None
    detached = flatten(problem.grad(problem.soft_reward(y).mean()))
    assert (detached - whole).norm() > 1e-3 * whole.norm()


def test_the_series_stops_at_its_residual(tiny_problem, go):
    """Passes: one for the derivative by the logits, one a term of the feedback, and the last."""
    go("plain")
    whole, passes, errors = gradient(tiny_problem(horizon=8)), {}, {}
    for residual in (0.0, 1e-4, 1e-2):
        go("parallel", residual)
        problem = tiny_problem(horizon=8)
        errors[residual] = float((gradient(problem) - whole).norm() / whole.norm())
        passes[residual] = problem.ledger.backward_passes
    assert passes[0.0] == 2 + 7  # tokens 1 to 7 are read: from the last logits a derivative can go back seven times
    assert passes[1e-2] < passes[1e-4] <= passes[0.0]
    assert errors[0.0] < 1e-12
    assert errors[1e-4] < 1e-3
    assert 1e-12 < errors[1e-2] < 1e-1


def test_the_tokens_are_those_of_the_sequential_rollout(tiny_problem, go):
    drawn, states = {}, {}
    for how in ("plain", "recorded", "parallel"):
        go(how)
        rng = generator("cpu", 0)
        drawn[how] = tiny_problem().rollout(functools.partial(GradeSte().relax, rng=rng), 5, **hints(rng))
        states[how] = rng.get_state()
    for how in ("recorded", "parallel"):
        assert torch.equal(drawn["plain"], drawn[how])
        assert torch.equal(states["plain"], states[how])


def test_soft_tokens_keep_their_graph(tiny_problem, go):
    """GRADE promises no one-hots, which the parallel road needs."""
    found = {}
    for how in ("plain", "recorded", "parallel"):
        go(how)
        found[how] = gradient(tiny_problem(), "grade")
    torch.testing.assert_close(found["recorded"], found["plain"], rtol=0, atol=1e-12)
    assert torch.equal(found["parallel"], found["plain"])


def test_copies_side_by_side_go_parallel_too(tiny_problem, go):
    found = {}
    for how in ("plain", "recorded", "parallel"):
        go(how)
        problem = tiny_problem(contexts=6, beta=0.3).replicated(3)
        grads = GradeSte().gradient(problem, generator("cpu", "draws")).grad
        found[how] = torch.cat([g.flatten(1) for g in grads], 1)
    torch.testing.assert_close(found["parallel"], found["plain"], rtol=0, atol=1e-10)


def objective(problem):
    rng, estimator = generator("cpu", 0), GradeSte()
    y = problem.rollout(lambda x: estimator.relax(x, rng), 1, **hints(rng))
    return problem.soft_reward(y).mean()


def test_a_second_derivative_is_refused(tiny_problem, go):
    for how in ("parallel", "recorded"):
        go(how)
        problem = tiny_problem()
        with pytest.raises(NotImplementedError, match="twice"):
            problem.grad(objective(problem), create_graph=True)


def test_a_graph_that_serves_one_derivative_refuses_another(tiny_problem, go):
    """Those of the tokens are freed as they are gone through."""
    go("recorded")
    problem = tiny_problem(horizon=5)
    value = objective(problem)
    torch.autograd.grad(value, problem.params, retain_graph=True)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, problem.params)


@pytest.mark.parametrize("how", ["recorded", "parallel"])
def test_the_next_gradient_of_a_problem_owes_nothing_to_the_last_rollout(tiny_problem, go, how):
    go(how)
    problem = tiny_problem()
    gradient(problem)
    z = problem.sample(2, generator("cpu", 1))
    after = flatten(problem.grad(problem.log_prob(z).sum(-1).mean()))
    fresh = tiny_problem()
    torch.testing.assert_close(after, flatten(fresh.grad(fresh.log_prob(z).sum(-1).mean())), rtol=0, atol=1e-14)


def test_a_part_of_the_parameters_can_be_frozen(tiny_problem, go):
    """Weights that aren't trained are used at every step all the same."""
    found = {}
    for how in ("plain", "recorded"):
        go(how)
        problem = tiny_problem(horizon=4)
        for name, p in problem.policy.named_parameters():
            p.requires_grad_("feed_forward" in name or name == "position")
        problem.params = tuple(p for p in problem.policy.parameters() if p.requires_grad)
        found[how] = gradient(problem)
    torch.testing.assert_close(found["recorded"], found["plain"], rtol=0, atol=1e-10)
    assert found["plain"].norm() > 1e-3


def test_derivatives_by_the_tokens_alone(tiny_problem, go):
    found = {}
    for how in ("plain", "recorded"):
        go(how)
        problem, rng, estimator = tiny_problem(horizon=4, beta=0.3), generator("cpu", 0), GradeSte()
        y = problem.rollout(lambda x: estimator.relax(x, rng), 2, **hints(rng))  # noqa: B023 - called at once
        (found[how],) = problem.grad(problem.soft_reward(y).mean(), of=[y])
    torch.testing.assert_close(found["recorded"], found["plain"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["plain", "recorded", "parallel"])
def test_nothing_is_left_of_a_rollout(tiny_problem, go, how, leaves_nothing):
    """Nodes of a graph that refer to what refers to the graph are never freed, nor is what they hold."""
    go(how)
    problem = tiny_problem(horizon=4, beta=0.3)
    leaves_nothing(lambda: gradient(problem))


def test_the_road_by_default(tiny_problem):
    assert tiny_problem().rollout_mode() == "recorded"
    assert tiny_problem(contexts=6).replicated(3).rollout_mode() == "recorded"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert tiny_problem().rollout_mode() == "plain"
