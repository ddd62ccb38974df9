"""Group-relative estimators, exactly: known biases by enumeration, surrogates against plain loops, the queue."""

import itertools
import math

import pytest
import torch

from gradebench import Unsupported
from gradebench.core.sampling import generator
from gradebench.estimators.group_relative import Cispo, Dapo, DrGrpo, Grpo, Gspo, ReinforcePp
from gradebench.estimators.score_function import Rloo

ALL = [Grpo, DrGrpo, Dapo, Gspo, Cispo, ReinforcePp]
NORMALISING = [Grpo, Dapo, Gspo, Cispo, ReinforcePp]


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


def first(estimator, problem):
    return flat(estimator.gradient(problem, generator("cpu", 0)).grad)


def made(kind, **options):
    """An estimator that takes its whole batch at once."""
    return kind(**({"n": 4, "minibatches": 1} | options))


def inside(kind, **options):
    """The same with the penalty inside f, and no constant under the deviation."""
    return made(kind, kl="reward", **({} if kind is DrGrpo else {"eps": 0.0}) | options)


def with_reward(problem, change):
    reward = problem.reward
    problem.reward = lambda z: change(reward(z))
    return problem


# --- biases, by enumeration


class Population(Grpo):
    """A mutant: it divides squares by n."""

    def advantage(self, reward):
        centred = reward - reward.mean(0)
        return centred / reward.std(0, correction=0).clamp_min(1e-9), torch.ones_like(reward)


def length(bernoulli_toy, estimator, theta):
    """E[g] over the true gradient, where a sample of one bit succeeds with probability theta: a sum over outcomes."""
    k = estimator.n
    outcomes = torch.tensor(list(itertools.product([0, 1], repeat=k)))  # (2^k, k)
    problem = bernoulli_toy(0.0, contexts=2**k, theta=theta)  # f = b
    problem.sample = lambda n, rng: outcomes.T.unsqueeze(-1)
    gradient = estimator.gradient(problem, None).grad[0][:, 0, 1] * 2**k  # each context has a logit of its own
    ones = outcomes.sum(1).double()
    return float((theta**ones * (1 - theta) ** (k - ones) * gradient).sum()) / (theta * (1 - theta))


@pytest.mark.parametrize(("theta", "known"), [(0.5, 1.74), (0.1, 2.18), (0.02, 2.41)])
def test_dividing_by_the_group_deviation_lengthens_the_gradient_most_where_success_is_rare(bernoulli_toy, theta, known):
    found = length(bernoulli_toy, Grpo(8, eps=0.0), theta)
    assert found == pytest.approx(known, abs=5e-3)  # its two decimals
    exact = 0.0  # m of 8 succeed: the mean of A (b - theta) is m/8 (1 - m/8) over the deviation
    for m in range(1, 8):
        variance = m / 8 * (1 - m / 8)
        exact += math.comb(8, m) * theta**m * (1 - theta) ** (8 - m) * variance / math.sqrt(variance * 8 / 7)
    assert found == pytest.approx(exact / (theta * (1 - theta)), rel=1e-9)
    assert abs(length(bernoulli_toy, Population(8), theta) - known) > 0.1  # squares over n would give 1.86, 2.33, 2.57


@pytest.mark.parametrize("theta", [0.5, 0.1, 0.02])
def test_the_mean_alone_shortens_it_by_one_over_n_and_leaving_oneself_out_does_not(bernoulli_toy, theta):
    assert length(bernoulli_toy, Grpo(8, std=False), theta) == pytest.approx(0.875, rel=1e-12)
    assert length(bernoulli_toy, DrGrpo(8), theta) == pytest.approx(0.875, rel=1e-12)
    assert length(bernoulli_toy, Rloo(8), theta) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("kind", ALL)
def test_expected_length_is_exact_on_sequences_with_a_penalty_and_without(tiny_problem, exact_gradient, kind, beta):
    n = 1 if kind is ReinforcePp else 2
    estimator = kind(**({"n": n} | kind.unbiased_if["on_policy"]))
    one = tiny_problem(contexts=1, beta=beta)
    joint = torch.cartesian_prod(*[torch.arange(27)] * n).view(-1, n)  # a copy for every joint outcome of n samples
    z = one.support()[joint.T]  # (n, 27^n, 3)
    many = one.select(torch.zeros(len(joint), dtype=torch.int64))
    probability = many.log_prob(z).sum((0, -1)).exp().detach()
    copies = many.replicated(len(joint))
    copies.sample = lambda n, rng: z
    gradient = estimator.gradient(copies, None).grad
    found = torch.cat([torch.einsum("c,c...->...", probability, g).flatten() for g in gradient]) * len(joint)
    torch.testing.assert_close(found, estimator.expected_scale(one) * exact_gradient(one), rtol=1e-9, atol=1e-11)


