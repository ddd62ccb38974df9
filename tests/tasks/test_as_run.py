"""The mistakes of GRADE's published code, each shown by what it does, and nothing of them where nobody asks for one."""

import math
from functools import partial

import pytest
import torch

from gradebench import InputError, generator
from gradebench.core.options import bind, parse_spec
from gradebench.core.sampler import truncated
from gradebench.core.sampling import categorical
from gradebench.core.view import Guarded
from gradebench.estimators.actor_critic import Ppo, generalised_advantage
from gradebench.estimators.relaxed import Grade, GradeSte
from gradebench.estimators.score_function import Reinforce, Rloo
from gradebench.measurement.moments import flatten
from gradebench.tasks import as_run
from gradebench.tasks.as_run import DEVIATIONS, adapted, named
from gradebench.tasks.imdb import Imdb

RELAXED = [Grade, GradeSte]


def estimate(problem, make, *deviations, seed=0):
    torch.manual_seed(0)
    estimator = adapted(make(), frozenset(deviations)).double()
    estimator.init(problem)
    return estimator.gradient(Guarded(problem, estimator.needs), generator("cpu", seed))


def gradient(*arguments, **named):
    return flatten(estimate(*arguments, **named).grad)


def without_penalty(problem):
    problem.beta = 0.0
    return problem


# --- by default, nothing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Grade, GradeSte, Ppo, Reinforce, Rloo])
def test_nothing_deviates_by_default(make):
    estimator = make()
    assert Imdb().adapted(estimator) is estimator
    assert Imdb(preset="paper").adapted(estimator) is estimator
    assert (Imdb(as_run="all").adapted(estimator) is estimator) == (make is Rloo)


def test_an_estimator_of_ones_own_is_left_alone():
    class Mine(Reinforce):
        pass

    estimator = Mine()
    assert adapted(estimator, named("all")) is estimator


def test_the_preset_is_all_of_them_and_no_other_preset_is_any():
    assert Imdb(preset="paper-as-run").deviations == set(DEVIATIONS) == named("all")
    for preset in ("mini", "smollm2", "gpt2", "paper"):
        assert Imdb(preset=preset).deviations == named("none") == set()
        assert "as_run" not in Imdb(preset=preset).options
    mended = Imdb(preset="paper-as-run", as_run="none")
    assert mended.deviations == set() and mended.options["as_run"] == "none"
    for task in (mended, Imdb(as_run="no-kl+whitened")):
        assert Imdb(**task.options).deviations == task.deviations
    options = bind(Imdb, parse_spec("imdb:as_run=no-kl+whitened").options, "task imdb")
    assert Imdb(**options).deviations == {"no-kl", "whitened"}
    with pytest.raises(InputError, match="there is no 'no-KL'; there are none, all, no-kl, ") as refused:
        Imdb(as_run="no-KL+whitened")
    assert "\n" not in str(refused.value)


# --- 1, 2 and 5: grade and grade-ste ----------------------------------------------------------------------------


@pytest.mark.parametrize("make", RELAXED)
def test_without_kl_the_penalty_has_no_weight(tiny_problem, make):
    as_written, as_ran = (gradient(tiny_problem(beta=0.3), make, *names) for names in ((), ("no-kl",)))
    torch.testing.assert_close(as_ran, gradient(without_penalty(tiny_problem(beta=0.3)), make), rtol=0, atol=1e-12)
    assert (as_ran - as_written).norm() > 0.02 * as_written.norm()


@pytest.mark.parametrize("make", [*RELAXED, partial(GradeSte, topk=2)])
def test_the_shifted_kl_of_two_equal_models_is_not_zero(tiny_problem, make):
    """At step 0 the policy is the reference."""
    problem = tiny_problem(beta=0.3)
    problem.reference = problem.policy
    assert problem.divergence(problem.sample(2, generator("cpu", 0))).abs().max() < 1e-14
    shifted = float(estimate(problem, make, "shifted-kl").info["shifted_kl"])
    assert shifted > 0.01
    assert torch.equal(
        gradient(problem, make, "shifted-kl"), gradient(problem, make)
    )  # it is logged, and trains nothing


