"""Control variates from a relaxation: unbiased by construction, and tuned on earlier draws to lower the variance."""

from collections.abc import Iterator, Mapping
from typing import Annotated

import torch
from torch import Tensor, nn

from gradebench import Estimate, Estimator, Problem, Range, generator, gumbel_given
from gradebench.core.sampling import exponential


class Rebar(Estimator):
    """REBAR on sequences, in noise space: the control variate is f on a fully relaxed rollout.

    Approximates  grad E_{z~p}[f(z)]
    With          (f(z) - eta c(G~)) grad log p(z) + eta grad c(G) - eta grad c(G~)
                  c(G)  f on the relaxed rollout y_t = softmax((log pi_t(y_<t) + G_t) / tau)
                  G     Gumbel noise;  G~ the noise given z, as a function of theta along the hard path
    Requires      differentiable reward.
    Bias          none, on sequences too: c depends on the noise only, never on the hard prefix. eta and tau
                  depend on earlier draws only.
    Cost a call   B reward calls hard and 2B relaxed, BT sampled and 2BT relaxed tokens, 1 backward pass, differentiated
                  once more while tau and eta learn.
    Source        Tucker et al. 2017, eq. 7.  Deviates: whole-sequence form in noise space, because the
                  factorised form is biased on autoregressive policies; tau and eta minimize the squared estimate.
    """

    family = "control variate"
    unbiased = True
    needs = frozenset({"soft_reward"})
    own_learning_rate = 0.1  # tau must change by large factors within tens of steps: gradients may explode at 1

    def __init__(
        self,
        tau: Annotated[float, Range(0, low_open=True), "temperature of the relaxation at the start"] = 1.0,
        eta: Annotated[float, Range(), "scale of the control variate at the start"] = 1.0,
        learn: Annotated[bool, "learn tau and eta by minimizing the variance"] = True,
    ):
        super().__init__()
        self.log_tau = nn.Parameter(torch.tensor(tau).log(), requires_grad=learn)
        self.eta = nn.Parameter(torch.tensor(eta), requires_grad=learn)

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(z)  # (n, B)
        logits = problem.logits(z)  # (n, B, T, V)
        # Not detached: G~ depends on theta at fixed z. G has the same value, which couples the two controls.
        tied = gumbel_given(logits, z, exponential(logits, rng)) - logits.log_softmax(-1)
        control = self.eta * self.soft_chain(problem, torch.cat([tied.detach(), tied]))  # (2n, B)
        free_control, tied_control = control.chunk(2)
        # One pass for both terms: the gradient doesn't differentiate the weights, but own_loss below reaches tau and
        # eta through them.
        values = torch.stack([problem.log_prob(z).sum(-1), reward + free_control - tied_control])  # (2, n, B)
        weights = torch.stack([reward.detach() - tied_control, torch.ones_like(reward)]) / reward.numel()
        learn = self.training and self.eta.requires_grad
        info = {"tau": self.log_tau.detach().exp(), "eta": self.eta.detach().clone()}
        return with_squared_norm(problem, values, weights, learn, info)

    def soft_chain(self, problem: Problem, noise: Tensor) -> Tensor:
        """c (n, B): f along the relaxed rollout with this noise (n, B, T, V)."""
        steps: Iterator[Tensor] = iter(noise.unbind(2))
        tau = self.log_tau.exp()
        y = problem.rollout(lambda logits: ((logits.log_softmax(-1) + next(steps)) / tau).softmax(-1), len(noise))
        return problem.soft_reward(y)


