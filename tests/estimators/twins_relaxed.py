"""Wrong twins of the relaxed paths."""

from unittest import mock

import torch

from gradebench import Estimate, gumbel, harden, straight_through
from gradebench.estimators import relaxed
from gradebench.estimators.relaxed import Grade, GradeSte, StraightThrough

TRUE = {
    "grade": Grade,
    "grade-ste": GradeSte,
    "st": StraightThrough,
}
WITHOUT_GRAD_F: dict[str, str] = {}


def one_noise(cls):
    """All positions of a rollout share their Gumbel noise."""

    class Twin(cls):
        def gradient(self, problem, rng):
            state = rng.get_state()

            def same(like, rng):
                rng.set_state(state)
                return gumbel(like, rng)

            with mock.patch.object(relaxed, "gumbel", same):
                return super().gradient(problem, rng)

    return Twin


def no_noise(cls):
    """Tokens are the likeliest ones."""

    class Twin(cls):
        def gradient(self, problem, rng):
            gumbel(problem.params[0], rng)
            with mock.patch.object(relaxed, "gumbel", lambda like, rng: 1e-3 * gumbel(like, rng)):
                return super().gradient(problem, rng)

    return Twin


def wrong_sign(cls):
    """The noise is subtracted: close to right for two categories, wrong for more."""

    class Twin(cls):
        def gradient(self, problem, rng):
            with mock.patch.object(relaxed, "gumbel", lambda like, rng: -gumbel(like, rng)):
                return super().gradient(problem, rng)

    return Twin


def no_feedback(cls):
    """The common shortcut: tokens are fed back without a gradient, and relaxed again for the reward alone."""

    class Twin(cls):
        def gradient(self, problem, rng):
            state = rng.get_state()
            y = problem.rollout(lambda logits: self.relax(logits, rng), self.n).detach()
            rng.set_state(state)
            logits = problem.logits(y)
            again = torch.stack([self.relax(step, rng) for step in logits.unbind(2)], 2)
            return Estimate(problem.grad(problem.soft_reward(again).mean()))

    return Twin


def detached_half(cls):
    """Every other token is detached inside `relax`."""

    class Twin(cls):
        def gradient(self, problem, rng):
            self.position = 0
            return super().gradient(problem, rng)

        def relax(self, logits, rng):
            self.position += 1
            y = super().relax(logits, rng)
            return y.detach() if self.position % 2 else y

    return Twin


class StraightThroughNoisy(StraightThrough):
    """Gumbel noise in the backward pass: that is GRADE-STE, and not exact for linear rewards."""

    def relax(self, logits, rng):
        soft = ((logits + gumbel(logits, rng)) / self.tau).softmax(-1)
        return straight_through(harden(soft), soft)


MUTANTS = {
    "st, noise in the backward pass": (StraightThroughNoisy, "unbiased if"),
}
for cls in (Grade, GradeSte, StraightThrough):
    MUTANTS |= {
        f"{cls.__name__}, one noise for all positions": (one_noise(cls), "law of the draws"),
        f"{cls.__name__}, no noise": (no_noise(cls), "law of the draws"),
        f"{cls.__name__}, wrong sign of the noise": (wrong_sign(cls), "law of the draws"),
        f"{cls.__name__}, feedback detached": (no_feedback(cls), "pathwise"),
        f"{cls.__name__}, every other token detached": (detached_half(cls), "pathwise"),
    }
