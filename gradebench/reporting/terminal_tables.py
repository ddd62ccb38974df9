"""Leaderboards, claims and statuses on stdout, for a person or a pipe."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.stats

from gradebench.analysis import provenance
from gradebench.analysis.claims import OUT_OF_REACH
from gradebench.analysis.multi_task import Ranks
from gradebench.analysis.runs import CellStatus
from gradebench.analysis.statistics import ALPHA
from gradebench.analysis.tables import pareto_front
from gradebench.core.shown import counted
from gradebench.reporting import columns
from gradebench.reporting.columns import Column, number
from gradebench.reporting.console import PlainConsole, stdout_console
from gradebench.reporting.fitted import Shown, print_table
from gradebench.reporting.next_steps import Step, print_next
from gradebench.reporting.verdicts import has_nothing, in_words, lacking_in_words, lead, with_half_width
from gradebench.reporting.wording import metric_in_words, ranked_at, ranks_in_words

COMMAND = "gradebench "
# What stands under a leaderboard that has these columns.
KEY = {
    "tier": "no estimator of a tier is significantly different from the first one of that tier",
    "letters": "two estimators share a letter if and only if they aren't significantly different",
    columns.P_VS_BEST: "of the difference from the first one, after Holm's correction",
    "relative variance": "of one batch's gradient, divided by |grad J|²",
    "bias²": "divided by |grad J|² too; ~0: not significantly different from 0",
}


def print_leaderboard(
    leaderboard: pd.DataFrame,
    tests: pd.DataFrame | None = None,
    reasons: Mapping[tuple[str, str], str] | None = None,
    against: Sequence[str] = (),
) -> None:
    """One table a task and setting, and below it the verdict, which needs the `tests`, and who was skipped or failed.

    reasons    by task and estimator, why it was skipped, where that is known
    """
    console = stdout_console()
    for number_of, (_, board) in enumerate(leaderboard.groupby(["task", "setting"], sort=False)):
        if number_of:
            console.print()
        shown = _print_board(console, board)
        if tests is not None and board["rank"].notna().any():
            console.print()
            console.say(lead(board, tests, against))
        for line in lacking_in_words(board, reasons or {}):
            console.say(line)
        if front := pareto_front(board):
            ranking = metric_in_words(board["ranked_by"].iloc[0])
            console.say(f"Not dominated in test {ranking}, relative variance and s/step: {', '.join(front)}.")
        for heading, words in KEY.items():
            if heading in shown:
                console.say(f"{heading}: {words}")


def _print_board(console: PlainConsole, board: pd.DataFrame) -> list[str]:
    """The table of one task, without those that have nothing to show; returns the headings of the columns shown."""
    title = f"{board['task'].iloc[0]}  [{board['setting'].iloc[0]}]  {ranked_at(board)}"
    table = board[~has_nothing(board)]
    if table.empty:
        console.heading(title)
        return []
    return print_table(console, title, columns_of(table))


def columns_of(board: pd.DataFrame) -> list[Shown]:
    """The columns of a leaderboard, of which the terminal shows as many as it has room for; leaderboard.csv has all."""
    board = columns.with_shown(board)
    rows = list(columns.records(board))
    ranking = f"test_{board['ranked_by'].iloc[0]}_"
    against = not columns.is_empty(board["verdict"])
    answer = []
    for column in columns.LEADERBOARD:
        heading, place = column.short or column.heading, column.place
        left_out = column.name == "steps" or (column.heading == columns.P_VS_BEST and against)
        left_out |= column.name == "status" and set(board["status"]) == {"ok"}
        if left_out or (column.high and not column.name.startswith(ranking)):
            continue
        if column.name == f"{ranking}mean":
            cells = [with_half_width(row, ranking, column.form) for row in rows]
            heading, place = heading + (" ±" if any("±" in cell for cell in cells) else ""), 3
        elif column.name == "gradient_bias_squared":
            cells = ["~0" if row["gradient_bias_squared_ci_low"] <= 0 else column.text(row) for row in rows]
        else:
            cells = [column.text(row) for row in rows]
        answer.append(Shown(heading, cells, place, left=column.name in ("named", "verdict", "status")))
    return answer


def print_notices(metrics: pd.DataFrame) -> None:
    """Which estimators can't be compared because of their learning rates, and what to do about it."""
    for notice in provenance.notices(metrics):
        stdout_console().say(notice)


def print_across(table: pd.DataFrame, ranks: Ranks | str) -> None:
    """The estimators over all tasks of the runs, where there are several."""
    if table.empty:
        return
    console = stdout_console()
    rows = table.to_dict("records")
    shown = [Shown("estimator", [str(row["estimator"]) for row in rows], left=True)]
    for one in _ACROSS:
        shown.append(Shown(one.heading, [one.text(row, between=" to ") for row in rows], one.place))
    print_table(console, f"over {counted(table['tasks'].iloc[0], 'task')}", shown)
    console.say(
        "IQM: interquartile mean, over tasks and seeds, of the gain in each task's ranking metric, as a fraction of the best "
        "estimator's gain; above: the share of runs with a larger gain"
    )
    console.say(ranks_in_words(ranks))