# --- the first step on a batch


def weighted_scores(problem, z, weights):
    """sum over tokens of weight * grad log p, averaged over draws and contexts, as one vector (d,)."""
    return flat(problem.grad(problem.log_prob(z), weights / (z.shape[0] * z.shape[1])))


@pytest.mark.parametrize("kind", [Grpo, Dapo, Gspo, Cispo])
def test_first_step_is_the_normalised_score_meaned_over_tokens(tiny_problem, kind):
    problem = tiny_problem(beta=0.3)
    z = problem.sample(4, generator("cpu", 0))
    reward = problem.reward(z).detach()
    advantage, of_reward = torch.zeros_like(reward), torch.zeros_like(reward)
    for i, b in itertools.product(range(4), range(4)):
        group = reward[:, b].tolist()
        mean = sum(group) / 4
        deviation = math.sqrt(sum((f - mean) ** 2 for f in group) / 3)
        advantage[i, b] = (group[i] - mean) / deviation / 3  # of three tokens
        of_reward[i, b] = 0.75 / deviation / 3
    expected = weighted_scores(problem, z, advantage.unsqueeze(-1).expand_as(z))
    penalty = flat(problem.grad(problem.reward(z), of_reward / 16))
    torch.testing.assert_close(first(inside(kind), problem), expected + penalty)
    assert penalty.norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_first_step_of_dr_grpo_is_leave_one_out_reinforce_times_a_constant(tiny_problem, beta):
    problem = tiny_problem(beta=beta)
    torch.testing.assert_close(first(DrGrpo(4, kl="reward"), problem), 0.75 * first(Rloo(4), problem))


@pytest.mark.parametrize("n", [1, 3])
def test_first_step_of_reinforce_pp_whitens_over_the_batch(tiny_problem, n):
    problem = tiny_problem(beta=0.3, copies=2)
    z = problem.sample(n, generator("cpu", 0))
    reward = problem.reward(z).detach()
    deviation = reward.repeat(3, 1, 1).std()  # over tokens
    advantage = (reward - reward.mean()) / deviation
    expected = weighted_scores(problem, z, advantage.unsqueeze(-1).expand_as(z) / 3)
    scale = (1 - 1 / reward.numel()) / deviation / 3
    penalty = scale * flat(problem.grad(problem.reward(z).mean()))
    torch.testing.assert_close(first(inside(ReinforcePp, n=n), problem), expected + penalty)


@pytest.mark.parametrize("kind", ALL)
def test_ten_times_the_reward_changes_nothing_but_the_length_of_what_does_not_normalise(tiny_problem, kind):
    once = first(inside(kind), tiny_problem(beta=0.3))
    tenfold = first(inside(kind), with_reward(tiny_problem(beta=0.3), lambda reward: 10 * reward))
    torch.testing.assert_close(tenfold, once if kind in NORMALISING else 10 * once, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_groups_of_equal_rewards_give_nothing(tiny_problem, kind):
    equal = with_reward(tiny_problem(), lambda reward: torch.full_like(reward, 0.1, dtype=torch.float32))
    assert not first(made(kind, n=3), equal).any()  # in float32, a mean of three is off by a rounding error


# --- later steps


def later(tiny_problem, estimator, beta=0.0, horizon=3):
    """A later step: the problem after a move, the batch, its old log-probabilities and rewards, and the gradient."""
    problem = tiny_problem(copies=4, beta=beta, horizon=horizon)
    z = problem.sample(estimator.n, generator("cpu", 0))
    old, reward = problem.log_prob(z).detach(), problem.reward(z).detach()
    estimator.gradient(problem, generator("cpu", 0))
    rng = generator("cpu", "move")
    with torch.no_grad():
        for p in problem.params:
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.1)
    return problem, z, old, reward, flat(estimator.gradient(problem, generator("cpu", "unused")).grad)


def group_advantage(reward, std=True):
    return (reward - reward.mean(0)) / (reward.std(0) if std else 1)