class Relax(Estimator):
    """RELAX on sequences: a learned control variate at every step, for black-box rewards.

    Approximates  grad E_{z~p}[f(z)]
    With          sum_t [(f(b) - c_t(z~_t)) grad log p(b_t|b_<t) + grad c_t(z_t) - grad c_t(z~_t)]
                  z_t   log pi_t(b_<t) + G_t, whose largest entry is b_t;  z~_t the same, sampled given b_t
                  c_t   mean + deviation * network(softmax(z_t / tau), policy's detached features of b_<t), where
                        mean and deviation are moving averages over past rewards
    Requires      black-box reward; learns the network and tau.
    Bias          none, on sequences too: c_t sees the sampled prefix and the relaxed token, never b_t or later tokens.
                  c and tau depend on earlier draws only.
    Cost a call   B reward calls, BT sampled tokens, BT evaluations of c, 1 backward pass, differentiated once more
                  while c learns.
    Source        Grathwohl et al. 2018, sections 3.2 and 3.3.
                  Deviates: a sum over steps; the noise is coupled so that z~ and z have the same value; c and tau
                  minimize the squared norm of the whole estimate; moving averages remove the scale of the rewards.
    """

    family = "control variate"
    unbiased = True
    averages: Tensor  # of 1, reward and squared reward: sums of decay^age * value * (1 - decay)

    def __init__(
        self,
        hidden: Annotated[int, Range(1), "hidden units of c"] = 32,
        tau: Annotated[float, Range(0, low_open=True), "temperature of the relaxed token at the start"] = 1.0,
        decay: Annotated[float, Range(0, 1, high_open=True), "of the moving averages"] = 0.9,
    ):
        super().__init__()
        self.hidden, self.decay = hidden, decay
        self.log_tau = nn.Parameter(torch.tensor(tau).log())
        self.register_buffer("averages", torch.zeros(3, dtype=torch.float64))

    def init(self, problem: Problem) -> None:
        device, dtype = problem.params[0].device, problem.params[0].dtype
        self.token = nn.Linear(problem.categories, self.hidden, bias=False, device=device, dtype=dtype)
        self.prefix = nn.Linear(problem.feature_size, self.hidden, device=device, dtype=dtype)
        self.head = nn.Linear(self.hidden, 1, device=device, dtype=dtype)
        # The token's layer is an embedding of order one for any V. All else is zero, so the network outputs zero.
        nn.init.normal_(self.token.weight, generator=generator(device, "relax"))
        for p in (*self.prefix.parameters(), *self.head.parameters()):
            nn.init.zeros_(p)

    def control(self, z: Tensor, features: Tensor) -> Tensor:
        """c_t (n, B, T) of perturbed log-probabilities z (n, B, T, V) and features of the prefix (n, B, T, D)."""
        _, mean, square = self.averages / self.averages[0].clamp_min(1e-12)
        # Inputs are divided by the root of their number, because a step of Adam changes all their weights equally.
        prefix = self.prefix(features / features.shape[-1] ** 0.5)
        units = (self.token((z / self.log_tau.exp()).softmax(-1)) + prefix).tanh()
        network = self.head(units / self.hidden**0.5).squeeze(-1)
        return mean + (square - mean.square()).clamp_min(0).sqrt() * network

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        b = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(b)  # (n, B)
        logits = problem.logits(b)  # (n, B, T, V)
        tied = gumbel_given(logits, b, exponential(logits, rng))  # z~, which depends on theta at fixed b
        # z gets its noise G from the value of z~, which is a valid draw of z given b. Their values are then equal,
        # grad c(z) - grad c(z~) is c' times the difference of their derivatives, and one evaluation of c is enough.
        free = logits.log_softmax(-1)
        both = tied.detach() + (free - free.detach()) - (tied - tied.detach())
        control = self.control(both, problem.features(b))  # (n, B, T)
        values = torch.cat([problem.log_prob(b), (control.sum(-1) + reward).unsqueeze(-1)], -1)  # (n, B, T + 1)
        # The gradient doesn't differentiate the weights, but own_loss reaches c through them.
        advantage = reward.detach().unsqueeze(-1) - control
        weights = torch.cat([advantage, torch.ones_like(reward).unsqueeze(-1)], -1) / reward.numel()
        estimate = with_squared_norm(problem, values, weights, self.training, {"tau": self.log_tau.detach().exp()})
        if self.training:  # after use: averages that saw their own sample would be biased
            past = reward.detach().double()
            new = torch.stack([torch.ones_like(past), past, past.square()]).mean((1, 2))
            self.averages = self.decay * self.averages + (1 - self.decay) * new  # own_loss still reads the old ones
        return estimate


