"""The toys against the numbers of their papers, closed forms written out here, and plain enumeration."""

import pytest
import torch

from gradebench import InputError
from gradebench.core.options import bind
from gradebench.core.sampling import generator
from gradebench.estimators.score_function import Rloo
from gradebench.problems.factorised import FactorisedProblem
from gradebench.tasks.toys import CONTEXTS, BernoulliToy, Polynomial

CPU = torch.device("cpu")


def loaded(task):
    task.prepare(CPU, log=lambda message: None)
    task.load(CPU)
    return task


def small_polynomial(**options):
    """Six bits away from the start, in float64, so that sums over all outcomes are exact to many digits."""
    task = loaded(Polynomial(latents=6, **options))
    task.table = torch.randn(6, 2, dtype=torch.float64, generator=generator("cpu", "table")).requires_grad_()
    task.params = [task.table]
    return task


def gradient_of(task, contexts=1):
    return task.problem("train", torch.arange(contexts)).exact_gradient()[0]


def enumerated_gradient(task):
    """The same problem without its closed form."""
    return FactorisedProblem(task.table, task.logits_of, task.reward_of, 2).exact_gradient()[0]


# --- Bernoulli


@pytest.mark.parametrize(("t", "gradient"), [(0.45, 0.025), (0.499, 5e-4), (0.5, 0.0), (1.0, -0.25)])
def test_the_gradient_of_one_bit_at_one_half_is_the_known_one(t, gradient):
    assert float(gradient_of(loaded(BernoulliToy(t=t)))) == pytest.approx(gradient, rel=1e-12, abs=1e-16)


@pytest.mark.parametrize("theta", [0.5, 0.2, 0.9])
@pytest.mark.parametrize(("targets", "slope"), [("one", 1 - 2 * 0.45), ("three", (1 - 1.2) + (1 - 1.02) + (1 - 0.96))])
def test_the_bernoulli_gradient_is_its_closed_form(targets, slope, theta):
    task = loaded(BernoulliToy(targets, theta=theta))
    assert float(gradient_of(task, contexts=3)) == pytest.approx(theta * (1 - theta) * slope, rel=1e-12)
    assert float(enumerated_gradient(task)) == pytest.approx(theta * (1 - theta) * slope, rel=1e-12)


def test_three_bits_share_one_logit():
    task = loaded(BernoulliToy("three", theta=0.3))
    assert task.table.shape == ()
    problem = task.problem("train", torch.arange(2))
    assert (problem.horizon, problem.categories) == (3, 2)
    p = problem.logits(torch.zeros(1, 2, 3, dtype=torch.int64)).softmax(-1)
    torch.testing.assert_close(p, p.new_tensor([0.7, 0.3]).expand(1, 2, 3, 2))


def test_the_reward_of_three_bits_is_the_sum_of_their_squared_misses():
    problem = loaded(BernoulliToy("three")).problem("train", torch.arange(1))
    reward = problem.reward(torch.tensor([[[0, 0, 0]], [[1, 0, 1]]]))
    assert reward[0].item() == pytest.approx(0.36 + 0.2601 + 0.2304, rel=1e-12)
    assert reward[1].item() == pytest.approx(0.16 + 0.2601 + 0.2704, rel=1e-12)


def test_rloo_has_its_known_variance_on_the_toy():
    """Of two samples at t = 0.45 and theta = 1/2: 0.1^2 / 16 of each context's estimate, which are independent."""
    problem = loaded(BernoulliToy()).problem("train", torch.arange(100))
    estimates = torch.stack([Rloo(2).gradient(problem, generator("cpu", i)).grad[0] for i in range(400)]) - 0.025
    # mean of two independent parts: 0.05 where both bits differ (half of the draws), else 0
    assert float(estimates.var()) == pytest.approx(0.025**2 / 100, rel=0.4)  # 5.6 standard errors
    assert float(estimates.mean()) == pytest.approx(0, abs=6 * 0.025 / (100 * 400) ** 0.5)


# --- polynomial


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0])
def test_the_polynomial_gradient_is_that_of_its_closed_form_and_of_the_enumeration(p):
    task = small_polynomial(p=p, t=0.4)
    one = task.table.softmax(-1)[:, 1]
    (expected,) = torch.autograd.grad(-(one * 0.6**p + (1 - one) * 0.4**p).mean(), task.table)
    torch.testing.assert_close(gradient_of(task), expected, rtol=1e-12, atol=1e-16)
    torch.testing.assert_close(enumerated_gradient(task), expected, rtol=1e-12, atol=1e-16)
    assert expected.abs().max() > 1e-3


