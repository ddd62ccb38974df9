"""Mutants of the estimators on distinct samples."""

from unittest import mock

import torch

from gradebench.estimators import without_replacement
from gradebench.estimators.without_replacement import UnorderedSet, set_weights

TRUE = {
    "unordered-set": UnorderedSet,
    "unordered-set, two samples": lambda **options: UnorderedSet(n=2),
}
WITHOUT_GRAD_F = {"unordered-set": "unbiased"}


def weighted_by(weights):
    """The estimator with other weights of the set: log p (n, B) to those of `set_weights`."""

    class Mutant(UnorderedSet):
        def gradient(self, problem, rng):
            with mock.patch.object(without_replacement, "set_weights", weights):
                return super().gradient(problem, rng)

    return Mutant


def self_normalised(log_p):
    """Importance weights as if each sequence were drawn as often as it is likely, and the same for the baseline."""
    first = log_p.softmax(0)
    return first, first.expand(len(log_p), -1, -1)


def of_the_whole_domain(log_p):
    """The baseline of s doesn't know that s came first: R of the whole domain."""
    first, _ = set_weights(log_p)
    return first, first.expand(len(log_p), -1, -1)


def of_the_others(log_p):
    """The baseline leaves s out, and what it holds of E f."""
    first, second = set_weights(log_p)
    itself = torch.eye(len(log_p), dtype=torch.bool).unsqueeze(-1)
    return first, (second / (1 - log_p.exp()).unsqueeze(1)).masked_fill(itself, 0)


class WithReplacement(UnorderedSet):
    """Independent samples, repeated ones among them, as if they were distinct."""

    def gradient(self, problem, rng):
        def independent(problem, n, rng):
            return problem.sample(n, rng)

        with mock.patch.object(without_replacement, "distinct_draws", independent):
            return super().gradient(problem, rng)


class OneNoise(UnorderedSet):
    """All positions of the beam search share their noise."""

    def gradient(self, problem, rng):
        state = rng.get_state()

        def same(like, rng):
            rng.set_state(state)
            return torch.empty_like(like).exponential_(generator=rng)

        with mock.patch.object(without_replacement, "exponential", same):
            return super().gradient(problem, rng)


MUTANTS = {
    "unordered-set, samples with replacement": (WithReplacement, "unbiased"),
    "unordered-set, self-normalised weights": (weighted_by(self_normalised), "unbiased"),
    "unordered-set, baseline from the whole domain": (weighted_by(of_the_whole_domain), "unbiased"),
    "unordered-set, baseline without the sample itself": (weighted_by(of_the_others), "unbiased"),
    "unordered-set, one noise for all positions": (OneNoise, "unbiased"),
}
