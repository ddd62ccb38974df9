"""A2C by enumeration; PPO against plain loops: advantages, ratio, clipping, minibatches, what each part may touch."""

import itertools

import pytest
import torch

from gradebench import Unsupported
from gradebench.core.sampling import generator
from gradebench.estimators.actor_critic import A2c, Ppo, generalised_advantage
from gradebench.plugins.plugin_source import read_facts

WIDE = 1e6  # a clip that never binds


def made(problem, *arguments, **options):
    """A PPO on `problem` whose value head is random, not zero: advantages of both signs."""
    return with_random_value(Ppo(*arguments, **options), problem)


def with_random_value(estimator, problem):
    estimator.init(problem)
    rng = generator("cpu", "value")
    with torch.no_grad():
        for p in estimator.value.parameters():
            p.copy_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.3)
    return estimator


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def weighted_scores(problem, z, weights):
    """sum over tokens of weight * grad log p, averaged over draws and contexts, as one vector (d,)."""
    return flat(problem.grad(problem.log_prob(z), weights / (z.shape[0] * z.shape[1])))


def move(problem, size, seed="move"):
    """Another policy, near enough for ratios on both sides of a clip."""
    rng = generator("cpu", seed)
    with torch.no_grad():
        for p in problem.params:
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * size)


# --- A2C


def mean_over_outcomes(one, estimator):
    """E[g] (d,) on a single context: a copy of the parameters for every outcome, weighed by its probability."""
    z = one.support().unsqueeze(0)  # (1, V^T, T)
    many = one.select(torch.zeros(z.shape[1], dtype=torch.int64))
    probability = many.log_prob(z).sum((0, -1)).exp().detach()
    copies = many.replicated(z.shape[1])
    copies.sample = lambda n, rng: z
    gradient = estimator.gradient(copies, None).grad
    return torch.cat([torch.einsum("c,c...->...", probability, g).flatten() for g in gradient]) * z.shape[1]


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_a2c_is_unbiased_over_all_outcomes_for_any_value(tiny_problem, exact_gradient, beta):
    one = tiny_problem(contexts=1, beta=beta)
    truth = exact_gradient(one)
    found = mean_over_outcomes(one, with_random_value(A2c(), one))
    torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
    short = mean_over_outcomes(one, with_random_value(A2c(lam=0.9), one))
    assert (short - truth).norm() > 0.01 * truth.norm()


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_a2c_weighs_each_token_by_its_own_advantage(tiny_problem, lam):
    problem = tiny_problem(beta=0.3, copies=4)
    estimator = with_random_value(A2c(lam), problem)
    z = problem.sample(1, generator("cpu", 0))
    value = estimator.value(problem.features(z)).squeeze(-1).detach()
    reward = problem.reward(z).detach()
    advantage = reward.unsqueeze(-1) - value if lam == 1 else generalised_advantage(reward, value, lam)
    expected = weighted_scores(problem, z, advantage) + flat(problem.grad(problem.reward(z).mean()))
    estimate = estimator.gradient(problem, generator("cpu", 0))
    torch.testing.assert_close(flat(estimate.grad), expected)
    own = list(estimator.value.parameters())
    wanted = (estimator.value(problem.features(z)).squeeze(-1) - (advantage + value)).square().mean()
    for found, g in zip(*(torch.autograd.grad(loss, own) for loss in (estimate.own_loss, wanted)), strict=True):
        torch.testing.assert_close(found, g)
        assert g.abs().max() > 0


def test_a2c_promises_to_be_unbiased_at_lambda_one_alone():
    assert A2c().unbiased and not A2c(lam=0.9).unbiased
    assert read_facts("gradebench.estimators.actor_critic", "A2c").unbiased  # its defaults, as `gradebench list` reads


def test_a2c_starts_as_reinforce_and_costs_one_backward_pass(tiny_problem):
    problem, estimator = tiny_problem(), A2c()
    estimator.init(problem)
    found = flat(estimator.gradient(problem, generator("cpu", 0)).grad)
    ledger = problem.ledger
    assert (ledger.reward_calls, ledger.tokens_sampled, ledger.backward_passes) == (4, 12, 1)
    z = problem.sample(1, generator("cpu", 0))
    torch.testing.assert_close(found, weighted_scores(problem, z, problem.reward(z).unsqueeze(-1).expand_as(z)))


# --- the first step on a batch


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_first_step_with_lambda_one_is_the_score_times_return_minus_value(tiny_problem, beta):
    problem = tiny_problem(beta=beta, copies=4)
    estimator = made(problem, 1, 1, WIDE, lam=1.0, whiten=False, kl="reward")
    z = problem.sample(1, generator("cpu", 0))
    advantage = problem.reward(z).detach()[..., None] - estimator.value(problem.features(z)).squeeze(-1).detach()
    expected = weighted_scores(problem, z, advantage)
    if beta:
        expected = expected + flat(problem.grad(problem.reward(z).mean()))
    torch.testing.assert_close(flat(estimator.gradient(problem, generator("cpu", 0)).grad), expected)
    assert advantage[0, :, 1:].sub(advantage[0, :, :1]).abs().max() > 0.1  # the baseline depends on the position


