"""Group-relative policy optimisation: the samples of one context form its baseline; ratios are clipped as in PPO.

Long because each of the six estimators has its card.
"""

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from gradebench import Estimate, Problem, Range, Unsupported
from gradebench.estimators.minibatches import Minibatched, mean_of, outside, share, shuffled, variance_of

Samples = Annotated[int, Range(2), "samples per context"]
Epochs = Annotated[int, Range(1), "passes over each batch"]
Minibatches = Annotated[int, Range(1), "parts that the contexts of a batch are split into, one gradient each"]
Clip = Annotated[float, Range(0, low_open=True), "the ratio is clipped to 1 - clip, 1 + clip"]
ClipLow = Annotated[float, Range(0, low_open=True), "the ratio is clipped below 1 minus this"]
ClipHigh = Annotated[float, Range(0, low_open=True), "the ratio is clipped above 1 plus this"]
Std = Annotated[bool, "divide advantages by the group's standard deviation"]
Eps = Annotated[float, Range(0), "added to the standard deviation before dividing by it"]
Kl = Annotated[
    Literal["loss", "k3", "reward"],
    "the penalty: a separate loss, exact or estimated by k3; or part of the reward",
]

_EXACT = {"minibatches": 1, "clip_low": 1e6, "clip_high": 1e6, "std": False, "kl": "reward"}
EXACT_IF = {"on_policy": {"epochs": 1, **_EXACT}, "off_policy": {"epochs": 2, **_EXACT}}


