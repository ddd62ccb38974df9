"""Leaderboards, comparisons and statuses on stdout, for a person or a pipe."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats
from rich.table import Table

from gradebench.analysis import provenance
from gradebench.analysis.claims import OUT_OF_REACH
from gradebench.analysis.curves import amount, axis_name
from gradebench.analysis.multi_task import Ranks
from gradebench.analysis.runs import CellStatus
from gradebench.analysis.statistics import ALPHA
from gradebench.analysis.tables import pareto_front
from gradebench.core.shown import counted
from gradebench.reporting import columns
from gradebench.reporting.columns import Column, number
from gradebench.reporting.console import stdout_console
from gradebench.reporting.wording import (
    LETTERS,
    crossing_in_words,
    frontier_in_words,
    metric_in_words,
    ranked_at,
    ranks_in_words,
)

PAIRS_SHOWN = 15
VERDICT_WIDTH = 22


def print_leaderboard(leaderboard: pd.DataFrame) -> None:
    """One table a task and setting; columns that nobody has a value in are left out."""
    console = stdout_console()
    for (task, setting), board in leaderboard.groupby(["task", "setting"], sort=False):
        table = Table(title=f"{task}  [{setting}]  {ranked_at(board)}", title_justify="left")
        board = columns.with_shown(board)
        shown = _fitting(board)
        for column in shown:
            _add_column(table, column)
        for row in columns.records(board):
            table.add_row(*(column.text(row) for column in shown))
        console.print(table)
        if not columns.is_empty(board["letters"]):
            console.print(LETTERS)
        if front := pareto_front(board):
            ranking = metric_in_words(board["ranked_by"].iloc[0])
            console.print(f"not dominated in test {ranking}, relative variance and s/step: {', '.join(front)}")


def _fitting(board: pd.DataFrame) -> list[Column]:
    """What the terminal has room for of a leaderboard; leaderboard.csv has all.

    Of the intervals only that of what ranks, and of the tests those against baselines, where there are any.
    """
    shown = [column for column in columns.not_empty(board, columns.LEADERBOARD) if column.narrow]
    ranking = f"test_{board['ranked_by'].iloc[0]}_"
    shown = [column for column in shown if not column.high or column.name.startswith(ranking)]
    if columns.is_empty(board["verdict"]):
        return shown
    return [column for column in shown if column.heading != columns.P_VS_BEST]


def _add_column(table: Table, column: Column) -> None:
    """Texts left, numbers right; the first column is folded, since a label that is cut short names no estimator."""
    heading = column.short or column.heading
    if not table.columns:
        table.add_column(heading, overflow="fold")
    elif column.name == "verdict":
        table.add_column(heading, min_width=VERDICT_WIDTH)
    elif column.name == "status":
        table.add_column(heading)
    else:
        table.add_column(heading, justify="right")


def print_notices(metrics: pd.DataFrame) -> None:
    """Which estimators can't be compared because of their learning rates, and what to do about it."""
    for notice in provenance.notices(metrics):
        stdout_console().print(notice)


def print_across(table: pd.DataFrame, ranks: Ranks | str) -> None:
    """The estimators over all tasks of the runs, where there are several."""
    if table.empty:
        return
    console = stdout_console()
    shown = Table(title=f"over {counted(table['tasks'].iloc[0], 'task')}", title_justify="left")
    shown.add_column("estimator", overflow="fold")
    for heading in ("IQM", "95 % from", "to", "above 0.5", "above 0.9", "mean rank"):
        shown.add_column(heading, justify="right")
    for row in table.to_dict("records"):
        ends = [number(row[name], ".3f") for name in ("iqm", "ci_low", "ci_high")]
        shares = [number(row[name], ".0%") for name in ("above_0.5", "above_0.9")]
        shown.add_row(str(row["estimator"]), *ends, *shares, number(row["mean_rank"], ".1f"))
    console.print(shown)
    console.print(
        "IQM: interquartile mean, over tasks and seeds, of the gain in each task's ranking metric, as a fraction of the best "
        "estimator's gain; above: the share of runs with a larger gain"
    )
    console.print(ranks_in_words(ranks))


