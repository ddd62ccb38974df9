"""The KL penalty on a policy that is a table of logits, where KL(p || q) can be written down and differentiated.

One definition serves all: f = r - beta * sum_t KL(p_t || q_t) along the tokens. Its mean is the divergence of the
sequence distributions; its derivative reaches the parameters through the score function and through grad f.
"""

import itertools

import pytest
import torch
from torch import nn

from gradebench import SequenceProblem, score
from gradebench.core.sampling import generator
from gradebench.estimators.control_variate import MuProp, Rebar
from gradebench.estimators.coupled import Carms
from gradebench.estimators.relaxed import (
    DecoupledSt,
    GappedSt,
    Grade,
    GradeSte,
    GumbelRao,
    ReinMax,
    StraightThrough,
)
from gradebench.estimators.score_function import Rloo

V, T, BETA = 3, 3, 0.7


class Tabular(nn.Module):
    """Logits in a table for every prefix; multilinear in relaxed tokens. Prompts have one token, which says nothing."""

    feature_size = 1

    def __init__(self, seed):
        super().__init__()
        rng = torch.Generator().manual_seed(seed)
        shapes = [(V,) * t + (V,) for t in range(T)]
        self.tables = nn.ParameterList(torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes)

    def embed(self, tokens):
        return tokens if tokens.is_floating_point() else nn.functional.one_hot(tokens, V).double()

    def forward(self, embeddings, cache=None, last=None):
        """The cache is the number of tokens read, and the outer product (N, V, ..., V) of those after the prompt."""
        read, outer = cache or (0, embeddings.new_ones(len(embeddings)))
        logits = []
        for token in embeddings.unbind(1):
            if read:
                outer = outer.unsqueeze(-1) * token.view(-1, *[1] * (read - 1), V)
            logits.append(
                outer.flatten(1) @ self.tables[read].flatten(0, -2) if read else self.tables[0].expand(len(token), V)
            )
            read += 1
        logits = torch.stack(logits[-last:] if last else logits, 1)
        return logits, torch.zeros(*logits.shape[:2], 1).double(), (read, outer)

    def reordered(self, cache, rows):
        return cache[0], cache[1][rows]


class Table(nn.Module):
    """A reward for every sequence, multilinear too."""

    differentiable = True

    def __init__(self, values):
        super().__init__()
        self.values = values

    def embed(self, tokens):
        return tokens if tokens.is_floating_point() else nn.functional.one_hot(tokens, V).double()

    def forward(self, embeddings):
        return torch.einsum("na,nb,nc,abc->n", *embeddings[:, 1:].unbind(1), self.values)


class Nothing(Table):
    """No reward at all."""

    def __init__(self):
        super().__init__(None)

    def forward(self, embeddings):
        return embeddings.sum((1, 2)) * 0


def log_probs(policy):
    """log p of all V^T sequences, (V, V, V), straight from the tables."""
    first, second, third = (table.log_softmax(-1) for table in policy.tables)
    return first[:, None, None] + second[:, :, None] + third


@pytest.fixture
def tabular():
    def build(reward=True):
        policy, reference = Tabular(0), Tabular(1).requires_grad_(False)
        rng = torch.Generator().manual_seed(2)
        values = torch.rand(V, V, V, generator=rng, dtype=torch.float64) * reward
        prompts = torch.zeros(1, 1, dtype=torch.int64)
        return SequenceProblem(policy, Table(values), prompts, T, V, reference, BETA)

    return build


def kl(problem, reverse=False):
    """KL(p || q) of the sequence distributions in nats, or KL(q || p)."""
    p, q = log_probs(problem.policy), log_probs(problem.reference)
    return (q.exp() * (q - p)).sum() if reverse else (p.exp() * (p - q)).sum()


def gradient_of(value, problem):
    return torch.cat([g.flatten() for g in torch.autograd.grad(value, problem.params)])


