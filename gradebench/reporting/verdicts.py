"""What a leaderboard comes to, in sentences: who leads and by how much, and who was skipped for what reason."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gradebench.analysis.statistics import ALPHA
from gradebench.core.shown import counted
from gradebench.reporting.columns import named, number
from gradebench.reporting.wording import metric_in_words, verdict

_SKIPPED = re.compile(r"skipped \d+")
# What a task lacks, where it has no words of its own for that (`Task.lacks`).
LACKING = {
    "soft_reward": "this task's reward has no derivative",
    "support": "this policy's sequences can't be enumerated",
    "exact": "this policy's sequences can't be enumerated",
    "fixed_reward": "this task's reward depends on the parameters",
    "binary": "this task's choices aren't between two outcomes",
    "independent": "this task's choices depend on each other",
}
_NEEDED = re.compile(r"needs ([\w, ]+), which the task does not offer(?:: (.*))?")


def with_half_width(row: Mapping[Any, Any], ranking: str, form: str = ".3f") -> str:
    """A mean and half the width of its 95 % interval, "0.516 ± 0.005"; `ranking` as "test_objective_"."""
    mean = number(row[f"{ranking}mean"], form)
    low, high = (row.get(f"{ranking}{end}", math.nan) for end in ("ci_low", "ci_high"))  # the gold reward has none
    half = number((high - low) / 2, form)
    return mean if half == "-" else f"{mean} ± {half}"


def lead(board: pd.DataFrame, tests: pd.DataFrame, against: Sequence[str] = ()) -> str:
    """The verdict of one leaderboard, by the tests of the same metrics (`tables.comparisons`): who leads, and by how much
    each other one is lower, with p after Holm's correction."""
    ranked = board[board["rank"].notna()]
    if against:
        return verdict(ranked, against)
    fair = ranked[ranked["tier"].notna()]
    if fair.empty:
        return "No two estimators may be compared here."
    first, *others = fair.to_dict("records")
    metric = str(first["ranked_by"])
    place = (tests[["task", "setting", "metric", "split"]] == [first["task"], first["setting"], metric, "test"]).all(
        axis=1
    )
    differences = _from_first(str(first["estimator"]), tests[place & (tests["n_pairs"] > 0)])
    highest = "has the highest" if others else "has a"
    said = f"{named(first)} {highest} test {metric_in_words(metric)}, {with_half_width(first, f'test_{metric}_')}, "
    said += _budget(fair) + (" (±: half of the 95 % interval)" if "±" in said else "")
    if not others:
        return f"{said}. There is nothing to compare it with."
    if (above := differences.get(str(others[0]["estimator"]), -1.0)) >= 0:
        said += f", {above:.3f} above {named(others[0])}, the next"
    said += "."
    lower = [row for row in others if row["p_vs_best_holm"] < ALPHA]
    equals = [row for row in others if not row["p_vs_best_holm"] < ALPHA]
    family = f"Holm over {counted(tests.loc[place, 'family'].max(), 'pair')}" if place.any() else "Holm"
    if lower:
        said += (
            f" It is significantly above {_how_many(lower, others)}, {_amounts(lower, differences)} after {family})."
        )
    if equals and len(set(fair["letters"])) == 1:
        said += f" No two of the {counted(len(fair), 'estimator')} are significantly different (p < {ALPHA:g} after {family})."
    elif equals:
        said += f" Not significantly different from it: {', '.join(map(named, equals))}."
    return said


def _budget(board: pd.DataFrame) -> str:
    """After how many steps, and with how many seeds."""
    steps, seeds = board["steps"].iloc[0], int(board["n_seeds"].max())
    trained = "" if pd.isna(steps) else f"after {counted(steps, 'step')}, "
    return f"{trained}with {counted(seeds, 'seed')}"


def _from_first(first: str, tests: pd.DataFrame) -> dict[str, float]:
    """By how much each other one is lower than the first, on the seeds that both have."""
    answer = {}
    for row in tests.to_dict("records"):
        if first == row["estimator_a"]:
            answer[str(row["estimator_b"])] = float(row["mean_difference"])
        elif first == row["estimator_b"]:
            answer[str(row["estimator_a"])] = -float(row["mean_difference"])
    return answer


def _how_many(lower: Sequence[Mapping[Any, Any]], others: Sequence[Any]) -> str:
    if len(lower) == 1:
        return named(lower[0]) if len(others) > 1 else f"{named(lower[0])}, the only other one"
    return f"all {len(others)} others" if len(lower) == len(others) else f"{len(lower)} of the {len(others)} others"