_ACROSS = (
    Column("IQM", "iqm", ".3f", place=1),
    Column(columns.INTERVAL, "ci_low", ".3f", high="ci_high", place=2),
    Column("above 0.5", "above_0.5", ".0%", place=4),
    Column("above 0.9", "above_0.9", ".0%", place=5),
    Column("mean rank", "mean_rank", ".1f", place=3),
)


def print_underpowered(comparisons: pd.DataFrame, leaderboard: pd.DataFrame) -> bool:
    """Which tasks have too few seeds for any difference to be significant; returns whether there are any."""
    found = False
    tested = dict(iter(comparisons[comparisons["n_pairs"] > 0].groupby(["task", "setting", "metric"])))
    for (task, setting), board in leaderboard.groupby(["task", "setting"], sort=False):
        tests = tested.get((task, setting, board["ranked_by"].iloc[0]), comparisons.iloc[:0])
        if not (tests["verdict"] == "underpowered").any():
            continue
        found = True
        n, family = int(tests["n_pairs"].max()), int(tests["family"].max())
        least = min(1.0, float(tests["smallest_attainable_p"].min()) * family)
        stdout_console().say(
            f"{task} is underpowered: with {counted(n, 'seed')} the smallest p after Holm over {counted(family, 'comparison')} is {least:.3g}; "
            "no difference can be significant without more seeds"
        )
    return found


def print_instances(board: pd.DataFrame | None) -> None:
    """The estimators over the instances of each kind of task, where a run has several."""
    if board is None or board.empty:
        return
    console = stdout_console()
    for (task, metric), found in board.groupby(["task", "metric"], sort=False):
        rows = found.to_dict("records")
        shown = [
            Shown(one.short or one.heading, [one.text(row) for row in rows], one.place, left=one.name == "estimator")
            for one in columns.INSTANCES
        ]
        print_table(console, f"{task}  [over {counted(found['n_instances'].max(), 'instance')}, by {metric}]", shown)
    console.say(
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
        stdout_console().say(
            f"A/A control of {task}, {metric}: {alarms} of {counted(len(tested), 'estimator')} differed significantly from themselves at "
            f"p < {ALPHA:g}; {expected:.1f} are expected by chance; the 95 % interval of the rate ends at {high:.0%}"
        )


def print_claims(verdicts: pd.DataFrame) -> None:
    """How many claims have which verdict, then each with what was measured, and how many seeds would decide it."""
    console = stdout_console()
    for row in verdicts.to_dict("records"):
        console.say(f"{row['verdict']}: {row['says']}")
        for line in _of_claim(row):
            console.say(line, indent=4)
        if row["verdict"] == "untested" and COMMAND in row["reason"]:
            console.copyable(f"      {COMMAND}{row['reason'].partition(COMMAND)[2]}")
    counts = Counter(verdicts["verdict"])
    console.print()
    console.say(
        f"{counted(len(verdicts), 'claim')}: "
        + ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    )
    console.say("A verdict holds for these tasks, scales and budgets; the papers used others.")


def _of_claim(row: Mapping[Any, Any]) -> Iterator[str]:
    """Where the claim is from, and what was measured of it."""
    yield row["source"]
    if row["verdict"] == "untested":
        yield row["reason"].partition(COMMAND)[0].rstrip()
        return
    budget = "" if pd.isna(row["steps"]) else f", at {counted(row['steps'], 'step')}"
    place = f"on {row['task']} [{row['setting']}]{budget}"
    ends = f"{number(row['ci_low'], '.4g')} to {number(row['ci_high'], '.4g')}"
    yield (
        f"claimed {row['claimed']}, measured {number(row['measured'], '.4g')} ({ends}), {counted(row['n_pairs'], 'seed')}, "
        f"p (Holm) {number(row['p_holm'], '.3g')}, effect {number(row['effect_size'], '+.2f')} from the bound"
    )
    if row["verdict"] == OUT_OF_REACH:
        yield row["reason"]
        yield place
        return
    seen = number(row["detectable"], ".3g")
    seen = f"a power of 0.8 from a distance of {seen} on" if seen != "-" else "these seeds can detect nothing"
    yield f"power {number(row['power'], '.2f')} if the truth is as measured; {seen}"
    if not pd.isna(row["seeds_needed"]):
        needed = number(row["seeds_needed"], ".0f")
        yield f"{'no number of seeds' if needed == '-' else counted(needed, 'seed')} would be needed, if the truth is as measured"
    yield place


def print_statuses(statuses: Sequence[CellStatus], steps: Sequence[Step] = ()) -> None:
    """How many cells have which status, then each status but ok with its reason, and the `steps` to take then."""
    console = stdout_console()
    counts = Counter(cell.status for cell in statuses)
    console.say(
        f"{counted(len(statuses), 'cell')}: " + ", ".join(f"{count} {status}" for status, count in counts.most_common())
    )
    reasons = Counter((cell.status, cell.reason) for cell in statuses if cell.status != "ok" or cell.reason)
    for (status, reason), count in reasons.most_common():
        first = next(cell.cell for cell in statuses if (cell.status, cell.reason) == (status, reason))
        said = in_words(reason) if status == "skipped" else reason
        console.say(f"{status} {count}, as {first}" + (f": {said}" if said else ""))
    print_next(console, steps)
