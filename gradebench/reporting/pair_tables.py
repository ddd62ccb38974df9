"""Comparisons, budgets, frontiers, tunings and plans on stdout: tables of pairs, and of estimators by a number."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis.curves import amount, axis_name
from gradebench.analysis.statistics import ALPHA
from gradebench.core.shown import counted
from gradebench.reporting.columns import INTERVAL, Column, number
from gradebench.reporting.console import stdout_console
from gradebench.reporting.fitted import Shown, print_table
from gradebench.reporting.verdicts import lead, pair_in_words
from gradebench.reporting.wording import crossing_in_words, frontier_in_words, metric_in_words

PAIRS_SHOWN = 15


def print_frontier(table: pd.DataFrame, areas: pd.DataFrame) -> None:
    """For each task and metric the values within budgets of KL, who leads where, and the areas that differ."""
    console = stdout_console()
    for (task, metric), rows in table.groupby(["task", "metric"], sort=False):
        wide = rows.pivot(index="estimator", columns="kl", values="mean")
        beside = (rows["rank"] == 1) | (rows["p_vs_leader_holm"] >= ALPHA)
        marks = rows.assign(mark=beside.fillna(False).map({True: "*", False: " "})).pivot(
            index="estimator", columns="kl", values="mark"
        )
        names = list(wide.mean(axis=1).sort_values(ascending=False, na_position="last").index)
        extremes = (wide.columns.min(), wide.columns.max())
        shown = [Shown("estimator", list(map(str, names)), left=True)]
        for kl in wide.columns:
            cells = [number(wide.loc[name, kl], ".3f") + str(marks.loc[name, kl]).rstrip() for name in names]
            shown.append(Shown(f"{kl:.3g}", cells, 1 if kl in extremes else 2))
        print_table(console, f"{task}  [{metric} within KL, nats per sequence]", shown)
        for line in frontier_in_words(rows):
            console.say(line)
        tests = areas[(areas["task"] == task) & (areas["metric"] == metric)]
        decided = tests[tests["verdict"].isin(["a higher", "b higher"])]
        console.say(
            f"area under the frontier: {len(decided)} of {counted(len(tests), 'pair')} differ significantly (Holm over all pairs)"
        )
        for row in decided.head(PAIRS_SHOWN).to_dict("records"):
            ends = f"{number(row['ci_low'], '+.3f')} to {number(row['ci_high'], '+.3f')}"
            console.say(
                f"{row['estimator_a']} - {row['estimator_b']}: {row['mean_difference']:+.3f} ({ends}) on average up to "
                f"KL {row['kl_to']:.3g}, p (Holm) {row['p_holm']:.3g}",
                indent=4,
            )
    console.say(
        "*: leads, or isn't significantly different from the leader (paired by seed, Holm over all pairs at that KL); "
        "-: not all of its seeds reached that KL (nothing is extrapolated)"
    )


def print_tuning(tunings: pd.DataFrame, choices: Mapping[str, Any], out: Path) -> None:
    """The curves and choices of `gradebench tune`: each estimator's objective by learning rate, the choice marked."""
    console = stdout_console()
    last = tunings[tunings["steps"] == tunings.groupby("task")["steps"].transform("max")]
    for (task, setting), curves in last.groupby(["task", "setting"], sort=False):
        steps = int(curves["steps"].iloc[0])
        title = f"{task}  [{setting}]  mean objective at {counted(steps, 'step')}"
        cells: dict[str, dict[float, str]] = {}
        for row in curves.to_dict("records"):
            objective = number(row["objective"], ".3f") + ("*" if row["chosen"] else "")
            cells.setdefault(str(row["estimator"]), {})[row["learning_rate"]] = (
                objective if row["status"] == "ok" else row["status"]
            )
        rates, names = sorted(curves["learning_rate"].unique()), sorted(cells)
        shown = [Shown("estimator", names, left=True)]
        for rate in rates:
            column = [cells[name].get(rate, "-") for name in names]
            shown.append(Shown(f"{rate:g}", column, 1 if any("*" in cell for cell in column) else 2))
        print_table(console, title, shown)
        for name, one in choices["tasks"][task]["estimators"].items():
            options = ", ".join(f"{option}={value}" for option, value in one["options"].items())
            tied = f" (not significantly worse: {one['rate_low']:g} to {one['rate_high']:g})" if one["rate_low"] else ""
            console.say(f"* {name}: {one['learning_rate']:g}{tied}{f'; {options}' if options else ''}")
        ends = [name for name, one in choices["tasks"][task]["estimators"].items() if one["at_the_end"] and rates[1:]]
        if ends:
            console.say(
                f"* best at the lowest or highest rate: {', '.join(ends)}; widen --rates, there may be a better one"
            )
    console.say(
        f"* the trial nearest to the rate that a smooth fit chose; use it with gradebench run --tuned {out}/tuned.json; the "
        "curves are in curves.csv and trials.csv beside it"
    )


