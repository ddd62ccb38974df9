"""Streaming moments against their definitions, and the probe's metrics on gradients whose truth is known."""

import math

import pytest
import torch

from gradebench.estimator import Estimate, Estimator
from gradebench.probes import Moments, Reference, flatten, gradient_metrics, moments_of, one_estimate
from gradebench.sampling import generator


def streamed(vectors):
    moments = Moments()
    for vector in vectors:
        moments.add(vector)
    return moments


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=generator("cpu", seed), dtype=torch.float64)


# --- moments


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_equal_those_of_the_stacked_vectors(offset):
    vectors = normal(40, 7) + offset
    moments = streamed(vectors)
    assert moments.count == 40
    torch.testing.assert_close(moments.vector, vectors.mean(0))
    assert moments.trace == pytest.approx(vectors.var(0).sum().item(), rel=1e-8)
    expected = vectors.mean(0).square().sum() - vectors.var(0).sum() / 40
    assert moments.norm_squared == pytest.approx(expected.item(), rel=1e-8)


def test_moments_leave_their_input_alone():
    vectors = normal(3, 2)
    before = vectors.clone()
    streamed(vectors)
    assert torch.equal(vectors, before)


def test_one_vector_has_no_variance_and_none_no_mean():
    assert math.isnan(streamed(normal(1, 3)).trace)
    with pytest.raises(ValueError, match="no vector"):
        _ = Moments().vector


def test_norm_squared_is_unbiased():
    """4000 repeats of 5 draws around |mean|^2 = 1: the naive |mean of draws|^2 would exceed 1 by 4/5."""
    center = torch.tensor([0.6, 0.0, 0.8, 0.0], dtype=torch.float64)
    values = torch.tensor([streamed(normal(5, 4, seed=i) + center).norm_squared for i in range(4000)])
    error = values.std() / 4000**0.5
    assert abs(values.mean() - 1) < 3.3 * error  # false alarms 1e-3
    assert 3.3 * error < 0.8 / 5


def test_flatten_is_one_float64_vector_without_a_graph():
    flat = flatten([torch.ones(2, 2, requires_grad=True) * 2, torch.zeros((), dtype=torch.float16)])
    assert flat.tolist() == [2, 2, 2, 2, 0]
    assert flat.dtype == torch.float64
    assert not flat.requires_grad


# --- metrics


def test_metrics_of_estimates_without_noise_are_the_plain_geometry():
    truth = torch.tensor([3.0, 4.0], dtype=torch.float64)
    estimate = torch.tensor([4.0, 3.0], dtype=torch.float64)
    metrics = gradient_metrics(streamed([estimate, estimate]), Reference(truth, 0.0))
    assert metrics == {
        "gradient_variance": 0.0,
        "gradient_variance_relative": 0.0,
        "gradient_snr": pytest.approx(float("nan"), nan_ok=True),
        "gradient_cosine": pytest.approx(24 / 25),
        "gradient_bias_squared": pytest.approx(2.0),
        "gradient_norm_squared": 25.0,
        "gradient_reference_dot": 24.0,
        "gradient_reference_norm_squared": 25.0,
    }


def test_metrics_are_unbiased_when_estimates_and_reference_are_noisy():
    """2000 repeats of 6 draws of variance 3 a coordinate, and a reference of squared error 0.5 a coordinate.

    Undebiased, the squared bias would read 3 too much a repeat and the reference's norm 1.5 too much: 40 and 30 of the
    standard errors that the false-alarm rate of 1e-3 allows 3.3 of.
    """
    truth = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
    bias = torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)
    rows = []
    for i in range(2000):
        draws = truth + bias + 3**0.5 * normal(6, 3, seed=("draws", i))
        reference = Reference(truth + 0.5**0.5 * normal(3, seed=("reference", i)), 1.5)
        rows.append(gradient_metrics(streamed(draws), reference))
    expected = {
        "gradient_variance": 9.0,
        "gradient_bias_squared": 0.5,
        "gradient_norm_squared": 3.5,
        "gradient_reference_dot": 2.5,
        "gradient_reference_norm_squared": 2.0,
    }
    for name, value in expected.items():
        values = torch.tensor([row[name] for row in rows])
        error = float(values.std() / len(rows) ** 0.5)
        assert abs(values.mean() - value) < 3.3 * error, name
        assert 3.3 * error < 0.3, name


def test_ratios_are_nan_where_the_signal_is_below_the_noise():
    metrics = gradient_metrics(streamed([torch.ones(1), -torch.ones(1)]), Reference(torch.ones(1), 0.0))
    assert metrics["gradient_norm_squared"] < 0
    assert math.isnan(metrics["gradient_cosine"])
    assert math.isnan(metrics["gradient_variance_relative"])


# --- draws


class Counting(Estimator):
    """Estimate k of a batch is k everywhere; `reset` starts a batch."""

    period = 3

    def reset(self):
        self.calls = 0

    def gradient(self, problem, rng):
        self.calls += 1
        return Estimate([torch.full_like(p, float(self.calls)) for p in problem.params])


class Noise(Estimator):
    def gradient(self, problem, rng):
        return Estimate([torch.randn(p.shape, generator=rng) * problem.contexts for p in problem.params])


class Undeclared(Estimator):
    def gradient(self, problem, rng):
        return Estimate(problem.grad(problem.soft_reward(problem.rollout(lambda x: x.softmax(-1), 1))))


def test_one_estimate_is_the_mean_over_the_calls_that_share_a_fresh_batch(bernoulli_toy):
    estimator = Counting()
    for _ in range(2):
        assert one_estimate(estimator, bernoulli_toy(), generator("cpu", 0)).unique().tolist() == [2.0]
        assert estimator.calls == 3


def test_one_estimate_guards_the_problem(bernoulli_toy):
    with pytest.raises(PermissionError):
        one_estimate(Undeclared(), bernoulli_toy(), generator("cpu", 0))


def test_every_draw_has_a_problem_and_a_generator_of_its_own(bernoulli_toy):
    draws, seen = 4, []

    def problem_of(draw):
        seen.append(draw)
        return bernoulli_toy(contexts=2)

    moments = moments_of(Noise(), problem_of, draws, lambda draw: generator("cpu", draw))
    assert seen == list(range(draws))
    expected = torch.stack([2 * torch.randn(2, 1, 2, generator=generator("cpu", i)).flatten() for i in range(draws)])
    torch.testing.assert_close(moments.vector, expected.double().mean(0))
    assert moments.trace == pytest.approx(expected.double().var(0).sum().item())
