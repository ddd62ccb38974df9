"""The table of tests: pairs of estimators by every metric, paired by seed, with Holm's correction."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import pandas as pd

from gradebench.analysis import provenance, statistics
from gradebench.analysis.groups import (
    Group,
    by_mean,
    column_of,
    finite_mean,
    first_of_equals,
    groups_of,
    named_generator,
)
from gradebench.core.schema import METRICS, TESTS_COLUMNS

MINIMUM_SEEDS = 3  # below three pairs there is no effect size
SAME = "same draws"  # the verdict on two names of one estimator


def family_size(n_estimators: int, n_baselines: int = 0) -> int:
    """The number of comparisons that Holm corrects together: all pairs, or those of each baseline with each other."""
    return n_baselines * (n_estimators - n_baselines) if n_baselines else math.comb(n_estimators, 2)


def default_seed_count(n_estimators: int, n_baselines: int = 0) -> int:
    """The number of seeds with which every comparison of the family can be significant after Holm; at least 3."""
    return max(MINIMUM_SEEDS, statistics.seeds_needed(family_size(n_estimators, n_baselines)))


_OF_LOGARITHMS = " of ln gradient_variance"
# (metric, split, what is compared by (estimator, seed), what the name of the test adds)
_FAMILIES: tuple[tuple[str, str, Callable[[Group], pd.Series], str], ...] = (
    ("objective", "test", lambda group: column_of(group.final, ("test", "objective")), ""),
    ("reward", "test", lambda group: column_of(group.final, ("test", "reward")), ""),
    ("gold_reward", "test", lambda group: column_of(group.final, ("test", "gold_reward")), ""),
    ("gradient_variance", "train", lambda group: group.log_variance, _OF_LOGARITHMS),
)


def comparisons(metrics: pd.DataFrame, against: Sequence[str] = ()) -> pd.DataFrame:
    """The table of tests: pairs of estimators within each task and setting, TESTS_COLUMNS.

    One Holm family is one metric in one task and setting: all pairs, or, with `against`, each baseline with each other
    estimator; `family` is its size. Estimators with the same draws count once in it; their own pair has the verdict
    "same draws" and doesn't count. Seeds are paired by their id. `gradient_variance` is compared by its natural
    logarithm, averaged over checkpoints, so exp(mean_difference) is a ratio of variances. estimator_a has the larger
    mean (ties by name). A metric that was never measured has no rows; an estimator without ok cells has rows with
    n_pairs 0.

    Raises        ValueError for missing columns, duplicate rows, and one label with two sets of parameters.
    """
    rows = [row for group in groups_of(metrics) for family in _FAMILIES for row in _family(group, against, *family)]
    return pd.DataFrame(map(directed, rows), columns=TESTS_COLUMNS)


def controls(metrics: pd.DataFrame) -> pd.DataFrame:
    """The tests of every estimator against its A/A control, which is the same estimator with different draws.

    TESTS_COLUMNS; the verdict is "false alarm" if p < 0.05, which is expected in 5 % of the rows of a metric, else
    "not distinguishable". Not corrected for multiple comparisons: each row is a test of the test.

    Raises        ValueError as `comparisons` does.
    """
    rows = []
    for group in groups_of(metrics, controls=True):
        of = dict(zip(group.rows["estimator"], group.rows["control_of"], strict=True))
        if not any(of.values()):
            continue
        for metric, split, per_seed_of, suffix in _FAMILIES:
            values = per_seed_of(group).dropna().unstack("estimator")
            for control in values.columns:
                a = of.get(control, "")
                if a in values.columns:
                    row = _compared(group, metric, split, suffix, values, a, control)
                    alarm = row["p_value"] < statistics.ALPHA
                    rows.append(row | {"verdict": "false alarm" if alarm else "not distinguishable"})
    return pd.DataFrame(map(directed, rows), columns=TESTS_COLUMNS)


def directed(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the table of tests with the unit of its difference, the better direction of its metric, and the winner."""
    metric = METRICS.get(row["metric"])
    better = metric.better if metric else ""
    unit = "ln" if row["test"].endswith(_OF_LOGARITHMS) else metric.unit if metric else ""
    best = {"higher": ("a higher", "b higher"), "lower": ("b higher", "a higher")}.get(better, ())
    won = dict(zip(best, (row["estimator_a"], row["estimator_b"]), strict=False))
    return dict(row) | {"unit": unit, "better": better, "winner": won.get(row["verdict"], "")}


def _family(
    group: Group,
    against: Sequence[str],
    metric: str,
    split: str,
    per_seed_of: Callable[[Group], pd.Series],
    suffix: str,
) -> list[dict[str, Any]]:
    """The rows of one Holm family."""
    per_seed = per_seed_of(group)
    if not per_seed.notna().any():
        return []
    values = per_seed.unstack("estimator").reindex(columns=group.estimators)  # (seed, estimator)
    ranked = by_mean(finite_mean(per_seed).reindex(group.estimators))
    firsts = first_of_equals(group, against)
    stands_for = {n: firsts[n] if n in firsts and values[n].equals(values[firsts[n]]) else n for n in ranked}
    rows, hypotheses = [], []
    for a, b in combinations(ranked, 2):
        if not against or (a in against) != (b in against):
            row = _compared(group, metric, split, suffix, values, a, b)
            # Gradients are probed on one shared trajectory, so learning rates don't matter.
            rows.append(row if metric == "gradient_variance" else provenance.unless_unfair(row, group.unfair))
            hypotheses.append(frozenset((stands_for[a], stands_for[b])))
    p_values = {pair: row["p_value"] for pair, row in zip(hypotheses, rows, strict=True) if len(pair) == 2}
    adjusted = dict(zip(p_values, statistics.holm(list(p_values.values())).tolist(), strict=True))
    size = sum(not math.isnan(p_holm) for p_holm in adjusted.values())
    for pair, row in zip(hypotheses, rows, strict=True):
        row["p_holm"], row["family"] = adjusted.get(pair, math.nan), size
        least, difference = size * row["smallest_attainable_p"], row["mean_difference"]
        if pair not in adjusted:
            row["verdict"] = SAME
        elif "verdict" not in row:
            row["verdict"] = statistics.verdict(row["p_holm"], least, difference, statistics.ALPHA)
    return rows


def _compared(
    group: Group, metric: str, split: str, suffix: str, values: pd.DataFrame, a: str, b: str
) -> dict[str, Any]:
    """The row of two columns of values (seed, estimator), without p_holm and verdict."""
    generator = named_generator(metric, group.task, group.setting, a, b)
    result = vars(statistics.compare(values[a].to_numpy(), values[b].to_numpy(), generator))
    names = {"task": group.task, "setting": group.setting, "metric": metric, "split": split}
    return {**names, "estimator_a": a, "estimator_b": b, **result, "test": result["test"] + suffix}
