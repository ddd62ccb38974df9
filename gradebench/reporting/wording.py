"""Results in words: the sentences that the terminal and the report have in common."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from gradebench.analysis import frontier
from gradebench.analysis.curves import amount
from gradebench.analysis.multi_task import Ranks
from gradebench.analysis.statistics import ALPHA
from gradebench.core.shown import counted
from gradebench.reporting.columns import named

LETTERS = (
    "two estimators share a letter if and only if they aren't significantly different; no estimator of a tier is "
    "significantly different from the first one of that tier"
)


def metric_in_words(metric: str) -> str:
    return metric.replace("_", " ")


def ranked_at(board: pd.DataFrame) -> str:
    """What one leaderboard ranks by, such as "at 40 steps, by objective"."""
    steps = at_steps(board)
    return f"{steps}{', ' if steps else ''}by {metric_in_words(str(board['ranked_by'].iloc[0]))}"


def at_steps(board: pd.DataFrame) -> str:
    """The budget of one leaderboard, such as "at 40 steps"; "" where it isn't known."""
    steps = board["steps"].iloc[0]
    return "" if pd.isna(steps) else f"at {counted(steps, 'step')}"


def verdict(ranked: pd.DataFrame, against: Sequence[str] = ()) -> str:
    """Who leads, and who isn't significantly different; with baselines, who is above and below each of them."""
    if ranked.empty:
        return "No estimator has a test reward here."
    ranked = ranked if against else ranked[ranked["tier"].notna()]  # those whose rates let them be compared
    where, seeds = ranked_at(ranked), int(ranked["n_seeds"].max())
    if against:
        return f"{where[0].upper()}{where[1:]}, with {counted(seeds, 'seed')}: {_against_baselines(ranked)}."
    names = [named(row) for row in ranked.to_dict("records")]
    p = ranked["p_vs_best_holm"].to_numpy(dtype=float)
    equals = [name for name, one in zip(names[1:], p[1:], strict=True) if not one < ALPHA]
    if not equals:
        above = ": significantly above each other estimator" if len(names) > 1 else ""
        return f"{names[0]} is highest {where}{above}, with {counted(seeds, 'seed')}."
    if len(equals) == len(names) - 1 and len(set(ranked["letters"])) == 1:
        return (
            f"No two of the {len(names)} estimators are significantly different {where}, with {counted(seeds, 'seed')}."
        )
    return f"{names[0]} is highest {where}; not significantly different from it, with {counted(seeds, 'seed')}: {', '.join(equals)}."


def _against_baselines(ranked: pd.DataFrame) -> str:
    """The verdicts about the baselines, each with its estimators."""
    said: dict[str, list[str]] = {}
    for row in ranked.to_dict("records"):
        for one in filter(None, str(row["verdict"]).split("; ")):
            said.setdefault(one, []).append(named(row))
    return "; ".join(f"{one}: {', '.join(said[one])}" for one in sorted(said)) or "nothing was compared"


def ranks_in_words(ranks: Ranks | str) -> str:
    """What Friedman's and Nemenyi's tests say, or why they weren't made."""
    if isinstance(ranks, str):
        return ranks
    return (
        f"Friedman's test of equal ranks: p = {ranks.p:.3g}; mean ranks that differ by more than "
        f"{ranks.critical_difference:.2f} are significantly different (Nemenyi): {counted(ranks.apart, 'pair')}"
    )


def frontier_in_words(rows: pd.DataFrame) -> list[str]:
    """Who leads at which KL, by one metric of one task: a line for each range."""
    lines = []
    for low, high, leader, equals in frontier.leaders(rows):
        where = f"KL {low:.3g}" if low == high else f"KL {low:.3g} to {high:.3g}"
        who = f"not significantly different: {', '.join(equals)}" if equals else "significantly above each other one"
        lines.append(f"{where}: {leader} leads; {who}")
    return lines


def crossing_in_words(row: Mapping[Any, Any]) -> str:
    """A row of `curves.crossings_of` as a line."""
    said = f"{row['estimator_a']} and {row['estimator_b']}: {row['verdict']}"
    if pd.isna(row["crossing"]):
        return said
    axis = str(row["axis"])
    ends = [amount(row[name], axis) if not pd.isna(row[name]) else "open" for name in ("ci_low", "ci_high")]
    return f"{said}; their means cross at {amount(row['crossing'], axis)} (95 %: {ends[0]} to {ends[1]})"
