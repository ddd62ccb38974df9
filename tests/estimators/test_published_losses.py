"""The losses as they were published, written out in plain loops: with a penalty, with ends of text, in minibatches."""

import itertools
import math

import pytest
import torch

from gradebench.core.sampling import generator
from gradebench.estimators.actor_critic import Ppo
from gradebench.estimators.group_relative import Cispo, Dapo, DrGrpo, Grpo, Gspo, ReinforcePp, k3

N, BETA, EPS, END = 4, 0.3, 1e-4, 2
KINDS = {
    Grpo: {"clip": 0.1},
    DrGrpo: {"clip": 0.1},
    Dapo: {"clip_low": 0.1, "clip_high": 0.2},
    Gspo: {"clip_low": 0.05, "clip_high": 0.08},
    Cispo: {"clip_high": 0.1},
}


def flat(gradient):
    return torch.cat([g.flatten() for g in gradient])


@pytest.fixture
def problem(tiny_problem):
    """Texts of one to three tokens."""
    problem = tiny_problem(beta=BETA)
    problem.end = END
    return problem


def move(problem):
    rng = generator("cpu", "move")
    with torch.no_grad():
        for p in problem.params:
            p.add_(torch.randn(p.shape, generator=rng, dtype=p.dtype) * 0.1)


def log_probabilities(model, problem, z):
    """(n, B, T, V), without a thought for ends."""
    n = len(z)
    texts = torch.cat([problem.prompts.repeat(n, 1), z.flatten(0, 1)], 1)
    logits = model(model.embed(texts))[0][:, -problem.horizon - 1 : -1]
    return logits.log_softmax(-1).view(*z.shape, -1)


def lengths(z):
    """Tokens of each text, its end included."""
    return [
        [next((t + 1 for t, token in enumerate(row) if token == END), len(row)) for row in rows] for rows in z.tolist()
    ]


class Batch:
    """What a published loss reads: texts, their raw rewards and the probabilities of who drew them."""

    def __init__(self, problem):
        self.z = problem.sample(N, generator("cpu", 0))
        self.length = lengths(self.z)
        self.raw = problem.raw_reward(self.z)
        self.old = log_probabilities(problem.policy, problem, self.z).detach()
        self.reference = log_probabilities(problem.reference, problem, self.z)


def surrogate(kind, w, s, advantage, log_prob):
    """Of one token: its ratio w, that of its sequence s."""
    clip = KINDS[kind]
    low, high = 1 - clip.get("clip", clip.get("clip_low", 1.0)), 1 + clip.get("clip", clip.get("clip_high"))
    if kind is Cispo:
        return min(float(w.detach()), high) * advantage * log_prob
    ratio = s if kind is Gspo else w
    return torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)


def objective(kind, kl, problem, batch):
    """Eq. 3 of GRPO and its like, a token after the other."""
    z, length = batch.z, batch.length
    new = log_probabilities(problem.policy, problem, z)
    tokens = sum(map(sum, length))
    total = 0
    for i, b in itertools.product(range(N), range(z.shape[1])):
        rewards = batch.raw[:, b].tolist()
        mean = sum(rewards) / N
        deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (N - 1))
        advantage = (rewards[i] - mean) / (1 if kind is DrGrpo else deviation + EPS)
        long = length[i][b]
        p, old, q = ([x[i, b, t, z[i, b, t]] for t in range(long)] for x in (new, batch.old, batch.reference))
        s = (sum(a - o for a, o in zip(p, old, strict=True)) / long).exp()
        weight = {DrGrpo: 1.0, Dapo: z[..., 0].numel() / tokens, Cispo: z[..., 0].numel() / tokens}.get(kind, 1 / long)
        for t in range(long):
            if kl == "k3":
                penalty = (q[t] - p[t]).exp() - (q[t] - p[t]) - 1
            else:
                penalty = sum(new[i, b, t, v].exp() * (new[i, b, t, v] - batch.reference[i, b, t, v]) for v in range(3))
            total = total + weight * (surrogate(kind, (p[t] - old[t]).exp(), s, advantage, p[t]) - BETA * penalty)
    return total / z[..., 0].numel()


