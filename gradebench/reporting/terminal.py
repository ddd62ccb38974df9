"""What a run prints: what it is about to do on stderr, the leaderboard on stdout."""

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis.provenance import TUNED
from gradebench.core.shown import counted
from gradebench.experiment.runner import Outcome, Progress, Run
from gradebench.reporting.columns import number
from gradebench.reporting.console import stdout_console
from gradebench.reporting.fitted import Shown, chosen, print_table
from gradebench.reporting.next_steps import after_leaderboard, print_next, why_skipped
from gradebench.reporting.pair_tables import print_frontier
from gradebench.reporting.progress import TerminalProgress
from gradebench.reporting.terminal_tables import (
    print_controls,
    print_instances,
    print_leaderboard,
    print_notices,
    print_underpowered,
)
from gradebench.reporting.verdicts import in_words, probed_in_words
from gradebench.storage.records import SERIES

__all__ = ["TerminalProgress", "announce", "print_check", "print_notes", "print_outcome", "print_probes"]
SKIPPED = "skipped: "
REASONS_SHOWN = 20


def announce(run: Run, config: dict[str, Any], progress: Progress) -> None:
    """One paragraph on stderr: what is about to run."""
    seeds = config["seeds"]
    for label, task in run.tasks.items():
        plan = next(plan for plan, cell in run.cells if cell.task == label)
        progress.note(
            f"{label} [{task.setting}]: {counted(len(config['learning_rates'][label]), 'estimator')} x {counted(len(seeds), 'seed')}, "
            f"{counted(plan.steps, 'step')} of {counted(plan.batch, 'sequence')}, {run.jobs} in parallel on {run.device}"
        )
        for source, names in _by_source(config["rate_sources"][label]).items():
            rates = ", ".join(f"{name} {config['learning_rates'][label][name]:g}" for name in names)
            tuned_in = (
                f", in {config['request']['tuned']}" if source.startswith(TUNED) and config["request"]["tuned"] else ""
            )
            progress.note(f"learning rates ({source}{tuned_in}): {rates}")
        chosen = config["tuned_options"].get(label, {})
        tuned = f"of {config['request']['tuned']}"
        for name in (name for name in config["learning_rates"][label] if name in chosen):
            said = ", ".join(f"{option}={value}" for option, value in chosen[name].items())
            progress.note(f"options of {name} ({tuned}): {said}")
    for name, reason in run.left_out.items():
        progress.note(f"left out of `all`: {name}: {reason}")


