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

from gradebench import nested, power
from gradebench.statistics import ALPHA, Floats

INSTANCES, SEEDS, RATIOS, EFFECTS = (3, 5, 8), (3, 5, 7), (0.0, 0.5, 1.0, 2.0), (1.0, 2.0, 3.0)


def differences(law: str, rng: np.random.Generator, instances: int, seeds: int, ratio: float) -> Floats:
    """(instances, seeds), with mean 0, in deviations of an instance's mean."""
    draw = LAWS[law]
    values = ratio * draw(rng, (instances, 1)) + draw(rng, (instances, seeds))
    return np.asarray(values / np.sqrt(ratio**2 + 1 / seeds))


def rows_of(law: str, instances: int, seeds: int, ratio: float, draws: int) -> list[dict[str, object]]:
    rng = np.random.default_rng([instances, seeds])
    found = []
    for _ in range(draws):
        drawn = differences(law, rng, instances, seeds, ratio)
        one = nested.compare(list(drawn))
        pooled = scipy.stats.ttest_1samp(drawn.ravel(), 0.0).pvalue < ALPHA
        seen = [not one.ci_low <= -effect <= one.ci_high for effect in EFFECTS]  # as p < 0.05 of the shifted ones
        found.append([one.p_value < ALPHA, not one.ci_low <= 0 <= one.ci_high, pooled, *seen])
    shares = np.mean(found, axis=0).tolist()
    promised = [ALPHA, ALPHA, ALPHA, *(float(power.power_of(instances, effect, ALPHA)) for effect in EFFECTS)]
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
