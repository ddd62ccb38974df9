"""Actor-critic: a learned value of the prefix is the baseline. PPO also takes several steps on one batch."""

from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from gradebench import Estimate, Estimator, Problem, Range
from gradebench.estimators.minibatches import Minibatched, mean_of, outside, share, shuffled, variance_of


def generalised_advantage(
    reward: Tensor, value: Tensor, lam: float, alive: Tensor | None = None, charge: Tensor | None = None
) -> Tensor:
    """A_t = sum_l lambda^l delta_{t+l} for a reward at the last token in `alive` (None: the last one), and 0 after it.

    `charge` is subtracted from the reward of each token.
    Shapes: reward (n, B), value, alive and charge (n, B, T); returns (n, B, T).
    """
    alive = torch.ones_like(value, dtype=torch.bool) if alive is None else alive
    goes_on = torch.cat([alive[..., 1:], torch.zeros_like(alive[..., :1])], -1)
    following = torch.where(goes_on, value.roll(-1, -1), reward.unsqueeze(-1))
    delta = (following - value - (0.0 if charge is None else charge)) * alive
    advantage = torch.empty_like(value)
    tail = torch.zeros_like(reward)
    for t in reversed(range(value.shape[-1])):
        tail = delta[..., t] + lam * tail
        advantage[..., t] = tail
    return advantage


class A2c(Estimator):
    """Advantage actor-critic: the baseline of each token is a learned value of the prefix before it.

    Approximates  grad E_{z~p}[f(z)]
    With          sum_t A_t grad log p(z_t|z_<t),  A_t = f - V(z_<t) at lambda = 1
                  A_t = sum_l lambda^l delta_{t+l},  delta_t = r_t + V_{t+1} - V_t,  r_t = f at the last token, else 0
    Requires      black-box reward; learns a value head.
    Bias          none at lambda = 1: V doesn't see the token and is fitted to earlier draws. Else errors of V bias it.
    Cost a call   B reward calls, BT sampled tokens, 1 backward pass.
    Source        Mnih et al. 2016, section 4; lambda: Schulman et al. 2016, eq. 16.
                  Deviates: discount 1, no entropy bonus; the value head is linear in the policy's detached features.
    """

    family = "actor-critic"
    unbiased = True

    def __init__(self, lam: Annotated[float, Range(0, 1), "lambda of the advantage estimate"] = 1.0):
        super().__init__()
        self.lam = lam
        self.unbiased = lam == 1  # type: ignore[misc]

    def init(self, problem: Problem) -> None:
        self.value = value_head(problem)

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(z)  # (n, B)
        value = self.value(problem.features(z)).squeeze(-1)  # (n, B, T)
        alive = problem.alive(z)
        advantage = generalised_advantage(reward.detach(), value.detach(), self.lam, alive)
        value_target = advantage + value.detach()
        objective = (advantage * problem.log_prob(z)).sum(-1) + reward  # adds grad f
        return Estimate(problem.grad(objective.mean()), own_loss=mean_square(value - value_target, alive))


