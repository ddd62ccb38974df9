"""Undocumented operations of torch against the same on documented ones, alone and in a whole gradient."""

import inspect

import pytest
import torch

from gradebench.core.sampling import generator
from gradebench.estimators.relaxed import GradeSte
from gradebench.measurement.moments import flatten
from gradebench.models import kernels

NAMES = ("gelu", "gelu_backward", "softmax_backward", "layer_norm", "layer_norm_backward")


def arguments_of(name, dtype):
    rng = generator("cpu", name)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=dtype)

    of_y, x, scale, shift = normal(7, 12), 3 * normal(7, 12), normal(12), normal(12)
    _, mean, inverse = kernels.layer_norm_public(x, scale, shift, 1e-5)
    return {
        "gelu": lambda: (x, torch.empty_like(x)),
        "gelu_backward": lambda: (of_y, x, torch.empty_like(x)),
        "softmax_backward": lambda: (of_y, x.softmax(-1)),
        "layer_norm": lambda: (x, scale, shift, 1e-5),
        "layer_norm_backward": lambda: (of_y, x, mean, inverse, scale, shift, [True, True, True]),
    }[name]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_public_operations_give_what_private_ones_give(name, dtype):
    arguments = arguments_of(name, dtype)
    private, public = (getattr(kernels, f"{name}_{kind}")(*arguments()) for kind in ("private", "public"))
    tolerance = 64 * torch.finfo(dtype).eps
    torch.testing.assert_close(tuple(public), tuple(private), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("_backward")])
def test_public_backwards_are_the_derivatives_that_autograd_finds(name):
    if name == "softmax_backward":
        of_weights, weights = arguments_of(name, torch.float64)()
        scores = weights.log().requires_grad_()
        inputs, output, of_output = (scores,), scores.softmax(-1), of_weights
        found = (kernels.softmax_backward_public(of_weights, weights),)
    elif name == "gelu_backward":
        of_output, x, room = arguments_of(name, torch.float64)()
        inputs = (x.clone().requires_grad_(),)
        output, found = torch.nn.functional.gelu(*inputs), (kernels.gelu_backward_public(of_output, x, room),)
    else:
        of_output, x, mean, inverse, scale, shift, wanted = arguments_of(name, torch.float64)()
        inputs = tuple(part.clone().requires_grad_() for part in (x, scale, shift))
        output = torch.nn.functional.layer_norm(inputs[0], (12,), *inputs[1:], 1e-5)
        found = kernels.layer_norm_backward_public(of_output, x, mean, inverse, scale, shift, wanted)
    expected = torch.autograd.grad(output, inputs, of_output)
    torch.testing.assert_close(tuple(found), expected, rtol=1e-12, atol=1e-12)


def test_gradients_that_are_not_wanted_are_not_computed():
    *given, _ = arguments_of("layer_norm_backward", torch.float64)()
    assert [x is None for x in kernels.layer_norm_backward_public(*given, [False, True, False])] == [True, False, True]


def test_the_public_operation_is_chosen_where_the_private_one_is_missing_or_takes_something_else():
    def public(x):
        return x

    def missing(x):
        return torch.ops.aten.an_operation_that_torch_dropped(x)

    def other(x):
        return torch.ops.aten._softmax_backward_data(x)

    one = torch.ones(1)
    assert kernels.first_that_works(missing, public, one) is public
    assert kernels.first_that_works(other, public, one) is public
    assert kernels.first_that_works(torch.exp, public, one) is torch.exp


def test_the_private_operations_are_in_use_here():
    """With this torch; it fails once a new one has none of them, which is slower but right."""
    assert [getattr(kernels, name) for name in NAMES] == [getattr(kernels, f"{name}_private") for name in NAMES]


@pytest.mark.parametrize("relaxed", [False, True])
def test_a_recorded_gradient_is_the_same_on_public_operations(tiny_problem, monkeypatch, relaxed):
    def gradient():
        problem = tiny_problem(horizon=5, beta=0.3)
        if relaxed:
            return flatten(GradeSte().gradient(problem, generator("cpu", 0)).grad)
        z = problem.sample(3, generator("cpu", 0))
        return flatten(problem.grad(problem.log_prob(z).sum(-1).square().mean() + problem.divergence(z).mean()))

    private, used = gradient(), set()
    for name in NAMES:
        kernel = getattr(kernels, f"{name}_public")
        monkeypatch.setattr(kernels, name, lambda *given, kernel=kernel, name=name: used.add(name) or kernel(*given))
    public = gradient()
    assert used == set(NAMES)
    torch.testing.assert_close(public, private, rtol=1e-10, atol=1e-12)
    assert private.norm() > 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_both_kinds_take_the_same_arguments(name):
    private, public = (inspect.signature(getattr(kernels, f"{name}_{kind}")) for kind in ("private", "public"))
    assert private == public
