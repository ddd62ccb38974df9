"""Merges shards of a run, which were run separately, into one run."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import curves, runs, tables
from gradebench.analysis.design import read_design
from gradebench.analysis.once import made_once
from gradebench.analysis.run_files import PROBES, beside
from gradebench.core import progress
from gradebench.core.errors import InputError
from gradebench.core.shown import counted, utf8
from gradebench.experiment.earlier import joined
from gradebench.storage import digests, formats, records
from gradebench.storage.files import LOCK, exclusive_lock, is_draft

Report = Callable[[Path, pd.DataFrame, pd.DataFrame], object]  # of a folder with these metrics and leaderboard

_UNITED = ("estimators", "tasks")  # entries of a request that are united
_UNFINISHED = ".merging"  # in a folder whose merge isn't finished


@made_once()
def merge(
    folders: Sequence[Path],
    out: Path,
    report: Report = lambda folder, metrics, board: None,
) -> pd.DataFrame:
    """Writes the tables, samples and config.json of all shards into a new folder, then its `report`; returns the
    leaderboard.

    The cells' folders aren't copied. environment.json is that of the first shard. An interrupted merge can be repeated
    in the same folder.

    Raises        InputError if shards differ in setting, budget or version, if they share cells, and if the folder isn't
                  new.
    """
    if out.exists() and not _is_new(out):
        raise InputError(f"{out} isn't empty; give a new folder")
    metrics = runs.read_metrics(
        folders, mend="merge runs that agree; `gradebench leaderboard --apart` ranks the others"
    )
    names = runs.task_names(folders)
    try:
        by, against = runs.family_of(folders, None, ())
        tasks = counted(metrics["task"].nunique(), "task")
        with progress.doing(f"comparing {tasks}"):
            comparisons = tables.comparisons(metrics, against)
            board = tables.leaderboard(metrics, comparisons, by, against)
    except ValueError as error:
        raise InputError(str(error)) from error
    records.require_writable(out)
    with exclusive_lock(out):
        for left in out.iterdir():
            if left.name not in (LOCK, _UNFINISHED):
                left.unlink()
        (out / _UNFINISHED).touch()
        with progress.doing(f"writing curves and tables of {tasks}"):
            _write(folders, names, out, metrics, comparisons, board, by, against)
        report(out, metrics, board)
        (out / _UNFINISHED).unlink()
    return board


def _is_new(out: Path) -> bool:
    """Whether a folder is empty, or holds only what an interrupted merge left."""
    left = {path.name for path in out.iterdir() if not is_draft(path.name)}
    return _UNFINISHED in left or left <= {LOCK}


def _write(
    folders: Sequence[Path],
    names: Sequence[Mapping[str, str]],
    out: Path,
    metrics: pd.DataFrame,
    comparisons: pd.DataFrame,
    board: pd.DataFrame,
    by: str | None,
    against: Sequence[str],
) -> None:
    name = utf8(out.resolve().name)
    written = {"tests": comparisons, "leaderboard": board} | curves.written(metrics, by)
    controls = tables.controls(metrics)
    if len(controls):
        written["controls"] = controls
    metrics = metrics.assign(run_id=name)
    written["metrics"] = metrics
    parts = list(zip(folders, names, strict=True))
    probes, steps = (
        [
            frame.replace({"task": called})
            for folder, called in parts
            if (frame := beside(folder, kind)) is not None and len(frame)
        ]
        for kind in (PROBES, records.SERIES)
    )
    if probes:
        written["probes"] = pd.concat(probes, ignore_index=True).assign(run_id=name)
    for table, frame in written.items():
        tables.write_csv(frame, out / f"{table}.csv")
    samples = [
        row | {"task": called.get(row.get("task", ""), row.get("task"))}
        for folder, called in parts
        for row in beside(folder, records.SAMPLES) or []
    ]
    if samples:
        formats.write_lines(out / records.SAMPLES, samples)
    if steps:
        together = pd.concat(steps, ignore_index=True).assign(run_id=name)
        tables.write_parquet(records.series(together), out / records.SERIES)
    configs = [_called(runs.read_config(folder), called) for folder, called in zip(folders, names, strict=True)]
    config = _config(configs, [folder.resolve().name for folder in folders])
    config["request"] |= {"by": by, "against": against}
    config["design"] = read_design(folders)
    formats.write_json(out / "config.json", config)
    formats.write_json(out / "environment.json", runs.read_environment(folders[0]))
    tables.write_parquet(metrics, out / "metrics.parquet")  # last, because a folder with it counts as a run
    digests.seal(out, records.READ_AGAIN)


def _called(config: dict[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """The config.json with some tasks renamed."""
    by_task = ("plans", "tasks", "learning_rates", "tuned_options")
    answer = config | {part: _renamed(config[part], names) for part in by_task if part in config}
    for part in ("facts", "given"):
        if part in config:
            answer[part] = {key: _renamed(one, names) for key, one in config[part].items()}
    return answer


def _renamed(table: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(task, task): one for task, one in table.items()}


def _config(configs: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The first shard's config.json, with the cells, seeds, tasks, rates and requests of all shards."""
    merged = dict(configs[0])
    seeds = sorted({seed for config in configs for seed in config.get("seeds", [])})
    merged |= {"merged": list(names), "seeds": seeds}
    merged["cells"] = [cell for config in configs for cell in config.get("cells", [])]
    for part in ("plans", "tasks", "left_out"):
        merged[part] = {key: value for config in configs for key, value in config.get(part, {}).items()}
    for part in ("learning_rates", "rate_sources", "tuned_options", "facts", "given"):
        merged[part] = functools.reduce(joined, (config.get(part, {}) for config in configs))
    requests = [config.get("request", {}) for config in configs]
    united = {
        part: list(dict.fromkeys(one for request in requests for one in request.get(part, []))) for part in _UNITED
    }
    merged["request"] = requests[0] | united | {"seeds": ",".join(map(str, seeds)), "out": None}
    return merged
