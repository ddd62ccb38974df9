"""Leaderboards, comparisons and statuses on stdout, for a person or a pipe."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from rich.table import Table

from gradebench.analysis import frontier, provenance
from gradebench.analysis.claims import OUT_OF_REACH
from gradebench.analysis.curves import amount, axis_name
from gradebench.analysis.multi_task import Ranks
from gradebench.analysis.runs import CellStatus
from gradebench.analysis.statistics import ALPHA
from gradebench.analysis.tables import pareto_front
from gradebench.reporting.console import stdout_console

PAIRS_SHOWN = 15
VERDICT_WIDTH = 22


_INTERVAL, _AGAINST_BEST = "95 % interval", "p vs best"
# heading, columns of the leaderboard, format
_NUMBERS = (
    ("rank", ["rank"], ".0f"),
    ("tier", ["tier"], ".0f"),
    ("letters", ["letters"], ""),
    ("objective", ["test_objective_mean"], ".3f"),
    (_INTERVAL, ["test_objective_ci_low", "test_objective_ci_high"], ".3f"),
    ("test reward", ["test_reward_mean"], ".3f"),
    (_INTERVAL, ["test_reward_ci_low", "test_reward_ci_high"], ".3f"),
    ("gold", ["test_gold_reward_mean"], ".3f"),
    ("train-test", ["generalization_gap"], "+.3f"),
    ("KL", ["kl_mean"], ".2f"),
    ("variance", ["gradient_variance"], ".3g"),
    ("relative", ["gradient_variance_relative"], ".3g"),
    ("bias²", ["gradient_bias_squared"], ".2f"),
    ("cosine", ["gradient_cosine"], ".2f"),
    ("updates/step", ["updates_per_step"], ".3g"),
    ("clipped", ["clipped_updates"], ".0%"),
    ("s/step", ["seconds_per_step"], ".3f"),
    (_AGAINST_BEST, ["p_vs_best_holm"], ".3g"),
    ("p vs baseline", ["p_vs_baseline_holm"], ".3g"),
    ("rate", ["learning_rate"], ".2g"),
)


def print_leaderboard(leaderboard: pd.DataFrame) -> None:
    """One table a task and setting; columns that nobody has a value in are left out."""
    console = stdout_console()
    for (task, setting), board in leaderboard.groupby(["task", "setting"], sort=False):
        title = f"{task}  [{setting}]  {at_budget(board)}"
        table = Table(title=title, title_justify="left")
        table.add_column("estimator", overflow="fold")  # a label cut short names no estimator
        compared = not is_empty(board["verdict"])
        shown = [one for one in _NUMBERS if _is_shown(board, *one[:2], compared)]
        for heading, _, _ in shown:
            table.add_column(heading, justify="right")
        if compared:
            table.add_column("verdict", min_width=VERDICT_WIDTH)
        table.add_column("status")
        for row in board.to_dict("records"):
            numbers = (" ".join(number(row[c], form) for c in columns) for _, columns, form in shown)
            table.add_row(named(row), *numbers, *([str(row["verdict"])] if compared else []), str(row["status"]))
        console.print(table)
        if not is_empty(board["letters"]):
            console.print(LETTERS)
        if front := pareto_front(board):
            ranking = board["ranked_by"].iloc[0].replace("_", " ")
            console.print(f"not dominated in test {ranking}, relative variance and s/step: {', '.join(front)}")


def _is_shown(board: pd.DataFrame, heading: str, columns: Sequence[str], compared: bool) -> bool:
    """Whether the terminal has room for a column: of intervals, for the one of what ranks; leaderboard.csv has all."""
    if heading == _INTERVAL and not columns[0].startswith(f"test_{board['ranked_by'].iloc[0]}_"):
        return False
    return not is_empty(board[columns[0]]) and not (compared and heading == _AGAINST_BEST)


LETTERS = (
    "two estimators share a letter exactly where they aren't significantly different; a tier is what isn't significantly "
    "different from its first"
)


def at_budget(board: pd.DataFrame) -> str:
    """What one group's leaderboard says: such as "at 40 steps, by objective"."""
    steps = board["steps"].iloc[0]
    budget = "" if pd.isna(steps) else f"at {steps:.0f} steps, "
    return f"{budget}by {str(board['ranked_by'].iloc[0]).replace('_', ' ')}"


