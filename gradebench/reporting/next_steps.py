"""The commands to type next, with the real folder in them, and why nothing more can be said yet."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.experiment.repeat import commands_of
from gradebench.plugins.registry import entries
from gradebench.reporting.console import PlainConsole
from gradebench.reporting.verdicts import was_skipped

Step = tuple[str, str]  # a command, and what it shows


def print_next(console: PlainConsole, steps: Sequence[Step]) -> None:
    """Each command on a line of its own, to be copied; what it shows beside it, where there is room."""
    if not steps:
        return
    console.print()
    console.say("Next:")
    widest = max(len(command) for command, _ in steps)
    for command, shows in steps:
        line = f"{command.ljust(widest)}  # {shows}"
        for part in [line] if len(line) + 2 <= console.width else broken(command, console.width - 2):
            console.copyable(f"  {part}")


def broken(command: str, width: int) -> list[str]:
    """A command in lines that a shell puts together again, broken before options where it is too long for one."""
    parts: list[list[str]] = []
    for word in shlex.split(command):
        if parts and not word.startswith("-"):
            parts[-1].append(word)
        else:
            parts.append([word])
    lines: list[str] = []
    for part in map(shlex.join, parts):
        if lines and len(lines[-1]) + len(part) + 3 <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}" if lines else part)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def after_leaderboard(folders: Sequence[Path], board: pd.DataFrame, underpowered: bool) -> list[Step]:
    """What to look at once it is known who leads: the leader against the one below it, where there is one."""
    where = shlex.join(map(str, folders))
    if len(folders) > 1:
        return [(f"gradebench claims {where}", "published claims, tested on these runs")]
    if (board["rank"] == 1).sum() == 0 or board["rank"].max() < 2:
        return [(f"gradebench report {where}", "report.html, to look at and send")]
    first, second = (str(board.loc[board["rank"] == rank, "estimator"].iloc[0]) for rank in (1, 2))
    steps = [
        (f"gradebench compare {where} {shlex.join([first, second])}", "by every metric"),
        (f"gradebench curves {where}", "who leads at which budget"),
        (f"gradebench claims {where}", "published claims, tested on this run"),
        (f"gradebench leaderboard {where} --format latex", "the table for a paper; cite: the words"),
    ]
    if underpowered:
        task = str(board["task"].iloc[0])
        named = " ".join(f"-e {shlex.quote(str(name))}" for name in board.loc[board["rank"].notna(), "estimator"])
        few = named if board["rank"].max() <= 4 else "-e all"
        steps.insert(0, (f"gradebench run --power {where} {few} -t {shlex.quote(task)}", "how many seeds it takes"))
    return steps


def after_comparison(folders: Sequence[Path], rows: pd.DataFrame, pair: bool) -> list[Step]:
    """From all to the first pair by every metric, and from a pair to where the lead changes."""
    run = shlex.quote(str(folders[0]))
    names = shlex.join([str(rows["estimator_a"].iloc[0]), str(rows["estimator_b"].iloc[0])])
    if pair:
        return [(f"gradebench curves {run} {names}", "at which budget the lead changes")]
    return [(f"gradebench compare {run} {names}", "by every metric")]


def after_status(folder: Path, config: Mapping[str, Any], complete: bool) -> list[Step]:
    """The tables of a run that is complete; else the command that runs what is missing, and keeps what is finished."""
    where = shlex.quote(str(folder))
    if complete:
        return [(f"gradebench leaderboard {where}", "who leads")]
    commands = commands_of(config)
    return [(f"{commands[0]} --out {where}", "goes on; what is finished is kept")] if len(commands) == 1 else []


def why_skipped(board: pd.DataFrame, known: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """By task and estimator, the reasons that are `known`, and else what registered estimators say that they need."""
    answer = dict(known)
    skipped = board[was_skipped(board)].to_dict("records")
    registered = entries("estimators", {str(row["estimator"]).partition(":")[0] for row in skipped})
    for row in skipped:
        place = (str(row["task"]), str(row["estimator"]))
        entry = registered.get(place[1].partition(":")[0])
        if not answer.get(place) and entry and entry.needs:
            answer[place] = f"needs {', '.join(entry.needs)}, which the task does not offer"
    return answer