def clipped_weight(ratio, advantage, low, high):
    """Of grad log p in the derivative of min(w A, clip(w) A), and which of its six cases it is."""
    stopped = (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)
    side = "above" if ratio > 1 + high else "below" if ratio < 1 - low else "inside"
    return 0.0 if stopped else ratio * advantage, (advantage > 0, side)


@pytest.mark.parametrize(
    ("estimator", "low", "high", "share"),
    [
        (Grpo(4, 2, clip=0.1, eps=0.0), 0.1, 0.1, 1 / 3),
        (DrGrpo(4, 2, clip=0.1), 0.1, 0.1, 1.0),
        (Dapo(4, 2, 1, 0.1, 0.2, eps=0.0), 0.1, 0.2, 1 / 3),
        (ReinforcePp(4, 2, 1, 0.1, eps=0.0), 0.1, 0.1, 1 / 3),
    ],
)
def test_clipping_stops_a_token_only_where_the_objective_would_leave_the_interval(
    tiny_problem, estimator, low, high, share
):
    problem, z, old, reward, found = later(tiny_problem, estimator)
    ratio = (problem.log_prob(z).detach() - old).exp()
    if isinstance(estimator, ReinforcePp):
        advantage = (reward - reward.mean()) / reward.repeat(3, 1, 1).std()
    else:
        advantage = group_advantage(reward, std=not isinstance(estimator, DrGrpo))
    weights, cases = torch.zeros_like(ratio), set()
    for i, b, t in itertools.product(*map(range, ratio.shape)):
        weights[i, b, t], case = clipped_weight(float(ratio[i, b, t]), float(advantage[i, b]), low, high)
        cases.add(case)
    assert cases == set(itertools.product([False, True], ["above", "below", "inside"]))
    torch.testing.assert_close(found, weighted_scores(problem, z, share * weights))
    unclipped = weighted_scores(problem, z, share * ratio * advantage.unsqueeze(-1))
    ratio_one = weighted_scores(problem, z, share * torch.where(weights == 0, 0, advantage.unsqueeze(-1)))
    for mutant in (unclipped, ratio_one):
        assert (mutant - found).norm() > 0.05 * found.norm()


def test_gspo_clips_whole_sequences_by_the_geometric_mean_of_their_ratios(tiny_problem):
    problem, z, old, reward, found = later(tiny_problem, Gspo(4, 2, 1, 0.05, 0.08, eps=0.0))
    ratio, advantage = (problem.log_prob(z).detach() - old).exp(), group_advantage(reward)
    weights, cases = torch.zeros_like(ratio), set()
    for i, b in itertools.product(*map(range, reward.shape)):
        whole = math.prod(ratio[i, b].tolist()) ** (1 / 3)
        weight, case = clipped_weight(whole, float(advantage[i, b]), 0.05, 0.08)
        weights[i, b] = weight / 3
        cases.add(case)
    assert cases == set(itertools.product([False, True], ["above", "below", "inside"]))
    torch.testing.assert_close(found, weighted_scores(problem, z, weights))


@pytest.mark.parametrize(("low", "floor"), [(0.1, 0.9), (1.0, 0.0), (1e6, 0.0)])
def test_cispo_clips_the_weight_and_keeps_every_token(tiny_problem, low, floor):
    problem, z, old, reward, found = later(tiny_problem, Cispo(4, 2, 1, low, 0.1, eps=0.0))
    ratio, advantage = (problem.log_prob(z).detach() - old).exp(), group_advantage(reward)
    assert ratio.min() < 0.8 and ratio.max() > 1.2
    weights = ratio.clamp(floor, 1.1) * advantage.unsqueeze(-1) / 3
    torch.testing.assert_close(found, weighted_scores(problem, z, weights))
    dropped = torch.where((ratio > 1.1) & (advantage.unsqueeze(-1) > 0), 0, weights)  # what PPO's clip would do
    assert (weighted_scores(problem, z, dropped) - found).norm() > 0.1 * found.norm()


