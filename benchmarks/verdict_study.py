"""How often the verdicts are wrong and the intervals miss, on simulated seeds of four laws, and what power is promised.

    python benchmarks/verdict_study.py --csv results/verdicts/study.csv

Laws of one estimator's seeds, the same for all up to shift and scale: normal, skewed (lognormal, sigma 0.5), heavy tails
(Student's t, 3 degrees of freedom), two modes (equal halves, 6.7 standard deviations of a mode apart). Seeds share a
part of their luck, as they do under common random numbers. Each row says what should be, and what was in 2,000 draws,
with the binomial error of that.
"""

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from gradebench.analysis import power, statistics, tables, tiers
from gradebench.analysis.statistics import Floats
from gradebench.core import schema

LAWS: dict[str, Callable[[np.random.Generator, tuple[int, ...]], Floats]] = {
    "normal": lambda rng, size: rng.normal(size=size),
    "skewed": lambda rng, size: (rng.lognormal(0, 0.5, size) - np.exp(0.125)) / 0.604,
    "heavy tails": lambda rng, size: rng.standard_t(3, size) / np.sqrt(3),
    "two modes": lambda rng, size: (0.3 * rng.normal(size=size) + 2.0 * (rng.random(size) < 0.5) - 1.0) / 1.044,
}
SEEDS = (5, 8, 14)
ESTIMATORS = 5
MANY = 23  # as many as there are; 253 pairs, or 22 comparisons with one baseline
FAMILIES = {3: (8, 14, 20), 22: (10, 14, 20), 253: (14, 16, 20, 24)}  # size -> seeds that power is looked at with
POWER = "detectable difference seen"  # parts of what their rows say, for --only
POWER_OF_BEST = "by what is detectable, seen"
TASKS = 10  # that ranks are compared over
CENTRES = (0.5, 0.7, 0.9, 1.0)  # scores of an estimator on the tasks of an interquartile mean


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


