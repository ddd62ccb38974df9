"""Relaxations over the likeliest tokens alone: sparse mixtures against plain one-hots, whole rows and no shortcut."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch

from gradebench import generator, gumbel, harden, straight_through
from gradebench.core.mixture import Mixture
from gradebench.core.view import Guarded
from gradebench.estimators.relaxed import Grade, GradeSte
from gradebench.measurement.moments import flatten
from gradebench.problems.factorised import FactorisedProblem
from gradebench.problems.sequence import SequenceProblem

# The tests' folders are no packages to import from.
plain = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "plain.py")))

ESTIMATORS = [Grade, GradeSte]
ROADS = ["plain", "recorded", "parallel"]
TAU, V = 0.7, 5


def dense(estimator, k):
    """The same draws as whole rows (n, B, V): logits below the k-th are minus infinity."""

    class Dense(estimator):
        def relax(self, logits, rng):
            logits = logits.clone()  # because the recorded road goes on to write where they are
            order = logits.argsort(-1, descending=True)[..., :k]
            noise = gumbel(logits[..., :k], rng)
            perturbed = torch.full_like(logits, -torch.inf).scatter(-1, order, logits.gather(-1, order) + noise)
            soft = (perturbed / self.tau).softmax(-1)
            return straight_through(harden(soft), soft) if self.hard else soft

    return Dense(TAU)


def gradient(estimator, problem):
    guarded = Guarded(problem, estimator.needs)
    return flatten(estimator.gradient(guarded, generator("cpu", "draws")).grad)


def changed(problem, **changes):
    for name, value in changes.items():
        setattr(problem, name, value)
    return problem


@pytest.mark.parametrize("ends", [None, 2, (2, 0)], ids=str)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("k", [1, 2, 4])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_equals_that_of_whole_rows_read_one_text_at_a_time(tiny_problem, estimator, k, padded, ends):
    pads = torch.tensor([0, 1, 0, 1]) if padded else None
    problem = changed(tiny_problem(V, beta=0.3), end=ends, pads=pads)
    found, expected = (
        gradient(estimator(TAU, topk=k), problem),
        gradient(dense(estimator, k), plain.PlainProblem(problem)),
    )
    assert (found - expected).norm() <= 1e-9 * expected.norm()
    assert k == 1 or found.norm() > 1e-3


@pytest.mark.parametrize("horizon", [1, 5])
@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradient_equals_that_of_whole_rows_by_every_road(tiny_problem, estimator, road, horizon):
    """Whole rows go the road; mixtures the plain one, whatever is set."""
    way = {"straight_through": road, "residual": 0.0}
    problem = changed(tiny_problem(V, horizon, beta=0.3), **way)
    expected = gradient(dense(estimator, 3), changed(tiny_problem(V, horizon, beta=0.3), **way))
    torch.testing.assert_close(gradient(estimator(TAU, topk=3), problem), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("road", ["auto", *ROADS])
@pytest.mark.parametrize("k", [V, V + 1])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_all_tokens_are_no_topk_bit_for_bit(tiny_problem, estimator, k, road):
    found = [
        gradient(one, changed(tiny_problem(V, beta=0.3), straight_through=road))
        for one in (estimator(TAU, topk=k), estimator(TAU))
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_replicas_and_independent_decisions_get_whole_rows(tiny_problem, estimator):
    """They embed no tokens, or with a table for each copy."""
    problem = tiny_problem(V, contexts=6, beta=0.3)
    found = [
        one.gradient(problem.replicated(3), generator("cpu", "draws")).grad
        for one in (estimator(TAU, topk=2), dense(estimator, 2))
    ]
    torch.testing.assert_close(*(torch.cat([g.flatten(1) for g in one], 1) for one in found), rtol=0, atol=1e-12)
    table = torch.randn(3, V, generator=generator("cpu", 0), dtype=torch.float64, requires_grad=True)
    toy = FactorisedProblem(table, lambda table: table, lambda y: (y.square() * torch.arange(V)).sum((-1, -2)), 4)
    torch.testing.assert_close(
        gradient(estimator(TAU, topk=2), toy), gradient(dense(estimator, 2), toy), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_relaxed_token_is_as_long_as_the_vocabulary(tiny_problem, estimator):
    """Policy, reference and reward are embedded mixtures, by look-ups of their tables."""
    problem, seen = tiny_problem(V, beta=0.3), []
    soft_reward = SequenceProblem.soft_reward
    with (
        mock.patch.object(SequenceProblem, "soft_reward", lambda self, y: seen.append(y) or soft_reward(self, y)),
        mock.patch.object(Mixture, "dense", side_effect=AssertionError),
        mock.patch("gradebench.models.transformer.embed_tokens", wraps=_ids_only),
    ):
        estimator(TAU, topk=2).gradient(problem, generator("cpu", 0))
    assert isinstance(seen[0], Mixture)
    assert seen[0].weights.shape == (1, 4, 3, 2)
    torch.testing.assert_close(seen[0].weights.sum(-1), torch.ones(1, 4, 3, dtype=torch.float64))


def _ids_only(weight, tokens):
    assert not tokens.is_floating_point()
    return torch.nn.functional.embedding(tokens, weight)


def test_tokens_outside_the_likeliest_are_never_drawn_and_the_others_as_the_policy_draws_them(tiny_problem):
    """Chi-square at 1e-4 of the first token of a context, against the policy's probabilities, made to sum to 1."""
    problem = tiny_problem(V, horizon=1, contexts=1, copies=4000)
    estimator = GradeSte(TAU, topk=3)
    y = problem.rollout(lambda logits: estimator.relax(logits, rng), 1, rng=(rng := generator("cpu", 1)), sparse=True)
    counts = y.dense(V).detach().sum((0, 1, 2))
    pi = problem.logits(y.argmax(-1))[0, 0, 0].softmax(-1).detach()
    least = pi.sort(descending=True).values[2]
    pi = torch.where(pi >= least, pi, 0.0)
    expected = 4000 * pi / pi.sum()
    assert torch.equal(counts > 0, pi > 0)
    assert ((counts - expected).square() / expected.clamp_min(1)).sum() < 18.4  # 2 degrees of freedom


# --- mutants ----------------------------------------------------------------------------------------------------


def without(k, **changes):
    """A relax of k tokens that is wrong in one way."""

    class Mutant(GradeSte):
        def relax(self, logits, rng):
            top, ids = logits.topk(k, -1)
            top = top.detach() if changes.get("detached") else top
            soft = ((top + gumbel(top, rng)) / self.tau).softmax(-1)
            ids = ids.flip(-1) if changes.get("flipped") else ids
            if changes.get("whole"):
                soft = soft * logits.softmax(-1).gather(-1, ids).sum(-1, keepdim=True)  # of the whole vocabulary
            return Mixture(ids, straight_through(harden(soft), soft))

    return Mutant(TAU, topk=k)


@pytest.mark.parametrize("mistake", ["detached", "flipped", "whole"])
def test_a_wrong_mixture_would_be_seen(tiny_problem, mistake):
    expected = gradient(dense(GradeSte, 3), tiny_problem(V, beta=0.3))
    found = gradient(without(3, **{mistake: True}), tiny_problem(V, beta=0.3))
    assert (found - expected).norm() > 0.02 * expected.norm()