def named(row: Mapping[Any, Any]) -> str:
    """An estimator, and the one that it drew the same as."""
    same = row["same_as"]
    return f"{row['estimator']} = {same}" if isinstance(same, str) and same else str(row["estimator"])


def is_empty(column: pd.Series) -> bool:
    return bool((column.isna() | (column == "")).all())


def print_notices(metrics: pd.DataFrame) -> None:
    """Where rates keep estimators from being compared, and what mends it."""
    for notice in provenance.notices(metrics):
        stdout_console().print(notice)


def print_across(table: pd.DataFrame, ranks: Ranks | str) -> None:
    """The estimators over all tasks of the runs, where there are several."""
    if table.empty:
        return
    console = stdout_console()
    shown = Table(title=f"over {table['tasks'].iloc[0]} tasks", title_justify="left")
    shown.add_column("estimator", overflow="fold")
    for heading in ("IQM", "95 % from", "to", "above 0.5", "above 0.9", "mean rank"):
        shown.add_column(heading, justify="right")
    for row in table.to_dict("records"):
        ends = [number(row[name], ".3f") for name in ("iqm", "ci_low", "ci_high")]
        shares = [number(row[name], ".0%") for name in ("above_0.5", "above_0.9")]
        shown.add_row(str(row["estimator"]), *ends, *shares, number(row["mean_rank"], ".1f"))
    console.print(shown)
    console.print(
        "IQM: interquartile mean over tasks and seeds of the gain in what ranks on a task, 1 being the best estimator's; "
        "above: the share of runs with a larger gain"
    )
    console.print(ranks if isinstance(ranks, str) else ranks_in_words(ranks))


def ranks_in_words(ranks: Ranks) -> str:
    """Friedman's and Nemenyi's answer."""
    return (
        f"Friedman's test of equal ranks: p = {ranks.p:.3g}; mean ranks more than {ranks.critical_difference:.2f} apart "
        f"differ (Nemenyi): {ranks.apart} pairs"
    )


def number(value: Any, form: str) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None or pd.isna(value) or not math.isfinite(value) else format(value, form)


def print_underpowered(comparisons: pd.DataFrame, leaderboard: pd.DataFrame) -> None:
    """Say so where a task's seeds are too few for any difference of its estimators to be supported."""
    tested = dict(iter(comparisons[comparisons["n_pairs"] > 0].groupby(["task", "setting", "metric"])))
    for (task, setting), board in leaderboard.groupby(["task", "setting"], sort=False):
        tests = tested.get((task, setting, board["ranked_by"].iloc[0]), comparisons.iloc[:0])
        if not (tests["verdict"] == "underpowered").any():
            continue
        n, family = int(tests["n_pairs"].max()), int(tests["family"].max())
        least = min(1.0, float(tests["smallest_attainable_p"].min()) * family)
        stdout_console().print(
            f"{task} is underpowered: with {n} seeds the smallest p after Holm over {family} comparisons is {least:.3g}; "
            "add seeds to tell estimators apart"
        )


def print_frontier(table: pd.DataFrame, areas: pd.DataFrame) -> None:
    """For each task and metric the values within budgets of KL, who leads where, and the areas that differ."""
    console = stdout_console()
    for (task, metric), rows in table.groupby(["task", "metric"], sort=False):
        shown = Table(title=f"{task}  [{metric} within KL, nats a sequence]", title_justify="left")
        shown.add_column("estimator", overflow="fold")
        for kl in sorted(rows["kl"].unique()):
            shown.add_column(f"{kl:.3g}", justify="right")
        wide = rows.pivot(index="estimator", columns="kl", values="mean")
        beside = (rows["rank"] == 1) | (rows["p_vs_leader_holm"] >= ALPHA)
        marks = rows.assign(mark=beside.fillna(False).map({True: "*", False: " "})).pivot(
            index="estimator", columns="kl", values="mark"
        )
        for name in wide.mean(axis=1).sort_values(ascending=False, na_position="last").index:
            cells = [number(wide.loc[name, kl], ".3f") + str(marks.loc[name, kl]).rstrip() for kl in wide.columns]
            shown.add_row(str(name), *cells)
        console.print(shown)
        for line in frontier_in_words(rows):
            console.print(line)
        tests = areas[(areas["task"] == task) & (areas["metric"] == metric)]
        decided = tests[tests["verdict"].isin(["a higher", "b higher"])]
        console.print(f"area under the frontier: {len(decided)} of {len(tests)} pairs differ (Holm over all)")
        for row in decided.head(PAIRS_SHOWN).to_dict("records"):
            ends = f"{number(row['ci_low'], '+.3f')} to {number(row['ci_high'], '+.3f')}"
            console.print(
                f"    {row['estimator_a']} - {row['estimator_b']}: {row['mean_difference']:+.3f} ({ends}) on average up to "
                f"KL {row['kl_to']:.3g}, p (Holm) {row['p_holm']:.3g}"
            )
    console.print(
        "* leads, or isn't significantly different from who does (paired by seed, Holm over the pairs of a budget); "
        "-: not all of its seeds have spent so much, and nothing is extrapolated"
    )


