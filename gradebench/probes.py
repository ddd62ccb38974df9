"""Gradients at frozen parameters: streaming moments of many independent draws, and their distance to the truth.

Draws come in pairs that share their prompts and nothing else. The spread within pairs is sampling variance, that of
the pairs' means holds the rest, so both parts of the variance are known. Vectors are summed in a fixed number of
blocks; every quantity is a smooth function of the blocks' Gram matrix, and leaving out one block at a time (the
jackknife) gives its interval. Memory is O(parameters), whatever the number of draws.
"""

import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy.linalg
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradebench.estimator import Estimator
from gradebench.problem import Guarded, Ledger, Problem

BLOCKS = 20  # of draws, for the jackknife
LEVEL = 0.95  # of all intervals
COPIES = 256  # draws in one pass, at most
COPIED_ENTRIES = 2**22  # draws in one pass times parameters, at most
COPIED_ROWS = 2**14  # draws in one pass times sequences of one draw, at most
FEWEST_COPIES = 8  # below, one pass of many draws isn't quicker than one a draw

Floats = NDArray[np.float64]


# --- streaming moments ------------------------------------------------------------------------------------------


def flatten(gradient: Sequence[Tensor]) -> Tensor:
    """All entries as one vector (d,), float64."""
    return torch.cat([g.detach().reshape(-1).double() for g in gradient])


class Moments:
    """Sums over vectors that stream by, in memory O(blocks x d), float64.

    A unit is a vector, or the mean of a pair that shares its prompts. Units are dealt out to the blocks in turn, and
    measured from `centre` (d,), near their mean, lest a small variance cancel. `sizes` are the numbers of entries of
    the parameters, whose sums of squares are kept apart.
    """

    def __init__(self, centre: Tensor, sizes: Sequence[int], blocks: int = BLOCKS):
        self.centre, self.sizes = centre, list(sizes)
        device, kind = centre.device, torch.float64
        self.sums = torch.zeros(blocks, len(centre), dtype=kind, device=device)
        self.counts = torch.zeros(blocks, dtype=kind, device=device)
        self.squares = torch.zeros(blocks, len(self.sizes), dtype=kind, device=device)  # sum of |unit - centre|^2
        self.halves = torch.zeros_like(self.squares)  # sum of |first - second|^2 / 4 over pairs
        self.paired = False

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> Tensor:
        """(d,). Raises ValueError where nothing was added."""
        if not self.count:
            raise ValueError("no vector was added")
        return self.centre + self.sums.sum(0) / self.count

    def add(self, vectors: Tensor, twins: Tensor | None = None) -> None:
        """Vectors (D, d), each a unit of its own, or with its twin of the same prompts."""
        block = (torch.arange(len(vectors), device=vectors.device) + self.count) % len(self.counts)
        units = vectors - self.centre
        if twins is not None:
            self.paired = True
            self.halves.index_add_(0, block, self._squares((vectors - twins) / 2))
            units = (units + twins - self.centre) / 2
        self.sums.index_add_(0, block, units)
        self.squares.index_add_(0, block, self._squares(units))
        self.counts.index_add_(0, block, torch.ones_like(block, dtype=torch.float64))

    def recentred(self) -> "Moments":
        """The same moments, measured from their own mean."""
        shift = self.centre - self.mean
        answer = Moments(self.mean, self.sizes, len(self.counts))
        answer.counts, answer.halves, answer.paired = self.counts, self.halves, self.paired
        answer.sums = self.sums + self.counts[:, None] * shift
        cross = torch.stack([part.sum(1) for part in (self.sums * shift).split(self.sizes, 1)], 1)
        answer.squares = self.squares + 2 * cross + self.counts[:, None] * self._squares(shift[None])
        return answer

    def _squares(self, vectors: Tensor) -> Tensor:
        """Squared norm by parameter: (D, d) to (D, parameters)."""
        return torch.stack([part.square().sum(1) for part in vectors.split(self.sizes, 1)], 1)