@pytest.mark.parametrize("minibatches", [2, 4])
def test_minibatches_of_the_first_epoch_average_to_the_whole_batch(tiny_problem, minibatches):
    problem = tiny_problem(copies=2)
    whole, parts = (made(problem, 1, m, WIDE, whiten=False) for m in (1, minibatches))
    expected = flat(whole.gradient(problem, generator("cpu", 0)).grad)
    rng = generator("cpu", 0)
    found = [flat(parts.gradient(problem, rng).grad) for _ in range(minibatches)]
    torch.testing.assert_close(sum(found) / minibatches, expected)
    assert (found[0] - expected).norm() > 0.1 * expected.norm()


# --- later steps


def objective_gradient(problem, z, advantage, old, clip, binds, fixed=False):
    """Token by token: the clipped objective's gradient, as its four cases say."""
    ratio = (problem.log_prob(z).detach() - old).exp()
    weights, cases = torch.zeros_like(ratio), set()
    for place in itertools.product(*map(range, ratio.shape)):
        w, a = float(ratio[place]), float(advantage[place])
        stopped = binds and ((a > 0 and w > 1 + clip) or (a < 0 and w < 1 - clip))
        weights[place] = 0.0 if stopped else (1.0 if fixed else w) * a
        cases.add((a > 0, "above" if w > 1 + clip else "below" if w < 1 - clip else "inside"))
    return weighted_scores(problem, z, weights), cases


def later_step(tiny_problem, clip=0.1, beta=0.0):
    """Problem after a move, and the batch, the old log-probabilities and the advantages from before it."""
    problem = tiny_problem(copies=16, beta=beta)
    estimator = made(problem, 2, 1, clip, whiten=False, kl="reward")
    estimator.gradient(problem, generator("cpu", 0))
    (batch,) = estimator.queue
    z = problem.sample(1, generator("cpu", 0))[:, batch["index"]]
    part = problem.select(batch["index"])
    old = part.log_prob(z).detach()
    value = estimator.value(part.features(z)).squeeze(-1).detach()
    advantage = generalised_advantage(part.reward(z).detach(), value, estimator.lam)
    move(problem, 0.1)
    found = flat(estimator.gradient(problem, generator("cpu", "unused")).grad)
    return part, z, advantage, old, found


def test_clipping_stops_a_token_only_where_the_objective_would_leave_the_interval(tiny_problem):
    part, z, advantage, old, found = later_step(tiny_problem)
    expected, cases = objective_gradient(part, z, advantage, old, 0.1, binds=True)
    assert cases == set(itertools.product([False, True], ["above", "below", "inside"]))
    torch.testing.assert_close(found, expected)


def test_a_wrong_ratio_or_clip_would_be_seen(tiny_problem):
    part, z, advantage, old, found = later_step(tiny_problem)
    unclipped, _ = objective_gradient(part, z, advantage, old, 0.1, binds=False)
    fixed, _ = objective_gradient(part, z, advantage, old, 0.1, binds=True, fixed=True)
    own = part.log_prob(z).detach()  # ratio against the present policy: 1, never clipped
    against_itself, _ = objective_gradient(part, z, advantage, own, 0.1, binds=True)
    for mutant in (unclipped, fixed, against_itself):
        assert (mutant - found).norm() > 0.1 * found.norm()


def test_without_clipping_later_steps_weigh_by_the_ratio_to_the_policy_that_sampled(tiny_problem):
    part, z, advantage, old, found = later_step(tiny_problem, clip=WIDE)
    ratio = (part.log_prob(z).detach() - old).exp()
    torch.testing.assert_close(found, weighted_scores(part, z, ratio * advantage))
    assert ratio.sub(1).abs().max() > 0.2


def test_the_penaltys_own_gradient_counts_by_importance_at_later_steps(tiny_problem):
    part, z, advantage, old, found = later_step(tiny_problem, clip=WIDE, beta=0.3)
    ratio = (part.log_prob(z).detach() - old).exp()
    of_reward = part.grad(part.reward(z), ratio.prod(-1) / part.contexts)
    torch.testing.assert_close(found, weighted_scores(part, z, ratio * advantage) + flat(of_reward))
    assert flat(of_reward).norm() > 0.1 * found.norm()


# --- advantages


@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_advantage_equals_its_double_sum(lam):
    rng = generator("cpu", "gae")
    reward, value = (torch.randn(*shape, generator=rng, dtype=torch.float64) for shape in [(2, 3), (2, 3, 5)])
    found = generalised_advantage(reward, value, lam)
    for i, b, t in itertools.product(range(2), range(3), range(5)):
        v = [*value[i, b].tolist(), 0.0]
        r = [0.0] * 4 + [reward[i, b].item()]
        expected = sum(lam ** (s - t) * (r[s] + v[s + 1] - v[s]) for s in range(t, 5))
        assert found[i, b, t].item() == pytest.approx(expected, abs=1e-12)


