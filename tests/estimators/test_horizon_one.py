"""Texts of one token: nothing is read again, so no graph may need the embeddings of what was drawn."""

import pytest
import torch

from gradebench.core.sampling import generator
from gradebench.plugins import registry

BUILT_IN = [name for name, entry in registry.entries("estimators").items() if entry.builtin]


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_estimator_and_what_it_learns_is_differentiated_at_horizon_one(tiny_problem, name):
    estimator = registry.load("estimators", name).factory().train()
    problem = tiny_problem(horizon=1, vocabulary=2 if "binary" in estimator.needs else 5, beta=0.1)
    if estimator.needs - problem.offers:
        problem = tiny_problem(horizon=1, vocabulary=2 if "binary" in estimator.needs else 5)
    assert estimator.needs <= problem.offers
    estimator.init(problem)
    own = [p for p in estimator.parameters() if p.requires_grad]
    for call in range(estimator.period + 1):
        estimate = estimator.gradient(problem, generator("cpu", call))
        assert all(bool(g.isfinite().all()) for g in estimate.grad)
        if own:
            found = torch.autograd.grad(estimate.own_loss, own, allow_unused=True)
            assert any(g is not None and bool(g.isfinite().all()) for g in found)
