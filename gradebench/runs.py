"""Runs read back from their folders: one table of several, where that is fair, and what became of each cell."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.errors import InputError
from gradebench.provenance import RATE_COLUMNS
from gradebench.tables import METRICS_COLUMNS

_BUDGET = ("steps", "batch", "clip", "evaluations", "probe_draws", "checkpoints", "warm_up", "reference_draws")
_VERSIONS = ("gradebench", "torch")
# What parts of config.json and environment.json are: whoever reads a run may trust in that.
_SHAPES: dict[str, type] = dict.fromkeys(
    ("plans", "tasks", "learning_rates", "rate_sources", "request", "left_out", "packages"), dict
)
_SHAPES |= {"cells": list, "seeds": list}
_OF_OBJECTS = {"plans", "tasks", "learning_rates", "rate_sources"}


def read_metrics(folders: Sequence[Path], apart: bool = False) -> pd.DataFrame:
    """The `metrics` of these runs as one table.

    Runs of one task in different settings, with different budgets or made by different versions aren't compared: with
    `apart`, each such run's setting is followed by its name, so that it has a leaderboard of its own.

    Raises        InputError for a folder that holds no run, one given twice, and runs that differ, unless `apart`.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a run is given twice; give each folder once")
    frames = [_metrics(folder) for folder in folders]
    for task in sorted({task for frame in frames for task in frame["task"].unique()}):
        having = [
            (folder, frame) for folder, frame in zip(folders, frames, strict=True) if (frame["task"] == task).any()
        ]
        difference = _difference(task, having)
        if difference and not apart:
            raise InputError(f"{difference}; give --apart to rank them apart")
        if difference:
            for folder, frame in having:
                mine = frame["task"] == task
                frame.loc[mine, "setting"] = frame.loc[mine, "setting"] + f" run={folder.resolve().name}"
    return pd.concat(frames, ignore_index=True)


def _metrics(folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder of a run, with its metrics.parquet")
    path = folder / "metrics.parquet"
    if not path.is_file():
        raise InputError(
            f"{folder} has no metrics.parquet: it holds no run, or one that was killed; run it again there"
        )
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} can't be read ({' '.join(str(error).split())[:120]})") from error
    lacking = [name for name in METRICS_COLUMNS if name not in frame.columns]
    if lacking:
        raise InputError(f"{path} lacks the columns {', '.join(lacking)}: it is no table of metrics")
    if not set(RATE_COLUMNS) <= set(frame.columns):  # of an older version
        frame = frame.assign(learning_rate=float("nan"), rate_source="")
    for name in METRICS_COLUMNS + RATE_COLUMNS:
        numeric = name in ("seed", "step", "value", "learning_rate")
        found = pd.api.types.infer_dtype(frame[name], skipna=True)
        if found not in (("integer", "floating", "mixed-integer-float", "empty") if numeric else ("string", "empty")):
            raise InputError(f"{path} has {found} values in its column {name}: it is no table of metrics")
        if not numeric and frame[name].isna().any():
            frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    return frame


def _difference(task: str, having: Sequence[tuple[Path, pd.DataFrame]]) -> str:
    """The first thing in which runs of the task differ, in words; "" where they can share a leaderboard."""
    facts = []
    for folder, frame in having:
        config, environment = (read_json(folder / name) for name in ("config.json", "environment.json"))
        plan, packages = config.get("plans", {}).get(task, {}), environment.get("packages", {})
        settings = ", ".join(sorted(frame.loc[frame["task"] == task, "setting"].unique()))
        fact = {"setting": settings} | {name: plan.get(name) for name in _BUDGET}
        facts.append(fact | {f"version of {name}": packages.get(name) for name in _VERSIONS})
    for name in facts[0] if facts else ():
        values = [fact[name] for fact in facts]
        if any(value != values[0] for value in values):
            said = "; ".join(f"{folder}: {value}" for (folder, _), value in zip(having, values, strict=True))
            return f"runs of {task} differ in their {name} ({said})"
    return ""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without parts that a run would not have written; empty where none can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(content, dict):
        return {}
    content = {key: part for key, part in content.items() if isinstance(part, _SHAPES.get(key, object))}
    for key in _OF_OBJECTS & content.keys():
        content[key] = {name: part for name, part in content[key].items() if isinstance(part, dict)}
    return content


def chosen_pair(comparisons: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """The rows of `comparisons` between two estimators, turned so that a comes first.

    Raises        InputError for a name that is in no row, and for one name given twice.
    """
    known = sorted(set(comparisons["estimator_a"]) | set(comparisons["estimator_b"]))
    for name in (a, b):
        if name not in known:
            raise InputError(f"the run has no estimator {name!r}; it has {', '.join(known) or 'none to compare'}")
    if a == b:
        raise InputError(f"{a} is compared with itself; give two estimators")
    first, second = comparisons["estimator_a"], comparisons["estimator_b"]
    rows = comparisons[((first == a) & (second == b)) | ((first == b) & (second == a))].copy()
    turned = rows["estimator_a"] == b
    rows.loc[turned, ["estimator_a", "estimator_b"]] = [a, b]
    low, high = rows["ci_low"].copy(), rows["ci_high"].copy()
    rows["ci_low"], rows["ci_high"] = low.mask(turned, -high), high.mask(turned, -low)
    for name in ("mean_difference", "effect_size"):
        rows[name] = rows[name].mask(turned, -rows[name])
    verdicts = {"a higher": "b higher", "b higher": "a higher"}
    rows["verdict"] = rows["verdict"].mask(turned, rows["verdict"].replace(verdicts))
    return rows


def against_best(comparisons: pd.DataFrame) -> pd.DataFrame:
    """The rows by test reward between each task's and setting's best estimator and the others."""
    rewards = comparisons[(comparisons["metric"] == "reward") & (comparisons["n_pairs"] > 0)]
    best = rewards.groupby(["task", "setting"], sort=False)["estimator_a"].transform("first")  # rows come best first
    return rewards[rewards["estimator_a"] == best]


@dataclass(frozen=True)
class CellStatus:
    cell: str
    status: str
    reason: str


def cell_statuses(folder: Path) -> list[CellStatus]:
    """Every cell that the run was asked for, finished or not: from the cells' own files, else from the run's table.

    Raises        InputError where the folder holds no run.
    """
    config = read_json(folder / "config.json")
    if not isinstance(config.get("cells"), list):
        raise InputError(f"{folder} has no config.json that names cells: it holds no run")
    table = folder / "metrics.parquet"
    tabled: dict[str, str] = {}
    if table.is_file():
        rows = _metrics(folder)[["cell_id", "status"]].drop_duplicates()
        tabled = dict(zip(rows["cell_id"], rows["status"], strict=True))
    answer = []
    for cell in map(str, config["cells"]):
        if cell != Path(cell).name or cell == "..":
            raise InputError(f"{folder}/config.json names a cell {cell!r}, which is no name of a folder in the run")
        own = read_json(folder / "cells" / cell / "cell.json")
        status = own.get("status") or tabled.get(cell, "not run yet")
        answer.append(CellStatus(cell, str(status), str(own.get("reason", ""))))
    return answer