def test_advantage_at_the_ends_of_lambda():
    reward, value = torch.tensor([2.0]), torch.tensor([[0.5, 1.0, -1.0]])
    assert generalised_advantage(reward, value, 1.0).tolist() == [[1.5, 1.0, 3.0]]  # return minus value
    assert generalised_advantage(reward, value, 0.0).tolist() == [[0.5, -2.0, 3.0]]  # one step ahead


def test_whitening_gives_a_batch_mean_zero_and_deviation_one(tiny_problem):
    problem = tiny_problem(copies=3)
    estimator = made(problem, 2, 3)
    batches = estimator.rollout(problem, generator("cpu", 0))
    for epoch in (batches[:3], batches[3:]):
        advantage = torch.cat([batch["advantage"] for batch in epoch], 1)
        assert advantage.mean().item() == pytest.approx(0, abs=1e-9)
        assert advantage.std().item() == pytest.approx(1, abs=1e-6)


def test_whitening_ignores_the_scale_of_reward_and_value(tiny_problem):
    def first(scale):
        problem = tiny_problem()
        reward = problem.reward
        problem.reward = lambda z: scale * reward(z)
        estimator = Ppo(1, 1)
        estimator.init(problem)
        return flat(estimator.gradient(problem, generator("cpu", 0)).grad)

    torch.testing.assert_close(first(1.0), first(10.0), rtol=1e-5, atol=1e-8)  # the 1e-8 under the deviation remains


# --- the value head


def test_a_new_value_head_is_zero(tiny_problem):
    problem, estimator = tiny_problem(), Ppo()
    estimator.init(problem)
    assert not any(p.any() for p in estimator.parameters())
    assert {p.dtype for p in estimator.parameters()} == {torch.float64}


def test_value_loss_is_the_squared_error_to_the_lambda_return_and_spares_the_policy(tiny_problem):
    problem = tiny_problem(copies=3)
    estimator = made(problem, 1, 1, whiten=True)
    z = problem.sample(1, generator("cpu", 0))
    estimate = estimator.gradient(problem, generator("cpu", 0))
    value = estimator.value(problem.features(z)).squeeze(-1)
    target = generalised_advantage(problem.reward(z), value, 0.95) + value  # not whitened: in units of the reward
    expected = (value - target.detach()).square().mean()
    torch.testing.assert_close(estimate.own_loss, expected)
    estimate.own_loss.backward()
    assert all(p.grad is None for p in problem.params)
    expected = torch.autograd.grad(expected, list(estimator.value.parameters()))
    for p, g in zip(estimator.value.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g)
        assert g.abs().max() > 0


def test_descending_the_value_loss_fits_the_returns(tiny_problem):
    problem = tiny_problem(copies=32)
    estimator = made(problem, 1, 1, lam=1.0)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=0.05)
    losses = []
    for step in range(100):
        loss = estimator.gradient(problem, generator("cpu", step)).own_loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    z = problem.sample(1, generator("cpu", "fresh"))
    assert sum(losses[-10:]) / 10 < 1.2 * problem.reward(z).var().item() < losses[0]


# --- the queue


def test_a_batch_is_drawn_once_and_every_epoch_covers_all_contexts(tiny_problem):
    problem = tiny_problem(copies=2)
    estimator = made(problem, 3, 4)
    assert estimator.period == 12
    rng = generator("cpu", 0)
    batches = estimator.rollout(problem, generator("cpu", 0))
    orders = [torch.cat([batch["index"] for batch in batches[i : i + 4]]) for i in (0, 4, 8)]
    assert all(order.sort().values.tolist() == list(range(8)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3
    problem.ledger.tokens_sampled = 0
    for call in range(24):
        assert len(estimator.queue) == (-call) % 12
        estimator.gradient(problem, rng)
        assert problem.ledger.tokens_sampled == (24 if call < 12 else 48)


def test_reset_forgets_the_batch(tiny_problem):
    problem = tiny_problem()
    estimator = made(problem, 2, 2)
    first = flat(estimator.gradient(problem, generator("cpu", 0)).grad)
    estimator.reset()
    assert torch.equal(flat(estimator.gradient(problem, generator("cpu", 0)).grad), first)


def test_costs_a_batch_are_those_declared(tiny_problem):
    problem = tiny_problem(copies=2)
    estimator = made(problem, 3, 4)
    for _ in range(estimator.period):
        estimator.gradient(problem, generator("cpu", 0))
    assert (problem.ledger.reward_calls, problem.ledger.tokens_sampled) == (8, 24)
    assert problem.ledger.backward_passes == 12


def test_more_minibatches_than_contexts_are_refused(tiny_problem):
    with pytest.raises(Unsupported, match="minibatches"):
        Ppo(minibatches=5).init(tiny_problem())


def test_a_batch_lasts_for_its_period_when_contexts_do_not_divide_evenly(tiny_problem):
    problem = tiny_problem(contexts=5)
    estimator = made(problem, 2, 4)
    assert len(estimator.rollout(problem, generator("cpu", 0))) == estimator.period
