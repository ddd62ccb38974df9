"""Many copies of a model side by side: each must answer as the model alone would, on its own contexts alone."""

import pytest
import torch
from torch import nn

from gradebench import score
from gradebench.core.sampling import generator, gumbel
from gradebench.estimators.control_variate import Rebar
from gradebench.estimators.relaxed import Grade, GradeSte
from gradebench.estimators.score_function import Reinforce, Rloo
from gradebench.models.replicas import Replicas
from gradebench.problems.factorised import FactorisedProblem
from gradebench.tasks.digits import Decoder, Encoder, LatentProblem

CONTEXTS, COPIES = 6, 3
PROBLEMS = ("factorised", "latent", "sequence")
ESTIMATORS = (Reinforce, Rloo, Grade, GradeSte, Rebar)


def factorised():
    table = torch.randn(3, 3, dtype=torch.float64, generator=generator("cpu", "table")).requires_grad_()
    worth = torch.randn(3, 3, dtype=torch.float64, generator=generator("cpu", "worth"))
    return FactorisedProblem(table, lambda table: 2 * table, lambda y: (y * worth).sum((-1, -2)).pow(3), CONTEXTS)


def latent():
    rng = generator("cpu", "latent")
    encoder, decoder = Encoder(5, 4, 3, 3).double(), Decoder(5, 4, 3, 3).double()
    with torch.no_grad():
        for p in [*encoder.parameters(), *decoder.parameters()]:
            p.copy_(torch.randn(p.shape, generator=rng))
    images = torch.randint(2, (CONTEXTS, 5), generator=rng).double()
    return LatentProblem(encoder, decoder, images, 3, 3)


@pytest.fixture
def build(tiny_problem):
    """A fresh problem of a kind on six contexts, in float64, always with the same parameters."""

    def one(kind):
        if kind == "sequence":
            return tiny_problem(contexts=CONTEXTS, beta=0.3)
        return {"factorised": factorised, "latent": latent}[kind]()

    return one


def scatter(problem):
    """Give every copy parameters of its own."""
    rng = generator("cpu", "scatter")
    for p in problem.params:
        p.data = p.data + 0.3 * torch.randn(p.shape, dtype=p.dtype, generator=rng)
    return problem


def alone(build, kind, many, copy):
    """A plain problem, on all contexts, with the parameters of one copy."""
    problem = build(kind)
    with torch.no_grad():
        for p, q in zip(problem.params, many.params, strict=True):
            p.copy_(q[copy])
    return problem


def relaxed(problem, rng):
    """f (1, B) along a soft rollout."""
    return problem.soft_reward(problem.rollout(lambda logits: (logits + gumbel(logits, rng)).softmax(-1), 1))


def assert_equal(these, those):
    for this, that in zip(these, those, strict=True):
        torch.testing.assert_close(this, that, rtol=1e-9, atol=1e-11)


# --- estimators


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_one_copy_gives_the_plain_estimate(build, kind, estimator):
    plain = estimator().gradient(build(kind), generator("cpu", "noise"))
    single = estimator().gradient(build(kind).replicated(1), generator("cpu", "noise"))
    assert_equal([g.squeeze(0) for g in single.grad], plain.grad)
    assert all(g.shape[0] == 1 for g in single.grad)
    if plain.own_loss is not None:
        torch.testing.assert_close(single.own_loss, plain.own_loss)


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_estimates_of_equal_copies_add_up_to_the_plain_one(build, kind, estimator):
    plain = estimator().eval().gradient(build(kind), generator("cpu", "noise"))
    many = estimator().eval().gradient(build(kind).replicated(COPIES), generator("cpu", "noise"))
    assert_equal([g.sum(0) for g in many.grad], plain.grad)


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_copies_do_not_interact(build, kind, estimator):
    many = scatter(build(kind).replicated(COPIES))
    before = estimator().eval().gradient(many, generator("cpu", "noise")).grad
    for p in many.params:
        moved = p.data.clone()
        moved[1] *= 1.2
        p.data = moved
    after = estimator().eval().gradient(many, generator("cpu", "noise")).grad
    for copy in (0, 2):
        assert_equal([g[copy] for g in after], [g[copy] for g in before])
    assert max(float((a[1] - b[1]).abs().max()) for a, b in zip(after, before, strict=True)) > 1e-4