def test_the_shifted_kl_is_that_of_positions_one_token_apart(tiny_problem):
    problem = tiny_problem(beta=0.3)
    z = problem.sample(1, generator("cpu", 0))
    policy, reference = (
        problem.forward(model, z)[0].log_softmax(-1)[0] for model in (problem.policy, problem.reference)
    )
    terms = [
        (policy[b, t].exp() * (policy[b, t] - reference[b, t + 1])).sum()
        for b in range(4)
        for t in range(problem.horizon - 1)
    ]
    assert float(as_run.shifted_kl(problem, z)) == pytest.approx(float(sum(terms)) / len(terms))


@pytest.mark.parametrize("make", RELAXED)
def test_the_reward_of_the_continuation_alone_has_not_read_the_prompt(tiny_problem, make):
    """Its value doesn't depend on which prompt it is; the gradient is another one, also where a text may end."""
    for changes in ({}, {"end": 2, "pads": torch.tensor([0, 1, 0, 1])}):
        problem = tiny_problem(beta=0.3)
        vars(problem).update(changes)
        alone, y = as_run.without_prompts(problem), torch.rand(1, 4, 3, 3, dtype=torch.float64).softmax(-1)
        y = y[:, :1].expand(-1, 4, -1, -1)
        assert alone.raw_reward(y).std() < 1e-12 < problem.raw_reward(y).std()
        as_written, as_ran = (gradient(problem, make, *names) for names in ((), ("continuation",)))
        assert (as_ran - as_written).norm() > 0.02 * as_written.norm()


def test_the_others_are_rewarded_for_the_whole_text(tiny_problem):
    for make in (Reinforce, Ppo):
        for name in ("no-kl", "shifted-kl", "continuation"):
            assert torch.equal(gradient(tiny_problem(beta=0.3), make, name), gradient(tiny_problem(beta=0.3), make))


# --- 3: ppo -----------------------------------------------------------------------------------------------------


def test_advantages_over_the_batch_take_the_next_text_for_the_next_token():
    value = torch.randn(1, 3, 2, generator=generator("cpu", 0), dtype=torch.float64)
    reward = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64)
    found = as_run.over_the_batch(reward, value, 0.95)
    rewards = torch.stack([torch.zeros(3), reward[0]], -1).double()
    for t in range(2):  # each column is a text of its own to the formula
        tail = 0.0
        for i in (2, 1, 0):
            tail = rewards[i, t] + (value[0, i + 1, t] if i < 2 else 0.0) - value[0, i, t] + 0.95 * tail
            assert float(found[0, i, t]) == pytest.approx(float(tail))


def test_a_text_is_credited_with_the_rewards_of_others_and_not_with_its_own_if_it_ends():
    alive = torch.tensor([[[True, True], [True, False]]])
    value, zeros = torch.zeros(1, 2, 2), torch.zeros(1, 2)
    of_the_second, of_the_first = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    assert as_run.over_the_batch(of_the_second, value, 0.95, alive).tolist() == [
        [[0.0, pytest.approx(0.95)], [0.0, 0.0]]
    ]
    assert as_run.over_the_batch(of_the_first, value, 0.95, alive).tolist() == [[[0.0, 1.0], [0.0, 0.0]]]
    right = generalised_advantage(of_the_second, value, 1.0, alive)
    assert right[0, 0].tolist() == [0.0, 0.0] and right[0, 1, 0] == 1.0
    charged = as_run.over_the_batch(zeros, value, 0.0, None, torch.full((1, 2, 2), 0.5))
    assert (charged == -0.5).all()


def test_ppo_over_the_batch_is_another_gradient_than_ppo(tiny_problem):
    make = partial(Ppo, epochs=1, minibatches=1)
    as_written, as_ran = (gradient(tiny_problem(beta=0.3), make, *names) for names in ((), ("batch-gae",)))
    assert (as_ran - as_written).norm() > 0.1 * as_written.norm()


# --- 4: reinforce -----------------------------------------------------------------------------------------------


def test_two_whitened_advantages_are_the_same_whatever_the_rewards_and_one_is_no_number(tiny_problem):
    problem, seen = tiny_problem(contexts=2), []
    problem.end = 2
    z = problem.sample(1, generator("cpu", 0))
    log_prob = problem.log_prob(z).sum(-1) / problem.alive(z).sum(-1)
    for better in (1.0, 1000.0):
        advantage = torch.tensor([[better, -0.5]], dtype=torch.float64)
        seen.append(as_run.whitened_score(problem, z, advantage, advantage))
    expected = (log_prob * torch.tensor([[0.5**0.5, -(0.5**0.5)]], dtype=torch.float64)).mean()
    torch.testing.assert_close(torch.stack(seen).detach(), expected.detach().expand(2), rtol=0, atol=1e-12)
    one = tiny_problem(contexts=1)
    with pytest.warns(UserWarning, match="degrees of freedom"):
        assert gradient(one, Reinforce, "whitened").isnan().any()
    assert not gradient(one, Reinforce).isnan().any()


