"""Mutants of the group-relative estimators."""

import torch

from gradebench.estimators.group_relative import Cispo, Dapo, DrGrpo, Grpo, Gspo, ReinforcePp

TRUE = {
    "grpo": Grpo,
    "dr-grpo": DrGrpo,
    "dapo": Dapo,
    "gspo": Gspo,
    "cispo": Cispo,
    "reinforce-pp": ReinforcePp,
    "reinforce-pp, penalty inside f": lambda **options: ReinforcePp(**({"kl": "reward"} | options)),
    "reinforce-pp, two samples": lambda **options: ReinforcePp(**({"n": 2} | options)),
}
WITHOUT_GRAD_F = dict.fromkeys(
    ("grpo", "dr-grpo", "dapo", "gspo", "cispo", "reinforce-pp, penalty inside f"), "unbiased if"
)


class RatioOne:
    """The policy that drew the batch is taken to be the present one, at later steps too."""

    def surrogate(self, log_prob, log_ratio, advantage, alive):
        return super().surrogate(log_prob, log_ratio - log_ratio.detach(), advantage, alive)


class GrpoRatioOne(RatioOne, Grpo):
    pass


class GspoRatioOne(RatioOne, Gspo):
    pass


class ReinforcePpRatioOne(RatioOne, ReinforcePp):
    pass


class GrpoAlwaysNormalises(Grpo):
    def __init__(self, **options):
        super().__init__(**(options | {"std": True}))


class GrpoSumsTokens(Grpo):
    """A sum over tokens where a mean is declared: T times too long."""

    def gradient(self, problem, rng):
        self.token_weight = lambda alive: torch.ones_like(alive[..., 0], dtype=torch.float64)
        estimate = super().gradient(problem, rng)
        del self.token_weight
        return estimate


class ReinforcePpPastCharges(ReinforcePp):
    """Each token is charged with those before it, which it can't help, and not with those after it."""

    def advantages(self, problem, reward, batch):
        swapped = {name: batch[name].flip(-1) for name in ("log_prob", "reference", "z") if name in batch}
        advantage, scale = super().advantages(problem, reward, batch | swapped)
        return advantage.flip(-1), scale


class ReinforcePpNoCharge(ReinforcePp):
    """No token is charged with anything."""

    def advantages(self, problem, reward, batch):
        return super().advantages(problem, reward, batch | {"reference": batch["log_prob"]})


class DrGrpoUnscaledGradF(DrGrpo):
    """The penalty's own gradient is not shortened with the advantages."""

    def advantage(self, reward):
        advantage, scale = super().advantage(reward)
        return advantage, torch.ones_like(scale)


class DrGrpoLeaveOneOut(DrGrpo):
    """A baseline without the sample itself: right for RLOO, longer than declared here."""

    def advantage(self, reward):
        advantage, scale = super().advantage(reward)
        return advantage * self.n / (self.n - 1), scale


class DrGrpoBestSample(DrGrpo):
    """The baseline of a context is the best of its samples: it has seen them."""

    def advantage(self, reward):
        advantage, scale = super().advantage(reward)
        return advantage - advantage.max(0).values, scale


class DapoClipsUnasked(Dapo):
    def __init__(self, **options):
        super().__init__(**(options | {"clip_low": 0.02, "clip_high": 0.028}))


class CispoKeepsGraph(Cispo):
    """The weight is not held constant, so log p adds a gradient of its own: w A (1 + log p) grad log p."""

    def surrogate(self, log_prob, log_ratio, advantage, alive):
        weight = log_ratio.exp().clamp(1 - self.clip_low, 1 + self.clip_high)
        return (weight * advantage * log_prob).sum(-1)


class CispoWeightOne(RatioOne, Cispo):
    pass


class ReinforcePpAlwaysWhitens(ReinforcePp):
    def __init__(self, **options):
        super().__init__(**(options | {"whiten": True}))


MUTANTS = {
    "grpo, ratio fixed at 1": (GrpoRatioOne, "unbiased if"),
    "grpo, normalises unasked": (GrpoAlwaysNormalises, "unbiased if"),
    "grpo, sum over tokens": (GrpoSumsTokens, "unbiased if"),
    "reinforce-pp, charged for the past": (ReinforcePpPastCharges, "unbiased if"),
    "reinforce-pp, charged for nothing": (ReinforcePpNoCharge, "unbiased if"),
    "dr-grpo, grad f not scaled": (DrGrpoUnscaledGradF, "unbiased if"),
    "dr-grpo, leaves its own sample out": (DrGrpoLeaveOneOut, "unbiased if"),
    "dr-grpo, best sample as baseline": (DrGrpoBestSample, "unbiased if"),
    "dapo, clips unasked": (DapoClipsUnasked, "unbiased if"),
    "gspo, ratio fixed at 1": (GspoRatioOne, "unbiased if"),
    "cispo, weight keeps its graph": (CispoKeepsGraph, "unbiased if"),
    "cispo, weight fixed at 1": (CispoWeightOne, "unbiased if"),
    "reinforce-pp, ratio fixed at 1": (ReinforcePpRatioOne, "unbiased if"),
    "reinforce-pp, whitens unasked": (ReinforcePpAlwaysWhitens, "unbiased if"),
}
