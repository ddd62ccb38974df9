"""Mutants of the configurable score-function estimator."""

import functools

import torch

from gradebench.estimators.policy_gradient import PolicyGradient

CORRECTING = functools.partial(PolicyGradient, importance="sequence")
TRUE = {
    "policy-gradient": PolicyGradient,
    "policy-gradient, sequence weights": CORRECTING,
    "policy-gradient, GRPO in TRL's words": functools.partial(
        PolicyGradient, baseline="group", scale="group", kl="k3", kl_in="loss", aggregate="sequence-mean"
    ),
    "policy-gradient, masked tokens": functools.partial(
        PolicyGradient,
        importance="token",
        mask_below=0.5,
        mask_above=2.0,
        kl="k3-corrected",
        kl_in="loss",
        aggregate="micro-mean",
    ),
}
WITHOUT_GRAD_F: dict[str, str] = {}  # it reads f in parts: see PenaltyWithoutGradient


class WithItself(PolicyGradient):
    """A baseline that contains its own sample, and says nothing of it."""

    def centre(self, problem, reward, alive):
        return reward.mean(0)


class PenaltyWithoutReward(PolicyGradient):
    """The divergence is differentiated, but isn't part of the reward that weights log-probabilities."""

    def rewarded(self, problem, z, log_prob, log_mu):
        reward, penalty = super().rewarded(problem, z, log_prob, log_mu)
        return (reward if penalty is None else reward + penalty.detach().sum(-1)), penalty


class PenaltyWithoutGradient(PolicyGradient):
    """grad f left out."""

    def rewarded(self, problem, z, log_prob, log_mu):
        return super().rewarded(problem, z, log_prob, log_mu)[0], None


class TokenWeights(PolicyGradient):
    """Weights of tokens, where those of whole texts are claimed."""

    def __init__(self, **options):
        super().__init__(**{"importance": "sequence"} | options)

    def weights(self, log_ratio, alive):
        return log_ratio.exp()


class InverseWeights(TokenWeights):
    """mu / p in place of p / mu."""

    def weights(self, log_ratio, alive):
        return (-log_ratio).sum(-1, keepdim=True).exp().expand_as(log_ratio)


class UnweightedPenalty(TokenWeights):
    """The gradient of the divergence without its weight."""

    def weights(self, log_ratio, alive):
        return log_ratio.sum(-1, keepdim=True).exp().expand_as(log_ratio)

    def rewarded(self, problem, z, log_prob, log_mu):
        reward, penalty = super().rewarded(problem, z, log_prob, log_mu)
        if penalty is None:
            return reward, penalty
        w = self.weights(log_prob.detach() - log_mu, torch.ones_like(z))
        return reward, penalty / w


class Truncated(TokenWeights):
    """Whole texts' weights, cut off at 1, and still said to correct."""

    def weights(self, log_ratio, alive):
        return log_ratio.sum(-1, keepdim=True).exp().clamp_max(1.0).expand_as(log_ratio)


MUTANTS = {
    "policy-gradient, baseline with its own sample": (WithItself, "unbiased"),
    "policy-gradient, penalty outside of the reward": (PenaltyWithoutReward, "unbiased"),
    "policy-gradient without grad f": (PenaltyWithoutGradient, "unbiased"),
    "policy-gradient, weights of tokens": (TokenWeights, "unbiased off policy"),
    "policy-gradient, inverse weights": (InverseWeights, "unbiased off policy"),
    "policy-gradient, penalty without weights": (UnweightedPenalty, "unbiased off policy"),
    "policy-gradient, truncated weights": (Truncated, "unbiased off policy"),
}