def frontier_in_words(rows: pd.DataFrame) -> list[str]:
    """Who leads one task and metric where, in lines."""
    lines = []
    for low, high, leader, beside in frontier.leaders(rows):
        where = f"KL {low:.3g}" if low == high else f"KL {low:.3g} to {high:.3g}"
        who = f"not significantly different: {', '.join(beside)}" if beside else "above every other one there"
        lines.append(f"{where}: {leader} leads; {who}")
    return lines


def print_instances(board: pd.DataFrame | None) -> None:
    """The estimators over the instances of each kind of task, where a run has several."""
    if board is None or board.empty:
        return
    console = stdout_console()
    for (task, metric), rows in board.groupby(["task", "metric"], sort=False):
        title = f"{task}  [over {rows['n_instances'].max()} instances, by {metric}]"
        shown = Table(title=title, title_justify="left")
        shown.add_column("estimator", overflow="fold")
        for heading in _INSTANCES:
            shown.add_column(heading, justify="right")
        for row in rows.to_dict("records"):
            shown.add_row(str(row["estimator"]), *(number(row[name], form) for name, form in _INSTANCES.values()))
        console.print(shown)
    console.print(
        "mean over instances, each counting alike, with Student's interval over them; first: instances in which it is the "
        "highest; p: of the mean difference from the first, over instances (mixed test, Holm over all pairs)"
    )


_INSTANCES = {
    "rank": ("rank", ".0f"),
    "mean": ("mean", ".3f"),
    "95 % from": ("ci_low", ".3f"),
    "to": ("ci_high", ".3f"),
    "first": ("n_first", ".0f"),
    "reward": ("reward_mean", ".3f"),
    "gold": ("gold_reward_mean", ".3f"),
    "KL": ("kl_mean", ".2f"),
    "instances": ("n_instances", ".0f"),
    "seeds in all": ("n_seeds", ".0f"),
    "p vs best": ("p_vs_best_holm", ".3g"),
}


def print_controls(controls: pd.DataFrame) -> None:
    """How often the same estimator, run twice, differed significantly from itself."""
    for (task, _, metric), tests in controls.groupby(["task", "setting", "metric"], sort=False):
        tested = tests[tests["p_value"].notna()]
        alarms = int((tested["verdict"] == "false alarm").sum())
        if tested.empty:
            continue
        high = scipy.stats.binomtest(alarms, len(tested)).proportion_ci().high
        step = tested["smallest_attainable_p"]  # p-values are its multiples: so many of them are below the level
        expected = float((step * (np.ceil(ALPHA / step) - 1)).sum())
        stdout_console().print(
            f"A/A control of {task}, {metric}: {alarms} of {len(tested)} estimators differed significantly from themselves at "
            f"p < {ALPHA:g}; {expected:.1f} would be by chance, and a rate of up to {high:.0%} is possible"
        )


def print_tuning(tunings: pd.DataFrame, choices: Mapping[str, Any], out: Path) -> None:
    """The curves and choices of `gradebench tune`: each estimator's objective by learning rate, the choice marked."""
    console = stdout_console()
    last = tunings[tunings["steps"] == tunings.groupby("task")["steps"].transform("max")]
    for (task, setting), curves in last.groupby(["task", "setting"], sort=False):
        steps = int(curves["steps"].iloc[0])
        title = f"{task}  [{setting}]  mean objective at {steps} steps"
        table = Table(title=title, title_justify="left")
        table.add_column("estimator", overflow="fold")
        rates = sorted(curves["learning_rate"].unique())
        for rate in rates:
            table.add_column(f"{rate:g}", justify="right")
        for estimator, points in curves.groupby("estimator"):
            cells = {
                row["learning_rate"]: number(row["objective"], ".3f") + ("*" if row["chosen"] else "")
                if row["status"] == "ok"
                else row["status"]
                for row in points.to_dict("records")
            }
            table.add_row(str(estimator), *(cells.get(rate, "-") for rate in rates))
        console.print(table)
        for name, one in choices["tasks"][task]["estimators"].items():
            options = ", ".join(f"{option}={value}" for option, value in one["options"].items())
            tied = f", as good from {one['rate_low']:g} to {one['rate_high']:g}" if one["rate_low"] else ""
            console.print(f"* {name}: {one['learning_rate']:g}{tied}{f'; {options}' if options else ''}")
        ends = [name for name, one in choices["tasks"][task]["estimators"].items() if one["at_the_end"] and rates[1:]]
        if ends:
            console.print(f"* at an end of the rates: {', '.join(ends)}; a wider --rates may hold a better one")
    console.print(
        f"* the trial nearest to the rate chosen by a smooth fit, for gradebench run --tuned {out}/tuned.json; curves.csv and trials.csv beside it"
    )


