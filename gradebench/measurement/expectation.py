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
from gradebench.core.shown import counted
from gradebench.core.view import View

MOST = 200_000  # samples of all contexts, at most
MOST_JOINT = 5_000  # of contexts together, at most, which are taken one by one
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
            "bias_squared": bias,
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
            raise ValueError(f"it has n = {len(self._z)}, and calls problem.sample for {n}")
        return self._z.clone()  # a new tensor, because passes over the last one may be remembered


def expectation(estimator: Estimator, problem: Problem, jointly: bool = False) -> Expectation:
    """Mean and variance of the first call of an estimator whose only randomness are the samples of `problem.sample`.

    Its samples of a context must be interchangeable. Contexts are enumerated one by one, for estimators whose gradient is
    the mean of what they find on each context alone; `jointly` enumerates all of them together, for any other.

    Raises ValueError where that is more than MOST samples, or MOST_JOINT.
    """
    estimator.eval()
    if jointly:
        return _jointly(estimator, problem)
    device, size = problem.params[0].device, sum(p.numel() for p in problem.params)
    means = torch.zeros(problem.contexts, size, dtype=torch.float64, device=device)
    squares, masses = torch.zeros(2, problem.contexts, dtype=torch.float64, device=device)
    samples = (
        (b, *one)
        for b in range(problem.contexts)
        for one in _samples(problem.select(torch.tensor([b], device=device)), estimator.n)
    )
    for some in batched(samples, AT_ONCE):  # each with its own copy of the parameters
        index = torch.tensor([b for b, _, _ in some], device=device)
        probability = torch.tensor([one for _, one, _ in some], dtype=torch.float64, device=device)
        part = problem.select(index)
        part = part.replicated(len(some)) if len(some) > 1 else part
        found = _gradient(estimator, part, torch.cat([z for _, _, z in some], 1), len(some))
        means.index_add_(0, index, probability[:, None] * found)
        squares.index_add_(0, index, probability * found.square().sum(1))
        masses.index_add_(0, index, probability)
    _require_whole(masses)
    variance = float((squares - means.square().sum(1)).sum()) / problem.contexts**2
    return Expectation(means.mean(0), variance)


def _jointly(estimator: Estimator, problem: Problem) -> Expectation:
    """From samples of all contexts together, one after another."""
    mean, square, mass = torch.zeros(()), 0.0, torch.zeros(1, dtype=torch.float64)
    for probability, z in _samples(problem, estimator.n):
        (found,) = _gradient(estimator, problem, z)
        mean, square, mass = (
            mean + probability * found,
            square + probability * float(found.dot(found)),
            mass + probability,
        )
    _require_whole(mass)
    return Expectation(mean, square - float(mean.dot(mean)))


def _require_whole(masses: Tensor) -> None:
    if not torch.allclose(masses, torch.ones_like(masses), rtol=0, atol=1e-9):
        raise ValueError(f"the samples' probabilities sum to {masses.tolist()}")


def mixes_contexts(estimator: Estimator, problem: Problem) -> bool:
    """Whether the gradient on two contexts differs from the mean of those on each of them, from the same samples."""
    if problem.contexts < 2:
        return False
    z = problem.sample(estimator.n, generator(problem.params[0].device, "mixes"))
    parts = [torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([1])]
    estimator.eval()
    both, *each = (_gradient(estimator, problem.select(part.to(z.device)), z[:, part]) for part in parts)
    return not torch.allclose(both, (each[0] + each[1]) / 2, rtol=1e-6, atol=1e-9 * float(both.abs().max()))


def _gradient(estimator: Estimator, problem: Problem, z: Tensor, copies: int = 1) -> Tensor:
    """The gradients (copies, d) from given samples z (n, B, T). Raises ValueError if the estimator used its generator."""
    rng = generator(z.device, "its own")
    before = rng.get_state()
    estimator.reset()
    gradient = estimator.gradient(Given(problem, z), rng).grad  # type: ignore[arg-type]
    if not torch.equal(before, rng.get_state()):
        raise ValueError("it draws random numbers besides problem.sample, which can't be listed; try gradebench probe")
    return torch.cat([g.detach().reshape(copies, -1).double() for g in gradient], 1) * copies


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
    possible = [[i for i in range(len(support)) if mu[i, b] > 0] for b in range(problem.contexts)]
    count, most = (
        math.prod(math.comb(len(ids) + n - 1, n) for ids in possible),
        MOST if problem.contexts == 1 else MOST_JOINT,
    )
    if count > most:
        raise ValueError(
            f"it can get {counted(count, 'sample')}, more than {most:,}; lower its n, the vocabulary, the horizon or --contexts"
        )
    groups = [
        [(_probability(ids, mu[:, b]), ids) for ids in itertools.combinations_with_replacement(some, n)]
        for b, some in enumerate(possible)
    ]
    for chosen in itertools.product(*groups):
        z = torch.stack([support[list(ids)] for _, ids in chosen], 1)  # (n, B, T)
        yield math.prod(probability for probability, _ in chosen), z


def _probability(ids: tuple[int, ...], mu: Tensor) -> float:
    """Of this multiset of outcomes, in any order: mu (S,)."""
    orders = math.factorial(len(ids)) // math.prod(math.factorial(count) for count in Counter(ids).values())
    return orders * math.prod(float(mu[i]) for i in ids)
