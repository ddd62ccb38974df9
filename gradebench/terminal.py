"""What a run shows: progress on stderr, the leaderboard on stdout."""

import math
import sys
from typing import Any

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from gradebench.harness import Cell
from gradebench.runner import Outcome, Progress, Run

WIDTH_WHEN_PIPED = 200
REASONS_SHOWN = 20


def stdout_console() -> Console:
    return Console(width=None if sys.stdout.isatty() else WIDTH_WHEN_PIPED, highlight=False, markup=False)


class TerminalProgress(Progress):
    """Notes as lines on stderr; a bar with the time left, on a terminal only."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Bar | None = None

    def note(self, message: str) -> None:
        self.console.print(message, markup=False)

    def start(self, total: int, done: int) -> None:
        if not self.console.is_terminal:
            return
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.bar = Bar(TextColumn("cells"), *columns, TextColumn("{task.description}"), console=self.console)
        self.identity = self.bar.add_task("reference gradients", total=total, completed=done)
        self.bar.start()

    def advance(self, cell: Cell | None, status: str) -> None:
        if cell is not None and status not in ("ok", "skipped"):
            self.note(f"{cell.estimator} on {cell.task}, seed {cell.seed}: {status}")
        if self.bar is not None and cell is not None:
            self.bar.update(self.identity, advance=1, description=f"{cell.estimator} seed {cell.seed} {status}")

    def stop(self) -> None:
        if self.bar is not None:
            self.bar.stop()


def announce(run: Run, config: dict[str, Any], progress: Progress) -> None:
    """One paragraph on stderr: what is about to run."""
    seeds = config["seeds"]
    for label, task in run.tasks.items():
        plan = next(plan for plan, cell in run.cells if cell.task == label)
        rates = ", ".join(f"{name} {rate:g}" for name, rate in config["learning_rates"][label].items())
        tuned = "as given" if plan.learning_rate is not None else "tuned on other seeds, or the task's own"
        progress.note(
            f"{label} [{task.setting}]: {len(config['learning_rates'][label])} estimators x {len(seeds)} seeds, "
            f"{plan.steps} steps of {plan.batch} sequences, {run.jobs} side by side on {run.device}"
        )
        progress.note(f"learning rates ({tuned}): {rates}")
    for name, reason in run.left_out.items():
        progress.note(f"left out of `all`: {name}: {reason}")


def print_outcome(run: Run, outcome: Outcome, progress: Progress) -> None:
    """The leaderboard and where the files are, on stdout; what went wrong, on stderr."""
    print_leaderboard(outcome.leaderboard)
    print_underpowered(outcome.comparisons)
    stdout_console().print(f"tables: {run.out}/leaderboard.csv, tests.csv, metrics.csv, metrics.parquet", markup=False)
    if outcome.reused:
        progress.note(f"{outcome.reused} cells were finished by an earlier run and kept")
    for name, reason in outcome.unprobed.items():
        progress.note(f"{name}: no gradient probes, because the reference gradient failed: {reason}")
    for cell, reason in list(outcome.reasons.items())[:REASONS_SHOWN]:
        progress.note(f"{cell}: {reason}")
    if len(outcome.reasons) > REASONS_SHOWN:
        progress.note(f"and {len(outcome.reasons) - REASONS_SHOWN} more: see {run.out}/cells/*/cell.json")
    for task in run.tasks.values():
        for notice in task.notices:
            progress.note(notice)


# heading, columns of the leaderboard, format
_NUMBERS = (
    ("rank", ["rank"], ".0f"),
    ("tier", ["tier"], ".0f"),
    ("test reward", ["test_reward_mean"], ".3f"),
    ("95 % interval", ["test_reward_ci_low", "test_reward_ci_high"], ".3f"),
    ("gold", ["test_gold_reward_mean"], ".3f"),
    ("train-test", ["generalization_gap"], "+.3f"),
    ("KL", ["kl_mean"], ".2f"),
    ("variance", ["gradient_variance"], ".3g"),
    ("relative", ["gradient_variance_relative"], ".3g"),
    ("bias²", ["gradient_bias_squared"], ".2f"),
    ("cosine", ["gradient_cosine"], ".2f"),
    ("s/step", ["seconds_per_step"], ".3f"),
    ("p vs best", ["p_vs_best_holm"], ".3g"),
)


def print_leaderboard(leaderboard: pd.DataFrame) -> None:
    """One table a task and setting."""
    console = stdout_console()
    for (task, setting), board in leaderboard.groupby(["task", "setting"], sort=False):
        table = Table(title=Text(f"{task}  [{setting}]"), title_justify="left")
        table.add_column("estimator", overflow="fold")  # a label cut short names no estimator
        for heading, _, _ in _NUMBERS:
            table.add_column(heading, justify="right")
        table.add_column("status")
        for row in board.to_dict("records"):
            numbers = (" ".join(_number(row[c], form) for c in columns) for _, columns, form in _NUMBERS)
            table.add_row(str(row["estimator"]), *numbers, str(row["status"]))
        console.print(table)


def _number(value: Any, form: str) -> str:
    return "-" if value is None or pd.isna(value) or not math.isfinite(value) else format(value, form)


def print_underpowered(comparisons: pd.DataFrame) -> None:
    """Say so where the seeds are too few for any difference to be supported."""
    rewards = comparisons[comparisons["metric"] == "reward"] if len(comparisons) else comparisons
    if len(rewards) and (rewards["verdict"] == "underpowered").any():
        n, family = int(rewards["n_pairs"].max()), len(rewards)
        least = min(1.0, float(rewards["smallest_attainable_p"].min()) * family)
        stdout_console().print(
            f"underpowered: with {n} seeds the smallest p after Holm over {family} comparisons is {least:.3g}; "
            "add seeds to tell estimators apart",
            markup=False,
        )