def print_plan(needed: pd.DataFrame) -> None:
    """Seeds by pair, the widest spread first, and what they come to."""
    console = stdout_console()
    for (task, setting), pairs in needed.groupby(["task", "setting"], sort=False):
        table = Table(title=f"{task}  [{setting}]", title_justify="left")
        for heading in ("a", "b"):
            table.add_column(heading, overflow="fold")
        for heading in ("pilot seeds", "spread", "seeds needed", "at most", "detectable"):
            table.add_column(heading, justify="right")
        for row in pairs.head(PAIRS_SHOWN).to_dict("records"):
            numbers = [number(row["pilot_seeds"], ".0f"), number(row["spread"], ".3f")]
            numbers += [number(row[name], ".0f") for name in ("seeds_needed", "seeds_needed_high")]
            table.add_row(row["estimator_a"], row["estimator_b"], *numbers, number(row["detectable"], ".3f"))
        console.print(table)
        if len(pairs) > PAIRS_SHOWN:
            console.print(f"and {len(pairs) - PAIRS_SHOWN} pairs that need no more seeds than these")
        first, most = pairs.iloc[0], pairs["seeds_needed"].max()
        console.print(
            f"{task}: {number(most, '.0f')} seeds for a difference in test {first['metric'].replace('_', ' ')} of "
            f"{first['difference']:g} between any two of them, p < {ALPHA:g} after Holm over {first['family']} pairs, with a power of 0.8; half of the pairs "
            f"need {number(pairs['seeds_needed'].median(), '.0f')} or fewer"
        )
    console.print(
        "spread: of the paired difference between seeds of the pilot; at most: by the upper end of its 80 % interval; "
        "detectable: the least difference seen so at the seeds of a run"
    )


# heading, column of the tests, format
_TESTED = (
    ("pairs", "n_pairs", ".0f"),
    ("difference", "mean_difference", "+.4g"),
    ("95 % from", "ci_low", "+.4g"),
    ("to", "ci_high", "+.4g"),
    ("effect", "effect_size", "+.2f"),
    ("p", "p_value", ".3g"),
    ("p (Holm)", "p_holm", ".3g"),
)


def print_comparisons(rows: pd.DataFrame, against: Sequence[str] = ()) -> None:
    """One table a task and setting: each row one estimator against another by one metric, paired by seed."""
    console = stdout_console()
    for (task, setting), tests in rows.groupby(["task", "setting"], sort=False):
        table = Table(title=f"{task}  [{setting}]", title_justify="left")
        for heading in ("metric", "a", "b"):
            table.add_column(heading, overflow="fold")
        for heading, _, _ in _TESTED:
            table.add_column(heading, justify="right")
        table.add_column("verdict")
        for row in tests.to_dict("records"):
            metric = (
                "ln gradient_variance" if row["metric"] == "gradient_variance" else f"{row['split']} {row['metric']}"
            )
            names = (metric, str(row["estimator_a"]), str(row["estimator_b"]))
            table.add_row(*names, *(number(row[column], form) for _, column, form in _TESTED), str(row["verdict"]))
        console.print(table)
    family = f"{int(rows['family'].max())} pairs"
    family = f"the {family} with {' or '.join(against)}" if against else f"all {family} of the run"
    console.print(
        f"difference is a - b, paired by seed; p (Holm) counts {family}, p is for a pair that was chosen before it; "
        "a difference of ln variance is a log ratio"
    )