def a_family_with_a_baseline(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """Any of the comparisons of one baseline with the 22 others, all equal, after Holm."""
    baseline, *others = rewards(law, rng, MANY, seeds)
    p = [statistics.paired_permutation_p(other - baseline) for other in others]
    return bool((statistics.holm(p) < statistics.ALPHA).any())


def a_large_family(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """Any of all 253 pairs, after Holm."""
    p = [statistics.paired_permutation_p(a - b) for a, b in combinations(rewards(law, rng, MANY, seeds), 2)]
    return bool((statistics.holm(p) < statistics.ALPHA).any())


def a_tier(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """A second tier among equal estimators."""
    runs = rewards(law, rng, ESTIMATORS, seeds)
    order = np.argsort(-runs.mean(axis=1))
    pairs = list(combinations(order, 2))
    p = statistics.holm([statistics.paired_permutation_p(runs[a] - runs[b]) for a, b in pairs])
    supported = {(str(a), str(b)) for (a, b), one in zip(pairs, p, strict=True) if one < statistics.ALPHA}
    return max(tiers.tiers([str(name) for name in order], supported).values()) > 1


def a_supported_claim(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """A claim of a difference that is at its bound, supported: one of the two ways to decide it wrongly."""
    a, b = rewards(law, rng, 2, seeds)
    p = statistics.paired_permutation_p(a - b)
    least = statistics.smallest_attainable_p(seeds)
    return statistics.verdict(p, least, float((a - b).mean())) == "a higher"


def a_claims_file(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """Any of seven claims on pairs of five estimators, all at their bounds, decided after Holm over the file."""
    runs = rewards(law, rng, ESTIMATORS, seeds)
    p = [statistics.paired_permutation_p(runs[a] - runs[b]) for a, b in list(combinations(range(ESTIMATORS), 2))[:7]]
    return bool((statistics.holm(p) < statistics.ALPHA).any())


def friedman(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """Equal estimators on ten tasks, the mean of their seeds on each."""
    scores = [rewards(law, rng, ESTIMATORS, seeds).mean(axis=1) for _ in range(TASKS)]
    return statistics.nemenyi(scores)[0] < statistics.ALPHA


def nemenyi(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """Any pair of them more than the critical difference apart, and Friedman's test in favour."""
    scores = [rewards(law, rng, ESTIMATORS, seeds).mean(axis=1) for _ in range(TASKS)]
    p, critical, ranks = statistics.nemenyi(scores)
    return p < statistics.ALPHA and float(np.ptp(ranks)) > critical


def an_interquartile_mean(law: str, rng: np.random.Generator, seeds: int) -> bool:
    """Of one estimator on four tasks, on which it scores 0.5, 0.7, 0.9 and 1.0, seeds spreading by a tenth."""
    runs = [centre + 0.1 * rewards(law, rng, 1, seeds)[0] for centre in CENTRES]
    low, high = statistics.interquartile_interval(runs, rng, resamples=500)
    return not low <= true_interquartile_mean(law) <= high


@functools.cache
def true_interquartile_mean(law: str) -> float:
    rng = np.random.default_rng(0)
    return statistics.interquartile_mean([c + 0.1 * rewards(law, rng, 1, 500_000)[0] for c in CENTRES])


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


@dataclass(frozen=True)
class Question:
    """What is counted, and the rate promised at a number of seeds."""

    misses: Callable[[str, np.random.Generator, int], bool]
    promised: Callable[[int], float]


def level(seeds: int) -> float:
    return statistics.ALPHA


QUESTIONS = {
    "pair of equal estimators told apart": Question(a_pair, attainable),
    f"any pair of {ESTIMATORS} equal estimators told apart, after Holm": Question(a_family, level),
    f"any of {MANY - 1} comparisons with one equal baseline decided, after Holm": Question(
        a_family_with_a_baseline, level
    ),
    f"any pair of {MANY} equal estimators told apart, after Holm": Question(a_large_family, level),
    f"a second tier among {ESTIMATORS} equal estimators": Question(a_tier, level),
    "claimed difference decided at its bound": Question(a_claimed_difference, attainable),
    "claimed difference supported at its bound": Question(a_supported_claim, lambda seeds: attainable(seeds) / 2),
    "claimed ratio decided at its bound": Question(a_claimed_ratio, attainable),
    "claimed ratio decided at its bound, one side without spread": Question(a_claimed_ratio_of_unlike, attainable),
    "any of 7 claims decided at their bounds, after Holm": Question(a_claims_file, level),
    f"Friedman's test of {ESTIMATORS} equal estimators on {TASKS} tasks": Question(friedman, level),
    f"any pair of {ESTIMATORS} equal estimators apart on {TASKS} tasks (Nemenyi)": Question(nemenyi, level),
    "interval of a mean misses": Question(a_mean, level),
    "interval of a difference misses": Question(a_difference, level),
    "interval of a ratio misses": Question(a_ratio, level),
    "interval of an interquartile mean over 4 tasks misses": Question(an_interquartile_mean, level),
}


def table_of(law: str, seeds: int, draws: int, controls: bool) -> pd.DataFrame:
    """A table of metrics: with `controls`, estimators beside their controls, else pairs in settings of their own."""
    rng = np.random.default_rng(seeds)
    cells = pd.DataFrame(
        {
            "task": "simulated",
            "setting": "s" if controls else f"s{draw}",
            "estimator": name + (tables.CONTROL if controls and second else ""),
            "seed": seed,
            "value": value,
        }
        for draw in range(draws)
        for second, (name, values) in enumerate(
            zip([f"e{draw}"] * 2 if controls else ["a", "b"], rewards(law, rng, 2, seeds), strict=True)
        )
        for seed, value in enumerate(values)
    )
    cells[["phase", "split", "metric", "status"]] = ["evaluation", "test", "reward", "ok"]
    return cells.assign(step=0).reindex(columns=schema.METRICS_COLUMNS)


def rows_of_tables(law: str, seeds: int, draws: int) -> list[dict[str, object]]:
    """The same alarms through the tables that commands print: controls, comparisons and the tiers of leaderboards."""
    controls = tables.controls(table_of(law, seeds, draws, controls=True))
    metrics = table_of(law, seeds, draws, controls=False)
    comparisons = tables.comparisons(metrics)
    board = tables.leaderboard(metrics, comparisons)
    found = {
        "control told apart from its estimator, in controls.csv": (controls["verdict"] == "false alarm").mean(),
        "equal estimators told apart, in tests.csv": comparisons["verdict"].isin(["a higher", "b higher"]).mean(),
        "a second tier of two equal estimators, in leaderboard.csv": board.groupby("setting")["tier"]
        .max()
        .gt(1)
        .mean(),
    }
    return [row_of(what, law, seeds, draws, attainable(seeds), float(share)) for what, share in found.items()]


def power_rows(law: str, draws: int) -> list[dict[str, object]]:
    """What `run --power` and `claims` call detectable in families of 3, 22 and 253, tested at Bonferroni's level.

    And the seeds that they ask for to see a difference of 0.8 standard deviations among three.
    """
    found = []
    cases = [
        (f"detectable difference seen, in a family of {family}", family, seeds, power.detectable_at(seeds, family))
        for family, counts in FAMILIES.items()
        for seeds in counts
    ]
    asked = int(power.seeds_for(0.8, 3))
    cases.append(("difference of 0.8 standard deviations seen with the seeds asked for", 3, asked, 0.8))
    for what, family, seeds, effect in cases:
        rng, bound = np.random.default_rng(seeds), statistics.ALPHA / family
        seen = 0
        for _ in range(draws):
            a, b = rewards(law, rng, 2, seeds)
            seen += statistics.paired_permutation_p(a - b + effect) < bound  # a - b has deviation 1
        found.append(row_of(what, law, seeds, draws, power.power_of(seeds, effect, bound), seen / draws))
    return found


def power_of_best_rows(law: str, draws: int) -> list[dict[str, object]]:
    """One of 23 estimators is above all others by what 14 seeds detect in the family: is it seen after Holm?

    Among all pairs, the share of its 22 pairs; against one baseline, its pair with that.
    """
    seeds = SEEDS[-1]
    found = []
    for family in (MANY - 1, MANY * (MANY - 1) // 2):
        effect, rng = power.detectable_at(seeds, family), np.random.default_rng(family)
        shares = []
        for _ in range(draws):
            runs = rewards(law, rng, MANY, seeds)
            runs[0] += effect
            pairs = list(combinations(range(MANY), 2))
            if family < len(pairs):
                pairs = [(other, MANY - 1) for other in range(MANY - 1)]
            p = statistics.holm([statistics.paired_permutation_p(runs[a] - runs[b]) for a, b in pairs])
            shares.append(np.mean([one < statistics.ALPHA for one, (a, _) in zip(p, pairs, strict=True) if a == 0]))
        what = (
            f"one of {MANY} estimators above the others by what is detectable, seen after Holm, in a family of {family}"
        )
        promised = power.power_of(seeds, effect, statistics.ALPHA / family)
        found.append(row_of(what, law, seeds, draws, promised, float(np.mean(shares))))
    return found


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
    parser.add_argument("--only", help="questions that have this in their name; the others keep their rows of --csv")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []

    def show(more: list[dict[str, object]]) -> None:
        rows.extend(more)
        print(pd.DataFrame(more).to_string(index=False), flush=True)

    for what, question in QUESTIONS.items():
        if arguments.only and arguments.only not in what:
            continue
        found = []
        for law in LAWS:
            for seeds in SEEDS:
                rng = np.random.default_rng(seeds)
                share = np.mean([question.misses(law, rng, seeds) for _ in range(arguments.draws)])
                found.append(row_of(what, law, seeds, arguments.draws, question.promised(seeds), float(share)))
        show(found)
    if not arguments.only:
        show(rows_of_tables("skewed", 8, arguments.draws))
    if not arguments.only or arguments.only in POWER:
        show([row for law in LAWS for row in power_rows(law, arguments.draws)])
    if not arguments.only or arguments.only in POWER_OF_BEST:
        show([row for law in LAWS for row in power_of_best_rows(law, arguments.draws // 5)])
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        study = pd.DataFrame(rows)
        if arguments.only:
            before = pd.read_csv(arguments.csv) if arguments.csv.is_file() else study.head(0)
            study = pd.concat([before[~before["what"].isin(study["what"])], study])
        study.to_csv(arguments.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
