"""Where one curve overtakes another: budgets with a supported difference, and the change of the lead between them.

Plain arrays in, plain numbers out. A curve belongs to one seed; the difference of two is taken for each seed at each
budget. The test flips the sign of a seed's whole curve of differences, so that all budgets are one family.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from gradebench.analysis import statistics

EXACT_SEEDS = 14  # up to 2^14 assignments of signs are enumerated
RANDOM_SIGNS = 10_000  # above
_TIE_TOLERANCE = 1e-10

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Crossing:
    """Where the sign of a difference a - b changes, in the units of the budgets.

    budget          where the mean difference is 0; NaN if the lead doesn't change
    low, high       the nearest budgets on either side with a supported difference; NaN if there is none on that side
    before, after   the supported leader at low and at high: 1 for a, -1 for b, 0 for neither
    sign_changes    the number of sign changes of the mean difference over all budgets, supported or not
    """

    budget: float
    low: float
    high: float
    before: int
    after: int
    sign_changes: int

    @property
    def supported(self) -> bool:
        """Whether the lead changes, with a supported difference on both sides."""
        return self.before * self.after < 0


def simultaneous_p(differences: ArrayLike, generator: np.random.Generator) -> Floats:
    """Two-sided p (budgets,) of mean 0 at each budget, valid for all of them together.

    With          T_b = |sum_i d_ib| / sqrt(sum_i d_ib^2),  p_b = P(max_c T_c(s) >= T_b),  s a random sign for each seed
    Shapes        differences (seeds, budgets): finite. Without a seed: NaN.
    Exact         if whole curves of differences are symmetric about 0; up to 14 seeds by enumeration, above by
                  10,000 random assignments with (1 + count) / (1 + draws).
    Raises        ValueError for values that are not finite, or another shape.
    Source        Westfall and Young 1993, the single-step maximum test.
    """
    values = np.asarray(differences, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"expected finite differences (seeds, budgets), got shape {values.shape}")
    seeds, budgets = values.shape
    if not seeds or not budgets:
        return np.full(budgets, math.nan)
    norms = np.sqrt(np.square(values).sum(axis=0))
    scaled = np.divide(values, norms, out=np.zeros_like(values), where=norms > 0)
    observed = np.abs(scaled.sum(axis=0)) - _TIE_TOLERANCE
    exact = seeds <= EXACT_SEEDS
    sums = scaled.T @ _signs(seeds, generator)  # (budgets, assignments)
    largest = np.sort(np.maximum(sums.max(axis=0), -sums.min(axis=0)))
    count = largest.size - np.searchsorted(largest, observed)
    return np.asarray(count / largest.size if exact else (1 + count) / (1 + largest.size), dtype=np.float64)


def _signs(seeds: int, generator: np.random.Generator) -> Floats:
    """Assignments of signs (seeds, assignments): all that differ by more than a flip of everything, or random ones."""
    if seeds > EXACT_SEEDS:
        bits = generator.integers(0, 2, (seeds, RANDOM_SIGNS))
    else:
        bits = np.arange(2 ** (seeds - 1)) >> np.arange(seeds)[:, None] & 1
    return np.asarray(1.0 - 2.0 * bits, dtype=np.float64)


def supported_leads(
    differences: ArrayLike, generator: np.random.Generator, alpha: float = statistics.ALPHA
) -> NDArray[np.int64]:
    """The supported leader at each budget: 1 for a (a - b above 0), -1 for b, else 0; `differences` (seeds, budgets).

    With a probability of at least 1 - alpha none of these leads is wrong.

    Raises        as `simultaneous_p`.
    """
    values = np.asarray(differences, dtype=np.float64)
    p = simultaneous_p(values, generator)
    if not len(values):
        return np.zeros(p.shape, dtype=np.int64)
    return np.where(p < alpha, np.sign(values.mean(axis=0)), 0).astype(np.int64)


def crossing(budgets: ArrayLike, differences: ArrayLike, leads: Sequence[int] | NDArray[np.int64]) -> Crossing:
    """The last budget at which the lead changes.

    If the sign changes several times, it is the last change with different supported leaders on its two sides; without
    one, the last change without a supported lead on at least one side. A change between two supported leads of the same
    estimator doesn't count.

    With          linear interpolation of the mean difference in log budget between neighbours of different sign
    Shapes        budgets (m,): positive, increasing; differences (seeds, m); leads (m,) of `supported_leads`.
    Coverage      with a probability of at least 95 %, low to high contains a budget at which the true difference is 0,
                  because a lead found there would be wrong.
    """
    at, mean = np.asarray(budgets, dtype=np.float64), np.asarray(differences, dtype=np.float64).mean(axis=0)
    states = np.asarray(leads)
    signed = np.flatnonzero(mean != 0)  # a difference of exactly 0 belongs to neither
    changes = [(i, j) for i, j in pairwise(signed) if mean[i] * mean[j] < 0]
    decided = np.flatnonzero(states)
    found: list[Crossing] = []
    for i, j in changes:
        left, right = decided[decided <= i], decided[decided >= j]
        before, after = (int(states[left[-1]]) if left.size else 0), (int(states[right[0]]) if right.size else 0)
        if before == after != 0:
            continue
        share = mean[i] / (mean[i] - mean[j])
        budget = math.exp((1 - share) * math.log(at[i]) + share * math.log(at[j]))
        low, high = (at[left[-1]] if left.size else math.nan), (at[right[0]] if right.size else math.nan)
        found.append(Crossing(budget, float(low), float(high), before, after, len(changes)))
    if not found:
        return Crossing(math.nan, math.nan, math.nan, *_ends(states, decided), len(changes))
    return ([one for one in found if one.supported] or found)[-1]


def _ends(states: NDArray[np.int64], decided: NDArray[np.int64]) -> tuple[int, int]:
    """The first and the last supported lead."""
    return (int(states[decided[0]]), int(states[decided[-1]])) if decided.size else (0, 0)