def print_underpowered(comparisons: pd.DataFrame, leaderboard: pd.DataFrame) -> None:
    """Which tasks have too few seeds for any difference to be significant."""
    tested = dict(iter(comparisons[comparisons["n_pairs"] > 0].groupby(["task", "setting", "metric"])))
    for (task, setting), board in leaderboard.groupby(["task", "setting"], sort=False):
        tests = tested.get((task, setting, board["ranked_by"].iloc[0]), comparisons.iloc[:0])
        if not (tests["verdict"] == "underpowered").any():
            continue
        n, family = int(tests["n_pairs"].max()), int(tests["family"].max())
        least = min(1.0, float(tests["smallest_attainable_p"].min()) * family)
        stdout_console().print(
            f"{task} is underpowered: with {counted(n, 'seed')} the smallest p after Holm over {counted(family, 'comparison')} is {least:.3g}; "
            "no difference can be significant without more seeds"
        )


def print_frontier(table: pd.DataFrame, areas: pd.DataFrame) -> None:
    """For each task and metric the values within budgets of KL, who leads where, and the areas that differ."""
    console = stdout_console()
    for (task, metric), rows in table.groupby(["task", "metric"], sort=False):
        shown = Table(title=f"{task}  [{metric} within KL, nats per sequence]", title_justify="left")
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
        console.print(
            f"area under the frontier: {len(decided)} of {counted(len(tests), 'pair')} differ significantly (Holm over all pairs)"
        )
        for row in decided.head(PAIRS_SHOWN).to_dict("records"):
            ends = f"{number(row['ci_low'], '+.3f')} to {number(row['ci_high'], '+.3f')}"
            console.print(
                f"    {row['estimator_a']} - {row['estimator_b']}: {row['mean_difference']:+.3f} ({ends}) on average up to "
                f"KL {row['kl_to']:.3g}, p (Holm) {row['p_holm']:.3g}"
            )
    console.print(
        "*: leads, or isn't significantly different from the leader (paired by seed, Holm over all pairs at that KL); "
        "-: not all of its seeds reached that KL (nothing is extrapolated)"
    )


def print_instances(board: pd.DataFrame | None) -> None:
    """The estimators over the instances of each kind of task, where a run has several."""
    if board is None or board.empty:
        return
    console = stdout_console()
    for (task, metric), rows in board.groupby(["task", "metric"], sort=False):
        title = f"{task}  [over {counted(rows['n_instances'].max(), 'instance')}, by {metric}]"
        shown = Table(title=title, title_justify="left")
        for column in columns.INSTANCES:
            _add_column(shown, column)
        for row in rows.to_dict("records"):
            shown.add_row(*(column.text(row) for column in columns.INSTANCES))
        console.print(shown)
    console.print(
        "mean: over instances, equally weighted, with its 95 % t interval; first in: instances in which it is the highest; "
        "p: of the mean difference from the best, over instances (t test, Holm over all pairs)"
    )


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
            f"A/A control of {task}, {metric}: {alarms} of {counted(len(tested), 'estimator')} differed significantly from themselves at "
            f"p < {ALPHA:g}; {expected:.1f} are expected by chance; the 95 % interval of the rate ends at {high:.0%}"
        )


def print_tuning(tunings: pd.DataFrame, choices: Mapping[str, Any], out: Path) -> None:
    """The curves and choices of `gradebench tune`: each estimator's objective by learning rate, the choice marked."""
    console = stdout_console()
    last = tunings[tunings["steps"] == tunings.groupby("task")["steps"].transform("max")]
    for (task, setting), curves in last.groupby(["task", "setting"], sort=False):
        steps = int(curves["steps"].iloc[0])
        title = f"{task}  [{setting}]  mean objective at {counted(steps, 'step')}"
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
            tied = f" (not significantly worse: {one['rate_low']:g} to {one['rate_high']:g})" if one["rate_low"] else ""
            console.print(f"* {name}: {one['learning_rate']:g}{tied}{f'; {options}' if options else ''}")
        ends = [name for name, one in choices["tasks"][task]["estimators"].items() if one["at_the_end"] and rates[1:]]
        if ends:
            console.print(
                f"* best at the lowest or highest rate: {', '.join(ends)}; widen --rates, there may be a better one"
            )
    console.print(
        f"* the trial nearest to the rate that a smooth fit chose; use it with gradebench run --tuned {out}/tuned.json; the "
        "curves are in curves.csv and trials.csv beside it"
    )


