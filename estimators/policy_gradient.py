"""The score-function estimator with each disputed choice as an option: baseline, scale, KL, importance weight, averaging."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from gradebench import Estimate, Estimator, Problem, Range, Unsupported

EPS = 1e-4  # added to standard deviations, as in TRL
WITHOUT = ("loo", "opo-loo", "otb-loo")  # means over a context's other samples
WITH_ITSELF = ("group", "opo", "otb")  # over all of them


class PolicyGradient(Estimator):
    """A score-function estimator whose baseline, scale, penalty, importance weights and averaging are options.

    By default it is leave-one-out REINFORCE (`rloo`).

    Approximates  grad E_{z~p}[f(z)],  f = r - beta sum_t D_t,  D_t = KL(p(.|z_<t) || p_ref(.|z_<t)),  from z ~ mu
    With          average of  w_t (A grad log p(z_t|z_<t) - s beta grad D_t),  A = s (R - baseline),  s = 1 / std or 1
                  R = f or, with kl=k1, k2, k3,  R = r - beta sum_t k(p / p_ref), a constant, and no grad D_t;
                  with kl_in=loss,  R = r, and  - beta grad k  of each token, without w_t, in place of  - s beta grad D_t
                  k1 = log p / p_ref,  k2 = k1^2 / 2,  k3 = p_ref / p - 1 + k1,  k3-corrected = k3 p / mu
                  w_t: 1 (importance=none); p / mu of the token, of the whole text (sequence), of the text up to the
                  token (prefix), or the text's geometric mean (geometric); at most `truncate`; and 0 outside of
                  [mask_below, mask_above]
    Requires      black-box reward; n >= 2 for most baselines.
    Bias          none by default. From samples of another distribution than the policy, none with importance=sequence.
                  Baselines with the sample itself (group, batch, opo, otb), standard deviations, means over tokens, kl
                  other than exact or k1 in the reward, other weights, truncate and mask bias it; docs/questions says by
                  how much.
    Cost a call   nB reward calls, nBT sampled tokens, 1 backward pass; baseline=greedy adds B of each.
    Source        Williams 1992, eq. 11; baselines: Kool et al. 2019, eq. 8 (loo); Shao et al. 2024, arXiv 2402.03300,
                  eq. 3 (group); Li et al. 2023, arXiv 2310.10505, algorithm 1 (greedy); Hao et al. 2025, arXiv
                  2505.23585 (opo); Li et al. 2026, arXiv 2602.07078, as verl's documentation has it (otb). KL: Schulman
                  2020, joschu.net/blog/kl-approx.html. In TRL's words: aggregate is loss_type, constant dr_grpo,
                  sequence-mean grpo, token-mean dapo, micro-mean bnpo; kl_in=loss its only place, k3-corrected
                  use_bias_correction_kl; truncate and mask its vllm_importance_sampling_mode. In verl's: aggregate is
                  loss_agg_mode, sum seq-mean-token-sum, sequence-mean seq-mean-token-mean, constant
                  seq-mean-token-sum-norm; kl_in=reward use_kl_in_reward.
                  Deviates: opo's length counts tokens up to the end; otb's mean at a token is over the texts that
                  haven't ended there, and of whole rewards; opo-loo and otb-loo leave the sample out.
    """

    family = "score function"
    unbiased = True  # by default
    in_all: ClassVar[bool] = False  # by default it is rloo under another name
    total: Tensor  # of the moving average: sum of decay^age * reward * (1 - decay)
    weight: Tensor  # sum of decay^age * (1 - decay)

    def __init__(
        self,
        n: Annotated[int, Range(1), "samples per context"] = 4,
        baseline: Annotated[
            Literal["loo", "group", "opo-loo", "opo", "otb-loo", "otb", "batch", "greedy", "ema", "none"],
            "mean of the context's other samples; of all its samples; of the others or of all weighted by length (opo); "
            "token by token, weighted by the gradient so far (otb); of the batch; reward of the greedy text; moving average",
        ] = "loo",
        scale: Annotated[
            Literal["none", "group", "batch"], "divide advantages by this standard deviation of rewards"
        ] = "none",
        kl: Annotated[
            Literal["exact", "k1", "k2", "k3", "k3-corrected"],
            "the penalty: exact, or an estimate from the sampled token",
        ] = "exact",
        kl_in: Annotated[Literal["reward", "loss"], "where the penalty is"] = "reward",
        importance: Annotated[
            Literal["none", "token", "sequence", "prefix", "geometric"], "weights of samples that aren't the policy's"
        ] = "none",
        truncate: Annotated[float | None, Range(0, low_open=True), "weights are at most this"] = None,
        mask_below: Annotated[float, Range(0), "tokens of smaller weight get none"] = 0.0,
        mask_above: Annotated[float | None, Range(0, low_open=True), "tokens of larger weight get none"] = None,
        aggregate: Annotated[
            Literal["sum", "constant", "sequence-mean", "token-mean", "micro-mean"],
            "tokens are summed; divided by T; averaged in each text; in the batch; in each of `micro` parts",
        ] = "sum",
        micro: Annotated[int, Range(1), "parts of a batch for aggregate=micro-mean"] = 2,
        decay: Annotated[float, Range(0, 1, high_open=True), "of the moving average"] = 0.9,
    ):
        super().__init__()
        if n < 2 and (baseline in (*WITH_ITSELF, *WITHOUT) or scale == "group"):
            raise ValueError(f"baseline={baseline}, scale={scale} compare the samples of a context; give n=2 or more")
        if kl == "k3-corrected" and kl_in == "reward":
            raise ValueError(
                "kl=k3-corrected corrects a gradient; give kl_in=loss, or kl=k1, which needs no correction"
            )
        self.n, self.baseline, self.scale, self.kl, self.kl_in = n, baseline, scale, kl, kl_in
        self.importance, self.mask_below = importance, mask_below
        self.truncate = math.inf if truncate is None else truncate
        self.mask_above = math.inf if mask_above is None else mask_above
        self.aggregate, self.micro, self.decay = aggregate, micro, decay
        whole = truncate is None and mask_below == 0 and mask_above is None
        right_penalty = kl_in == "reward" and kl in ("exact", "k1")
        apart = baseline not in (*WITH_ITSELF, "batch")
        self.unbiased = apart and scale == "none" and aggregate == "sum" and right_penalty and whole  # type: ignore[misc]
        self.corrects = self.unbiased and importance == "sequence"  # type: ignore[misc]
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("weight", torch.zeros(()))

    def init(self, problem: Problem) -> None:
        if self.aggregate == "micro-mean" and problem.contexts < self.micro:
            raise Unsupported(f"{problem.contexts} contexts can't fill micro={self.micro} parts")

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T)
        alive = problem.alive(z)
        log_prob = problem.log_prob(z)
        log_mu = problem.behaviour_log_prob(z)
        w = self.weights(log_prob.detach() - log_mu, alive)
        reward, penalty = self.rewarded(problem, z, log_prob, log_mu)
        s = self.scaled(reward.detach())
        advantage = s.unsqueeze(-1) * (reward.detach().unsqueeze(-1) - self.centre(problem, z, reward.detach()))
        tokens = w * advantage.to(log_prob) * log_prob  # (n, B, T)
        if penalty is not None:
            tokens = tokens - (penalty if self.kl_in == "loss" else w * s.unsqueeze(-1) * penalty)
        if self.training and self.baseline == "ema":  # after use: a baseline that saw its own sample would be biased
            self.total.mul_(self.decay).add_(reward.detach().mean() * (1 - self.decay))
            self.weight.mul_(self.decay).add_(1 - self.decay)
        objective = self.averaged(tokens, alive) + (s * reward).mean()  # the latter adds grad f, where R has a graph
        return Estimate(problem.grad(objective))

    def weights(self, log_ratio: Tensor, alive: Tensor) -> Tensor:
        """w (n, B, T) from log p / mu of the sampled tokens."""
        total = log_ratio.double()
        if self.importance == "none":
            return torch.ones_like(log_ratio)
        if self.importance == "sequence":
            total = total.sum(-1, keepdim=True)
        elif self.importance == "geometric":
            total = total.sum(-1, keepdim=True) / alive.sum(-1, keepdim=True)
        elif self.importance == "prefix":
            total = total.cumsum(-1)
        w = total.exp()
        kept = (w >= self.mask_below) & (w <= self.mask_above)
        return (w.clamp_max(self.truncate) * kept).to(log_ratio.dtype).expand_as(log_ratio)

    def rewarded(self, problem: Problem, z: Tensor, log_prob: Tensor, log_mu: Tensor) -> tuple[Tensor, Tensor | None]:
        """R (n, B), and the penalty of each token (n, B, T) that is differentiated beside it, or None.

        R has a graph only where f depends on the parameters and isn't split.
        """
        if not problem.beta:
            return problem.reward(z), None
        reward = problem.raw_reward(z).detach()
        if self.kl == "exact":
            penalty = problem.beta * problem.divergence(z)
        else:
            penalty = problem.beta * self.estimated(log_prob, problem.reference_log_prob(z), log_mu)
        if self.kl_in == "loss":
            return reward, penalty
        return reward - penalty.detach().sum(-1), penalty if self.kl == "exact" else None

    def estimated(self, log_prob: Tensor, reference: Tensor, log_mu: Tensor) -> Tensor:
        """The estimate of the divergence at each token (n, B, T), in nats."""
        k1 = log_prob - reference
        if self.kl == "k1":
            return k1
        if self.kl == "k2":
            return k1.square() / 2
        k3 = (-k1).exp() - 1 + k1
        return k3 * (log_prob - log_mu).exp() if self.kl == "k3-corrected" else k3

    def centre(self, problem: Problem, z: Tensor, reward: Tensor) -> Tensor | float:
        """The baseline of rewards R (n, B), of a shape that can be subtracted from them with an axis of tokens."""
        if self.baseline in (*WITH_ITSELF, *WITHOUT):
            counts, own = self.counts(problem, z), reward.unsqueeze(-1)  # (n, B, 1 or T), (n, B, 1)
            total, count = (counts * own).sum(0), counts.sum(0)
            if self.baseline in WITHOUT:
                total, count = total - counts * own, count - counts
            return total / count.clamp_min(1e-12)
        if self.baseline == "batch":
            return reward.mean()
        if self.baseline == "greedy":
            with torch.no_grad():
                greedy = problem.draw(lambda logits: logits.argmax(-1), 1)
                log_prob = problem.log_prob(greedy)
                return self.rewarded(problem, greedy, log_prob, log_prob)[0].unsqueeze(-1)
        return self.total / self.weight.clamp_min(1e-12) if self.baseline == "ema" else 0.0

    def counts(self, problem: Problem, z: Tensor) -> Tensor:
        """How much each sample counts in the mean of its context, (n, B, 1 or T): equally, by its length, or by the square of
        the gradient of its logits so far, sum_{s <= t} |one_hot(z_s) - p_s|^2 = sum_{s <= t} (1 - 2 p(z_s) + sum_v p(v)^2).
        """
        alive = problem.alive(z)
        if self.baseline.startswith("opo"):
            return alive.sum(-1, keepdim=True).double()
        if self.baseline.startswith("otb"):
            p = problem.logits(z).detach().double().softmax(-1)
            chosen = p.gather(-1, z.unsqueeze(-1)).squeeze(-1)
            return ((1 - 2 * chosen + p.square().sum(-1)) * alive).cumsum(-1) * alive
        return torch.ones_like(z[..., :1], dtype=torch.float64)

    def scaled(self, reward: Tensor) -> Tensor:
        """s (n, B): 1, or 1 / std of the rewards (n, B); 0 where all are equal."""
        if self.scale == "none":
            return torch.ones_like(reward)
        dim = 0 if self.scale == "group" else (0, 1)
        std = reward.std(dim, keepdim=True)
        return (1 / (std + EPS)).masked_fill(std == 0, 0.0).expand_as(reward)

    def averaged(self, tokens: Tensor, alive: Tensor) -> Tensor:
        """A scalar from the terms of tokens (n, B, T), which are 0 after the end of a text."""
        if self.aggregate == "sum":
            return tokens.sum(-1).mean()
        if self.aggregate == "constant":
            return tokens.sum(-1).mean() / tokens.shape[-1]
        if self.aggregate == "sequence-mean":
            return (tokens.sum(-1) / alive.sum(-1)).mean()
        parts = self.micro if self.aggregate == "micro-mean" else 1
        pieces = zip(tokens.tensor_split(parts, 1), alive.tensor_split(parts, 1), strict=True)
        return torch.stack([part.sum() / counted.sum() for part, counted in pieces]).mean()
