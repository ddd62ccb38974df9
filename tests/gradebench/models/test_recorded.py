"""Recorded rollouts: what they give, and every derivative, must be those of the policy's own graph over the tokens."""

import pytest
import torch

from gradebench.core.sampling import categorical, generator
from gradebench.estimators.relaxed import Grade, GradeSte
from gradebench.measurement.moments import flatten
from gradebench.models.recorded import Recording
from gradebench.models.transformer import ScratchPolicy
from gradebench.problems.sequence import SequenceProblem

PADS = torch.tensor([0, 1, 0, 1])


@pytest.fixture
def build(tiny_problem):
    def one(horizon=5, padded=False, end=None, beta=0.3):
        problem = tiny_problem(horizon=horizon, beta=beta)
        problem.pads, problem.end = PADS if padded else None, end
        return problem

    return one


def value_of(problem, z):
    """Something that reads all of a pass: log-probabilities, the penalty, and the features' part of the graph."""
    _, features = problem.pass_over(z).passed()
    return problem.log_prob(z).sum(-1).square().mean() + problem.divergence(z).square().mean() + features.pow(3).mean()


def unrecorded(z):
    """The same tokens, as ones that the problem hasn't drawn: they are read in a pass of their own."""
    return z.clone()


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("n", [1, 3])
def test_replayed_passes_have_the_values_and_the_gradient_of_fresh_ones(build, n, horizon, padded, end):
    problem = build(horizon, padded, end)
    z = problem.sample(n, generator("cpu", 0))
    replayed = value_of(problem, z)
    found = flatten(problem.grad(replayed))
    fresh = value_of(problem, unrecorded(z))
    torch.testing.assert_close(replayed, fresh, rtol=1e-12, atol=1e-12)
    expected = flatten(problem.grad(fresh))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert expected.norm() > 1e-2


def test_what_was_drawn_is_not_read_again(build):
    problem, passes = build(), []
    problem.policy.register_forward_pre_hook(lambda *_: passes.append(1))
    z = problem.sample(3, generator("cpu", 0))
    problem.grad(problem.log_prob(z).sum())
    assert passes == []
    problem.grad(problem.log_prob(z).sum())  # what was kept is gone with the first graph
    assert passes == [1]


@pytest.mark.parametrize("end", [None, 2])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("estimator", [Grade, GradeSte])
def test_relaxed_rollouts_have_the_gradient_of_the_plain_graph(build, monkeypatch, estimator, horizon, padded, end):
    found = []
    for how in ("plain", "recorded"):
        monkeypatch.setattr(SequenceProblem, "straight_through", how)
        one = estimator()
        one.n = 3
        found.append(flatten(one.gradient(build(horizon, padded, end), generator("cpu", 0)).grad))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)
    assert found[0].norm() > 1e-3


@pytest.mark.parametrize("together", [1, 2, 3, 4])
def test_sums_for_earlier_keys_and_values_may_be_made_at_any_time(build, monkeypatch, together):
    whole = flatten(GradeSte().gradient(build(), generator("cpu", 0)).grad)  # once for all four tokens read
    monkeypatch.setattr("gradebench.models.replayed.TOGETHER", together)
    parts = flatten(GradeSte().gradient(build(), generator("cpu", 0)).grad)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)


def test_soft_tokens_are_never_read_in_parallel(build, monkeypatch):
    monkeypatch.setattr(SequenceProblem, "straight_through", "parallel")
    assert build().rollout_mode(hard=False) == "plain"
    assert build().rollout_mode(hard=True) == "parallel"


def test_a_second_derivative_is_that_of_the_plain_graph(build):
    problem = build()
    z = problem.sample(2, generator("cpu", 0))
    found = []
    for tokens in (z, unrecorded(z)):
        scale = torch.ones((), dtype=torch.float64, requires_grad=True)
        before = problem.ledger.forward_passes
        first = problem.grad(scale * value_of(problem, tokens), create_graph=True)
        assert (
            problem.ledger.forward_passes == before + 2
        )  # of policy and reference: the plain graph counts for nothing
        squared = sum(g.square().sum() for g in first)
        found.append(flatten(torch.autograd.grad(squared, [scale, *problem.params])))
    torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)
    assert found[0].norm() > 1


