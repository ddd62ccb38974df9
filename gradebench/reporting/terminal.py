"""What a run prints: progress on stderr, the leaderboard on stdout."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from gradebench.analysis.provenance import TUNED
from gradebench.core.shown import counted, one_line
from gradebench.experiment.plan import Cell
from gradebench.experiment.runner import Outcome, Progress, Run
from gradebench.reporting.console import stderr_console, stdout_console
from gradebench.reporting.terminal_tables import (
    number,
    print_controls,
    print_frontier,
    print_instances,
    print_leaderboard,
    print_notices,
    print_underpowered,
)

REASONS_SHOWN = 20


class TerminalProgress(Progress):
    """Notes as lines on stderr; a bar with the time left, on a terminal only."""

    def __init__(self) -> None:
        self.console = stderr_console()
        self.bar: Bar | None = None

    def note(self, message: str) -> None:
        self.console.print(message)

    def start(self, total: int, done: int) -> None:
        if not self.console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Bar(
            TextColumn("cells"), *columns, TextColumn("{task.description}", markup=False), console=self.console
        )
        self.identity = self.bar.add_task("reference gradients", total=total, completed=done)
        self.bar.start()

    def advance(self, cell: Cell | None, status: str) -> None:
        if cell is not None and status not in ("ok", "skipped"):
            self.note(f"{cell.estimator} on {cell.task}, seed {cell.seed}: {status}")
        if self.bar is not None and cell is not None:
            self.bar.update(
                self.identity, advance=1, description=one_line(f"{cell.estimator} seed {cell.seed} {status}")
            )

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


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


def print_outcome(run: Run, outcome: Outcome, progress: Progress) -> None:
    """The leaderboard and where the files are, on stdout; what went wrong, on stderr."""
    print_leaderboard(outcome.leaderboard)
    print_notices(outcome.metrics)
    print_underpowered(outcome.comparisons, outcome.leaderboard)
    print_controls(outcome.controls)
    if not outcome.frontier.empty:
        print_frontier(outcome.frontier, outcome.areas)
    print_instances(outcome.instances)
    files = "leaderboard.csv, tests.csv, budgets.csv, crossings.csv, metrics.csv, metrics.parquet, probes.csv"
    files += "" if outcome.controls.empty else ", controls.csv"
    files += "" if outcome.frontier.empty else ", frontier.csv, frontier_tests.csv"
    files += "" if outcome.instances.empty else ", instances.csv, instances_leaderboard.csv"
    stdout_console().print(f"tables: {run.out}/{files}")
    stdout_console().print(f"report: {run.out}/report.html")
    print_notes(run, outcome, progress)


def print_notes(run: Run, outcome: Outcome, progress: Progress) -> None:
    """What went wrong, and what was used instead, on stderr."""
    if outcome.reused:
        progress.note(f"{counted(outcome.reused, 'cell was', 'cells were')} finished by an earlier run and kept")
    for name, reason in outcome.unprobed.items():
        progress.note(f"{name}: no gradient probes, because the reference gradient failed: {reason}")
    for cell, reason in list(outcome.reasons.items())[:REASONS_SHOWN]:
        progress.note(f"{cell}: {reason}")
    if len(outcome.reasons) > REASONS_SHOWN:
        progress.note(f"and {len(outcome.reasons) - REASONS_SHOWN} more: see {run.out}/cells/*/cell.json")
    for task in run.tasks.values():
        for notice in task.notices:
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
        table = Table(title=title, title_justify="left")
        table.add_column("estimator", overflow="fold")
        for heading, *_ in _PROBED:
            table.add_column(heading, justify="right")
        order = measured["value"]["gradient_mse"].sort_values(na_position="last").index
        for estimator in order:
            cells = []
            for _, metric, form, shown in _PROBED:
                known = metric in measured["value"]
                ends = [measured[end][metric].to_dict()[estimator] if known else math.nan for end in _ENDS]
                cells.append(_with_interval(metric, ends, form) if shown else number(ends[0], form))
            table.add_row(str(estimator), *cells)
        console.print(table)
    files = ", ".join(["probes.csv", "metrics.csv", *(f"plots/{path.name}" for path in drawn)])
    for line in _PROBE_KEY:
        console.print(line)
    console.print(f"tables: {run.out}/{files}")
    print_notes(run, outcome, progress)


_ENDS = ("value", "ci_low", "ci_high")
# heading, metric, format, whether its interval is shown here (probes.csv has all)
_PROBED = (
    ("variance", "gradient_variance", ".3g", False),
    ("relative", "gradient_variance_relative", ".3g", True),
    ("bias² / |grad J|²", "gradient_bias_relative", ".3g", True),
    ("cosine", "gradient_cosine", ".3f", True),
    ("MSE", "gradient_mse", ".3g", False),
    ("direction error", "gradient_direction_error", ".3f", False),
    ("of prompts", "gradient_variance_prompts", ".2g", False),
    ("slope", "gradient_variance_slope", ".2f", True),
    ("variance x s", "gradient_variance_times_seconds", ".2g", False),
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


def _with_interval(metric: str, ends: Sequence[float], form: str) -> str:
    value, low, high = ends
    if math.isnan(value) or math.isnan(low):
        return number(value, form)
    if metric == "gradient_bias_relative" and low <= 0:
        return f"~0 (< {max(high, 0):{form}})"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def print_check(report: Mapping[str, Any]) -> None:
    """A line for each finding, and what to look at for each failure."""
    console = stdout_console()
    table = Table(title=f"{report['estimator']}  [{report['source']}]", title_justify="left")
    for heading in ("check", "", "what was found"):
        table.add_column(heading, overflow="fold")
    for finding in report["findings"]:
        table.add_row(
            finding["check"],
            finding["status"].upper() if finding["status"] == "fail" else finding["status"],
            finding["detail"],
        )
    console.print(table)
    failures = [finding for finding in report["findings"] if finding["status"] == "fail"]
    for finding in failures:
        console.print(f"{finding['check']}: look at {finding['advice']}")
    verdict = f"{counted(len(failures), 'check')} failed" if failures else "kept its contract"
    console.print(
        f"{report['estimator']}: {verdict}. All statistical checks together raise a false alarm once in "
        f"{1 / report['false_alarm_rate']:,.0f} runs. A bias of {report['margin']:.0%} of the gradient, along the directions "
        "tested, is detected with the probability given."
    )