def _amounts(lower: Sequence[Mapping[Any, Any]], differences: Mapping[str, float]) -> str:
    """By how much, from the nearest one to the farthest, and the largest p."""
    largest = max(float(row["p_vs_best_holm"]) for row in lower)
    known = [(differences.get(str(row["estimator"]), math.nan), named(row)) for row in lower]
    known = sorted(one for one in known if not math.isnan(one[0]))
    sign = "=" if len(lower) == 1 else "≤"
    p = f"(p {sign} {largest:.2g}"
    if not known:
        return p
    (least, nearest), (most, farthest) = known[0], known[-1]
    if len(known) == 1:
        return f"by {least:.3f} {p}"
    return f"by {least:.3f} ({nearest}) to {most:.3f} ({farthest}) {p}"


def pair_in_words(tests: pd.DataFrame, a: str, b: str) -> str:
    """What the comparisons of two estimators by every metric come to; `named` is what each metric is called."""
    said = []
    for outcome, words in (("a higher", f"higher than {b} in"), ("b higher", f"lower than {b} in")):
        if found := [f"{one} (p = {p:.2g})" for one, p in _of_verdict(tests, outcome)]:
            said.append(f"{words} {', '.join(found)}")
    rest = [one for outcome in ("not distinguishable", "underpowered") for one, _ in _of_verdict(tests, outcome)]
    if rest:
        said.append(f"not significantly different from {'it' if said else b} in {', '.join(rest)}")
    return f"{a} is {'; '.join(said)}, at p < {ALPHA:g} after Holm." if said else f"{a} and {b} can't be compared here."


def _of_verdict(tests: pd.DataFrame, outcome: str) -> list[tuple[str, float]]:
    rows = tests[tests["verdict"] == outcome]
    return list(zip(rows["named"].map(metric_in_words), rows["p_holm"], strict=True))


def probed_in_words(measured: pd.DataFrame) -> str:
    """The verdict of probes at one point: `measured` has value, ci_low and ci_high of each metric, by estimator."""
    value, low, high = (measured[end] for end in ("value", "ci_low", "ci_high"))
    said = []
    name = "gradient_variance_relative"
    if name in value and value[name].notna().any():
        least = value[name].idxmin()
        said.append(
            f"{least} has the lowest relative variance, {number(value[name][least], '.3g')} "
            f"(95 %: {number(low[name][least], '.3g')} to {number(high[name][least], '.3g')})."
        )
    name = "gradient_bias_relative"
    if name in value:
        biased = list(value.index[low[name] > 0])
        free = list(value.index[low[name] <= 0])
        if biased:
            said.append(f"Significantly biased: {', '.join(map(str, biased))}.")
        if free:
            said.append(f"Bias not significantly different from 0: {', '.join(map(str, free))}.")
    return " ".join(said)


def was_skipped(board: pd.DataFrame) -> pd.Series:
    """Which rows of a leaderboard are of estimators that the task couldn't serve."""
    return board["rank"].isna() & board["status"].astype(str).map(lambda status: bool(_SKIPPED.fullmatch(status)))


def has_nothing(board: pd.DataFrame) -> pd.Series:
    """Which rows have no cell that ended well, and so nothing to show in a table."""
    return board["rank"].isna() & ~board["status"].astype(str).str.startswith("ok")


def lacking_in_words(board: pd.DataFrame, reasons: Mapping[tuple[str, str], str]) -> list[str]:
    """A line for each estimator of which not all cells ended well; of those that were skipped, with the reason."""
    said = []
    for row in board[board["status"].astype(str) != "ok"].to_dict("records"):
        reason = reasons.get((str(row["task"]), str(row["estimator"])), "")
        counts, several, _ = str(row["status"]).partition(", ")
        if several or counts.startswith("ok"):
            said.append(f"{row['estimator']}: {row['status']}")
        else:
            said.append(
                f"{counts.rpartition(' ')[0]} {counted(counts.rpartition(' ')[2], 'cell')} of {row['estimator']}"
                + (f": {in_words(reason)}" if reason else "")
            )
    return said


def in_words(reason: str) -> str:
    """Why a cell was skipped, for people: what the task lacks instead of what the estimator needs."""
    found = _NEEDED.search(reason)
    if not found:
        return reason
    return found[2] or "; ".join(dict.fromkeys(LACKING.get(need, need) for need in found[1].split(", ")))