@dataclass(frozen=True)
class Reference:
    """grad J at some parameters: exact, or the mean of a long unbiased run, whose noise then enters the intervals."""

    moments: Moments  # of the long run, or of the one exact vector
    exact: bool

    @classmethod
    def known(cls, gradient: Tensor, sizes: Sequence[int]) -> "Reference":
        moments = Moments(gradient, sizes, 1)
        moments.add(gradient[None])
        return cls(moments, exact=True)

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        moments = self.moments
        return {
            "reference_centre": moments.centre,
            "reference_sums": moments.sums,
            "reference_counts": moments.counts,
            "reference_squares": moments.squares,
            "reference_exact": torch.tensor(self.exact),
        }

    @classmethod
    def of_tensors(cls, stored: Mapping[str, Tensor], sizes: Sequence[int]) -> "Reference":
        moments = Moments(stored["reference_centre"], sizes, len(stored["reference_counts"]))
        moments.sums, moments.counts = stored["reference_sums"], stored["reference_counts"]
        moments.squares = stored["reference_squares"]
        return cls(moments, exact=bool(stored["reference_exact"]))


# --- draws ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where draws come from: everything that is fixed while an estimator's gradients are measured.

    contexts   number of a pair of draws to the indices (B,) of its contexts
    problem    indices (N,) and a ledger to the problem on them
    generator  number of a draw to its generator
    """

    contexts: Callable[[int], Tensor]
    problem: Callable[[Tensor, Ledger | None], Problem]
    generator: Callable[[int], torch.Generator]


def one_estimate(estimator: Estimator, problem: Problem, rng: torch.Generator) -> Tensor:
    """One fresh estimate (d,) at fixed parameters: the mean over the calls that share a batch."""
    return flatten(_mean_gradient(estimator, problem, rng))


def _mean_gradient(estimator: Estimator, problem: Problem, rng: torch.Generator) -> list[Tensor]:
    estimator.reset()
    guarded = Guarded(problem, estimator.needs)
    total: list[Tensor] = []
    for _ in range(estimator.period):
        gradient = estimator.gradient(guarded, rng).grad  # type: ignore[arg-type]
        total = [t + g for t, g in zip(total, gradient, strict=True)] if total else list(gradient)
    return [t / estimator.period for t in total]


def moments_of(estimator: Estimator, source: Source, pairs: int, centre: Tensor, sizes: Sequence[int]) -> Moments:
    """Moments of `pairs` pairs of draws: many in one pass where draws don't read each other, else one by one.

    An estimate without noise of its own is drawn for BLOCKS choices of prompts, and once each.
    """
    if not _draws_noise(estimator, source):
        pairs, drawn, at_once = min(pairs, BLOCKS), _same_twice, 1
    elif at_once := _pairs_at_once(estimator, source, sum(sizes)):
        drawn = _many_estimates
    else:
        drawn, at_once = _one_by_one, 1
    moments = Moments(centre, sizes, min(BLOCKS, pairs))
    for start in range(0, pairs, at_once):
        numbers = range(start, min(start + at_once, pairs))
        moments.add(*drawn(estimator, source, numbers))
    return moments


def _draws_noise(estimator: Estimator, source: Source) -> bool:
    """Whether the estimate takes anything from its generator; else only the choice of prompts varies it."""
    rng = source.generator(0)
    before = rng.get_state()
    one_estimate(estimator, source.problem(source.contexts(0), None), rng)
    return not torch.equal(before, rng.get_state())


def _one_by_one(estimator: Estimator, source: Source, numbers: range) -> tuple[Tensor, Tensor]:
    """The two draws (1, d) of one pair."""
    (number,) = numbers
    problem = source.problem(source.contexts(number), None)
    first, second = (one_estimate(estimator, problem, source.generator(2 * number + i))[None] for i in (0, 1))
    return first, second


def _same_twice(estimator: Estimator, source: Source, numbers: range) -> tuple[Tensor, Tensor]:
    """A pair (1, d) whose draws are equal."""
    (number,) = numbers
    problem = source.problem(source.contexts(number), None)
    only = one_estimate(estimator, problem, source.generator(2 * number))[None]
    return only, only


def _many_estimates(estimator: Estimator, source: Source, numbers: range) -> tuple[Tensor, Tensor]:
    """The first draws of these pairs, and the second ones, (pairs, d) each, in one pass."""
    contexts = torch.stack([source.contexts(number) for number in numbers], 1)  # (B, pairs)
    copies = 2 * len(numbers)
    problem = source.problem(contexts.repeat(1, 2).reshape(-1), None).replicated(copies)
    gradient = _mean_gradient(estimator, problem, source.generator(2 * numbers.start))
    drawn = torch.cat([g.detach().reshape(copies, -1).double() for g in gradient], 1) * copies
    return drawn[: len(numbers)], drawn[len(numbers) :]


def _pairs_at_once(estimator: Estimator, source: Source, size: int) -> int:
    """How many pairs fit into one pass; 0 where draws have to come one by one."""
    rows = len(source.contexts(0)) * estimator.n
    copies = min(COPIES, COPIED_ENTRIES // size, COPIED_ROWS // rows)
    return copies // 2 if copies >= FEWEST_COPIES and draws_are_separate(estimator, source) else 0


def draws_are_separate(estimator: Estimator, source: Source) -> bool:
    """Whether copies in one pass leave each other alone: found by changing the rewards of one and watching the other.

    Advantages that are whitened over the batch, or contexts that are shuffled, tie draws together; then the answer is
    no, as it is for problems that can't be replicated.
    """
    index = source.contexts(0)

    def watched(factor: float) -> list[Tensor]:
        problem = source.problem(index.repeat_interleave(2), None).replicated(2)
        rng = source.generator(0)
        return [g[0] for g in _mean_gradient(estimator, _Rewarded(problem, factor), rng)]  # type: ignore[arg-type]

    try:
        plain, changed = watched(1.0), watched(3.0)
    except Exception:  # noqa: BLE001 - models and estimators fail in their own ways when batched; one by one always works
        return False
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(plain, changed, strict=True))


class _Rewarded:
    """A problem whose odd contexts have their reward multiplied."""

    def __init__(self, problem: Problem, factor: float):
        self._problem, self._factor = problem, factor

    def __getattr__(self, name: str):
        return getattr(self._problem, name)

    def reward(self, z: Tensor) -> Tensor:
        return self._changed(self._problem.reward(z))

    def soft_reward(self, y: Tensor) -> Tensor:
        return self._changed(self._problem.soft_reward(y))

    def _changed(self, reward: Tensor) -> Tensor:
        odd = torch.arange(reward.shape[1], device=reward.device) % 2
        return reward * (1 + (self._factor - 1) * odd)


def costs_of(estimator: Estimator, source: Source, repeats: int = 3) -> dict[str, float]:
    """What one draw uses, by the ledger, and its seconds (the least of a few)."""
    ledger = Ledger()
    problem = source.problem(source.contexts(0), ledger)
    seconds = math.inf
    for _ in range(repeats):
        started = time.perf_counter()
        one_estimate(estimator, problem, source.generator(0))
        seconds = min(seconds, time.perf_counter() - started)
    return {name: count / repeats for name, count in asdict(ledger).items()} | {"seconds": seconds}


# --- from moments to metrics ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """The few numbers that all metrics are functions of: one group of parameters, K blocks of draws, R of reference.

    gram  (K + R + 1, K + R + 1): products of the blocks' sums, and last of the centre they are measured from.
    """

    gram: Floats
    counts: Floats  # (K,)
    squares: Floats  # (K,)
    halves: Floats | None  # (K,); None where units are no pairs
    reference_counts: Floats  # (R,)
    reference_squares: Floats  # (R,)
    exact: bool


def group_of(name: str) -> str:
    """The part of the model that a parameter belongs to: "blocks.0.query.weight" to "blocks.0", "norm.bias" to "norm"."""
    numbered = re.match(r".*?\.\d+(?=\.)", name)
    return numbered[0] if numbered else name.rpartition(".")[0] or name


def summaries(moments: Moments, reference: Reference, names: Sequence[str]) -> dict[str, Summary]:
    """The summary of all parameters, under "", and of every group of them."""
    run = reference.moments
    if not torch.equal(run.centre, moments.centre):
        raise ValueError("draws and reference must be measured from the same centre")
    rows = torch.cat([moments.sums, run.sums, moments.centre[None]])
    grams = torch.stack([part @ part.T for part in rows.split(moments.sizes, 1)]).cpu().numpy()  # (parameters, ., .)
    groups = [group_of(name) for name in names]
    chosen = {"": np.ones(len(groups), bool)}
    chosen |= {group: np.array([g == group for g in groups]) for group in dict.fromkeys(groups)}

    def total(by_parameter: Tensor, which: NDArray[np.bool_]) -> Floats:
        return np.asarray(by_parameter.cpu().numpy()[:, which].sum(1))

    return {
        group: Summary(
            gram=grams[which].sum(0),
            counts=moments.counts.cpu().numpy(),
            squares=total(moments.squares, which),
            halves=total(moments.halves, which) if moments.paired else None,
            reference_counts=run.counts.cpu().numpy(),
            reference_squares=total(run.squares, which),
            exact=reference.exact,
        )
        for group, which in chosen.items()
    }


def _metrics(summary: Summary, kept: Floats, reference_kept: Floats) -> dict[str, float]:
    """All metrics from the blocks that are kept: weights 1 or 0, (K,) and (R,)."""
    n, m = float(summary.counts @ kept), float(summary.reference_counts @ reference_kept)
    draws = np.concatenate([kept / n, np.zeros(len(reference_kept)), [0.0]])  # the mean draw, from the centre
    truth = np.concatenate([np.zeros(len(kept)), reference_kept / m, [0.0]])  # the mean reference
    centre = np.eye(len(draws))[-1]

    def product(a: Floats, b: Floats) -> float:
        return float(a @ summary.gram @ b)

    # np.float64 divides by zero to nan or inf, as wanted here.
    unit_variance = np.float64(summary.squares @ kept - n * product(draws, draws)) / (n - 1 if n > 1 else math.nan)
    halves = 0.0 if summary.halves is None else float(summary.halves @ kept) / n
    variance = unit_variance + halves
    reference_error = 0.0
    if not summary.exact:
        spread = np.float64(summary.reference_squares @ reference_kept - m * product(truth, truth))
        reference_error = float(spread / (m - 1 if m > 1 else math.nan) / m)
    norm_squared = product(draws + centre, draws + centre) - unit_variance / n
    reference_norm_squared = np.float64(product(truth + centre, truth + centre) - reference_error)
    dot = product(draws + centre, truth + centre)
    bias_squared = product(draws - truth, draws - truth) - unit_variance / n - reference_error
    resolved = norm_squared > 0 and reference_norm_squared > 0
    answer = {
        "gradient_variance": variance,
        "gradient_variance_relative": variance / norm_squared if norm_squared > 0 else math.nan,
        "gradient_snr": norm_squared / variance if variance > 0 else math.nan,
        "gradient_cosine": dot / np.sqrt(norm_squared * reference_norm_squared) if resolved else math.nan,
        "gradient_bias_squared": bias_squared,
        "gradient_bias_relative": bias_squared / reference_norm_squared if reference_norm_squared > 0 else math.nan,
        "gradient_mse": variance + bias_squared,
        "gradient_norm_squared": norm_squared,
        "gradient_reference_dot": dot,
        "gradient_reference_norm_squared": reference_norm_squared,
    }
    if summary.halves is not None:
        answer["gradient_variance_sampling"] = 2 * halves
        answer["gradient_variance_prompts"] = unit_variance - halves
    return {name: float(value) for name, value in answer.items()}


_POSITIVE = {"gradient_variance", "gradient_variance_relative", "gradient_snr", "gradient_variance_sampling"}


def gradient_metrics(summary: Summary) -> dict[str, Interval]:
    """The metrics of one group, each with its interval.

    Squared quantities are debiased, so noise may turn a small one negative; variances are those of one draw.

    gradient_variance           trace of the covariance
    gradient_variance_sampling, _prompts   its parts: prompts fixed, and what the choice of prompts adds
    gradient_variance_relative, gradient_snr   that over |E g|^2, and |E g|^2 over that
    gradient_cosine             between E g and the reference, both norms debiased
    gradient_bias_squared       |E g - grad J|^2, less what the noise of both means adds
    gradient_bias_relative      that over |grad J|^2
    gradient_mse                E |g - grad J|^2

    Intervals     delete-one-block jackknife over draws and over reference, t quantiles with Satterthwaite's degrees
                  of freedom; on the logarithm for what is positive. Near a bias of zero they are too wide, not too
                  narrow. NaN with fewer than two blocks.
    """
    kept, reference_kept = np.ones(len(summary.counts)), np.ones(len(summary.reference_counts))
    values = _metrics(summary, kept, reference_kept)
    without = [_metrics(summary, row, reference_kept) for row in kept - np.eye(len(kept))] if len(kept) > 1 else []
    varies = not summary.exact and len(reference_kept) > 1
    without_reference = (
        [_metrics(summary, kept, row) for row in reference_kept - np.eye(len(reference_kept))] if varies else []
    )
    own, truth = values["gradient_norm_squared"], values["gradient_reference_norm_squared"]
    noise = _variance_of_squared_noise(summary)
    floors = {"gradient_bias_squared": noise, "gradient_mse": noise}
    if truth > 0:
        floors["gradient_bias_relative"] = noise / truth**2
    if own > 0 and truth > 0:  # 1 - cosine is half the squared distance between the unit vectors
        floors["gradient_cosine"] = _variance_of_squared_noise(summary, own**-0.5, truth**-0.5) / 4
    return {
        name: _jackknife(
            name, value, [[w[name] for w in without], [w[name] for w in without_reference]], floors.get(name, 0.0)
        )
        for name, value in values.items()
    }


def _variance_of_squared_noise(summary: Summary, scale: float = 1.0, reference_scale: float = 1.0) -> float:
    """2 tr S^2, S the covariance of mean draw less reference: the variance of |noise|^2, which is all that a squared
    bias of zero has. The jackknife sees only how the noise found moves it, and next to nothing where that is small.

    tr S^2 comes from products of Helmert contrasts of the blocks' means, which are independent of each other.
    """
    parts = [scale * _contrasts(summary.counts)]
    if not summary.exact:
        parts.append(reference_scale * _contrasts(summary.reference_counts))
    total, offset = 0.0, 0
    placed = []
    for part in parts:
        place = np.zeros((len(part), len(summary.gram)))
        place[:, offset : offset + part.shape[1]] = part
        placed.append(place)
        offset += part.shape[1]
    for i, a in enumerate(placed):
        for j, b in enumerate(placed):
            products = np.square(a @ summary.gram @ b.T)
            if i == j:
                products = products[~np.eye(len(products), dtype=bool)]
            total += float(products.mean()) if products.size else 0.0
    return 2 * total


def _contrasts(counts: Floats) -> Floats:
    """(K - 1, K): of the blocks' sums, vectors with mean zero and the covariance of the overall mean."""
    blocks = len(counts)
    return np.asarray(scipy.linalg.helmert(blocks) / counts / math.sqrt(blocks))