class MuProp(Estimator):
    """MuProp on sequences: the first-order Taylor expansion of f around a mean-field rollout as the control variate.

    Approximates  grad E_{z~p}[f(z)]
    With          (f(b) - f(y) - eta M) grad log p(b) + eta sum_t a_t . grad pi_t(b_<t)
                  y_t  = softmax(l_t(y_<t)), the mean field;  a_t = df / dy_t, also through the later y
                  M    = sum_t a_t . (one_hot(b_t) - pi_t(b_<t)), the draws' deviations from their means, to first order
    Requires      differentiable reward.
    Bias          none, on sequences too: y and a don't depend on the draws, and the terms of M have mean zero given
                  their prefix. eta depends on earlier draws only.
    Cost a call   B reward calls hard and B relaxed, BT sampled and BT relaxed tokens, 2 backward passes, one of them
                  through the whole rollout.
    Source        Gu et al. 2016, section 3.  Deviates: draws are compared with their mean given the sampled prefix
                  (equal to y_t if decisions are independent), and the second term uses that prefix, because
                  a_t . (one_hot(b_t) - y_t) is biased on autoregressive policies; M is scaled by eta, the regression
                  coefficient of f(b) - f(y) on M over past draws, because derivatives of long rollouts may explode.
    """

    family = "control variate"
    unbiased = True
    needs = frozenset({"soft_reward"})
    averages: Tensor  # of (f(b) - f(y)) M and of M^2: sums of decay^age * value

    def __init__(
        self,
        eta: Annotated[float, Range(), "scale of the control variate, at the first call if it is learned"] = 1.0,
        learn: Annotated[bool, "learn eta by regression on past draws"] = True,
        decay: Annotated[float, Range(0, 1, high_open=True), "of the moving averages that eta is learned from"] = 0.9,
    ):
        super().__init__()
        self.start, self.learn, self.decay = eta, learn, decay
        self.register_buffer("averages", torch.zeros(2, dtype=torch.float64))

    @property
    def eta(self) -> Tensor:
        product, square = self.averages
        return (product / square).where(square > 0, self.start)

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        mean_reward, slope = self.mean_field(problem)  # f(y) (1, B), a (1, B, T, V)
        b = problem.sample(self.n, rng)  # (n, B, T)
        reward = problem.reward(b)  # (n, B)
        mean = (slope * problem.logits(b).softmax(-1)).sum(-1)  # a_t . pi_t(b_<t), (n, B, T)
        drawn = slope.expand(self.n, -1, -1, -1).gather(-1, b.unsqueeze(-1)).squeeze(-1)  # a_t . one_hot(b_t)
        innovation = (drawn - mean.detach()).sum(-1)  # M (n, B)
        residual = reward.detach() - mean_reward
        eta = self.eta
        value = (residual - eta * innovation) * problem.log_prob(b).sum(-1) + eta * mean.sum(-1) + reward
        if self.training and self.learn:  # after use: an eta that saw its own draw would be biased
            innovation = innovation.double()  # its square may overflow
            new = torch.stack([residual * innovation, innovation.square()]).mean((1, 2))
            self.averages.mul_(self.decay).add_(new.nan_to_num(0.0, 0.0, 0.0))
        return Estimate(problem.grad(value.mean()), info={"eta": eta})

    def mean_field(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """f(y) (1, B) and its derivative with respect to every token (1, B, T, V), without a graph."""
        tokens: list[Tensor] = []

        def mean(logits: Tensor) -> Tensor:
            tokens.append(logits.softmax(-1))
            return tokens[-1]

        reward = problem.soft_reward(problem.rollout(mean, 1))
        return reward.detach(), torch.stack(problem.grad(reward, of=tokens), 2)


def with_squared_norm(
    problem: Problem, values: Tensor, weights: Tensor, learn: bool, info: Mapping[str, float | Tensor]
) -> Estimate:
    """The estimate sum of weights * grad values; with `learn`, its own loss is its squared norm."""
    grad = problem.grad(values, weights if learn else weights.detach(), create_graph=learn)
    own_loss = torch.stack([g.square().sum() for g in grad]).sum() if learn else None
    return Estimate([g.detach() for g in grad], own_loss, info)