def standardised(reward: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(reward - mean) / (std + eps) over the first axis, and 1 / (std + eps), without that axis.

    If all rewards are equal, advantage and factor are exactly 0.
    """
    equal = (reward == reward[:1]).all(0)
    centred = (reward - reward.mean(0)).masked_fill(equal, 0.0)
    scale = (1 / (reward.std(0) + eps)).masked_fill(equal, 0.0)
    return centred * scale, scale


def mean_over_batch(alive: Tensor) -> Tensor:
    """Factor (n, B) on each sequence's sum that makes the mean over sequences the mean over the batch's tokens."""
    return (alive[..., 0].numel() / alive.sum(dtype=torch.float64)).expand_as(alive[..., 0])


def sequence_ratio(log_ratio: Tensor, alive: Tensor) -> Tensor:
    """The geometric mean of the ratios of a sequence's tokens: log_ratio, alive (n, B, T) to (n, B, 1)."""
    return (log_ratio.sum(-1, keepdim=True) / alive.sum(-1, keepdim=True)).exp()


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """Schulman's estimate of KL(p || p_ref) in nats, of the same shape: q - 1 - log q, q = p_ref / p of the token."""
    gap = reference - log_prob
    return gap.exp() - 1 - gap


class GroupRelative(Minibatched):
    """Clipped surrogate steps on one batch with the advantages of `advantage`; subclasses override what differs.

    `kl` says where the penalty goes if f = raw_reward - beta * divergence:

    loss    advantages are those of raw rewards, and -beta * divergence_t is added to the surrogate of each token,
            under the same mean. Its gradient covers only the divergence at the sampled prefixes.
    k3      the same, with the k3 estimate at the sampled tokens and no importance weight on it.
    reward  advantages are those of f. grad f gets the same factor as the advantages, because otherwise the penalty
            in f would have the wrong weight. Problems whose f isn't split are treated this way too.

    With one minibatch no part of the problem is selected, so many draws can be computed in one pass.
    """

    family = "group relative"

    def __init__(
        self,
        n: int,
        epochs: int,
        minibatches: int,
        clip_low: float,
        clip_high: float,
        std: bool,
        eps: float,
        kl: str,
    ):  # the options of a subclass have the defaults of its paper
        super().__init__(epochs, minibatches)
        self.n = n
        self.clip_low, self.clip_high, self.std, self.eps, self.kl = clip_low, clip_high, std, eps, kl

    def advantage(self, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Advantage (n, B) of rewards (n, B), and the factor (n, B) by which it scales the gradient of the mean reward.

        The baseline includes the sample's own reward, which scales that gradient by 1 - 1/n.
        """
        advantage, scale = standardised(reward, self.eps)
        if not self.std:
            advantage, scale = reward - reward.mean(0), torch.ones_like(reward[0])
        return advantage, ((1 - 1 / self.n) * scale).expand_as(reward)

    def token_weight(self, alive: Tensor) -> Tensor:
        """Factor (n, B) on the sum over a sequence's tokens, those in `alive` (n, B, T); 1 / T gives their mean."""
        return 1 / alive.sum(-1, dtype=torch.float64)

    def surrogate(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        """Objective, summed over tokens: log_prob, log_ratio, alive (n, B, T), advantage (n, B, 1 or T) to (n, B)."""
        return self.clipped(log_ratio.exp(), advantage).sum(-1)

    def clipped(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        return torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantage)

    def expected_scale(self, problem: Problem) -> float:
        return (1 - 1 / self.n) * self.whole_weight(problem)

    def whole_weight(self, problem: Problem) -> float:
        """The factor on sequences of maximal length."""
        return float(self.token_weight(torch.ones(1, 1, problem.horizon, dtype=torch.bool)))

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        batch = self.next_minibatch(problem, rng)
        part = problem if self.minibatches == 1 else problem.select(batch["index"])
        z = batch["z"]  # (n, B / minibatches, T)
        log_prob = part.log_prob(z)
        log_ratio = log_prob - batch["log_prob"]
        alive = problem.alive(z)
        objective = self.surrogate(log_prob, log_ratio, batch["advantage"], alive)
        if self.splits(problem):
            objective = objective - self.penalty(part, batch, log_prob)
        elif "fixed_reward" not in problem.offers:  # adds grad f, importance-weighted at later steps
            importance = log_ratio.detach().double().sum(-1).exp()  # (n, B / minibatches)
            reward = batch["reward"] if "reward" in batch else part.reward(z)
            objective = objective + (batch["scale"] * importance).to(reward) * reward
        with torch.no_grad():
            clipped = self.is_clipped(log_ratio, batch["advantage"], alive)
            info = {"clipped_tokens": share(clipped, alive)}
        return Estimate(part.grad((batch["weight"].to(objective) * objective).mean()), info=info)

    def is_clipped(self, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        """Whether clipping removes a token's gradient, (n, B, T) bool."""
        return outside(log_ratio.exp(), advantage, self.clip_low, self.clip_high)

    def splits(self, problem: Problem) -> bool:
        """Whether the penalty is separated from the reward."""
        return problem.beta != 0 and self.kl != "reward"

    def penalty(self, part: Problem, batch: dict[str, Tensor], log_prob: Tensor) -> Tensor:
        """The separate penalty, in units of the reward, summed over tokens: (n, B / minibatches)."""
        found = k3(log_prob, batch["reference"]) if self.kl == "k3" else part.divergence(batch["z"])
        return part.beta * found.sum(-1)

    def rollout(self, problem: Problem, rng: torch.Generator) -> list[dict[str, Tensor]]:
        """A new batch, with advantages and token weights from all of it, split into the minibatches of every epoch."""
        z = problem.sample(self.n, rng)  # (n, B, T)
        splits = self.splits(problem)
        with torch.set_grad_enabled(self.minibatches == 1):  # then the first step reuses these graphs
            reward = problem.raw_reward(z).detach() if splits else problem.reward(z)  # (n, B)
            log_prob = problem.log_prob(z)  # (n, B, T)
        batch = {"z": z, "log_prob": log_prob.detach(), "weight": self.token_weight(problem.alive(z))}
        if splits and self.kl in ("k3", "token"):
            batch["reference"] = problem.reference_log_prob(z)
        advantage, scale = self.advantages(problem, reward.detach().double(), batch)
        batch |= {"advantage": advantage.to(log_prob), "scale": scale}
        if self.minibatches == 1:
            return [batch | {"reward": reward}, *[batch] * (self.epochs - 1)]
        return [
            {name: values[:, index] for name, values in batch.items()} | {"index": index}
            for index in shuffled(problem, self.epochs, self.minibatches, rng)
        ]

    def advantages(self, problem: Problem, reward: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`advantage` of rewards in float64 with a token axis, (n, B, 1 or T), and its factor (n, B)."""
        advantage, scale = self.advantage(reward)
        return advantage.unsqueeze(-1), scale


class Grpo(GroupRelative):
    """GRPO: advantages are divided by the group's standard deviation, and tokens are averaged.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t grad min(w_t A, clip(w_t, 1 - e, 1 + e) A),  w_t = p_theta(z_t|z_<t) / p_old(z_t|z_<t)
                  A = (r - mean r) / (std r + eps) over the n samples of a context; with a penalty,
                  f = r - beta sum_t D_t:  minus mean_t beta grad D_t,  D_t = KL(p(.|z_<t) || p_ref(.|z_<t))
    Requires      n >= 2; black-box reward.
    Bias          yes: 1 / std gives contexts of rare success more weight, the mean over tokens scales by 1 / T, and
                  the sample in its own baseline by 1 - 1/n; later steps on a batch are off-policy, and clipping drops
                  tokens. The penalty isn't scaled by these factors, and its gradient ignores that a token changes the
                  divergence at later prefixes; with kl=k3 its mean is the gradient of KL(p_ref || p) instead.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Shao et al. 2024, arXiv 2402.03300, eq. 3.  Deviates: D_t is exact, where the paper has the
                  estimate k3 of eq. 4 (option kl=k3); std divides by n - 1 and eps is added, as in the usual
                  implementations.
    """

    unbiased_if: ClassVar = {
        "on_policy": {"epochs": 1, "minibatches": 1, "std": False, "kl": "reward"},
        "off_policy": {"epochs": 2, "minibatches": 1, "clip": 1e6, "std": False, "kl": "reward"},
    }

    def __init__(
        self,
        n: Samples = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
        clip: Clip = 0.2,
        std: Std = True,
        eps: Eps = 1e-4,
        kl: Kl = "loss",
    ):
        super().__init__(n, epochs, minibatches, clip, clip, std, eps, kl)


class DrGrpo(GroupRelative):
    """Dr. GRPO: GRPO without its two normalisations, so only the gradient's length is biased.

    Approximates  grad E_{z~p}[f(z)]
    With          sum_t grad min(w_t A, clip(w_t, 1 - e, 1 + e) A),  w_t = p_theta(z_t|z_<t) / p_old(z_t|z_<t)
                  A = r - mean r over the n samples of a context; with a penalty, f = r - beta sum_t D_t:
                  minus sum_t beta grad D_t,  D_t = KL(p(.|z_<t) || p_ref(.|z_<t))
    Requires      n >= 2; black-box reward.
    Bias          without a penalty only in length: it is leave-one-out REINFORCE times 1 - 1/n. The penalty isn't
                  scaled by that factor, and its gradient ignores that a token changes the divergence at later prefixes.
                  Later steps on a batch are off-policy.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Liu et al. 2025, arXiv 2503.20783, section 3.2.  Deviates: the sum over tokens is divided by the
                  constant 1; the paper trains without a penalty, which is added here as in GRPO.
    """

    unbiased_if: ClassVar = {
        "on_policy": {"epochs": 1, "minibatches": 1, "kl": "reward"},
        "off_policy": {"epochs": 2, "minibatches": 1, "clip": 1e6, "kl": "reward"},
    }

    def __init__(
        self,
        n: Samples = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 1,
        clip: Clip = 0.2,
        kl: Kl = "loss",
    ):
        super().__init__(n, epochs, minibatches, clip, clip, std=False, eps=0.0, kl=kl)

    def token_weight(self, alive: Tensor) -> Tensor:
        return torch.ones_like(alive[..., 0], dtype=torch.float64)


class Dapo(GroupRelative):
    """DAPO: GRPO with a higher upper clipping bound, so that rare tokens can grow more than they can shrink.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t grad min(w_t A, clip(w_t, 1 - e_low, 1 + e_high) A),  A = (r - mean r) / (std r + eps) in a group
                  minus beta grad D_t as in GRPO; mean over all tokens of the sampled batch, not of the minibatch
    Requires      n >= 2; black-box reward.
    Bias          yes: as GRPO.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Yu et al. 2025, arXiv 2503.14476, eq. 8 and 9.  Deviates: groups of equal rewards count as zero and
                  are not sampled again (no dynamic sampling), which would cost an unknown number of reward calls; the
                  mean is over the batch's tokens, as in the usual implementations, where eq. 8 has the group's; the
                  paper drops the penalty, which is added here as in GRPO.
    """

    unbiased_if: ClassVar = EXACT_IF

    def __init__(
        self,
        n: Samples = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 4,
        clip_low: ClipLow = 0.2,
        clip_high: ClipHigh = 0.28,
        std: Std = True,
        eps: Eps = 1e-4,
        kl: Kl = "loss",
    ):
        super().__init__(n, epochs, minibatches, clip_low, clip_high, std, eps, kl)

    def token_weight(self, alive: Tensor) -> Tensor:
        return mean_over_batch(alive)


class Gspo(GroupRelative):
    """GSPO: one clipped ratio per sequence, the geometric mean of its tokens' ratios.

    Approximates  grad E_{z~p}[f(z)]
    With          grad min(s A, clip(s, 1 - e_low, 1 + e_high) A),  s = (p_theta(z) / p_old(z))^(1 / T)
                  A = (r - mean r) / (std r + eps) in a group; minus mean_t beta grad D_t as in GRPO
    Requires      n >= 2; black-box reward.
    Bias          yes: as GRPO; s is the true importance weight only for T = 1.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Zheng et al. 2025, arXiv 2507.18071, eq. 5 to 7.  Deviates: the paper's formulas leave out the
                  penalty, which is added here as in GRPO.
    """

    unbiased_if: ClassVar = EXACT_IF

    def __init__(
        self,
        n: Samples = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 4,
        clip_low: ClipLow = 3e-4,
        clip_high: ClipHigh = 4e-4,
        std: Std = True,
        eps: Eps = 1e-4,
        kl: Kl = "loss",
    ):
        super().__init__(n, epochs, minibatches, clip_low, clip_high, std, eps, kl)

    def surrogate(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        length = alive.sum(-1, keepdim=True)
        return (self.clipped(sequence_ratio(log_ratio, alive), advantage) * length).squeeze(-1)

    def is_clipped(self, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        clipped = outside(sequence_ratio(log_ratio, alive), advantage, self.clip_low, self.clip_high)
        return clipped.expand_as(log_ratio)


class Cispo(GroupRelative):
    """CISPO: the importance weight is clipped and treated as a constant, so that no token loses its gradient.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t clip(w_t, 1 - e_low, 1 + e_high) A grad log p(z_t|z_<t),  A = (r - mean r) / (std r + eps)
                  in a group; minus beta grad D_t as in GRPO; mean over all tokens of the sampled batch
    Requires      n >= 2; black-box reward.
    Bias          yes: as GRPO, except that clipping drops no tokens.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        MiniMax 2025, arXiv 2506.13585, eq. 4 and 5, with no lower bound, as there. Its upper bound is
                  unpublished: 5 is that of Khatri et al. 2025, arXiv 2510.13786.  Deviates: the mean is over the
                  batch's tokens, where eq. 4 has the group's; the paper drops the penalty, which is added here as in
                  GRPO.
    """

    unbiased_if: ClassVar = EXACT_IF

    def __init__(
        self,
        n: Samples = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 4,
        clip_low: Annotated[
            float, Range(0, low_open=True), "weights are at least 1 minus this; no bound from 1 on"
        ] = 1.0,
        clip_high: Annotated[float, Range(0, low_open=True), "weights are at most 1 plus this"] = 4.0,
        std: Std = True,
        eps: Eps = 1e-4,
        kl: Kl = "loss",
    ):
        super().__init__(n, epochs, minibatches, clip_low, clip_high, std, eps, kl)

    def surrogate(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        weight = log_ratio.exp().clamp(1 - self.clip_low, 1 + self.clip_high).detach()
        return (weight * advantage * log_prob).sum(-1)

    def is_clipped(self, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        """Whether the weight is at a bound; no token loses its gradient."""
        ratio = log_ratio.exp()
        return (ratio > 1 + self.clip_high) | (ratio < 1 - self.clip_low)

    def token_weight(self, alive: Tensor) -> Tensor:
        return mean_over_batch(alive)


class ReinforcePp(GroupRelative):
    """REINFORCE++: no critic and no groups; advantages are whitened over the whole batch.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t grad min(w_t A_t, clip(w_t, 1 - e, 1 + e) A_t),  w_t = p_theta(z_t|z_<t) / p_old(z_t|z_<t)
                  A_t = (R_t - mean R) / (std R + eps) over all tokens of the batch;  R_t = f, or if
                  f = r - beta sum_t D_t:  R_t = r - beta sum_{s >= t} log p_old(z_s|z_<s) / p_ref(z_s|z_<s)
    Requires      black-box reward.
    Bias          yes: whitening scales, by a factor that hardly varies between large batches, and the mean over tokens
                  by 1 / T; later steps on a batch are off-policy, and clipping drops tokens.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Hu et al. 2025, arXiv 2501.03262.  Deviates: eps is added to the standard deviation.
    """

    unbiased_if: ClassVar = {
        "on_policy": {"epochs": 1, "minibatches": 1, "whiten": False},
        "off_policy": {"epochs": 2, "minibatches": 1, "clip": 1e6, "whiten": False},
    }

    def __init__(
        self,
        n: Annotated[int, Range(1), "samples per context"] = 1,
        epochs: Epochs = 1,
        minibatches: Minibatches = 4,
        clip: Clip = 0.2,
        whiten: Annotated[bool, "advantages to mean 0 and standard deviation 1 in each batch"] = True,
        eps: Eps = 1e-4,
        kl: Annotated[
            Literal["token", "loss", "k3", "reward"],
            "the penalty: part of each token's return; a separate loss as in grpo; or part of f",
        ] = "token",
    ):
        super().__init__(n, epochs, minibatches, clip, clip, whiten, eps, kl)
        self.whiten = whiten

    def init(self, problem: Problem) -> None:
        super().init(problem)
        if self.whiten and self.n * problem.contexts < 2:
            raise Unsupported("whitening needs a batch of two sequences or more")

    def penalty(self, part: Problem, batch: dict[str, Tensor], log_prob: Tensor) -> Tensor:
        """Zero if the penalty is part of each token's return, because grad log p / p_ref has mean zero."""
        return torch.zeros_like(log_prob[..., 0]) if self.kl == "token" else super().penalty(part, batch, log_prob)

    def advantages(self, problem: Problem, reward: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        alive = problem.alive(batch["z"])
        returns = reward.unsqueeze(-1).expand(alive.shape)  # (n, B, T)
        if self.kl == "token" and self.splits(problem):
            charge = problem.beta * (batch["log_prob"] - batch["reference"]).double()
            returns = returns - charge.flip(-1).cumsum(-1).flip(-1)
        if not self.whiten:
            return returns, torch.ones_like(reward)
        centred = (returns - mean_of(returns, alive)).where(alive, 0.0)
        scale = 1 / (variance_of(returns, alive).sqrt() + self.eps)
        equal = (returns == returns[:1, :1, :1]).where(alive, True).all()  # every text has a first token
        scale = scale.masked_fill(equal, 0.0)
        return centred * scale, ((1 - 1 / reward.numel()) * scale).expand_as(reward)

    def expected_scale(self, problem: Problem) -> float:
        return self.whole_weight(problem)
