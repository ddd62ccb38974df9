"""Score-function estimators with negatively dependent samples in a context, and weights that correct the bias."""

from typing import Annotated, ClassVar

import torch
from torch import Tensor

from gradebench import Estimate, Estimator, Problem, Range, exponential


class Disarm(Estimator):
    """DisARM, also U2G: antithetic pairs of binary sequences.

    Approximates  grad E_{z~p}[f(z)]
    With          1/2 (f(b) - f(b')) sum_t w_t (s_t(b) - s_t(b')),  s_t(b) = grad log p(b_t|b_<t)
                  w_t = sigmoid(|l_t|) while b and b' have the same prefix, else 1;  l_t = logit of b_t = 1
                  b_t = 1[u_t < p_t], b'_t = 1[1 - u_t < p_t] with the same prefix, else with a new u_t for b'
    Requires      binary decisions; black-box reward.
    Bias          none, on sequences too. For one decision, s(b) - s(b') = (-1)^{b'} 1[b != b'] grad l.
    Cost a call   2B reward calls, 2BT sampled tokens, 1 backward pass.
    Source        Dong et al. 2020, section 3; Yin et al. 2020 (U2G).
                  Deviates: on sequences the pair is antithetic up to its first difference, and leave-one-out from
                  there, because their logits then differ. If decisions are independent, it is antithetic throughout, as
                  in the papers.
    """

    family = "score function"
    unbiased = True
    needs: ClassVar = frozenset({"binary"})
    n = 2

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = self.draw(problem, rng)  # (2, B, T)
        reward = problem.reward(z)  # (2, B)
        advantage = (reward - reward.flip(0)).unsqueeze(-1) * self.weight(problem, z)  # (2, B, T)
        return Estimate(problem.grad(stepwise_score(problem, z, reward, advantage)))

    def draw(self, problem: Problem, rng: torch.Generator) -> Tensor:
        """Pairs (2, B, T), antithetic while their prefixes are equal."""
        tied = torch.ones(problem.contexts, dtype=torch.bool, device=problem.params[0].device)

        def choose(logits: Tensor) -> Tensor:
            p = logits.double().softmax(-1)[..., 1]  # (2, B)
            u = torch.empty_like(p).uniform_(generator=rng)
            u[1] = torch.where(tied, 1 - u[0], u[1])
            z = (u < p).long()
            if "independent" not in problem.offers:
                tied.logical_and_(z[0] == z[1])
            return z

        return problem.draw(choose, 2)

    def weight(self, problem: Problem, z: Tensor) -> Tensor:
        """w (B, T). If tied tokens differ, p(b) p(b') / joint probability is the larger of p(b) and p(b')."""
        likelier = problem.logits(z)[0].detach().softmax(-1).amax(-1)  # sigmoid(|l|), (B, T)
        return torch.where(self.tied(problem, z), likelier, 1)

    def tied(self, problem: Problem, z: Tensor) -> Tensor:
        """Whether both of a pair (2, B, T) have the same logits, by position (B, T)."""
        differ = (z[0] != z[1]).long()
        before = torch.zeros_like(differ) if "independent" in problem.offers else differ.cumsum(-1) - differ
        return before == 0


