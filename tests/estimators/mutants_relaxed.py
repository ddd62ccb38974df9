"""Mutants of the relaxed paths; those with a wrong Jacobian that breaks no promise are in test_relaxed.py."""

from functools import partial
from typing import ClassVar
from unittest import mock

import torch

from gradebench import Estimate, generator, gumbel, harden, straight_through
from gradebench.core.mixture import Mixture
from gradebench.estimators import relaxed
from gradebench.estimators.relaxed import DecoupledSt, GappedSt, Grade, GradeSte, GumbelRao, ReinMax, StraightThrough

TRUE = {
    "grade": Grade,
    "grade-ste": GradeSte,
    "st": StraightThrough,
    "gumbel-rao": GumbelRao,
    "gapped-st": GappedSt,
    "reinmax": ReinMax,
    "decoupled-st": DecoupledSt,
}
WITHOUT_GRAD_F: dict[str, str] = {}


def one_noise(cls):
    """All positions of a rollout share their Gumbel noise."""

    class Mutant(cls):
        def gradient(self, problem, rng):
            state = rng.get_state()

            def same(like, rng):
                rng.set_state(state)
                return gumbel(like, rng)

            with mock.patch.object(relaxed, "gumbel", same):
                return super().gradient(problem, rng)

    return Mutant


def no_noise(cls):
    """Tokens are the likeliest ones."""

    class Mutant(cls):
        def gradient(self, problem, rng):
            gumbel(problem.params[0], rng)
            with mock.patch.object(relaxed, "gumbel", lambda like, rng: 1e-3 * gumbel(like, rng)):
                return super().gradient(problem, rng)

    return Mutant


def wrong_sign(cls):
    """The noise is subtracted: close to right for two categories, wrong for more."""

    class Mutant(cls):
        def gradient(self, problem, rng):
            with mock.patch.object(relaxed, "gumbel", lambda like, rng: -gumbel(like, rng)):
                return super().gradient(problem, rng)

    return Mutant


def no_feedback(cls):
    """The common shortcut: tokens are fed back without a gradient, and relaxed again for the reward alone."""

    class Mutant(cls):
        def gradient(self, problem, rng):
            state = rng.get_state()
            y = problem.rollout(lambda logits: self.relax(logits, rng), self.n).detach()
            rng.set_state(state)
            logits = problem.logits(y)
            again = torch.stack([self.relax(step, rng) for step in logits.unbind(2)], 2)
            return Estimate(problem.grad(problem.soft_reward(again).mean()))

    return Mutant


def detached_half(cls):
    """Every other token is detached inside `relax`."""

    class Mutant(cls):
        def gradient(self, problem, rng):
            self.position = 0
            return super().gradient(problem, rng)

        def relax(self, logits, rng):
            self.position += 1
            y = super().relax(logits, rng)
            return y.detach() if self.position % 2 else y

    return Mutant


class StraightThroughNoisy(StraightThrough):
    """Gumbel noise in the backward pass: that is GRADE-STE, and not exact for linear rewards."""

    def relax(self, logits, rng):
        soft = ((logits + gumbel(logits, rng)) / self.tau).softmax(-1)
        return straight_through(harden(soft), soft)


class ReinMaxWithoutHalf(ReinMax):
    """The term of first order is not taken off: twice the softmax at the middle alone."""

    def relax(self, logits, rng):
        hard = harden(logits + gumbel(logits, rng))
        middle = (logits.softmax(-1) + hard) / 2
        return straight_through(hard, 2 * (logits + (middle.log() - logits).detach()).softmax(-1))


class ReinMaxFirstOrder(ReinMax):
    """The middle is the policy itself: plain straight-through, exact for linear rewards only."""

    unbiased_if: ClassVar = {"quadratic": {"tau": 1.0}}

    def relax(self, logits, rng):
        hard = harden(logits + gumbel(logits, rng))
        return straight_through(hard, logits.softmax(-1))


class ReinMaxMovingMiddle(ReinMax):
    """The averaged probabilities are differentiated where they should be held: a detach too few."""

    def relax(self, logits, rng):
        hard = harden(logits + gumbel(logits, rng))
        middle = (logits.softmax(-1) + hard) / 2
        return straight_through(hard, 2 * middle.log().softmax(-1) - logits.softmax(-1) / 2)


class DecoupledWarm(DecoupledSt):
    """Tokens are drawn at the backward temperature too."""

    def __init__(self, tau_forward=1.0, tau_backward=2.0):
        super().__init__(tau_backward, tau_backward)


class GradeSaysHard(Grade):
    """Soft tokens that are called one-hots: right where rollouts are differentiated plainly, and wrong in training."""

    hard = True


class GradeSteOwnNoise(GradeSte):
    """Noise from a generator that the rollout knows nothing of: wrong where relax is called a second time, in parallel."""

    def gradient(self, problem, rng):
        self.noise = generator(rng.device, int(torch.randint(2**62, (), generator=rng)))
        return super().gradient(problem, rng)

    def relax(self, logits, rng):
        return super().relax(logits, self.noise)


class GradeSteOfTwo(GradeSte):
    """The two likeliest tokens as a mixture; `mixed` makes it wrong."""

    def __init__(self, tau=1.0):
        super().__init__(tau, topk=2)

    def relax(self, logits, rng):
        top, ids = self.mixed(*logits.topk(2, -1))
        soft = ((top + gumbel(top, rng)) / self.tau).softmax(-1)
        return Mixture(ids, straight_through(harden(soft), soft))


class GradeSteOfTwoDetached(GradeSteOfTwo):
    """The logits of the likeliest are taken without their graph."""

    def mixed(self, top, ids):
        return top.detach(), ids


class GradeSteOfTwoSwapped(GradeSteOfTwo):
    """The ids stand in another order than the weights."""

    def mixed(self, top, ids):
        return top, ids.flip(-1)


MUTANTS = {
    "grade, the two likeliest tokens alone": (partial(Grade, topk=2), "law of the draws"),
    "grade-ste, the two likeliest tokens alone": (partial(GradeSte, topk=2), "law of the draws"),
    "grade-ste, mixture without a graph": (GradeSteOfTwoDetached, "pathwise"),
    "grade-ste, mixture in another order": (GradeSteOfTwoSwapped, "law of the draws"),
    "grade, soft tokens called hard": (GradeSaysHard, "pathwise"),
    "grade-ste, noise of a generator of its own": (GradeSteOwnNoise, "pathwise"),
    "st, noise in the backward pass": (StraightThroughNoisy, "unbiased if"),
    "reinmax, first order not taken off": (ReinMaxWithoutHalf, "unbiased if"),
    "reinmax, no second order": (ReinMaxFirstOrder, "unbiased if"),
    "reinmax, middle not held": (ReinMaxMovingMiddle, "unbiased if"),
    "decoupled-st, drawn at the backward temperature": (DecoupledWarm, "law of the draws"),
}
for cls in (Grade, GradeSte, StraightThrough, GumbelRao, GappedSt, ReinMax, DecoupledSt):
    MUTANTS |= {
        f"{cls.__name__}, one noise for all positions": (one_noise(cls), "law of the draws"),
        f"{cls.__name__}, feedback detached": (no_feedback(cls), "pathwise"),
    }
for cls in (Grade, GradeSte, StraightThrough):
    MUTANTS |= {
        f"{cls.__name__}, no noise": (no_noise(cls), "law of the draws"),
        f"{cls.__name__}, wrong sign of the noise": (wrong_sign(cls), "law of the draws"),
        f"{cls.__name__}, every other token detached": (detached_half(cls), "pathwise"),
    }
