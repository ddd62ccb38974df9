"""The object an estimator works on: J = mean over B contexts of E_{z ~ p_theta(.|x_b)} f_theta(z), with a ledger."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradebench.core.errors import Unsupported
from gradebench.core.mixture import Mixture, dense
from gradebench.core.sampler import Sampler

Relax = Callable[[Tensor], Tensor]
MixedRelax = Callable[[Tensor], Tensor | Mixture]
Choose = Callable[[Tensor], Tensor | tuple[Tensor, Tensor]]
ENUMERABLE = 4096  # outcomes of one context, at most, for `support`
ENUMERATED_AT_ONCE = 8192  # outcomes times contexts in one pass of `exact_gradient`


@dataclass
class Ledger:
    """What an estimator has used, counted by the problem and never by the estimator.

    reward_calls     evaluations of f on one sequence, hard or relaxed
    tokens_sampled   categorical draws, hard or relaxed
    forward_passes   evaluations of a batch of sequences by the policy, or by the reference; a cached decode is one, and
                     so is reading what was drawn, also where that was kept and takes no pass
    backward_passes  differentiations, with respect to the policy's parameters or to relaxed tokens
    """

    reward_calls: int = 0
    tokens_sampled: int = 0
    forward_passes: int = 0
    backward_passes: int = 0

    def saw(self, name: str, values: Tensor, count: int) -> None:
        """Told by a problem of the "reward", "kl" or "log_prob" that it has computed for `count` sequences, whole or by
        token. A training keeps the mean of each step in training.parquet; this ledger keeps nothing.
        """


@dataclass(frozen=True)
class RolloutHints:
    """What an estimator may tell of its `relax`, so that a problem can take a quicker way; by default, nothing.

    together   it treats all rows (n, B, V) alike and has no sense of position, so where no position reads another it
               may get all of them in one call, as (n, B T, V)
    rng        the generator that it draws from; given where the graph will be differentiated once, by the policy's
               parameters or by the tokens
    hard       it gives one-hots; with `rng`, tokens may be drawn without a graph, and relax called again, with the same
               noise, on the logits of one parallel pass over them
    sparse     it gives `Mixture`s; a problem that has `reads_mixtures` draws mixtures, for any other they are written out
    """

    together: bool = False
    rng: torch.Generator | None = None
    hard: bool = False
    sparse: bool = False


@dataclass(frozen=True)
class Behaviour:
    """Where the samples of a problem come from: a sampler, and the policy of `sampler.stale` training steps ago."""

    sampler: Sampler
    policy: Any = None  # a frozen copy; None: the problem's own


class Problem(ABC):
    """J = mean over B contexts of E_{z ~ p_theta(.|x_b)} f_theta(z).

    A subclass supplies the distribution and f; the base class differentiates, and shifts parameters.
    Axis letters: n draws, B contexts, T positions, V categories, D features.
    """

    params: tuple[Tensor, ...]
    offers: frozenset[str]  # of estimator.NEEDS
    contexts: int  # B
    horizon: int  # T
    categories: int  # V
    feature_size: int  # D
    beta: float = 0.0  # of a penalty that f can be freed of, in reward per nat; 0 where f is one piece
    reads_mixtures: bool = False  # whether relaxed draws, and `soft_reward`, may be of a `Mixture`

    def __init__(self, params: Sequence[Tensor], ledger: Ledger | None = None):
        self.params = tuple(params)
        self.ledger = ledger if ledger is not None else Ledger()

    @abstractmethod
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        """Hard draws z (n, B, T), int64, without a graph: from the policy, unless a `Sampler` was given."""

    @abstractmethod
    def draw(self, choose: Choose, n: int) -> Tensor:
        """Hard draws z (n, B, T) by the estimator's own rule: choose(logits) is called once a position, in order.

        Without a graph. It reads logits (n, B, V) and gives ids (n, B); or ids and parents (n, B): which of the n
        draws of the same context each of them continues, as in a beam search.
        """

    @abstractmethod
    def logits(self, z: Tensor) -> Tensor:
        """Logits (n, B, T, V) of every position given the ones before it, in one parallel pass."""

    @abstractmethod
    def reward(self, z: Tensor) -> Tensor:
        """f_theta(z), shape (n, B); has a graph only where f depends on the parameters."""

    @abstractmethod
    def soft_reward(self, y: Tensor) -> Tensor:
        """f_theta (n, B) of relaxed one-hots y (n, B, T, V), differentiable in y."""

    def rollout(
        self,
        relax: MixedRelax,
        n: int,
        *unnamed: Any,
        together: bool = False,
        rng: torch.Generator | None = None,
        hard: bool = False,
        sparse: bool = False,
    ) -> Tensor:
        """Differentiable draws y (n, B, T, V): relax(logits) is called once a position, in order, and y is fed back.

        An author needs no more. `together`, `rng`, `hard` and `sparse` say more about relax, so that a problem can be quicker
        (see `RolloutHints`). They go by name; unnamed ones still count, with a warning. With `sparse` the draws may be one
        `Mixture` (n, B, T, k), for `soft_reward` to read.
        """
        if unnamed:
            warnings.warn("name what rollout is told besides: together=, rng=, hard=", DeprecationWarning, stacklevel=2)
            named: list[Any] = [together, rng, hard]
            together, rng, hard = [*unnamed, *named[len(unnamed) :]]
        if sparse and not self.reads_mixtures:
            hints = RolloutHints(together, rng, hard)
            return self.relaxed_draws(lambda logits: dense(relax(logits), logits.shape[-1]), n, hints)
        return self.relaxed_draws(relax, n, RolloutHints(together, rng, hard, sparse))  # type: ignore[arg-type]

    def relaxed_draws(self, relax: Relax, n: int, hints: RolloutHints) -> Tensor:
        """The draws of `rollout`, for subclasses to define; they may ignore the hints."""
        raise NotImplementedError(f"{type(self).__name__} has no relaxed draws")

    @abstractmethod
    def features(self, z: Tensor) -> Tensor:
        """Features (n, B, T, D) of the prefix before each position, detached, for value heads."""

    @abstractmethod
    def select(self, index: Tensor) -> "Problem":
        """The same problem on a part of the contexts, sharing parameters and ledger (for minibatches)."""

    def raw_reward(self, z: Tensor) -> Tensor:
        """f (n, B) without its penalty, so that f = raw_reward - beta * divergence.sum(-1): one reward call each."""
        return self.reward(z)

    def sampled_by(self, behaviour: "Behaviour | None") -> "Problem":
        """The same problem, whose `sample` draws from mu, sharing parameters and ledger. Relaxed draws, and those by an
        estimator's own rule (`draw`), still follow the policy. Raises Unsupported where only the policy can sample.
        """
        if behaviour is None:
            return self
        raise Unsupported(f"{type(self).__name__} can only sample from its policy")

    def behaviour_log_prob(self, z: Tensor) -> Tensor:
        """log mu(z_t|x, z_<t) of the distribution that `sample` draws from, shape (n, B, T), without a graph; 0 after an end.

        By default mu is the policy at its present parameters. -inf for what mu never draws.
        """
        return self.log_prob(z).detach()

    def divergence(self, z: Tensor) -> Tensor:
        """KL(p_theta(.|x, z_<t) || p_ref(.|x, z_<t)) in nats at each position, (n, B, T), differentiable; 0 after an end.

        Raises NotImplementedError where `beta` is 0: there may be no reference.
        """
        raise NotImplementedError(f"{type(self).__name__} has no penalty apart from f")

    def reference_log_prob(self, z: Tensor) -> Tensor:
        """log p_ref(z_t|x, z_<t), shape (n, B, T), without a graph; 0 after an end. Raises as `divergence` does."""
        raise NotImplementedError(f"{type(self).__name__} has no penalty apart from f")

    def support(self) -> Tensor:
        """All outcomes (S, T) of an enumerable problem: V^T of them, or fewer where texts end."""
        raise NotImplementedError(f"{type(self).__name__} can't be enumerated")

    def exact_gradient(self) -> tuple[Tensor, ...]:
        """grad J itself, aligned with `params`: the derivative of the sum over all outcomes of p f, in batches."""
        support = self.support()  # (S, T)
        total = [torch.zeros_like(p) for p in self.params]
        for part in support.split(max(1, ENUMERATED_AT_ONCE // self.contexts)):
            z = part.unsqueeze(1).expand(-1, self.contexts, -1)
            objective = (self.log_prob(z).sum(-1).exp() * self.reward(z)).sum() / self.contexts
            total = [t + g for t, g in zip(total, self.grad(objective), strict=True)]
        return tuple(total)

    def replicated(self, copies: int) -> "Problem":
        """The same contexts dealt out to `copies` independent copies of the parameters: context i to copy i % copies.

        Every parameter then has a leading axis of `copies`, and `grad` of a mean over all contexts is, for each copy,
        the gradient of the mean over its own contexts, divided by `copies`. One call of an estimator so gives many
        draws. Raises NotImplementedError where the models can't be batched like that.
        """
        raise NotImplementedError(f"{type(self).__name__} can't be replicated")

    @property
    def mapped(self) -> bool:
        """Of a replicated problem: whether copies were made of the models' weights, which is slow for large ones."""
        return True

    @property
    def parameter_names(self) -> Sequence[str]:
        """Names aligned with `params`, dotted as in a module's state dict; probes report by their first parts."""
        return [str(i) for i in range(len(self.params))]

    def alive(self, z: Tensor) -> Tensor:
        """Whether each token of z counts, (n, B, T) bool: those up to the end of the text, its end token included.

        What follows an end is no choice of the policy's: it has log-probability 0, no gradient and no part in f.
        """
        return torch.ones_like(z, dtype=torch.bool)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p_theta(z_t | z_<t, x), shape (n, B, T); 0 after the end of a text."""
        found = self.logits(z).log_softmax(-1).gather(-1, z.unsqueeze(-1)).squeeze(-1)
        self.ledger.saw("log_prob", found, len(z) * self.contexts)
        return found

    def grad(
        self,
        value: Tensor,
        weights: Tensor | None = None,
        create_graph: bool = False,
        of: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        """Sum of weights * grad value, aligned with `params`; without `weights`, of the sum of `value`.

        The graph is freed unless `create_graph`, which also makes the answer differentiable (also in `weights`).
        `of`: tensors to differentiate by in place of `params`, such as the tokens of a rollout.
        """
        self.ledger.backward_passes += 1
        of = self.params if of is None else of
        if not value.requires_grad:
            return tuple(torch.zeros_like(p) for p in of)
        weights = torch.ones_like(value) if weights is None else weights
        return torch.autograd.grad(
            value, of, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
        )

    @contextmanager
    def shifted(self, delta: Sequence[Tensor]) -> Iterator[None]:
        """The problem at theta + delta, restored from a copy (adding and subtracting would drift)."""
        saved = [p.detach().clone() for p in self.params]
        with torch.no_grad():
            for p, d in zip(self.params, delta, strict=True):
                p.add_(d)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, s in zip(self.params, saved, strict=True):
                    p.copy_(s)


def independent_draws(logits: Tensor, choose: Choose) -> Tensor:
    """`Problem.draw` where no position reads another: logits (n, B, T, V), returns z (n, B, T)."""
    z = torch.empty(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    for t, step in enumerate(logits.unbind(2)):
        z[:, :, t], parents = chosen(choose(step))
        if parents is not None:
            z[:, :, :t] = continued(z[:, :, :t], parents)
    return z


def independent_tokens(logits: Tensor, relax: Relax, together: bool) -> Tensor:
    """`Problem.relaxed_draws` where no position reads another: logits (n, B, T, V), returns y (n, B, T, V)."""
    if together:
        return relax(logits.flatten(1, 2)).view_as(logits)
    return torch.stack([relax(step) for step in logits.unbind(2)], 2)


def chosen(answer: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Ids and parents of what a `Choose` gave."""
    return answer if isinstance(answer, tuple) else (answer, None)


def continued(z: Tensor, parents: Tensor) -> Tensor:
    """Draws z (n, B, t), each replaced by the one of its context that `parents` (n, B) names."""
    return z.gather(0, parents.unsqueeze(-1).expand_as(z))
