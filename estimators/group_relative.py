"""Group-relative policy optimisation: samples of one context are each other's baseline, ratios are clipped as in PPO."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from gradebench import Estimate, Estimator, Problem, Range, Unsupported
from gradebench.estimators.minibatches import enough_for, shuffled

EPS = 1e-6  # no more spread than this is none

Samples = Annotated[int, Range(2), "samples per context"]
Epochs = Annotated[int, Range(1), "passes over each batch"]
Minibatches = Annotated[int, Range(1), "parts of a batch by contexts, one gradient each"]
Clip = Annotated[float, Range(0, low_open=True), "half-width of the ratio's trust interval"]
ClipLow = Annotated[float, Range(0, low_open=True), "the ratio's trust interval begins at 1 less this"]
ClipHigh = Annotated[float, Range(0, low_open=True), "the ratio's trust interval ends at 1 plus this"]
Std = Annotated[bool, "divide advantages by the group's standard deviation"]

_EXACT = {"minibatches": 1, "clip_low": 1e6, "clip_high": 1e6, "std": False}
EXACT_IF = {"on_policy": {"epochs": 1, **_EXACT}, "off_policy": {"epochs": 2, **_EXACT}}


def one_over(std: Tensor) -> Tensor:
    """1 / std, and 0 where there is no spread: equal samples have no advantage, and a penalty must not explode there."""
    return torch.where(std > EPS, 1 / std, 0.0)


def mean_over_batch(alive: Tensor) -> Tensor:
    """Factor (n, B) on the sums over tokens that makes the mean of sequences the mean of the batch's tokens."""
    return (alive[..., 0].numel() / alive.sum(dtype=torch.float64)).expand_as(alive[..., 0])