class Carms(Estimator):
    """CARMS: several samples from negatively dependent uniforms, with a weight for each pair.

    Approximates  grad E_{z~p}[f(z)]
    With          1/(M(M-1)) sum_{m != n} sum_t r_t^{mn} (f_m - f_n) grad log p(z_mt|z_m,<t)
                  r_t^{mn} = p(z_mt|z_m,<t) p(z_nt|z_n,<t) / joint probability of z_mt and z_nt given both prefixes
                  z_mt = inverse CDF of p(.|z_m,<t) at u_mt;  u_t = a Dirichlet copula, or independent with
                  probability `mix`, chosen for every context and position
    Requires      n = M >= 2; black-box reward.
    Bias          none, for mix > 0; r <= 1/mix without clipping. With mix = 0 some pairs of tokens never occur
                  together, and their part of the gradient is lost, except if decisions are binary and independent.
    Cost a call   MB reward calls, MBT sampled tokens, 1 backward pass.
    Source        Dimitriev & Zhou 2021 (CARMS, with their Dirichlet copula).
                  Deviates: the mixture, without which joint probabilities may be zero; on sequences every step has
                  its own weight, which corrects the coupling of that step only.
    """

    family = "score function"
    unbiased = True

    def __init__(
        self,
        n: Annotated[int, Range(2), "samples per context"] = 4,
        mix: Annotated[float, Range(0, 1), "probability of independent uniforms at a position"] = 0.1,
    ):
        super().__init__()
        self.n, self.mix = n, mix

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = self.draw(problem, rng)  # (M, B, T)
        reward = problem.reward(z)  # (M, B)
        weight = self.weight(problem.logits(z).detach(), z).to(reward.dtype)  # (M, M, B, T)
        difference = (reward.unsqueeze(1) - reward).detach()  # f_m - f_n, (M, M, B)
        advantage = (weight * difference.unsqueeze(-1)).sum(1) / (self.n - 1)  # (M, B, T)
        return Estimate(problem.grad(stepwise_score(problem, z, reward, advantage)))

    def draw(self, problem: Problem, rng: torch.Generator) -> Tensor:
        """Samples (M, B, T), coupled at every position."""

        def choose(logits: Tensor) -> Tensor:
            u = self.uniforms(logits[..., 0].double(), rng)  # (M, B)
            return torch.searchsorted(cumulative(logits), u.unsqueeze(-1), right=True).squeeze(-1) - 1

        return problem.draw(choose, self.n)

    def uniforms(self, like: Tensor, rng: torch.Generator) -> Tensor:
        """Uniforms in [0, 1), dependent along the first axis: u_m = 1 - (1 - d_m)^(M - 1) with d ~ Dirichlet(1, ..., 1),
        or independent ones."""
        share = exponential(like, rng)
        share = share / share.sum(0)  # d, each Beta(1, M - 1)
        coupled = -torch.expm1((self.n - 1) * torch.log1p(-share))
        alone = torch.empty_like(like).uniform_(generator=rng)
        mixed = torch.empty_like(like[0]).uniform_(generator=rng) < self.mix  # the same for all M
        return torch.where(mixed, alone, coupled).clamp_max(1 - torch.finfo(like.dtype).eps / 2)

    def weight(self, logits: Tensor, z: Tensor) -> Tensor:
        """r (M, M, B, T) of all pairs of samples, by position.

        Token i is drawn if u is in [low_i, high_i), so the probability of a pair is that of a rectangle. Its corners
        use the survival function P(u > a, v > b) = max(0, (1-a)^(1/(M-1)) + (1-b)^(1/(M-1)) - 1)^(M-1), which avoids
        the cancellation of linear terms. Corners are accurate to about 1e-16, so r is accurate if p_i p_j is far
        larger. Rarer pairs are almost never drawn, and mix > 0 bounds their r despite rounding.
        """
        edges = cumulative(logits)  # (M, B, T, V + 1)
        low, high = (edges.gather(-1, (z + side).unsqueeze(-1)).squeeze(-1) for side in (0, 1))  # (M, B, T)
        p, power = high - low, self.n - 1
        start, end = ((1 - edge).pow(1 / power) for edge in (low, high))

        def survival(a: Tensor, b: Tensor) -> Tensor:
            return (a.unsqueeze(1) + b - 1).clamp_min(0).pow(power)

        rectangle = survival(start, start) - survival(start, end) - survival(end, start) + survival(end, end)
        product = p.unsqueeze(1) * p
        joint = (1 - self.mix) * rectangle.clamp_min(0) + self.mix * product
        return torch.where(joint > 0, product / joint, 0)  # a pair that can't be drawn has weight 0


def cumulative(logits: Tensor) -> Tensor:
    """0, p_1, p_1 + p_2, ..., 1 in float64: (..., V) to (..., V + 1)."""
    total = logits.double().softmax(-1).cumsum(-1)
    return torch.nn.functional.pad(total / total[..., -1:], (1, 0))


def stepwise_score(problem: Problem, z: Tensor, reward: Tensor, advantage: Tensor) -> Tensor:
    """Scalar whose gradient is sum_t A_t grad log p(z_t|z_<t) + grad f, a mean over samples.

    Shapes: z, advantage (n, B, T); reward (n, B).
    """
    return ((advantage.detach() * problem.log_prob(z)).sum(-1) + reward).mean()