def test_a_part_of_the_parameters_can_be_frozen(build):
    problem = build()
    for name, p in problem.policy.named_parameters():
        p.requires_grad_("feed_forward" in name or name == "position")
    problem.params = tuple(p for p in problem.policy.parameters() if p.requires_grad)
    z = problem.sample(2, generator("cpu", 0))
    found = flatten(problem.grad(problem.log_prob(z).sum()))
    torch.testing.assert_close(found, flatten(problem.grad(problem.log_prob(unrecorded(z)).sum())), rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", [None, Grade, GradeSte])
def test_copies_get_the_gradients_of_their_own_contexts(build, estimator):
    """Recorded once for all copies; batched over copies of the weights where these are their own."""

    def gradients(problem):
        if estimator is not None:
            return estimator().gradient(problem, generator("cpu", 0)).grad
        z = problem.sample(3, generator("cpu", 0))
        return problem.grad(value_of(problem, z))

    recorded, mapped = build().replicated(2), build().replicated(2)
    for p in mapped.params:
        p.data = p.data.clone()  # the same values, but nobody knows
    found, expected = gradients(recorded), gradients(mapped)
    assert mapped.mapped
    assert not recorded.mapped
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert (found[0][0] - found[0][1]).norm() > 1e-3


def test_new_parameters_make_a_recording_stale(build):
    problem = build()
    z = problem.sample(2, generator("cpu", 0))
    with problem.shifted([torch.full_like(p, 0.1) for p in problem.params]):
        moved = problem.log_prob(z)
        torch.testing.assert_close(moved, problem.log_prob(unrecorded(z)), rtol=0, atol=1e-12)
    assert not torch.allclose(moved, problem.log_prob(z))


def test_draws_that_go_on_from_others_are_read_anew(build):
    """Their activations are those of the rows that they were written for."""
    problem, rng, turned = build(), generator("cpu", 0), torch.tensor([[1], [2], [0]]).expand(3, 4)
    z = problem.draw(lambda logits: (categorical(logits, rng), turned), 3)
    torch.testing.assert_close(problem.log_prob(z), problem.log_prob(unrecorded(z)), rtol=0, atol=1e-12)


class Variant(ScratchPolicy):
    """Computes the same, but may not be recorded, for nobody knows."""


@pytest.mark.parametrize("policy", [ScratchPolicy, Variant])
def test_draws_that_go_on_from_others_see_their_past(build, policy):
    """From the second token on all follow the middle one: the logits that they get are those of its text."""
    problem, seen = build(beta=0.0), []
    problem.policy.__class__ = policy
    apart, middle = torch.tensor([[0], [1], [2]]).expand(3, 4), torch.ones(3, 4, dtype=torch.int64)

    def choose(logits):
        seen.append(logits)
        return (apart, apart) if len(seen) == 1 else (logits.argmax(-1)[1:2].expand(3, -1), middle)

    z = problem.draw(choose, 3)
    torch.testing.assert_close(problem.logits(z)[:, :, -1], seen[-1], rtol=0, atol=1e-12)


def test_without_a_graph_nothing_is_kept_but_keys_and_values(build):
    problem = build()
    with torch.no_grad():
        z = problem.sample(2, generator("cpu", 0))
    assert problem.passes.drawn is None
    checkpointed = build()
    checkpointed.rows_at_once = 2
    checkpointed.sample(2, generator("cpu", 0))
    assert checkpointed.passes.drawn is None
    assert torch.equal(z, build().sample(2, generator("cpu", 0)))
    kept, lean = (Recording(problem.policy, problem.prompts, 2, 5, keeps) for keeps in (True, False))
    assert lean.size.rows < kept.size.rows


def test_a_kept_pass_answers_without_a_graph_too(build):
    problem = build()
    z = problem.sample(2, generator("cpu", 0))
    with torch.no_grad():
        logits = problem.logits(z)
    assert not logits.requires_grad
    assert problem.logits(z).requires_grad
    torch.testing.assert_close(logits, problem.logits(unrecorded(z)), rtol=0, atol=1e-12)


def test_nothing_is_left_of_a_draw(build, leaves_nothing):
    """A recording that referred to the graph that it serves would never be freed, nor would one in a circle."""
    problem = build()

    def work():
        z = problem.sample(2, generator("cpu", 0))
        problem.grad(value_of(problem, z))

    leaves_nothing(work)


def test_a_variant_of_the_transformer_is_read_as_it_is(build):
    class Colder(ScratchPolicy):
        def forward(self, *inputs, **options):
            logits, features, cache = super().forward(*inputs, **options)
            return 2 * logits, features, cache

    problem = build()
    problem.policy.__class__ = Colder
    z = problem.sample(2, generator("cpu", 0))
    torch.testing.assert_close(problem.log_prob(z), problem.log_prob(unrecorded(z)), rtol=0, atol=1e-12)
    assert not torch.allclose(problem.log_prob(z), build().log_prob(z))