def print_power(needed: pd.DataFrame) -> None:
    """The seeds that each pair needs, the largest spread first, and what all of them need."""
    console = stdout_console()
    for (task, setting), pairs in needed.groupby(["task", "setting"], sort=False):
        rows = pairs.head(PAIRS_SHOWN).to_dict("records")
        shown = [Shown(one, [str(row[f"estimator_{one}"]) for row in rows], left=True) for one in ("a", "b")]
        for heading, name, form, place in _PLANNED:
            shown.append(Shown(heading, [number(row[name], form) for row in rows], place))
        print_table(console, f"{task}  [{setting}]", shown)
        if len(pairs) > PAIRS_SHOWN:
            console.say(
                f"and {counted(len(pairs) - PAIRS_SHOWN, 'more pair')}, none of which needs more seeds than these"
            )
        first, most = pairs.iloc[0], pairs["seeds_needed"].max()
        console.say(
            f"{task}: {counted(number(most, '.0f'), 'seed detects', 'seeds detect')} a difference in test {metric_in_words(first['metric'])} of "
            f"{first['difference']:g} between any two of them with a power of 0.8 (p < {ALPHA:g} after Holm over "
            f"{counted(first['family'], 'pair')}); half of the pairs need {number(pairs['seeds_needed'].median(), '.0f')} or fewer"
        )
    console.say(
        "spread: standard deviation over the pilot's seeds of the paired difference; at most: seeds needed if the spread is at "
        "the upper end of its 80 % interval; detectable: the smallest difference that the run's seeds detect with this power"
    )


# heading, column, format, place in the order in which columns are chosen
_PLANNED = (
    ("pilot seeds", "pilot_seeds", ".0f", 5),
    ("spread", "spread", ".3f", 3),
    ("seeds needed", "seeds_needed", ".0f", 1),
    ("at most", "seeds_needed_high", ".0f", 2),
    ("detectable", "detectable", ".3f", 4),
)


# the same of the tests, with the upper ends of intervals
_TESTED = (
    ("pairs", "n_pairs", "", ".0f", 6),
    ("difference", "mean_difference", "", "+.4g", 1),
    ("95 % interval", "ci_low", "ci_high", "+.4g", 4),
    ("effect", "effect_size", "", "+.2f", 5),
    ("p", "p_value", "", ".3g", 6),
    ("p (Holm)", "p_holm", "", ".3g", 2),
)


def print_comparisons(rows: pd.DataFrame, against: Sequence[str] = (), pair: tuple[str, str] | None = None) -> None:
    """One table a task and setting: each row one estimator against another by one metric, paired by seed; below it, of a
    `pair`, what it comes to."""
    console = stdout_console()
    for (task, setting), tests in rows.groupby(["task", "setting"], sort=False):
        found = tests.to_dict("records")
        metrics = [_metric_of(row) for row in found]
        same = len(set(metrics)) == 1 and not pair
        shown = [] if same else [Shown("metric", metrics, left=True)]
        if not pair:
            shown += [Shown(one, [str(row[f"estimator_{one}"]) for row in found], left=True) for one in ("a", "b")]
        for heading, name, high, form, place in _TESTED:
            column = Column(heading, name, form, high)
            shown.append(Shown(heading, [column.text(row, between=" to ") for row in found], place))
        shown.append(Shown("verdict", [str(row["verdict"]) for row in found], 3, left=True))
        title = f"{task}  [{setting}]{f'  {metrics[0]}' if same else ''}"
        print_table(console, f"a = {pair[0]}, b = {pair[1]} on {title}" if pair else title, shown)
        if pair:
            console.print()
            console.say(pair_in_words(tests.assign(named=metrics), *pair))
    family = counted(rows["family"].max(), "pair")
    family = f"the {family} with {' or '.join(against)}" if against else f"all {family} of the run"
    console.say(
        f"difference: a - b, paired by seed; p (Holm): corrected for {family}; p: uncorrected, for a pair chosen in advance; "
        "a difference of ln variance is the log of a ratio"
    )


def print_leads(board: pd.DataFrame, tests: pd.DataFrame, against: Sequence[str] = ()) -> None:
    """The verdict of each task."""
    console = stdout_console()
    console.print()
    for (task, _), ranked in board.groupby(["task", "setting"], sort=False):
        if ranked["rank"].notna().any():
            console.say(f"{task}: {lead(ranked, tests, against)}")


def _metric_of(row: Mapping[Any, Any]) -> str:
    return "ln gradient_variance" if row["metric"] == "gradient_variance" else f"{row['split']} {row['metric']}"


def print_budgets(leaders: pd.DataFrame, crossings: pd.DataFrame) -> None:
    """Who leads at each budget, one table a task and setting, and below it where the lead changes."""
    console = stdout_console()
    for place, rows in leaders.groupby(["task", "setting", "metric", "axis"], sort=False):
        task, setting, metric, axis = map(str, place)
        found = rows.to_dict("records")
        others = [str(row["not_different"]) or "-" for row in found]
        shown = [
            Shown("budget", [amount(float(row["budget"]), axis) for row in found]),
            Shown("leads", [str(row["leader"]) for row in found], left=True),
            *(
                Shown(one.heading, [one.text(row, between=" to ") for row in found], one.place)
                for one in (
                    Column(metric_in_words(metric), "mean", ".3f", place=1),
                    Column(INTERVAL, "ci_low", ".3f", high="ci_high", place=3),
                    Column("seeds", "n_seeds", ".0f", place=4),
                    Column("of", "compared", ".0f", place=5),
                )
            ),
            Shown("not significantly different", others, 2, prose=24),
        ]
        print_table(console, f"{task}  [{setting}]  {metric_in_words(metric)} by {axis_name(axis)}", shown)
        mine = crossings[(crossings["task"] == task) & (crossings["setting"] == setting)]
        for row in mine.to_dict("records"):
            console.say(crossing_in_words(row))
        if rows["leader"].nunique() == 1 and mine.empty:
            console.say(
                f"{rows['leader'].iloc[0]} leads at each of these budgets; name two estimators to see where they cross"
            )
    console.say(
        "of: how many estimators reach this budget with all seeds; not significantly different: paired by seed, p >= "
        f"{ALPHA:g} after Holm over all pairs at the budget; a lead between two estimators is tested at all budgets together"
    )