def mean_gradient(problem, loss_of):
    """E_z of the gradient of loss_of(z), by listing every z: the samples are draws, their law isn't differentiated."""
    z = problem.support().unsqueeze(1)  # (V^T, 1, T)
    p = problem.log_prob(z).sum(-1).exp().detach()  # (V^T, 1)
    return gradient_of((p * loss_of(z)).sum(), problem)


def log_ratio(problem, z):
    """log p(z) - log q(z), (n, 1)."""
    return log_probs(problem.policy)[z.unbind(-1)] - log_probs(problem.reference)[z.unbind(-1)]


def test_the_objective_is_the_reward_less_beta_times_the_divergence_of_the_sequences(tabular):
    problem = tabular()
    objective = (log_probs(problem.policy).exp() * problem.reward_model.values).sum() - BETA * kl(problem)
    expected = gradient_of(objective, problem)
    exact = torch.cat([g.flatten() for g in problem.exact_gradient()])
    torch.testing.assert_close(exact, expected, rtol=1e-10, atol=1e-12)


def test_the_score_function_carries_the_penalty_by_both_of_its_terms(tabular):
    problem = tabular(reward=False)
    expected = gradient_of(-BETA * kl(problem), problem)

    def penalised(z):
        f = problem.reward(z)
        return f.detach() * problem.log_prob(z).sum(-1) + f  # what `score` averages

    found = mean_gradient(problem, penalised)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    z = problem.support()[:1].unsqueeze(1)
    assert score(problem, z, problem.reward(z), problem.reward(z)).item() == pytest.approx(penalised(z).item())
    without = mean_gradient(problem, lambda z: problem.reward(z).detach() * problem.log_prob(z).sum(-1))
    assert (without - expected).norm() > 0.05 * expected.norm()  # leaving grad f out is a mistake that can be seen


def test_k1_in_the_loss_has_no_gradient(tabular):
    problem = tabular()
    found = mean_gradient(problem, lambda z: log_ratio(problem, z))
    assert found.norm() < 1e-12
    assert gradient_of(kl(problem), problem).norm() > 1e-2


def test_k3_in_the_loss_follows_the_other_divergence(tabular):
    problem = tabular()
    found = mean_gradient(problem, lambda z: (-log_ratio(problem, z)).exp() - 1 + log_ratio(problem, z))
    torch.testing.assert_close(found, gradient_of(kl(problem, reverse=True), problem), rtol=1e-9, atol=1e-12)
    forward = gradient_of(kl(problem), problem)
    assert (found - forward).norm() > 0.1 * forward.norm()


def test_hard_and_relaxed_tokens_have_one_penalty(tabular):
    problem = tabular()
    z = torch.tensor(list(itertools.product(range(V), repeat=T))).unsqueeze(1)
    hard, soft = problem.reward(z), problem.soft_reward(nn.functional.one_hot(z, V).double())
    torch.testing.assert_close(hard, soft, rtol=1e-12, atol=1e-12)


# Those that know a constant reward for what it is: others have noise of its size.
SCORE_FUNCTION = [Rloo, Carms, Rebar, MuProp]
RELAXED = [Grade, GradeSte, StraightThrough, GumbelRao, GappedSt, ReinMax, DecoupledSt]


@pytest.mark.parametrize("make", SCORE_FUNCTION + RELAXED)
def test_at_one_decision_the_penalty_is_exact_for_all(tabular, make):
    """No token is read by the penalty, so no draw and no relaxation can change its gradient."""
    whole = tabular()
    problem = SequenceProblem(whole.policy, Nothing(), whole.prompts, 1, V, whole.reference, BETA)
    estimator = make()
    estimator.init(problem)
    found = estimator.gradient(problem, generator("cpu", 0)).grad[0]
    p, q = problem.policy.tables[0].log_softmax(-1), problem.reference.tables[0].log_softmax(-1)
    (expected,) = torch.autograd.grad(-BETA * (p.exp() * (p - q)).sum(), problem.policy.tables[0])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