def _jackknife(name: str, value: float, parts: Sequence[Sequence[float]], floor: float) -> Interval:
    """The interval from the values without each block, one list an independent source of noise, and a variance that
    they don't show."""
    if math.isnan(value):
        return Interval(math.nan, math.nan, math.nan)
    logarithmic = name in _POSITIVE
    limit = 1.0 if name == "gradient_cosine" else math.inf  # of debiased norms, a cosine may leave [-1, 1]
    variance, freedom = floor, 0.0
    for part in parts:
        left = np.asarray(part, dtype=np.float64)
        if len(left) < 2 or np.ptp(left) == 0:  # no block matters; all may be zero, which has no logarithm
            continue
        with np.errstate(divide="ignore", invalid="ignore"):
            left = np.log(left) if logarithmic else left
            share = float((len(left) - 1) / len(left) * np.square(left - left.mean()).sum())
        variance += share
        freedom += share**2 / (len(left) - 1)
    shown = max(-limit, min(limit, value))
    if not math.isfinite(variance) or not math.isfinite(value) or len(parts[0]) < 2:
        return Interval(shown, math.nan, math.nan)
    if variance == 0:
        return Interval(shown, shown, shown)
    degrees = variance**2 / freedom if freedom else len(parts[0]) - 1.0
    width = float(scipy.stats.t.isf((1 - LEVEL) / 2, degrees)) * math.sqrt(variance)
    if logarithmic:
        return Interval(value, value * math.exp(-width), value * math.exp(width))
    return Interval(shown, max(-limit, min(limit, value - width)), max(-limit, min(limit, value + width)))


def slope_of_log_variance(samples: Sequence[int], variances: Sequence[Interval]) -> Interval:
    """Slope of ln variance against ln samples by least squares, weighted with the intervals; -1 for a plain mean.

    The variances come from separate draws. NaN with fewer than two positive ones.
    """
    points = [(k, v) for k, v in zip(samples, variances, strict=True) if v.value > 0 and v.high > v.low > 0]
    if len({k for k, _ in points}) < 2:
        return Interval(math.nan, math.nan, math.nan)
    x = np.log([k for k, _ in points])
    y = np.log([v.value for _, v in points])
    normal = float(scipy.stats.norm.isf((1 - LEVEL) / 2))
    weights = np.array([(2 * normal / math.log(v.high / v.low)) ** 2 for _, v in points])
    x = x - np.average(x, weights=weights)
    information = float(weights @ x**2)
    slope = float(weights @ (x * y)) / information
    width = normal / math.sqrt(information)
    return Interval(slope, slope - width, slope + width)