def print_budgets(leaders: pd.DataFrame, crossings: pd.DataFrame) -> None:
    """Who leads at which budget, one table a task and setting, and under it where the lead changes."""
    console = stdout_console()
    for place, rows in leaders.groupby(["task", "setting", "metric", "axis"], sort=False):
        task, setting, metric, axis = map(str, place)
        table = Table(title=f"{task}  [{setting}]  {_words(metric)} by {axis_name(axis)}", title_justify="left")
        table.add_column("budget", justify="right")
        table.add_column("leads", overflow="fold")
        for heading in (_words(metric), "95 % from", "to", "seeds", "of"):
            table.add_column(heading, justify="right")
        table.add_column("not significantly different", overflow="fold")
        for row in rows.to_dict("records"):
            numbers = [number(row[name], ".3f") for name in ("mean", "ci_low", "ci_high")]
            counts = [number(row[name], ".0f") for name in ("n_seeds", "compared")]
            budget = amount(float(row["budget"]), axis)
            table.add_row(budget, str(row["leader"]), *numbers, *counts, str(row["not_different"]) or "-")
        console.print(table)
        mine = crossings[(crossings["task"] == task) & (crossings["setting"] == setting)]
        for row in mine.to_dict("records"):
            console.print(crossing_in_words(row))
        if rows["leader"].nunique() == 1 and mine.empty:
            console.print(f"{rows['leader'].iloc[0]} leads at each of these budgets; name two for where they change")
    console.print(
        "of: the estimators that all of their seeds bring to this budget; not significantly different: paired by seed, p >= "
        f"{ALPHA:g} after Holm over all pairs at the budget; a lead between two is supported at all budgets together"
    )


def crossing_in_words(row: Mapping[Any, Any]) -> str:
    """A row of `curves.crossings_of` as a line."""
    said = f"{row['estimator_a']} and {row['estimator_b']}: {row['verdict']}"
    if pd.isna(row["crossing"]):
        return said
    axis = str(row["axis"])
    ends = [amount(row[name], axis) if not pd.isna(row[name]) else "open" for name in ("ci_low", "ci_high")]
    return f"{said}; their means cross at {amount(row['crossing'], axis)} (95 %: {ends[0]} to {ends[1]})"


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def print_claims(verdicts: pd.DataFrame) -> None:
    """Each claim with its verdict, what was measured, and what would decide it."""
    console = stdout_console()
    for row in verdicts.to_dict("records"):
        console.print(f"{row['verdict']}: {row['says']}")
        console.print(f"    {row['source']}")
        if row["verdict"] == "untested":
            console.print(f"    {row['reason']}")
            continue
        budget = "" if pd.isna(row["steps"]) else f", at {row['steps']:.0f} steps"
        place = f"    on {row['task']} [{row['setting']}]{budget}"
        ends = f"{number(row['ci_low'], '.4g')} to {number(row['ci_high'], '.4g')}"
        console.print(
            f"    claimed {row['claimed']}, measured {number(row['measured'], '.4g')} ({ends}), {row['n_pairs']} seeds, "
            f"p (Holm) {number(row['p_holm'], '.3g')}, effect {number(row['effect_size'], '+.2f')} from the bound"
        )
        if row["verdict"] == OUT_OF_REACH:
            console.print(f"    {row['reason']}")
            console.print(place)
            continue
        seen = number(row["detectable"], ".3g")
        seen = f"a power of 0.8 from {seen} away" if seen != "-" else "nothing can be seen at these seeds"
        console.print(f"    power {number(row['power'], '.2f')} if the truth is as measured; {seen}")
        if not pd.isna(row["seeds_needed"]):
            needed = number(row["seeds_needed"], ".0f")
            console.print(
                f"    {'no number of' if needed == '-' else needed} seeds would be needed, if the truth is as measured"
            )
        console.print(place)
    console.print("A verdict is about a claim in these settings, of task, scale and budget; papers had others.")


def print_statuses(statuses: Sequence[CellStatus]) -> None:
    """How many cells ended how, then each that isn't ok with its reason."""
    console = stdout_console()
    counts = Counter(cell.status for cell in statuses)
    console.print(f"{len(statuses)} cells: " + ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    reasons = Counter((cell.status, cell.reason) for cell in statuses if cell.status != "ok" or cell.reason)
    for (status, reason), count in reasons.most_common():
        first = next(cell.cell for cell in statuses if (cell.status, cell.reason) == (status, reason))
        console.print(f"{status} {count}, as {first}" + (f": {reason}" if reason else ""))
