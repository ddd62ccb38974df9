"""Builders the tests share: problems small enough to enumerate, in float64, and their exact gradients.

They come as fixtures that return a function, because the tests' folders are no packages to import from.
"""

import gc
import itertools
import os

import pytest
import torch
from hypothesis import settings
from torch import nn

from gradebench import Problem
from gradebench.core.problem import independent_draws
from gradebench.problems.enumerable import random_sequence_problem

os.environ.setdefault("SOURCE_DATE_EPOCH", "1800000000")  # tables say when a cell ended; two runs are to be equal
torch.set_num_threads(1)  # one test process a core; the tensors are tiny
settings.register_profile("short", max_examples=20)  # of each property test that gives no number of its own
settings.load_profile("short")
gc.disable()  # until all is imported, because imports make little garbage and much that stays


def pytest_addoption(parser):
    parser.addoption(
        "--examples", type=int, help="of each property test, in place of 20 or its own number (by hand: 500)"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    gc.freeze()  # libraries and tests stay; they need not be looked through again and again
    gc.enable()


def pytest_collection_modifyitems(config, items):
    if number := config.getoption("--examples"):
        for item in items:
            if own := getattr(item.obj, "_hypothesis_internal_use_settings", None):
                item.obj._hypothesis_internal_use_settings = settings(own, max_examples=number)
    items.sort(key=lambda item: item.get_closest_marker("heavy") is None)  # stable: the others keep their order


class Categoricals(Problem):
    """B contexts of T independent categoricals (no prefix matters) with a reward of our choice: the closed forms.

    weight (B, T, V) holds the logits; `of` maps relaxed one-hots (n, B, T, V) to rewards (n, B).
    """

    offers = frozenset({"soft_reward", "support", "fixed_reward", "independent"})

    def __init__(self, weight, of, ledger=None):
        super().__init__([weight], ledger)
        self.weight, self.of = weight, of
        self.contexts, self.horizon, self.categories = weight.shape
        self.feature_size = 2

    def sample(self, n, rng):
        p = self.weight.detach().softmax(-1).expand(n, -1, -1, -1)
        noise = torch.empty_like(p, memory_format=torch.contiguous_format).exponential_(generator=rng)
        return (p / noise).argmax(-1)

    def draw(self, choose, n):
        return independent_draws(self.weight.detach().expand(n, -1, -1, -1), choose)

    def logits(self, z):
        return self.weight.expand(len(z), -1, -1, -1)

    def reward(self, z):
        return self.of(nn.functional.one_hot(z, self.categories).to(self.weight)).detach()

    def soft_reward(self, y):
        return self.of(y)

    def relaxed_draws(self, relax, n, hints):
        return torch.stack([relax(self.weight[:, t].expand(n, -1, -1)) for t in range(self.horizon)], 2)

    def features(self, z):
        time = torch.arange(self.horizon).to(self.weight)
        return torch.stack([torch.ones_like(time), time], -1).expand(*z.shape, -1)

    def select(self, index):
        raise NotImplementedError("one parameter a context: a part of them is another problem")

    def support(self):
        return torch.tensor(list(itertools.product(range(self.categories), repeat=self.horizon)))


def build_sequence_problem(vocabulary=3, horizon=3, contexts=4, beta=0.0, seed=0, copies=1):
    """A SequenceProblem in float64 on a small causal transformer; enumerable at the default size.

    The reference differs from the policy. `copies` repeats every prompt: the same objective, more samples a call.
    """
    problem = random_sequence_problem(vocabulary, horizon, contexts, beta, seed)
    return problem.select(torch.arange(contexts).repeat(copies))


def enumerate_gradient(problem):
    """grad J, exactly, as one vector (d,): the derivative of sum over all outcomes of p f."""
    z = problem.support().unsqueeze(1).expand(-1, problem.contexts, -1)  # (V^T, B, T)
    objective = (problem.log_prob(z).sum(-1).exp() * problem.reward(z)).sum(0).mean()
    return torch.cat([g.flatten() for g in problem.grad(objective)])


def build_bernoulli_toy(t=0.45, contexts=1, horizon=1, theta=0.5):
    """J = E mean_t (b_t - t)^2 with b_t ~ Bernoulli(theta), its logit the one parameter of each bit."""
    logit = torch.tensor(theta / (1 - theta), dtype=torch.float64).log()
    weight = torch.stack([torch.zeros_like(logit), logit]).expand(contexts, horizon, 2).clone().requires_grad_()
    return Categoricals(weight, lambda y: (y[..., 1] - t).square().mean(-1))


def assert_leaves_nothing(work):
    """Each call of `work` frees all tensors that it made, without the help of the collector of circles."""

    def tensors_after_work():
        work()
        return sum(type(thing) is torch.Tensor for thing in gc.get_objects())

    tensors_after_work()
    gc.collect()
    gc.disable()
    try:
        first = tensors_after_work()
        later = [tensors_after_work() for _ in range(3)]
    finally:
        gc.enable()
    assert later == [first] * 3


@pytest.fixture(scope="session")
def leaves_nothing():
    return assert_leaves_nothing


@pytest.fixture(scope="session")
def tiny_problem():
    return build_sequence_problem


@pytest.fixture(scope="session")
def exact_gradient():
    return enumerate_gradient


@pytest.fixture(scope="session")
def bernoulli_toy():
    return build_bernoulli_toy


@pytest.fixture(scope="session")
def categoricals():
    return Categoricals
