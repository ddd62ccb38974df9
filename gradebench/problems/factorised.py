"""Independent categorical variables with any reward: problems whose gradients and variances have closed forms."""

from collections.abc import Callable

import torch
from torch import Tensor

from gradebench.core.problem import (
    ENUMERABLE,
    Choose,
    Ledger,
    Problem,
    Relax,
    RolloutHints,
    independent_draws,
    independent_tokens,
)
from gradebench.core.sampling import categorical


class FactorisedProblem(Problem):
    """J = E f(z), z = T independent categoricals; the B contexts are B independent draws from the same distribution.

    table        the one parameter, of any shape
    logits_of    table to logits (T, V)
    reward_of    one-hots, hard or relaxed, (..., T, V) to f (...); it must not depend on the parameters
    expectation  probabilities (T, V) to J, if that has a closed form; else outcomes are enumerated, if there are few enough
    """

    feature_size = 2

    def __init__(
        self,
        table: Tensor,
        logits_of: Callable[[Tensor], Tensor],
        reward_of: Callable[[Tensor], Tensor],
        contexts: int = 1,
        expectation: Callable[[Tensor], Tensor] | None = None,
        ledger: Ledger | None = None,
        copies: int = 0,
    ):
        super().__init__([table], ledger)
        self.table, self.logits_of, self.reward_of, self.expectation = table, logits_of, reward_of, expectation
        self.contexts, self.copies = contexts, copies
        self.horizon, self.categories = self._logits().shape[1:]
        offers = {"soft_reward", "fixed_reward", "independent"}
        offers |= {"support"} if self.categories**self.horizon <= ENUMERABLE else set()
        offers |= {"exact"} if expectation or "support" in offers else set()
        offers |= {"binary"} if self.categories == 2 else set()
        self.offers = frozenset(offers)

    def _logits(self) -> Tensor:
        """(B, T, V)."""
        if not self.copies:
            return self.logits_of(self.table).expand(self.contexts, -1, -1)
        return torch.func.vmap(self.logits_of)(self.table).repeat(self.contexts // self.copies, 1, 1)

    @torch.no_grad()
    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        return categorical(self._logits().expand(n, -1, -1, -1), rng)

    @torch.no_grad()
    def draw(self, choose: Choose, n: int) -> Tensor:
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        return independent_draws(self._logits().expand(n, -1, -1, -1), choose)

    def logits(self, z: Tensor) -> Tensor:
        self.ledger.forward_passes += 1
        return self._logits().expand(len(z), -1, -1, -1)

    def reward(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return self._reward(torch.nn.functional.one_hot(z, self.categories).to(self.table.dtype))

    def soft_reward(self, y: Tensor) -> Tensor:
        return self._reward(y)

    def _reward(self, y: Tensor) -> Tensor:
        self.ledger.reward_calls += len(y) * self.contexts
        found = self.reward_of(y)
        self.ledger.saw("reward", found, len(y) * self.contexts)
        return found

    def relaxed_draws(self, relax: Relax, n: int, hints: RolloutHints) -> Tensor:
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        return independent_tokens(self._logits().expand(n, -1, -1, -1), relax, hints.together)

    def features(self, z: Tensor) -> Tensor:
        """A constant and the position, (n, B, T, 2), because decisions don't depend on earlier ones."""
        position = torch.arange(self.horizon, device=z.device) / self.horizon
        return torch.stack([torch.ones_like(position), position], -1).to(self.table.dtype).expand(*z.shape, -1)

    def select(self, index: Tensor) -> "FactorisedProblem":
        if self.copies:
            raise NotImplementedError("a part of the contexts would deal them out to other copies")
        return self._like(self.table, len(index), self.ledger)

    def replicated(self, copies: int) -> "FactorisedProblem":
        if self.contexts % copies:
            raise ValueError(f"{self.contexts} contexts can't be dealt out evenly to {copies} copies")
        table = self.table.detach().expand(copies, *self.table.shape).requires_grad_()
        return self._like(table, self.contexts, None, copies)

    def _like(self, table: Tensor, contexts: int, ledger: Ledger | None, copies: int = 0) -> "FactorisedProblem":
        return FactorisedProblem(table, self.logits_of, self.reward_of, contexts, self.expectation, ledger, copies)

    def support(self) -> Tensor:
        if "support" not in self.offers:
            return super().support()
        values = torch.arange(self.categories, device=self.table.device)
        return torch.cartesian_prod(*[values] * self.horizon).view(-1, self.horizon)

    def exact_gradient(self) -> tuple[Tensor, ...]:
        if self.expectation is None:
            return super().exact_gradient()
        if not self.copies:
            return self.grad(self.expectation(self.logits_of(self.table).softmax(-1)))
        expectations = torch.func.vmap(lambda table: self.expectation(self.logits_of(table).softmax(-1)))  # type: ignore[misc]
        return self.grad(expectations(self.table).mean())
