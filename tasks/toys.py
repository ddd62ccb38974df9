"""Toy problems of the literature: bits without a context, whose expected reward and gradient have closed forms."""

from abc import abstractmethod
from typing import Annotated, Literal

import torch
from torch import Tensor

from gradebench import Ledger, Range, Task
from gradebench.core.options import text_of
from gradebench.core.task import Log
from gradebench.problems.factorised import FactorisedProblem

CONTEXTS = 1024  # in each split; they are all the same, so this only limits the batch
START_SEED = 0
LIU_TARGETS = (0.6, 0.51, 0.48)


class Bits(Task):
    """T independent bits with one table of parameters, and a reward that is a sum over the bits.

    All contexts and splits are the same, and evaluations are exact, so metrics are equal for all splits, and for all seeds
    with the same parameters.
    """

    sizes = dict.fromkeys(Task.splits, CONTEXTS)

    @abstractmethod
    def start(self) -> Tensor:
        """The initial table, the same for every estimator and seed."""

    @abstractmethod
    def logits_of(self, table: Tensor) -> Tensor:
        """The logits (T, 2) of 0 and 1 for each bit."""

    @abstractmethod
    def worth(self, b: Tensor) -> Tensor:
        """The term (..., T) of each bit b (..., T), hard or relaxed, in the reward."""

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        self.setting = " ".join(f"{name}={text_of(value)}" for name, value in self.options.items())

    def load(self, device: torch.device) -> None:
        self.table = self.start().to(device).requires_grad_()
        self.params = [self.table]

    def reward_of(self, y: Tensor) -> Tensor:
        """f (...) for one-hots (..., T, 2)."""
        return self.worth(y[..., 1]).sum(-1)

    def expectation(self, p: Tensor) -> Tensor:
        """E f for probabilities (T, 2), exact for any T because f is a sum over the bits."""
        b = p.new_tensor([0.0, 1.0]).expand(len(p), 2)
        return (p * self.worth(b.T).T).sum()

    def problem(self, split: str, index: Tensor, ledger: Ledger | None = None) -> FactorisedProblem:
        return FactorisedProblem(self.table, self.logits_of, self.reward_of, len(index), self.expectation, ledger)

    @torch.no_grad()
    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        """The exact expected reward, and the entropy in nats per decision."""
        log_p = self.logits_of(self.table).log_softmax(-1)
        p = log_p.exp()
        return {"reward": float(self.expectation(p)), "entropy": float(-(p * log_p).sum(-1).mean())}


class BernoulliToy(Bits):
    """One logit for one bit or for three; the reward is the squared distance of the bits from their targets.

    Approximates  J = E sum_i (b_i - t_i)^2,  b_i ~ Bernoulli(theta), theta = sigmoid(the parameter)
    Known         dJ / d logit = theta (1 - theta) sum_i (1 - 2 t_i): at theta = 1/2, 0.025 for t = 0.45 and 5e-4 for
                  t = 0.499.
    Source        Tucker et al. 2017, section 5.1 (one bit); Liu et al. 2019 and Kool et al. 2020, section 6.1 (three).
                  Deviates: J is maximised, as everywhere here, where the papers minimise it. Biases and variances of
                  estimates are the same; the optimum is theta = 1, theirs is theta = 0.
    """

    default_steps = 500
    default_batch = 64
    learning_rate = 0.02

    def __init__(
        self,
        targets: Annotated[Literal["one", "three"], "one bit, or three on one logit (0.6, 0.51, 0.48)"] = "one",
        t: Annotated[float, Range(0, 1), "the target of one bit; three bits have fixed targets"] = 0.45,
        theta: Annotated[float, Range(0, 1, True, True), "initial probability of a 1"] = 0.5,
    ):
        self.options = {"targets": targets, "t": t, "theta": theta}
        self.targets = (t,) if targets == "one" else LIU_TARGETS

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        super().prepare(device, log, strict)
        if self.options["targets"] == "three":
            self.setting = f"targets=three theta={text_of(self.options['theta'])}"  # t isn't used

    def start(self) -> Tensor:
        return torch.tensor(
            self.options["theta"], dtype=torch.float64
        ).logit()  # so that closed forms hold to many digits

    def logits_of(self, table: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(table), table]).expand(len(self.targets), 2)

    def worth(self, b: Tensor) -> Tensor:
        return (b - b.new_tensor(self.targets)).square()


class Polynomial(Bits):
    """Polynomial programming: many bits, each with its own two logits; the reward is largest on one side of t.

    Approximates  J = -E mean_i |b_i - t|^p
    Known         the optimum is -min(t, 1 - t)^p.
    Source        Liu et al. 2023 (ReinMax), section 4.1, with its start, batch, steps and learning rate.
                  Deviates: the reward is minus their loss, because J is maximised here.
    """

    default_steps = 8000
    default_batch = 64
    learning_rate = 1e-3

    def __init__(
        self,
        latents: Annotated[int, Range(1), "bits"] = 128,
        p: Annotated[float, Range(1), "the exponent"] = 2.0,
        # without 0 and 1, where relaxed bits saturate, and |b - t|^p has no second derivative at b = t
        t: Annotated[float, Range(0, 1, True, True), "the target of every bit"] = 0.45,
    ):
        self.options = {"latents": latents, "p": p, "t": t}

    def start(self) -> Tensor:
        rng = torch.Generator().manual_seed(START_SEED)
        return torch.empty(self.options["latents"], 2).uniform_(-0.01, 0.01, generator=rng)

    def logits_of(self, table: Tensor) -> Tensor:
        return table

    def worth(self, b: Tensor) -> Tensor:
        return -(b - self.options["t"]).abs().pow(self.options["p"]) / self.options["latents"]