class Ppo(Minibatched):
    """PPO with clipped ratio, value head, generalised advantage estimation and minibatches.

    Approximates  grad E_{z~p}[f(z)]
    With          sum_t grad min(w_t A_t, clip(w_t, 1 - e, 1 + e) A_t),  w_t = p_theta(z_t|z_<t) / p_old(z_t|z_<t)
                  A_t = sum_l lambda^l delta_{t+l},  delta_t = r_t + V_{t+1} - V_t,  r_t = f at the last token, else 0;
                  if f = r - beta sum_t D_t:  r_t = r at the last token, else 0, minus
                  beta log p_old(z_t|z_<t) / p_ref(z_t|z_<t) at each token
    Requires      black-box reward; learns a value head.
    Bias          yes: errors of V at lambda < 1, whitening rescales, clipping drops tokens, later steps are off-policy.
    Cost a batch  B reward calls, BT sampled tokens, epochs x minibatches backward passes of B / minibatches.
    Source        Schulman et al. 2017, eq. 7 and 11; GAE: Schulman et al. 2016, eq. 16; the penalty per token and
                  whitening: Ziegler et al. 2019, arXiv 1909.08593, and its code.
                  Deviates: discount 1; the value head is linear in the policy's detached features, its loss unclipped.
    """

    family = "actor-critic"
    advantages = staticmethod(generalised_advantage)  # (n, B, T), before whitening
    unbiased_if: ClassVar = {
        "on_policy": {"epochs": 1, "minibatches": 1, "lam": 1.0, "whiten": False},
        "off_policy": {"epochs": 2, "minibatches": 1, "lam": 1.0, "whiten": False, "clip": 1e6},
    }

    def __init__(
        self,
        epochs: Annotated[int, Range(1), "passes over each batch"] = 4,
        minibatches: Annotated[int, Range(1), "parts of a batch, one gradient each"] = 2,
        clip: Annotated[float, Range(0, low_open=True), "the ratio is clipped to 1 - clip, 1 + clip"] = 0.2,
        lam: Annotated[float, Range(0, 1), "lambda of the advantage estimate"] = 0.95,
        whiten: Annotated[bool, "advantages to mean 0 and standard deviation 1 in each batch"] = True,
        kl: Annotated[
            Literal["token", "reward"], "the penalty: subtracted from the reward of each token, or part of f"
        ] = "token",
    ):
        super().__init__(epochs, minibatches)
        self.clip, self.lam, self.whiten, self.kl = clip, lam, whiten, kl

    def init(self, problem: Problem) -> None:
        super().init(problem)
        self.value = value_head(problem)

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        batch = self.next_minibatch(problem, rng)
        part, z, advantage = problem.select(batch["index"]), batch["z"], batch["advantage"]
        ratio = (part.log_prob(z) - batch["log_prob"]).exp()  # (n, B / minibatches, T)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        objective = torch.minimum(ratio * advantage, clipped * advantage).sum(-1).mean()
        value_error = self.value(part.features(z)).squeeze(-1) - batch["value_target"]
        if "fixed_reward" not in problem.offers and not self.splits(
            problem
        ):  # adds grad f, importance-weighted later on
            objective = objective + batch["scale"] * (ratio.detach().prod(-1) * part.reward(z)).mean()
        alive = problem.alive(z)
        with torch.no_grad():
            dropped = outside(ratio, advantage, self.clip, self.clip)
            info = {"clipped_tokens": share(dropped, alive)}
        return Estimate(part.grad(objective), own_loss=mean_square(value_error, alive), info=info)

    def splits(self, problem: Problem) -> bool:
        """Whether the penalty is subtracted from each token's reward. No grad f is needed then, because grad log p has mean zero."""
        return problem.beta != 0 and self.kl == "token"

    @torch.no_grad()
    def rollout(self, problem: Problem, rng: torch.Generator) -> list[dict[str, Tensor]]:
        """A new batch with its advantages, split into the minibatches of every epoch."""
        z = problem.sample(self.n, rng)  # (n, B, T)
        splits = self.splits(problem)
        reward = problem.raw_reward(z) if splits else problem.reward(z)  # (n, B)
        value = self.value(problem.features(z)).squeeze(-1)  # (n, B, T)
        alive = problem.alive(z)
        log_prob = problem.log_prob(z)
        charge = problem.beta * (log_prob - problem.reference_log_prob(z)) if splits else None
        advantage = self.advantages(reward, value, self.lam, alive, charge)
        value_target = advantage + value
        scale = torch.ones_like(reward[0, 0])
        if self.whiten:
            scale = (variance_of(advantage, alive) + 1e-8).rsqrt()
            advantage = (advantage - mean_of(advantage, alive)) * scale
        return [
            {
                "index": index,
                "z": z[:, index],
                "advantage": advantage[:, index],
                "value_target": value_target[:, index],
                "log_prob": log_prob[:, index],
                "scale": scale,
            }
            for index in shuffled(problem, self.epochs, self.minibatches, rng)
        ]


def value_head(problem: Problem) -> nn.Linear:
    """A linear value head on the policy's features, initialized at zero."""
    like = problem.params[0]
    head = nn.Linear(problem.feature_size, 1, device=like.device, dtype=like.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def mean_square(error: Tensor, alive: Tensor) -> Tensor:
    """The mean square over the tokens in `alive`: error and alive (n, B, T) to a scalar."""
    return (error.square() * alive).sum() / alive.sum()