@pytest.mark.parametrize("kl", ["loss", "k3"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_on_policy_and_off_are_those_of_the_published_loss(problem, kind, kl):
    batch = Batch(problem)
    assert {1, 2, 3} == {long for row in batch.length for long in row}
    estimator = kind(n=N, epochs=2, minibatches=1, kl=kl, **KINDS[kind])
    for _ in range(2):
        found = flat(estimator.gradient(problem, generator("cpu", 0)).grad)
        expected = flat(problem.grad(objective(kind, kl, problem, batch)))
        torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
        other = flat(problem.grad(objective(kind, "k3" if kl == "loss" else "loss", problem, batch)))
        assert (other - expected).norm() > 0.01 * expected.norm()
        move(problem)


class GrpoStdOfPenalised(Grpo):
    """The penalty is in the rewards whose spread divides, and in the advantages, and not beside them."""

    def __init__(self, **options):
        super().__init__(**(options | {"kl": "reward"}))


class GrpoScaledPenalty(Grpo):
    """The penalty beside the surrogate is divided by the group's deviation as well."""

    def penalty(self, part, batch, log_prob):
        return super().penalty(part, batch, log_prob) * batch["scale"]


class GrpoNoPenalty(Grpo):
    """Raw rewards alone."""

    def penalty(self, part, batch, log_prob):
        return torch.zeros_like(log_prob[..., 0])


@pytest.mark.parametrize("wrong", [GrpoStdOfPenalised, GrpoScaledPenalty, GrpoNoPenalty])
def test_a_misplaced_penalty_would_be_seen(problem, wrong):
    batch = Batch(problem)
    expected = flat(problem.grad(objective(Grpo, "loss", problem, batch)))
    found = flat(wrong(n=N).gradient(problem, generator("cpu", 0)).grad)
    assert (found - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_equal_rewards_has_the_gradient_of_its_penalty_alone(problem, kind):
    z = problem.sample(N, generator("cpu", 0))
    alive = problem.alive(z)
    estimator = kind(n=N, minibatches=1)
    weight = estimator.token_weight(alive)
    expected = flat(problem.grad((weight * -BETA * problem.divergence(z).sum(-1)).mean()))
    for constant in (0.1, 0.7):
        problem.raw_reward = lambda z, constant=constant: torch.full(z.shape[:2], constant, dtype=torch.float64)
        found = flat(estimator.gradient(problem, generator("cpu", 0)).grad)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)
    assert expected.norm() > 0


@pytest.mark.parametrize("kind", [Dapo, Cispo])
def test_minibatches_are_meaned_over_the_tokens_of_the_whole_batch(problem, kind):
    whole, parts, rng = kind(n=N, minibatches=1), kind(n=N, minibatches=4), generator("cpu", 0)
    expected = flat(whole.gradient(problem, generator("cpu", 0)).grad)
    found = [flat(parts.gradient(problem, rng).grad) for _ in range(4)]
    torch.testing.assert_close(sum(found) / 4, expected)


def test_k3_has_the_gradient_of_the_other_divergence_unless_it_is_weighted_by_the_ratio():
    """What trainers call the bias correction of k3 is, in the mean, the exact divergence: our `loss`."""
    rng = generator("cpu", 0)
    logits, other = (torch.randn(7, generator=rng, dtype=torch.float64) for _ in range(2))
    log_p, log_q = logits.requires_grad_().log_softmax(-1), other.log_softmax(-1)
    p = log_p.exp().detach()

    def gradient(value):
        return torch.autograd.grad(value.sum(), logits, retain_graph=True)[0]

    weighted = p * (log_p - log_p.detach()).exp() * k3(log_p, log_q)
    torch.testing.assert_close(gradient(weighted), gradient(log_p.exp() * (log_p - log_q)))
    torch.testing.assert_close(gradient(p * k3(log_p, log_q)), gradient(log_q.exp() * (log_q - log_p)))


# --- the penalty charged to tokens


def charged(batch, whiten, value=None, lam=1.0):
    """Advantages (n, B, T) as nested lists: returns from each token on, less values, whitened over all tokens."""
    n, contexts, horizon = batch.z.shape
    found = [[[0.0] * horizon for _ in range(contexts)] for _ in range(n)]
    for i, b in itertools.product(range(n), range(contexts)):
        long = batch.length[i][b]
        reward = [
            -BETA * float(batch.old[i, b, t, k] - batch.reference[i, b, t, k]) for t, k in enumerate(batch.z[i, b])
        ]
        reward[long - 1] += float(batch.raw[i, b])
        v = [0.0 if value is None else float(value[i, b, t]) for t in range(long)] + [0.0]
        for t in range(long):
            steps = range(t, long)
            found[i][b][t] = sum(lam ** (s - t) * (reward[s] + v[s + 1] - v[s]) for s in steps)
    values = [
        found[i][b][t] for i, b in itertools.product(range(n), range(contexts)) for t in range(batch.length[i][b])
    ]
    mean = sum(values) / len(values)
    variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
    return torch.tensor(found, dtype=torch.float64), mean, variance


def scored(problem, batch, advantage, weight):
    """Gradient of the mean over texts of weight * sum over their tokens of A log p."""
    new = log_probabilities(problem.policy, problem, batch.z)
    chosen = new.gather(-1, batch.z.unsqueeze(-1)).squeeze(-1)
    alive = torch.tensor([[[t < long for t in range(3)] for long in row] for row in batch.length])
    return flat(problem.grad((weight.unsqueeze(-1) * advantage * chosen * alive).sum() / alive[..., 0].numel()))


@pytest.mark.parametrize("whiten", [True, False])
def test_reinforce_pp_charges_each_token_with_those_after_it(problem, whiten):
    batch = Batch(problem)
    returns, mean, variance = charged(batch, whiten)
    advantage = (returns - mean) / (math.sqrt(variance) + EPS) if whiten else returns
    weight = 1 / torch.tensor(batch.length, dtype=torch.float64)
    found = flat(ReinforcePp(N, 1, 1, whiten=whiten).gradient(problem, generator("cpu", 0)).grad)
    torch.testing.assert_close(found, scored(problem, batch, advantage, weight), rtol=1e-7, atol=1e-9)
    plain = flat(ReinforcePp(N, 1, 1, whiten=whiten, kl="reward").gradient(problem, generator("cpu", 0)).grad)
    assert (plain - found).norm() > 0.05 * found.norm()


@pytest.mark.parametrize("whiten", [True, False])
def test_ppo_charges_each_token_and_gives_the_reward_to_the_last(problem, whiten):
    estimator = Ppo(1, 1, lam=0.9, whiten=whiten)
    estimator.n = N
    estimator.init(problem)
    with torch.no_grad():
        estimator.value.weight.normal_(generator=generator("cpu", "value"))
    batch = Batch(problem)
    value = estimator.value(problem.features(batch.z)).squeeze(-1)
    advantage, mean, variance = charged(batch, whiten, value, 0.9)
    if whiten:
        advantage = (advantage - mean) / math.sqrt(variance + 1e-8)
    found = flat(estimator.gradient(problem, generator("cpu", 0)).grad)
    weight = torch.ones(batch.z.shape[:2], dtype=torch.float64)
    torch.testing.assert_close(found, scored(problem, batch, advantage, weight), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("kind", "options"), [(Dapo, {"epochs": 2}), (ReinforcePp, {}), (Ppo, {})])
def test_a_penalty_apart_costs_one_reward_call_a_sequence(problem, kind, options):
    estimator = kind(**options)
    estimator.init(problem)
    for _ in range(estimator.period):
        estimator.gradient(problem, generator("cpu", 0))
    assert problem.ledger.reward_calls == estimator.n * problem.contexts
