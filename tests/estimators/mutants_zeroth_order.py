"""Mutants of evolution strategies; those that only miss a factor break no promise and are in test_zeroth_order.py."""

from contextlib import contextmanager
from unittest import mock

import torch

from gradebench.core.view import View
from gradebench.estimators.zeroth_order import Es

TRUE = {
    "es": Es,
}
WITHOUT_GRAD_F: dict[str, str] = {}  # it never sees f apart from J


class Rewarded(View):
    """A problem whose rewards are changed before the estimator reads them."""

    def __init__(self, problem, change):
        super().__init__(problem)
        self._change = change

    def reward(self, z):
        return self._change(self._problem.reward(z))


class EsClipped(Es):
    """Rewards are clipped, as in games."""

    def gradient(self, problem, rng):
        return super().gradient(Rewarded(problem, lambda reward: reward.clamp(-0.5, 0.5)), rng)


class Drifting(View):
    """A problem whose `shifted` takes the perturbation back by subtraction."""

    @contextmanager
    def shifted(self, delta):
        for p, d in zip(self._problem.params, delta, strict=True):
            p.add_(d)
        yield
        for p, d in zip(self._problem.params, delta, strict=True):
            p.sub_(d)


class EsDrifts(Es):
    """Adds and subtracts the perturbation in place: the weights walk away by rounding."""

    def gradient(self, problem, rng):
        return super().gradient(Drifting(problem), rng)


class EsGlobalDirections(Es):
    """Directions come from the global generator."""

    def gradient(self, problem, rng):
        randn = torch.randn
        with mock.patch.object(torch, "randn", lambda *shape, generator=None, **options: randn(*shape, **options)):
            return super().gradient(problem, rng)


class EsOneDirection(Es):
    """A direction that is drawn once and kept."""

    def gradient(self, problem, rng):
        state = rng.get_state()
        rng.manual_seed(0)
        estimate = super().gradient(problem, rng)
        rng.set_state(state)
        return estimate


MUTANTS = {
    "es, clipped rewards": (EsClipped, "scale"),
    "es, subtracted instead of restored": (EsDrifts, "leaves the policy alone"),
    "es, global directions": (EsGlobalDirections, "no hidden randomness"),
    "es, one direction for ever": (EsOneDirection, "deterministic given the generator"),
}