class GroupRelative(Estimator):
    """Clipped surrogate steps on one batch with the advantages of `advantage`; subclasses say what differs.

    Whatever factor the advantages carry, grad f carries too: otherwise a penalty inside f would weigh less or more
    than it should. A batch of one minibatch never needs a part of the problem, so its draws can share a pass.
    """

    family = "group relative"

    def __init__(
        self, n: int, epochs: int, minibatches: int, clip_low: float, clip_high: float, std: bool
    ):  # the options of a subclass have the defaults of its paper
        super().__init__()
        self.n, self.epochs, self.minibatches = n, epochs, minibatches
        self.clip_low, self.clip_high, self.std = clip_low, clip_high, std
        self.period = epochs * minibatches
        self.queue: list[dict[str, Tensor]] = []

    def advantage(self, reward: Tensor) -> tuple[Tensor, Tensor]:
        """Advantage (n, B) of rewards (n, B), and the factor (n, B) that it puts on the gradient of the mean reward.

        A sample's own reward in its baseline takes 1/n off that gradient's length.
        """
        centred = reward - reward.mean(0)
        scale = one_over(reward.std(0)) if self.std else torch.ones_like(reward[0])
        return centred * scale, ((1 - 1 / self.n) * scale).expand_as(reward)

    def token_weight(self, alive: Tensor) -> Tensor:
        """Factor (n, B) on the sum over a sequence's tokens, those in `alive` (n, B, T): 1 / T for their mean."""
        return 1 / alive.sum(-1, dtype=torch.float64)

    def surrogate(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        """Objective, summed over tokens: log_prob, log_ratio, alive (n, B, T) and advantage (n, B, 1) to (n, B)."""
        return self.clipped(log_ratio.exp(), advantage).sum(-1)

    def clipped(self, ratio: Tensor, advantage: Tensor) -> Tensor:
        return torch.minimum(ratio * advantage, ratio.clamp(1 - self.clip_low, 1 + self.clip_high) * advantage)

    def expected_scale(self, problem: Problem) -> float:
        return (1 - 1 / self.n) * self.whole_weight(problem)

    def whole_weight(self, problem: Problem) -> float:
        """The factor on sequences that are as long as can be."""
        return float(self.token_weight(torch.ones(1, 1, problem.horizon, dtype=torch.bool)))

    def init(self, problem: Problem) -> None:
        enough_for(problem, self.minibatches)

    def reset(self) -> None:
        self.queue = []

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        if not self.queue:
            self.queue = self.rollout(problem, rng)
        batch = self.queue.pop(0)
        part = problem if self.minibatches == 1 else problem.select(batch["index"])
        z = batch["z"]  # (n, B / minibatches, T)
        log_prob = part.log_prob(z)
        log_ratio = log_prob - batch["log_prob"]
        alive = problem.alive(z)
        objective = self.surrogate(log_prob, log_ratio, batch["advantage"].unsqueeze(-1), alive)
        if "fixed_reward" not in problem.offers:  # grad f counts too, by importance at later steps
            importance = log_ratio.detach().double().sum(-1).exp()  # (n, B / minibatches)
            reward = batch["reward"] if "reward" in batch else part.reward(z)
            objective = objective + (batch["scale"] * importance).to(reward) * reward
        return Estimate(part.grad((self.token_weight(alive).to(objective) * objective).mean()))

    def rollout(self, problem: Problem, rng: torch.Generator) -> list[dict[str, Tensor]]:
        """A fresh batch, with advantages from all of it, cut into the minibatches of every epoch."""
        z = problem.sample(self.n, rng)  # (n, B, T)
        with torch.set_grad_enabled(self.minibatches == 1):  # then the first step shares these graphs
            reward, log_prob = problem.reward(z), problem.log_prob(z)  # (n, B), (n, B, T)
        advantage, scale = self.advantage(reward.detach().double())  # in float64 equal rewards have no advantage
        batch = {"z": z, "advantage": advantage.to(log_prob), "scale": scale, "log_prob": log_prob.detach()}
        if self.minibatches == 1:
            return [batch | {"reward": reward}, *[batch] * (self.epochs - 1)]
        return [
            {name: values[:, index] for name, values in batch.items()} | {"index": index}
            for index in shuffled(problem, self.epochs, self.minibatches, rng)
        ]


class Grpo(GroupRelative):
    """GRPO: advantages in units of the group's standard deviation, mean over tokens.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t grad min(w_t A, clip(w_t, 1 - e, 1 + e) A),  w_t = p_theta(z_t|z_<t) / p_old(z_t|z_<t)
                  A = (f - mean f) / std f over the n samples of a context
    Requires      n >= 2; black-box reward.
    Bias          yes: contexts of rare success weigh more by 1 / std, the mean over tokens rescales by 1 / T, the
                  sample in its own baseline by 1 - 1/n; later steps on a batch go off-policy, clipping drops tokens.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Shao et al. 2024, eq. 3.  Deviates: a KL penalty is part of f; std divides by n - 1, as in the
                  usual implementations.
    """

    unbiased_if: ClassVar = {
        "on_policy": {"epochs": 1, "minibatches": 1, "std": False},
        "off_policy": {"epochs": 2, "minibatches": 1, "clip": 1e6, "std": False},
    }

    def __init__(
        self, n: Samples = 4, epochs: Epochs = 1, minibatches: Minibatches = 1, clip: Clip = 0.2, std: Std = True
    ):
        super().__init__(n, epochs, minibatches, clip, clip, std)


class DrGrpo(GroupRelative):
    """Dr. GRPO: GRPO without its two normalisations, so that only the gradient's length is off.

    Approximates  grad E_{z~p}[f(z)]
    With          sum_t grad min(w_t A, clip(w_t, 1 - e, 1 + e) A),  w_t = p_theta(z_t|z_<t) / p_old(z_t|z_<t)
                  A = f - mean f over the n samples of a context
    Requires      n >= 2; black-box reward.
    Bias          length only, 1 - 1/n: leave-one-out REINFORCE times that. Later steps on a batch go off-policy.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Liu et al. 2025, arXiv 2503.20783, section 3.2.  Deviates: the constant that divides the sum over
                  tokens is 1; grad f is scaled by 1 - 1/n as well.
    """

    unbiased_if: ClassVar = {
        "on_policy": {"epochs": 1, "minibatches": 1},
        "off_policy": {"epochs": 2, "minibatches": 1, "clip": 1e6},
    }

    def __init__(self, n: Samples = 4, epochs: Epochs = 1, minibatches: Minibatches = 1, clip: Clip = 0.2):
        super().__init__(n, epochs, minibatches, clip, clip, std=False)

    def token_weight(self, alive: Tensor) -> Tensor:
        return torch.ones_like(alive[..., 0], dtype=torch.float64)


class Dapo(GroupRelative):
    """DAPO: GRPO whose trust interval leaves rare tokens more room to grow than to shrink.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t grad min(w_t A, clip(w_t, 1 - e_low, 1 + e_high) A),  A = (f - mean f) / std f in a group
                  mean over all tokens of the batch, the same as the mean of samples' means where all are as long
    Requires      n >= 2; black-box reward.
    Bias          yes: as GRPO.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Yu et al. 2025, arXiv 2503.14476, eq. 8 and 9.  Deviates: groups of equal rewards count as zero and
                  are not redrawn (no dynamic sampling), which would cost an unknown number of reward calls.
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
    ):
        super().__init__(n, epochs, minibatches, clip_low, clip_high, std)

    def token_weight(self, alive: Tensor) -> Tensor:
        return mean_over_batch(alive)


class Gspo(GroupRelative):
    """GSPO: one ratio a sequence, the geometric mean of its tokens', clipped as a whole.

    Approximates  grad E_{z~p}[f(z)]
    With          grad min(s A, clip(s, 1 - e_low, 1 + e_high) A),  s = (p_theta(z) / p_old(z))^(1 / T)
                  A = (f - mean f) / std f over the n samples of a context
    Requires      n >= 2; black-box reward.
    Bias          yes: as GRPO; s is the true importance for T = 1 only.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Zheng et al. 2025, arXiv 2507.18071, eq. 5 to 7.  Deviates: a KL penalty is part of f.
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
    ):
        super().__init__(n, epochs, minibatches, clip_low, clip_high, std)

    def surrogate(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        length = alive.sum(-1, keepdim=True)
        ratio = (log_ratio.sum(-1, keepdim=True) / length).exp()  # (n, B, 1)
        return (self.clipped(ratio, advantage) * length).squeeze(-1)


class Cispo(GroupRelative):
    """CISPO: the importance weight is clipped and held constant, so that no token loses its gradient.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t clip(w_t, 1 - e_low, 1 + e_high) A grad log p(z_t|z_<t),  A = (f - mean f) / std f in a group
    Requires      n >= 2; black-box reward.
    Bias          yes: as GRPO, but for the tokens dropped by clipping.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        MiniMax 2025, arXiv 2506.13585, eq. 4 and 5; no lower bound, as there. Its upper bound is not
                  published: 5 is that of Khatri et al. 2025, arXiv 2510.13786.
    """

    unbiased_if: ClassVar = EXACT_IF

    def __init__(
        self,
        n: Samples = 4,
        epochs: Epochs = 1,
        minibatches: Minibatches = 4,
        clip_low: Annotated[
            float, Range(0, low_open=True), "weights are at least 1 less this: from 1 on, no bound"
        ] = 1.0,
        clip_high: Annotated[float, Range(0, low_open=True), "weights are at most 1 plus this"] = 4.0,
        std: Std = True,
    ):
        super().__init__(n, epochs, minibatches, clip_low, clip_high, std)

    def surrogate(self, log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, alive: Tensor) -> Tensor:
        weight = log_ratio.exp().clamp(1 - self.clip_low, 1 + self.clip_high).detach()
        return (weight * advantage * log_prob).sum(-1)

    def token_weight(self, alive: Tensor) -> Tensor:
        return mean_over_batch(alive)


class ReinforcePp(GroupRelative):
    """REINFORCE++: no critic and no groups, advantages in units of the whole batch.

    Approximates  grad E_{z~p}[f(z)]
    With          mean_t grad min(w_t A, clip(w_t, 1 - e, 1 + e) A),  w_t = p_theta(z_t|z_<t) / p_old(z_t|z_<t)
                  A = (f - mean f) / std f over all samples of the batch
    Requires      black-box reward.
    Bias          yes: whitening rescales, by a factor that hardly varies in large batches, the mean over tokens by
                  1 / T; later steps on a batch go off-policy, clipping drops tokens.
    Cost a batch  nB reward calls, nBT sampled tokens, epochs x minibatches backward passes.
    Source        Hu et al. 2025, arXiv 2501.03262.  Deviates: a KL penalty is part of f of the whole sequence, where
                  the paper charges each token with those after it.
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
    ):
        super().__init__(n, epochs, minibatches, clip, clip, std=whiten)
        self.whiten = whiten

    def init(self, problem: Problem) -> None:
        super().init(problem)
        if self.whiten and self.n * problem.contexts < 2:
            raise Unsupported("whitening needs a batch of two sequences or more")

    def advantage(self, reward: Tensor) -> tuple[Tensor, Tensor]:
        if not self.whiten:
            return reward, torch.ones_like(reward)
        scale = one_over(reward.std())
        return (reward - reward.mean()) * scale, ((1 - 1 / reward.numel()) * scale).expand_as(reward)

    def expected_scale(self, problem: Problem) -> float:
        return self.whole_weight(problem)
