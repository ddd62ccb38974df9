"""How often the verdicts are wrong and the intervals miss, on simulated seeds of four laws, and what power is promised.

    python benchmarks/verdict_study.py --csv results/verdicts/study.csv

Laws of one estimator's seeds, the same for all up to shift and scale: normal, skewed (lognormal, sigma 0.5), heavy tails
(Student's t, 3 degrees of freedom), two modes (equal halves, 6.7 standard deviations of a mode apart). Seeds share a
part of their luck, as they do under common random numbers. Each row says what should be, and what was in 2,000 draws,
with the binomial error of that.
"""

import argparse
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from gradebench import power, statistics
from gradebench.statistics import Floats

LAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: (rng.lognormal(0, 0.5, size) - np.exp(0.125)) / 0.604,
    "heavy tails": lambda rng, size: rng.standard_t(3, size) / np.sqrt(3),
    "two modes": lambda rng, size: (0.3 * rng.normal(size=size) + 2.0 * (rng.random(size) < 0.5) - 1.0) / 1.044,
}
SEEDS = (5, 8, 14)
ESTIMATORS = 5


def rewards(law: str, rng: np.random.Generator, runs: int, seeds: int) -> Floats:
    """(runs, seeds), standard deviation 1: half of the variance is luck that all runs of a seed share."""
    draw = LAWS[law]
    return (draw(rng, (1, seeds)) + draw(rng, (runs, seeds))) / np.sqrt(2)


def alarm(differences: Floats) -> bool:
    return statistics.paired_permutation_p(differences) < statistics.ALPHA


def attainable(seeds: int) -> float:
    """The level that a sign-flip test at 5 % has: p-values are multiples of the smallest one."""
    step = statistics.smallest_attainable_p(seeds)
    return step * (np.ceil(statistics.ALPHA / step) - 1)


def a_pair(law: str, rng: np.random.Generator, seeds: int) -> bool:
    a, b = rewards(law, rng, 2, seeds)
    return alarm(a - b)


def a_family(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """Any of all pairs, after Holm: what splits a tier."""
    runs = rewards(law, rng, ESTIMATORS, seeds)
    p = [statistics.paired_permutation_p(a - b) for a, b in combinations(runs, 2)]
    return bool((statistics.holm(p) < statistics.ALPHA).any())


def a_claimed_difference(law: str, rng: np.random.Generator, seeds: int) -> bool:
    a, b = rewards(law, rng, 2, seeds)
    return alarm((a + 1.5) - b - 1.5)


def a_claimed_ratio(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """a / b = 1.5 in truth, seeds spreading by a tenth."""
    a, b = rewards(law, rng, 2, seeds)
    return alarm(1.5 * (1 + 0.1 * a) - 1.5 * (1 + 0.1 * b))


def a_claimed_ratio_of_unlike(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """The same where only one of the two spreads: no symmetry protects the test."""
    a, _ = rewards(law, rng, 2, seeds)
    return alarm(1.5 * (1 + 0.1 * a) - 1.5)


def a_mean(law: str, rng: np.random.Generator, seeds: int) -> bool:
    low, high = statistics.mean_interval(rewards(law, rng, 1, seeds)[0], rng, resamples=1000)
    return not low <= 0 <= high


def a_difference(law: str, rng: np.random.Generator, seeds: int) -> bool:
    a, b = rewards(law, rng, 2, seeds)
    low, high = statistics.difference_interval(a - b, rng)
    return not low <= 0 <= high


def a_ratio(law: str, rng: np.random.Generator, seeds: int) -> bool:
    a, b = rewards(law, rng, 2, seeds)
    low, high = statistics.ratio_interval(1.5 * (1 + 0.1 * a), 1 + 0.1 * b)
    return not low <= 1.5 <= high


ERRORS = {  # name -> (what it counts, whether its level is that of the sign-flip test)
    "pair of equal estimators told apart": (a_pair, True),
    f"any pair of {ESTIMATORS} equal estimators told apart, after Holm": (a_family, False),
    "claimed difference decided at its bound": (a_claimed_difference, True),
    "claimed ratio decided at its bound": (a_claimed_ratio, True),
    "claimed ratio decided at its bound, one side without spread": (a_claimed_ratio_of_unlike, True),
    "interval of a mean misses": (a_mean, False),
    "interval of a difference misses": (a_difference, False),
    "interval of a ratio misses": (a_ratio, False),
}


def power_row(law: str, seeds: int, draws: int) -> dict[str, object]:
    """The difference that `run --plan` calls detectable among three pairs, tested at Bonferroni's level."""
    rng = np.random.default_rng(seeds)
    effect = power.detectable_at(seeds, 3)
    seen = 0
    for _ in range(draws):
        a, b = rewards(law, rng, 2, seeds)
        seen += statistics.paired_permutation_p(a - b + effect) < statistics.ALPHA / 3  # a - b has deviation 1
    share = seen / draws
    return row_of("detectable difference seen", law, seeds, draws, power.POWER, share)


def row_of(what: str, law: str, seeds: int, draws: int, promised: float, found: float) -> dict[str, object]:
    error = np.sqrt(max(promised * (1 - promised), 1 / draws) / draws)
    return {
        "what": what,
        "law": law,
        "seeds": seeds,
        "draws": draws,
        "promised": promised,
        "found": found,
        "standard_error": error,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    rows = []
    for what, (misses, discrete) in ERRORS.items():
        for law in LAWS:
            for seeds in SEEDS:
                rng = np.random.default_rng(seeds)
                found = np.mean([misses(law, rng, seeds) for _ in range(arguments.draws)])
                promised = attainable(seeds) if discrete else statistics.ALPHA
                rows.append(row_of(what, law, seeds, arguments.draws, promised, float(found)))
        print(pd.DataFrame(rows[-len(LAWS) * len(SEEDS) :]).to_string(index=False), flush=True)
    rows += [power_row(law, seeds, arguments.draws) for law in LAWS for seeds in (8, 14)]
    print(pd.DataFrame(rows[-2 * len(LAWS) :]).to_string(index=False))
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(arguments.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
