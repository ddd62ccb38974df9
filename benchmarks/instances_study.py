"""How often the test over instances is wrong, and what it can see, on simulated seeds nested in instances.

    python benchmarks/instances_study.py --csv results/verdicts/instances.csv

Differences of a pair of estimators: an instance's own, plus noise of the pair of seeds, both of one of the four laws of
verdict_study.py. `ratio` is the deviation between instances over that within. Three questions: how often equal estimators
are told apart (promised: 5 %), how often the interval of the mean misses (5 %), and how often a difference as large as
`effect` deviations of an instance's mean is seen (promised: the power of Student's t). Beside the first, for comparison,
what a t test of all seeds as if they were one sample does.
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats
from verdict_study import LAWS

from gradebench.analysis import nested
from gradebench.analysis.statistics import ALPHA, Floats

CHECKED = 20  # draws of each kind that go through gradebench itself
INSTANCES, SEEDS, RATIOS, EFFECTS = (3, 5, 8), (3, 5, 7), (0.0, 0.5, 1.0, 2.0), (1.0, 2.0, 3.0)


def differences(law: str, rng: np.random.Generator, shape: tuple[int, int, int], ratio: float) -> Floats:
    """(draws, instances, seeds), with mean 0, in deviations of an instance's mean."""
    draw, (draws, instances, seeds) = LAWS[law], shape
    values = ratio * draw(rng, (draws, instances, 1)) + draw(rng, shape)
    return np.asarray(values / np.sqrt(ratio**2 + 1 / seeds))


def student_power(instances: int, effect: float) -> float:
    """Of Student's t on normal means, an effect of that many deviations."""
    least, shift = scipy.stats.t.isf(ALPHA / 2, instances - 1), effect * np.sqrt(instances)
    beyond = scipy.stats.nct.sf(least, instances - 1, shift) + scipy.stats.nct.cdf(-least, instances - 1, shift)
    return float(beyond)


def rows_of(law: str, instances: int, seeds: int, ratio: float, draws: int) -> list[dict[str, object]]:
    rng = np.random.default_rng([instances, seeds])
    drawn = differences(law, rng, (draws, instances, seeds), ratio)
    means = drawn.mean(axis=2)
    test = scipy.stats.ttest_1samp(means, 0.0, axis=1)  # of all draws at once, as the first of them show:
    checked = [nested.compare(list(one)) for one in drawn[:CHECKED]]
    np.testing.assert_allclose(test.pvalue[:CHECKED], [one.p_value for one in checked])
    low, high = test.confidence_interval()
    np.testing.assert_allclose(low[:CHECKED], [one.ci_low for one in checked])
    pooled = scipy.stats.ttest_1samp(drawn.reshape(draws, -1), 0.0, axis=1).pvalue
    seen = [scipy.stats.ttest_1samp(means + effect, 0.0, axis=1).pvalue for effect in EFFECTS]
    missed = (low > 0) | (high < 0)
    shares = [float(np.mean(one)) for one in (test.pvalue < ALPHA, missed, pooled < ALPHA, *(p < ALPHA for p in seen))]
    promised = [ALPHA, ALPHA, ALPHA, *(student_power(instances, effect) for effect in EFFECTS)]
    said = ["equal estimators told apart", "interval of the mean misses", "told apart, all seeds as one sample"]
    said += [f"difference of {effect:g} deviations seen" for effect in EFFECTS]
    place = {"law": law, "instances": instances, "seeds": seeds, "ratio": ratio, "draws": draws}
    return [
        {"what": what} | place | {"promised": right, "found": share}
        for what, right, share in zip(said, promised, shares, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []
    for law, instances, seeds, ratio in product(LAWS, INSTANCES, SEEDS, RATIOS):
        rows += rows_of(law, instances, seeds, ratio, arguments.draws)
    study = pd.DataFrame(rows)
    print(study.pivot_table(index=["what", "instances"], columns="law", values="found").to_string(float_format="%.3f"))
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        study.to_csv(arguments.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