def test_whitening_cancels_the_baseline(tiny_problem):
    """After calls that move the average, the gradient is that without one; as written, it isn't."""

    def after_some(make, *deviations):
        problem = tiny_problem(beta=0.3)
        estimator = adapted(make(), frozenset(deviations)).double()
        for seed in range(3):
            found = flatten(estimator.gradient(problem, generator("cpu", seed)).grad)
        return found

    averaged, none = Reinforce, partial(Reinforce, baseline="none")
    torch.testing.assert_close(after_some(averaged, "whitened"), after_some(none, "whitened"), rtol=0, atol=1e-10)
    assert (after_some(averaged) - after_some(none)).norm() > 1e-3


# --- 6 and 8: sampling ------------------------------------------------------------------------------------------


def test_the_truncated_policy_is_that_of_temperature_then_the_likeliest(monkeypatch):
    monkeypatch.setattr(as_run, "TEMPERATURE", 0.5)
    monkeypatch.setattr(as_run, "TOP_K", 4)
    p = torch.tensor([0.05, 0.4, 0.25, 0.1, 0.2], dtype=torch.float64)
    found = truncated(p.log(), as_run.TEMPERATURE, as_run.TOP_K, as_run.TOP_P).softmax(-1)
    squares = torch.tensor(
        [0.0, 0.16, 0.0625, 0.0, 0.04]
    )  # of the four: 0.589, 0.23, 0.147 make 0.96; 0.82 isn't enough
    torch.testing.assert_close(found, (squares / squares.sum()).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("make", [Reinforce, Ppo])
def test_score_functions_weight_draws_of_one_policy_by_the_log_probabilities_of_another(tiny_problem, make):
    """Unlikely tokens are never drawn, and the mean gradient of log p, 0 on-policy, isn't."""
    problem = tiny_problem(5, 3, copies=100)
    z = as_run.Mistaken(problem, frozenset({"off-policy"})).sample(1, generator("cpu", 0))
    on = problem.sample(1, generator("cpu", 0))
    assert problem.log_prob(z).min() > math.log(0.03) > problem.log_prob(on).min()
    scores = [flatten(problem.grad(problem.log_prob(draws).sum(-1).mean())).norm() for draws in (z, on)]
    assert scores[0] > 3 * scores[1]
    changed = gradient(problem, make, "off-policy")
    assert (changed - gradient(problem, make)).norm() > 0.1 * changed.norm()
    assert torch.equal(gradient(problem, GradeSte, "off-policy"), gradient(problem, GradeSte))


def test_evaluations_sample_from_the_truncated_policy(tiny_problem, monkeypatch):
    """On a task whose problem is the tiny one: the sampled texts are likelier than the policy's own."""
    found = {}
    for name in ("none", "truncated-evaluation"):
        task = Imdb(as_run=name)
        task.sizes = {"test": 400}
        monkeypatch.setattr(task, "problem", lambda split, index: tiny_problem(5, 3, copies=100))
        monkeypatch.setattr(task, "gold_rewards", lambda texts: None)
        monkeypatch.setattr(task, "vocabulary", type("Silent", (), {"decode": lambda self, rows: rows})())
        found[name] = task.evaluate("test", generator("cpu", 0))
    problem = tiny_problem(5, 3, copies=100)
    rng = generator("cpu", 0)
    z = problem.draw(
        lambda logits: categorical(truncated(logits, as_run.TEMPERATURE, as_run.TOP_K, as_run.TOP_P), rng), 1
    )
    assert found["truncated-evaluation"]["reward"] == pytest.approx(float(problem.raw_reward(z).mean()))
    assert abs(found["truncated-evaluation"]["reward"] - found["none"]["reward"]) > 1e-3
    assert found["truncated-evaluation"]["distinct_2"] <= found["none"]["distinct_2"]