def print_power(needed: pd.DataFrame) -> None:
    """The seeds that each pair needs, the largest spread first, and what all of them need."""
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
            console.print(
                f"and {counted(len(pairs) - PAIRS_SHOWN, 'more pair')}, none of which needs more seeds than these"
            )
        first, most = pairs.iloc[0], pairs["seeds_needed"].max()
        console.print(
            f"{task}: {counted(number(most, '.0f'), 'seed detects', 'seeds detect')} a difference in test {metric_in_words(first['metric'])} of "
            f"{first['difference']:g} between any two of them with a power of 0.8 (p < {ALPHA:g} after Holm over "
            f"{counted(first['family'], 'pair')}); half of the pairs need {number(pairs['seeds_needed'].median(), '.0f')} or fewer"
        )
    console.print(
        "spread: standard deviation over the pilot's seeds of the paired difference; at most: seeds needed if the spread is at "
        "the upper end of its 80 % interval; detectable: the smallest difference that the run's seeds detect with this power"
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
    family = counted(rows["family"].max(), "pair")
    family = f"the {family} with {' or '.join(against)}" if against else f"all {family} of the run"
    console.print(
        f"difference: a - b, paired by seed; p (Holm): corrected for {family}; p: uncorrected, for a pair chosen in advance; "
        "a difference of ln variance is the log of a ratio"
    )


def print_budgets(leaders: pd.DataFrame, crossings: pd.DataFrame) -> None:
    """Who leads at each budget, one table a task and setting, and below it where the lead changes."""
    console = stdout_console()
    for place, rows in leaders.groupby(["task", "setting", "metric", "axis"], sort=False):
        task, setting, metric, axis = map(str, place)
        table = Table(
            title=f"{task}  [{setting}]  {metric_in_words(metric)} by {axis_name(axis)}", title_justify="left"
        )
        table.add_column("budget", justify="right")
        table.add_column("leads", overflow="fold")
        for heading in (metric_in_words(metric), "95 % from", "to", "seeds", "of"):
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
            console.print(
                f"{rows['leader'].iloc[0]} leads at each of these budgets; name two estimators to see where they cross"
            )
    console.print(
        "of: how many estimators reach this budget with all seeds; not significantly different: paired by seed, p >= "
        f"{ALPHA:g} after Holm over all pairs at the budget; a lead between two estimators is tested at all budgets together"
    )


def print_claims(verdicts: pd.DataFrame) -> None:
    """Each claim with its verdict, what was measured, and how many seeds would decide it."""
    console = stdout_console()
    for row in verdicts.to_dict("records"):
        console.print(f"{row['verdict']}: {row['says']}")
        console.print(f"    {row['source']}")
        if row["verdict"] == "untested":
            console.print(f"    {row['reason']}")
            continue
        budget = "" if pd.isna(row["steps"]) else f", at {counted(row['steps'], 'step')}"
        place = f"    on {row['task']} [{row['setting']}]{budget}"
        ends = f"{number(row['ci_low'], '.4g')} to {number(row['ci_high'], '.4g')}"
        console.print(
            f"    claimed {row['claimed']}, measured {number(row['measured'], '.4g')} ({ends}), {counted(row['n_pairs'], 'seed')}, "
            f"p (Holm) {number(row['p_holm'], '.3g')}, effect {number(row['effect_size'], '+.2f')} from the bound"
        )
        if row["verdict"] == OUT_OF_REACH:
            console.print(f"    {row['reason']}")
            console.print(place)
            continue
        seen = number(row["detectable"], ".3g")
        seen = f"a power of 0.8 from a distance of {seen} on" if seen != "-" else "these seeds can detect nothing"
        console.print(f"    power {number(row['power'], '.2f')} if the truth is as measured; {seen}")
        if not pd.isna(row["seeds_needed"]):
            needed = number(row["seeds_needed"], ".0f")
            console.print(
                f"    {'no number of seeds' if needed == '-' else counted(needed, 'seed')} would be needed, if the truth is as measured"
            )
        console.print(place)
    console.print("A verdict holds for these tasks, scales and budgets; the papers used others.")


def print_statuses(statuses: Sequence[CellStatus]) -> None:
    """How many cells have which status, then each status but ok with its reason."""
    console = stdout_console()
    counts = Counter(cell.status for cell in statuses)
    console.print(
        f"{counted(len(statuses), 'cell')}: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())
    )
    reasons = Counter((cell.status, cell.reason) for cell in statuses if cell.status != "ok" or cell.reason)
    for (status, reason), count in reasons.most_common():
        first = next(cell.cell for cell in statuses if (cell.status, cell.reason) == (status, reason))
        console.print(f"{status} {count}, as {first}" + (f": {reason}" if reason else ""))