def test_the_full_polynomial_has_its_exact_gradient_though_it_can_not_be_enumerated():
    task = loaded(Polynomial())
    problem = task.problem("train", torch.arange(64))
    assert "exact" in problem.offers
    assert "support" not in problem.offers
    one = task.table.softmax(-1)[:, 1]
    expected = -one * (1 - one) * (0.55**2 - 0.45**2) / 128  # of the logit of a 1; that of a 0 is its negative
    torch.testing.assert_close(problem.exact_gradient()[0], torch.stack([-expected, expected], -1))


def test_the_polynomial_starts_near_even_and_ascent_reaches_its_optimum():
    task = loaded(Polynomial(latents=8))
    assert task.table.abs().max() <= 0.01
    assert task.evaluate("test", generator("cpu", 0))["reward"] == pytest.approx(-(0.55**2 + 0.45**2) / 2, abs=1e-3)
    optimizer = torch.optim.Adam(task.params, lr=0.5)
    for _ in range(200):
        task.table.grad = -gradient_of(task)
        optimizer.step()
    metrics = task.evaluate("test", generator("cpu", 0))
    assert metrics["reward"] == pytest.approx(-(0.45**2), abs=1e-4)
    assert metrics["reward"] <= -(0.45**2)
    assert metrics["entropy"] < 0.01


# --- both


@pytest.mark.parametrize("make", [BernoulliToy, lambda: BernoulliToy("three", theta=0.3), small_polynomial])
def test_the_evaluated_reward_and_entropy_are_sums_over_all_outcomes_on_any_split(make):
    task = loaded(make()) if make is not small_polynomial else make()
    problem = FactorisedProblem(task.table, task.logits_of, task.reward_of)
    z = problem.support().unsqueeze(1)  # (2^T, 1, T)
    log_p = problem.log_prob(z).sum(-1).detach()
    expected = {
        "reward": float((log_p.exp() * problem.reward(z)).sum()),
        "entropy": float(-(log_p.exp() * log_p).sum()) / problem.horizon,
    }
    for seed, split in enumerate(task.splits):
        assert task.evaluate(split, generator("cpu", seed)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [BernoulliToy, Polynomial])
def test_every_load_starts_at_the_same_parameters_and_leaves_the_global_generator_alone(make):
    before = torch.get_rng_state()
    first, second = loaded(make()), loaded(make())
    assert torch.equal(first.table, second.table)
    assert first.table is not second.table
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("make", [BernoulliToy, Polynomial])
def test_a_problem_has_a_context_for_every_index_and_shares_the_tasks_parameters(make):
    task = loaded(make())
    assert task.sizes == {"train": CONTEXTS, "validation": CONTEXTS, "test": CONTEXTS}
    problem = task.problem("validation", torch.tensor([5, 900, 7]))
    assert problem.contexts == 3
    assert [p is q for p, q in zip(problem.params, task.params, strict=True)] == [True]


def test_the_setting_names_what_makes_a_difference():
    assert loaded(BernoulliToy(t=0.499)).setting == "targets=one t=0.499 theta=0.5"
    assert loaded(BernoulliToy("three", t=0.499)).setting == loaded(BernoulliToy("three")).setting
    assert loaded(Polynomial(p=1.5)).setting == "latents=128 p=1.5 t=0.45"


@pytest.mark.parametrize(
    ("task", "raw"),
    [
        (BernoulliToy, {"theta": "0"}),
        (BernoulliToy, {"t": "1.1"}),
        (BernoulliToy, {"targets": "two"}),
        (Polynomial, {"p": "0.5"}),
        (Polynomial, {"latents": "0"}),
        (Polynomial, {"t": "1"}),
    ],
)
def test_options_out_of_range_are_refused(task, raw):
    with pytest.raises(InputError, match=next(iter(raw))):
        bind(task, raw, "the task")


def test_theta_is_the_probability_of_a_one_at_the_start():
    task = loaded(BernoulliToy(theta=0.2))
    assert task.logits_of(task.table).softmax(-1)[0, 1].item() == pytest.approx(0.2, rel=1e-12)