def _by_source(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """The estimators of each source of learning rates."""
    found: dict[str, list[str]] = {}
    for name, source in sources.items():
        found.setdefault(source, []).append(name)
    return found


def print_outcome(run: Run, outcome: Outcome, progress: Progress, against: Sequence[str] = ()) -> None:
    """The leaderboard and where the files are, on stdout; what went wrong, on stderr."""
    board, console = outcome.leaderboard, stdout_console()
    reasons = {(task, estimator): reason for task, estimator, reason in _skipped(run, outcome)}
    print_leaderboard(board, outcome.comparisons, why_skipped(board, reasons), against)
    print_notices(outcome.metrics)
    underpowered = print_underpowered(outcome.comparisons, board)
    print_controls(outcome.controls)
    if not outcome.frontier.empty:
        print_frontier(outcome.frontier, outcome.areas)
    print_instances(outcome.instances)
    files = "leaderboard.csv, tests.csv, budgets.csv, crossings.csv, metrics.csv, metrics.parquet, probes.csv"
    files += ", training.parquet" if (run.out / SERIES).is_file() else ""
    files += "" if outcome.controls.empty else ", controls.csv"
    files += "" if outcome.frontier.empty else ", frontier.csv, frontier_tests.csv"
    files += "" if outcome.instances.empty else ", instances.csv, instances_leaderboard.csv"
    console.print()
    console.say(f"tables: {run.out}/{files}")
    console.copyable(f"report: {run.out}/report.html")
    print_next(console, after_leaderboard([run.out], board, underpowered))
    print_notes(run, outcome, progress)


def _skipped(run: Run, outcome: Outcome) -> list[tuple[str, str, str]]:
    """Task, estimator and reason of those that were skipped, once each."""
    cells = {cell.id: cell for _, cell in run.cells}
    found = {
        (cells[name].task, cells[name].estimator): reason.removeprefix(SKIPPED)
        for name, reason in outcome.reasons.items()
        if reason.startswith(SKIPPED) and name in cells
    }
    return [(task, estimator, reason) for (task, estimator), reason in found.items()]


def print_notes(run: Run, outcome: Outcome, progress: Progress) -> None:
    """What went wrong, and what was used instead, on stderr."""
    if outcome.reused:
        progress.note(f"{counted(outcome.reused, 'cell was', 'cells were')} finished by an earlier run and kept")
    for name, reason in outcome.unprobed.items():
        progress.note(f"{name}: no gradient probes, because the reference gradient failed: {reason}")
    for task, estimator, reason in _skipped(run, outcome) if outcome.leaderboard.empty else ():
        progress.note(f"{SKIPPED}{estimator} on {task}: {in_words(reason)}")
    failures = {cell: reason for cell, reason in outcome.reasons.items() if not reason.startswith(SKIPPED)}
    for cell, reason in list(failures.items())[:REASONS_SHOWN]:
        progress.note(f"{cell}: {reason}")
    if len(failures) > REASONS_SHOWN:
        progress.note(f"and {len(failures) - REASONS_SHOWN} more: see {run.out}/cells/*/cell.json")
    for one in run.tasks.values():
        for notice in one.notices:
            progress.note(notice)


def print_probes(run: Run, outcome: Outcome, drawn: Sequence[Path], progress: Progress) -> None:
    """One table for each task and checkpoint: variance, bias and error of one gradient estimate, with 95 % intervals."""
    console = stdout_console()
    overall = outcome.probes[outcome.probes["group"] == ""]
    for (task, setting, step), rows in overall.groupby(["task", "setting", "step"], sort=False):
        measured = rows.pivot_table(index="estimator", columns="metric", values=list(_ENDS), dropna=False)
        main = rows[rows["metric"] == "gradient_variance"].drop_duplicates("estimator")
        if main.empty:
            continue
        draws, batch = int(main["draws"].iloc[0]), int(main["samples"].iloc[0])
        title = f"{task}, step {step}  [{setting}]  {counted(draws, 'draw')} of {counted(batch, 'sequence')}, along {main['along'].iloc[0]}"
        order = measured["value"]["gradient_mse"].sort_values(na_position="last").index
        with_ends = _probed(measured, order, intervals=True)
        fit = {column.heading for column in chosen(with_ends, console.width)} >= _MAIN
        print_table(console, title, with_ends if fit else _probed(measured, order, intervals=False))
        console.say(probed_in_words(measured))
    files = ", ".join(["probes.csv", "metrics.csv", *(f"plots/{path.name}" for path in drawn)])
    for line in _PROBE_KEY:
        console.say(line)
    console.say(f"tables: {run.out}/{files}")
    names = list(dict.fromkeys(overall["estimator"].astype(str)))
    named = [word for name in names for word in ("-e", name)]
    sampled = {cell.task: plan.sampler.options() for plan, cell in run.cells}
    trained = [
        (shlex.join(["gradebench", "run", *named, "-t", task, *sampled.get(task, [])]), task) for task in run.tasks
    ]
    print_next(console, [(command, f"trains them on {task}") for command, task in trained if names])
    print_notes(run, outcome, progress)


def _probed(measured: pd.DataFrame, order: Sequence[Any], intervals: bool) -> list[Shown]:
    """The columns of probes, with intervals or, in a terminal too narrow for the main ones, without."""
    answer = [Shown("estimator", list(map(str, order)), left=True)]
    for heading, metric, form, with_ends, place in _PROBED:
        known = metric in measured["value"]
        ends = [[measured[end][metric].to_dict()[one] if known else math.nan for end in _ENDS] for one in order]
        cells = [_with_interval(metric, one, form, intervals) if with_ends else number(one[0], form) for one in ends]
        answer.append(Shown(heading, cells, place))
    return answer


_MAIN = {"relative", "bias² / |grad J|²", "cosine"}
_ENDS = ("value", "ci_low", "ci_high")
# heading, metric, format, whether its interval is shown here (probes.csv has all), place in the order of choice
_PROBED = (
    ("variance", "gradient_variance", ".3g", False, 6),
    ("relative", "gradient_variance_relative", ".3g", True, 1),
    ("bias² / |grad J|²", "gradient_bias_relative", ".3g", True, 2),
    ("cosine", "gradient_cosine", ".3f", True, 3),
    ("MSE", "gradient_mse", ".3g", False, 4),
    ("direction error", "gradient_direction_error", ".3f", False, 5),
    ("of prompts", "gradient_variance_prompts", ".2g", False, 8),
    ("slope", "gradient_variance_slope", ".2f", True, 7),
    ("variance x s", "gradient_variance_times_seconds", ".2g", False, 9),
)
_PROBE_KEY = (
    (
        "variance: of one draw, the trace of its covariance; relative: divided by the squared norm of the true gradient; of "
        "prompts: the part of the variance that comes from the choice of prompts;"
    ),
    (
        "~0: a bias that isn't significantly different from 0, with its upper limit; slope: of ln variance against ln batch, -1 for "
        "independent samples. Intervals are at 95 %."
    ),
)


def _with_interval(metric: str, ends: Sequence[float], form: str, interval: bool) -> str:
    value, low, high = ends
    if math.isnan(value) or math.isnan(low):
        return number(value, form)
    if metric == "gradient_bias_relative" and low <= 0:
        return f"~0 (< {max(high, 0):{form}})"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]" if interval else f"{value:{form}}"


def print_check(report: Mapping[str, Any]) -> None:
    """A line for each finding, and what to look at for each failure."""
    console = stdout_console()
    findings = report["findings"]
    statuses = [one["status"].upper() if one["status"] == "fail" else one["status"] for one in findings]
    columns = [
        Shown("check", [one["check"] for one in findings], left=True),
        Shown("", statuses, left=True),
        Shown("what was found", [one["detail"] for one in findings], left=True, prose=24),
    ]
    print_table(console, f"{report['estimator']}  [{report['source']}]", columns)
    failures = [finding for finding in findings if finding["status"] == "fail"]
    for finding in failures:
        console.say(f"{finding['check']}: look at {finding['advice']}")
    verdict = f"{counted(len(failures), 'check')} failed" if failures else "kept its contract"
    console.say(
        f"{report['estimator']}: {verdict}. All statistical checks together raise a false alarm once in "
        f"{1 / report['false_alarm_rate']:,.0f} runs. A bias of {report['margin']:.0%} of the gradient, along the directions "
        "tested, is detected with the probability given."
    )
    name = shlex.quote(str(report["estimator"]))
    steps = [(f"gradebench run -e rloo -e {name}:rate-like=rloo", "trains it beside rloo, at the same learning rate")]
    print_next(console, steps if not failures and ":" not in name else [])