@pytest.mark.parametrize("kind", ALL)
def test_grad_f_counts_by_importance_at_later_steps_with_the_factor_of_the_advantage(tiny_problem, kind):
    _, _, _, _, without = later(lambda **options: blind(tiny_problem(**options)), inside(kind, epochs=2), beta=0.3)
    problem, z, old, reward, found = later(tiny_problem, inside(kind, epochs=2), beta=0.3)
    importance = (problem.log_prob(z).detach() - old).sum(-1).exp()
    scale = {
        DrGrpo: torch.tensor(0.75),
        ReinforcePp: (1 - 1 / 64) / reward.repeat(3, 1, 1).std() / 3,
    }.get(kind, 0.75 / reward.std(0) / 3)
    of_reward = flat(problem.grad(problem.reward(z), scale * importance / importance.numel()))
    torch.testing.assert_close(found, without + of_reward)
    assert of_reward.norm() > 0.1 * without.norm()


def blind(problem):
    """The problem, which hides that f depends on the parameters."""
    problem.offers = problem.offers | {"fixed_reward"}
    return problem


# --- the queue


@pytest.mark.parametrize("kind", ALL)
def test_minibatches_of_the_first_epoch_average_to_the_whole_batch(tiny_problem, kind):
    problem = tiny_problem(copies=2, beta=0.3)
    expected = first(made(kind), problem)
    parts, rng = made(kind, epochs=2, minibatches=4), generator("cpu", 0)
    assert parts.period == 8
    found = []
    for call in range(8):
        assert len(parts.queue) == (-call) % 8
        found.append(flat(parts.gradient(problem, rng).grad))
    torch.testing.assert_close(sum(found[:4]) / 4, expected)
    torch.testing.assert_close(sum(found[4:]) / 4, expected)
    assert min((g - expected).norm() for g in found) > 0.1 * expected.norm()
    assert not torch.equal(found[0], found[4])  # another partition


@pytest.mark.parametrize("kind", ALL)
def test_reset_forgets_the_batch(tiny_problem, kind):
    problem, estimator = tiny_problem(), kind(epochs=2)
    before = first(estimator, problem)
    estimator.reset()
    assert torch.equal(first(estimator, problem), before)


@pytest.mark.parametrize(("minibatches", "passes"), [(1, 1), (2, 2)])
def test_costs_a_batch_are_those_declared(tiny_problem, minibatches, passes):
    problem = tiny_problem(copies=2)
    estimator = made(Grpo, minibatches=minibatches)
    for _ in range(estimator.period):
        estimator.gradient(problem, generator("cpu", 0))
    ledger = problem.ledger
    assert (ledger.reward_calls, ledger.tokens_sampled, ledger.backward_passes) == (32, 96, passes)


def test_on_policy_the_penalty_costs_no_second_reward_call(tiny_problem):
    problem = tiny_problem(beta=0.3)
    first(Grpo(4), problem)
    assert problem.ledger.reward_calls == 16


@pytest.mark.parametrize("kind", ALL)
def test_more_minibatches_than_contexts_are_refused(tiny_problem, kind):
    with pytest.raises(Unsupported, match="minibatches"):
        kind(minibatches=5).init(tiny_problem())
    kind(minibatches=4).init(tiny_problem())


def test_one_sequence_cannot_be_whitened(tiny_problem):
    with pytest.raises(Unsupported, match="two"):
        ReinforcePp(minibatches=1).init(tiny_problem(contexts=1))
    ReinforcePp(minibatches=1, whiten=False).init(tiny_problem(contexts=1))


@pytest.mark.parametrize("kind", [Grpo, Dapo, Gspo, Cispo])
def test_equal_rewards_have_no_advantage_and_no_weight(kind):
    """1 / (0 + epsilon) would put many times grad f on the gradient of such a group."""
    reward = torch.full((4, 3), 0.3, dtype=torch.float64)
    reward[:, 0] = torch.tensor([0.1, 0.2, 0.4, 0.7])
    advantage, scale = kind().advantage(reward)
    assert not advantage[:, 1:].any() and not scale[:, 1:].any()
    assert float(advantage[:, 0].std()) == pytest.approx(1, abs=1e-3) and bool((scale[:, 0] > 1).all())


@pytest.mark.parametrize("kind", [Grpo, Dapo, Gspo, Cispo])
def test_advantages_in_units_of_the_spread_know_no_scale(kind):
    reward = torch.randn(4, 3, dtype=torch.float64, generator=generator("cpu", 0)) * 1e-3
    (one, by), (ten, tenth) = (kind(eps=0.0).advantage(factor * reward) for factor in (1, 10))
    torch.testing.assert_close(ten, one, rtol=1e-12, atol=0)
    torch.testing.assert_close(10 * tenth, by, rtol=1e-12, atol=0)
