"""The exact mean and variance of an estimate, by enumerating all samples it can get: no draws, no intervals."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradebench.core.estimator import Estimator
from gradebench.core.problem import Problem
from gradebench.core.sampling import generator
from gradebench.core.view import View

MOST = 200_000  # samples
AT_ONCE = 256  # samples in one pass


@dataclass(frozen=True)
class Expectation:
    """Mean (d,) and variance, the trace of the covariance, of one estimate on all contexts of a problem."""

    mean: Tensor
    variance: float

    def compared(self, truth: Tensor) -> dict[str, float]:
        """Against a gradient (d,): squared bias, variance and mean squared error relative to its squared norm, and the cosine.

        bias_after_scaling: the squared bias that is left if the estimate is multiplied by the best constant.
        """
        size = float(truth.dot(truth))
        dot, square = float(self.mean.dot(truth)), float(self.mean.dot(self.mean))
        cosine = dot / math.sqrt(size * square) if square else math.nan
        bias = float((self.mean - truth).square().sum()) / size
        return {
            "bias": bias,
            "bias_after_scaling": 1 - cosine**2,
            "cosine": cosine,
            "length": math.sqrt(square / size),
            "variance": self.variance / size,
            "mse": bias + self.variance / size,
        }


class Given(View):
    """A problem whose samples are given: z (n, B, T)."""

    def __init__(self, problem: Problem, z: Tensor):
        super().__init__(problem)
        self._z = z

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        if n != len(self._z):
            raise ValueError(f"{n} samples a context are wanted, and {len(self._z)} are given")
        return self._z.clone()  # a new tensor, because passes over the last one may be remembered


def expectation(estimator: Estimator, problem: Problem, jointly: bool = False) -> Expectation:
    """Mean and variance of the first call of an estimator whose only randomness are the samples of `problem.sample`.

    Its samples of a context must be interchangeable. Contexts are enumerated one by one, for estimators whose gradient is
    the mean of what they find on each context alone; `jointly` enumerates all of them together, for any other.

    Raises ValueError where that is more than MOST samples.
    """
    estimator.eval()
    if jointly:
        return _moments(estimator, problem, torch.arange(problem.contexts), 1)
    each = [_moments(estimator, problem, torch.tensor([b]), AT_ONCE) for b in range(problem.contexts)]
    variance = sum(one.variance for one in each) / len(each) ** 2
    return Expectation(torch.stack([one.mean for one in each]).mean(0), variance)


def _moments(estimator: Estimator, problem: Problem, contexts: Tensor, at_once: int) -> Expectation:
    """On some of the contexts; samples of one of them are taken `at_once`, each with its own copy of the parameters."""
    contexts = contexts.to(problem.params[0].device)
    mean, square, mass = torch.zeros(()), 0.0, 0.0
    for some in batched(_samples(problem.select(contexts), estimator.n), at_once):
        probability = torch.tensor([one for one, _ in some], dtype=torch.float64)
        z = torch.cat([one for _, one in some], 1)  # (n, copies B, T)
        part = problem.select(contexts.repeat(len(some)))
        part = part.replicated(len(some)) if len(some) > 1 else part
        estimator.reset()
        gradient = estimator.gradient(Given(part, z), generator("cpu", "none")).grad  # type: ignore[arg-type]
        found = torch.cat([g.detach().reshape(len(some), -1).double() for g in gradient], 1) * len(some)
        mean = mean + probability @ found
        square += float(probability @ found.square().sum(1))
        mass += float(probability.sum())
    if abs(mass - 1) > 1e-9:
        raise ValueError(f"the samples' probabilities sum to {mass}")
    return Expectation(mean, square - float(mean.dot(mean)))


def batched(values: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` values, the last one maybe shorter."""
    iterator = iter(values)
    while some := list(itertools.islice(iterator, size)):
        yield some


def _samples(problem: Problem, n: int) -> Iterator[tuple[float, Tensor]]:
    """All samples z (n, B, T) that aren't permutations of each other within a context, and their probabilities."""
    support = problem.support()  # (S, T)
    with torch.no_grad():
        every = support.unsqueeze(1).expand(-1, problem.contexts, -1)
        mu = problem.behaviour_log_prob(every).sum(-1).exp()  # (S, B)
    groups = []
    for b in range(problem.contexts):
        possible = [s for s in range(len(support)) if mu[s, b] > 0]
        count = math.comb(len(possible) + n - 1, n)
        if count**problem.contexts > MOST:
            raise ValueError(f"more than {MOST:,} samples; lower n, the vocabulary, the horizon or the contexts")
        groups.append(
            [(_probability(ids, mu[:, b]), ids) for ids in itertools.combinations_with_replacement(possible, n)]
        )
    for chosen in itertools.product(*groups):
        z = torch.stack([support[list(ids)] for _, ids in chosen], 1)  # (n, B, T)
        yield math.prod(probability for probability, _ in chosen), z


def _probability(ids: tuple[int, ...], mu: Tensor) -> float:
    """Of this multiset of outcomes, in any order: mu (S,)."""
    orders = math.factorial(len(ids)) // math.prod(math.factorial(count) for count in Counter(ids).values())
    return orders * math.prod(float(mu[i]) for i in ids)