# --- what they rest on


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_copys_gradient_is_that_of_its_own_contexts_divided_by_the_copies(build, kind):
    many = scatter(build(kind).replicated(COPIES))
    z = torch.randint(3, (4, CONTEXTS, 3), generator=generator("cpu", "z"))
    advantage = torch.randn(4, CONTEXTS, dtype=torch.float64, generator=generator("cpu", "advantage"))
    together = many.grad(score(many, z, many.reward(z), advantage))
    for copy in range(COPIES):
        own = torch.arange(copy, CONTEXTS, COPIES)
        problem = alone(build, kind, many, copy).select(own)
        part = z[:, own].contiguous()
        expected = problem.grad(score(problem, part, problem.reward(part), advantage[:, own]))
        assert_equal([g[copy] * COPIES for g in together], expected)
        assert max(float(g.abs().max()) for g in expected) > 1e-2


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_context_reads_its_own_copy_alone_hard_and_relaxed(build, kind):
    many = scatter(build(kind).replicated(COPIES))
    z = many.sample(1, generator("cpu", "z"))
    for values in (many.log_prob(z).sum(-1), relaxed(many, generator("cpu", "noise"))):
        for context in range(CONTEXTS):
            gradient = torch.autograd.grad(
                values[0, context], many.params, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            norms = sum(g.flatten(1).abs().sum(1) for g in gradient)  # (copies,)
            assert norms.nonzero().flatten().tolist() == [context % COPIES]


@pytest.mark.parametrize("kind", PROBLEMS)
def test_draws_and_values_of_a_copy_are_those_of_a_plain_problem_at_its_parameters(build, kind):
    many = scatter(build(kind).replicated(COPIES))
    z = many.sample(50, generator("cpu", "draws"))
    rows = {
        "reward": many.reward(z),
        "log_prob": many.log_prob(z),
        "features": many.features(z),
        "relaxed": relaxed(many, generator("cpu", "noise")),
    }
    different = 0
    for copy in range(COPIES):
        problem = alone(build, kind, many, copy)
        drawn = problem.sample(50, generator("cpu", "draws"))
        assert torch.equal(z[:, copy::COPIES], drawn[:, copy::COPIES])
        different += int((z != drawn).sum())
        expected = {
            "reward": problem.reward(z),
            "log_prob": problem.log_prob(z),
            "features": problem.features(z),
            "relaxed": relaxed(problem, generator("cpu", "noise")),
        }
        for name, value in rows.items():
            torch.testing.assert_close(
                value[:, copy::COPIES], expected[name][:, copy::COPIES], msg=lambda text, name=name: f"{name}: {text}"
            )
    assert different > 50  # the copies do draw differently


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_replicated_problem_has_the_plain_ones_names_and_offers_and_a_ledger_of_its_own(build, kind):
    plain = build(kind)
    many = plain.replicated(COPIES)
    assert list(many.parameter_names) == list(plain.parameter_names)
    assert len(many.parameter_names) == len(many.params)
    assert [p.shape for p in many.params] == [(COPIES, *p.shape) for p in plain.params]
    assert many.offers == plain.offers
    many.sample(2, generator("cpu", 0))
    assert (many.ledger.tokens_sampled, plain.ledger.tokens_sampled) == (2 * CONTEXTS * 3, 0)


@pytest.mark.parametrize("kind", PROBLEMS)
def test_copies_leave_the_models_parameters_alone(build, kind):
    plain = build(kind)
    before = [p.detach().clone() for p in plain.params]
    many = scatter(plain.replicated(COPIES))
    many.grad(relaxed(many, generator("cpu", "noise")).mean())
    assert all(torch.equal(p, q) for p, q in zip(plain.params, before, strict=True))
    assert all(p.grad is None for p in plain.params)


@pytest.mark.parametrize("kind", ["factorised", "latent"])
def test_a_part_of_replicated_contexts_is_refused(build, kind):
    with pytest.raises(NotImplementedError, match="other copies"):
        build(kind).replicated(COPIES).select(torch.arange(2))


# --- the modules


@pytest.mark.parametrize("layer", [nn.Dropout(0.1), nn.BatchNorm1d(4)])
def test_dropout_and_batch_statistics_are_refused(layer):
    with pytest.raises(NotImplementedError, match="dropout or batch statistics"):
        Replicas(nn.Sequential(nn.Linear(4, 4), layer), 2)


def test_what_is_no_module_is_refused():
    with pytest.raises(NotImplementedError, match="no torch module"):
        Replicas(object(), 2)


def test_frozen_parameters_are_shared_and_not_trained():
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    copies = Replicas(module, 2)
    assert [name for name, _ in copies.named_parameters()] == ["weight"]
    x = torch.randn(4, 3, generator=generator("cpu", "x"))
    torch.testing.assert_close(copies(x), module(x))


def test_a_tree_of_outputs_comes_back_in_the_order_of_the_rows():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, x, cache=None):
            assert cache is None
            return self.scale * x, [(x, x + 1)]

    copies = Replicas(Pair(), 2)
    copies.trained["scale"].data = torch.tensor([1.0, 10.0])
    x = torch.arange(4.0)
    scaled, [(same, more)] = copies(x, None)
    assert scaled.tolist() == [0, 10, 2, 30]
    assert torch.equal(same, x)
    assert torch.equal(more, x + 1)
