"""Runs read back from their folders: several pooled in one table, if that is fair, and the status of each cell."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import cell_labels, differences, plugin_inputs, tables
from gradebench.analysis.run_files import require_columns, require_kinds
from gradebench.core.errors import InputError
from gradebench.core.schema import FACT_COLUMNS, METRICS_COLUMNS, RATE_COLUMNS
from gradebench.core.shown import utf8
from gradebench.storage import digests, formats, records, shapes

APART = "give --apart to rank them apart"
ALL = "all"  # in place of a baseline: all pairs
# The facts that can be read from the plan of a run that lists none.
_BUDGET = ("steps", "batch", "clip", "evaluations", "shards", "checkpoints")

_Part = tuple[Path, pd.DataFrame, dict[str, dict[str, Any]]]  # a run, its rows of one task, and its facts


def read_metrics(folders: Sequence[Path], apart: bool = False, mend: str = APART) -> pd.DataFrame:
    """The `metrics` of these runs as one table.

    Tasks that resolved to the same setting are one task, however they were spelled. Runs of one task that differ in
    anything that numbers depend on (`facts`) aren't pooled: with `apart`, the name of each such run is appended to its
    setting, so that it has its own leaderboard.

    Raises        InputError for a folder without a run, one given twice, and runs that differ, unless `apart`; the
                  message ends with `mend`.
    """
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError("a run is given twice; give each folder once")
    frames = [with_objective(_metrics(folder), read_config(folder)) for folder in folders]
    known = [_facts_of(folder) for folder in folders]
    for frame, names in zip(frames, task_names(folders), strict=True):
        frame["task"] = frame["task"].replace(names)
    known = [_renamed(mine, names) for mine, names in zip(known, task_names(folders), strict=True)]
    by_task: dict[str, list[_Part]] = {}
    for folder, frame, mine in zip(folders, frames, known, strict=True):
        for task, rows in frame.groupby("task"):
            by_task.setdefault(str(task), []).append((folder, rows, mine))
    apart_rows: dict[Path, list[pd.Index]] = {}
    for task in sorted(by_task):
        difference = _difference(task, by_task[task])
        if difference and not apart:
            raise InputError(f"{difference}; {mend}")
        for folder, rows, _ in by_task[task] if difference else ():
            apart_rows.setdefault(folder, []).append(rows.index)
    for folder, frame in zip(folders, frames, strict=True):
        for index in apart_rows.get(folder, ()):
            frame.loc[index, "setting"] = [setting_apart(setting, folder) for setting in frame.loc[index, "setting"]]
    return pd.concat(frames, ignore_index=True)


def setting_apart(setting: str, folder: Path) -> str:
    """What a setting is called in a run that is ranked apart from others."""
    return f"{setting} run={utf8(folder.resolve().name)}"


def task_names(folders: Sequence[Path]) -> list[dict[str, str]]:
    """For each run the tasks to rename: those that resolved to a task with another name in another run, such as
    corpus=auto that fell back to the embedded corpus, where another run was given corpus=embedded."""
    called: dict[str, set[str]] = {}
    identities = []
    for run in map(_facts_of, folders):
        identities.append({label: _identity(known) for label, known in run["tasks"].items()})
        for label, identity in identities[-1].items():
            called.setdefault(identity or label, set()).add(label)
    shortest = {identity: min(labels, key=lambda label: (len(label), label)) for identity, labels in called.items()}
    return [
        {label: shortest[identity] for label, identity in mine.items() if identity and shortest[identity] != label}
        for mine in identities
    ]


def unlisted(folders: Sequence[Path]) -> str:
    """Lines about differences between the runs that can't be checked: runs too old to list what their numbers depend on, and
    inputs of plugins that only one of them has recorded; "" if there are none."""
    if len(folders) < 2:
        return ""
    old = [str(folder) for folder in folders if not read_config(folder).get("facts")]
    said = [
        f"{', '.join(old)}: made before runs recorded all that their numbers depend on; compared by what is recorded"
    ]
    by_task: dict[str, list[plugin_inputs.Part]] = {}
    for folder, names in zip(folders, task_names(folders), strict=True):
        for task, estimators in _renamed(_facts_of(folder), names)["estimators"].items():
            by_task.setdefault(task, []).append((folder, estimators))
    notices = {task: plugin_inputs.notice(parts) for task, parts in by_task.items()}
    return "\n".join([*(said if old else []), *(f"{task}: {words}" for task, words in notices.items() if words)])


def _identity(known: Mapping[str, Any]) -> str:
    """What identifies a task; "" if unknown."""
    parts = [known.get(name) for name in ("task", "setting", "options")]
    return "" if None in parts else json.dumps(parts, sort_keys=True, default=str)


def _facts_of(folder: Path) -> dict[str, dict[str, Any]]:
    """The facts of a run's tasks and, for each task, its estimators; for older runs, what other files contain."""
    config = read_config(folder)
    known = config.get("facts") or {}
    tasks, estimators = (_tables(known.get(part)) for part in ("tasks", "estimators"))
    if tasks:
        return {"tasks": tasks, "estimators": {task: _tables(one) for task, one in estimators.items()}}
    packages = read_environment(folder).get("packages", {})
    versions = {f"version of {name}": version for name, version in packages.items() if version is not None}
    for task, plan in config.get("plans", {}).items():
        tasks[task] = {name: plan[name] for name in _BUDGET if name in plan} | versions
    rates = {
        task: {label: {"learning rate": rate} for label, rate in mine.items()}
        for task, mine in config.get("learning_rates", {}).items()
    }
    return {"tasks": tasks, "estimators": rates}


def _tables(part: Any) -> dict[str, dict[str, Any]]:
    return {key: one for key, one in part.items() if isinstance(one, dict)} if isinstance(part, dict) else {}


def _renamed(known: dict[str, dict[str, Any]], names: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    return {part: {names.get(task, task): one for task, one in mine.items()} for part, mine in known.items()}


def _metrics(folder: Path) -> pd.DataFrame:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; give the folder of a run, with its metrics.parquet")
    path = folder / "metrics.parquet"
    if not path.is_file():
        raise InputError(
            f"{folder} has no metrics.parquet: it holds no run, or one that was killed; run it again there"
        )
    digests.require_as_written(path)
    digests.require_as_written(folder / "config.json")
    frame = formats.read_parquet(path)
    require_columns(frame, METRICS_COLUMNS, path, "table of metrics")
    if frame.empty:
        raise InputError(f"{path} has no rows: it holds no run")
    if not set(RATE_COLUMNS) <= set(frame.columns):  # of an older version
        frame = frame.assign(learning_rate=float("nan"), rate_source="")
    frame = cell_labels.with_columns(frame)
    frame = frame.reindex(columns=list(dict.fromkeys([*frame.columns, *FACT_COLUMNS])))  # likewise
    frame = frame.astype({"steps": "Int64", "batch": "Int64"}, errors="ignore")
    names, numbers = METRICS_COLUMNS + RATE_COLUMNS + cell_labels.COLUMNS, ("seed", "step", "value", "learning_rate")
    require_kinds(frame, names, numbers, path, "table of metrics")
    for name in [*names, *FACT_COLUMNS]:
        if name not in (*numbers, "steps", "batch") and frame[name].isna().any():
            frame[name] = frame[name].astype(object).where(frame[name].notna(), "").astype(str)
    return frame


def _difference(task: str, having: Sequence[_Part]) -> str:
    """The first difference between runs of the task, as text; "" if they can share a leaderboard."""
    shared, own = [], dict[str, list[tuple[Path, dict[str, Any]]]]()
    for folder, mine, known in having:
        setting = {"setting": ", ".join(sorted(mine["setting"].unique()))}
        shared.append((folder, setting | {**known["tasks"].get(task, {}), **setting}))
        facts_of_mine = known["estimators"].get(task, {})
        for estimator in mine["estimator"].unique():
            own.setdefault(estimator, []).append((folder, plugin_inputs.without(facts_of_mine.get(estimator, {}))))
    if words := plugin_inputs.difference([(folder, known["estimators"].get(task, {})) for folder, _, known in having]):
        return f"runs of {task} differ in their {words}"
    if words := _first_difference(shared):
        return f"runs of {task} differ in their {words}"
    for estimator, parts in own.items():
        if words := _first_difference(parts, f" of {estimator}"):
            return f"runs of {task} differ in their {words}"
    return ""


def _first_difference(known: Sequence[tuple[Path, dict[str, Any]]], of: str = "") -> str:
    """The first item that two of them have with different values, and these values."""
    for i, (folder, mine) in enumerate(known):
        for other, theirs in known[i + 1 :]:
            for name in differences.differing(mine, theirs):
                values = differences.said(mine[name], theirs[name]), differences.said(theirs[name], mine[name])
                return f"{name}{of} ({folder}: {values[0]}; {other}: {values[1]})"
    return ""


def read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json; empty if there is none. Raises InputError if it is invalid."""
    return _object(folder / "config.json", shapes.CONFIG)


def read_environment(folder: Path) -> dict[str, Any]:
    """Versions and machine; empty if there is no environment.json. Raises InputError if it is invalid."""
    return _object(folder / "environment.json", shapes.ENVIRONMENT)


def _object(path: Path, shape: shapes.Fields) -> dict[str, Any]:
    return formats.read_json(path, shape) if path.is_file() else {}


def with_objective(frame: pd.DataFrame, config: Mapping[str, Any]) -> pd.DataFrame:
    """The metrics, with the objective, reward - beta kl, added to evaluations made before it was measured, if
    config.json has the task's beta."""
    at = ["cell_id", "split", "step"]
    weighed = {task for task, described in config.get("tasks", {}).items() if described.get("options")}
    evaluation = frame[(frame["phase"] == "evaluation") & frame["task"].isin(weighed)]
    by_task = dict(iter(evaluation.groupby("task")))
    parts = [frame]
    for task, described in config.get("tasks", {}).items():
        mine = by_task.get(task, evaluation.iloc[:0])
        options = described.get("options")
        beta = options.get("kl") if isinstance(options, dict) else None
        if not isinstance(beta, int | float) or (mine["metric"] == "objective").any():
            continue
        rewards = mine[mine["metric"] == "reward"]
        penalty = mine[mine["metric"] == "kl"].drop_duplicates(at).set_index(at)["value"]
        value = rewards["value"].to_numpy() - beta * penalty.reindex(pd.MultiIndex.from_frame(rewards[at])).to_numpy()
        parts.append(rewards.assign(metric="objective", value=value).dropna(subset="value"))
    return pd.concat(parts, ignore_index=True) if parts[1:] else frame


def family_of(folders: Sequence[Path], by: str | None, against: Sequence[str]) -> tuple[str | None, list[str]]:
    """The ranking metric and the baselines: as given, else as in the runs' commands if these agree.

    `all` among the baselines stands for all pairs.
    """
    requests = [read_config(folder).get("request", {}) for folder in folders]
    metrics = {request.get("by") for request in requests}
    asked = {tuple(map(str, request.get("against") or ())) for request in requests}
    by = by or (metrics.pop() if len(metrics) == 1 else None)
    against = list(dict.fromkeys(against)) or list(asked.pop() if len(asked) == 1 else ())
    return by, [] if ALL in against else against


def require_family(metrics: pd.DataFrame, by: str | None, against: Sequence[str]) -> None:
    """Raises InputError for a metric that isn't measured here, and for baselines that no run has."""
    require_rankable(by)
    measured = set(metrics.loc[(metrics["phase"] == "evaluation") & (metrics["split"] == "test"), "metric"])
    if by and by not in measured:
        having = ", ".join(name for name in tables.RANKABLE if name in measured)
        raise InputError(f"--by {by}: nothing here has it on test prompts; there is {having or 'none to rank by'}")
    rows = cell_labels.with_columns(metrics)
    known = sorted(set(rows.loc[rows["control_of"] == "", "estimator"]))
    for name in against:
        if name not in known:
            raise InputError(f"--against {name}: the run has no such estimator; it has {', '.join(known) or 'none'}")
    if against and set(known) <= set(against):
        raise InputError(f"--against {', '.join(against)}: nothing else is left to compare with it")


def require_rankable(by: str | None) -> None:
    """Raises InputError for a metric that leaderboards can't rank by."""
    if by is not None and by not in tables.RANKABLE:
        raise InputError(f"--by {by}: ranks go by {', '.join(tables.RANKABLE)}")


def chosen_pair(comparisons: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
    """The rows of `comparisons` between two estimators, swapped if needed so that a comes first.

    Raises        InputError for a name that is in no row, and for one name given twice.
    """
    known = sorted(set(comparisons["estimator_a"]) | set(comparisons["estimator_b"]))
    for name in (a, b):
        if name not in known:
            raise InputError(f"the run has no estimator {name!r}; it has {', '.join(known) or 'none to compare'}")
    if a == b:
        raise InputError(f"{a} is compared with itself; give two estimators")
    first, second = comparisons["estimator_a"], comparisons["estimator_b"]
    rows = comparisons[((first == a) & (second == b)) | ((first == b) & (second == a))]
    if rows.empty:
        raise InputError(f"{a} and {b} aren't compared in this family; give --against {a}, or --against {ALL}")
    return _turned(rows, rows["estimator_a"] == b)


def _turned(rows: pd.DataFrame, turned: pd.Series) -> pd.DataFrame:
    """The rows of tests, with a and b swapped where `turned`."""
    rows = rows.copy()
    names = ["estimator_a", "estimator_b"]
    rows.loc[turned, names] = rows.loc[turned, names[::-1]].to_numpy()
    low, high = rows["ci_low"].copy(), rows["ci_high"].copy()
    rows["ci_low"], rows["ci_high"] = low.mask(turned, -high), high.mask(turned, -low)
    for name in ("mean_difference", "effect_size"):
        rows[name] = rows[name].mask(turned, -rows[name])
    verdicts = {"a higher": "b higher", "b higher": "a higher"}
    rows["verdict"] = rows["verdict"].mask(turned, rows["verdict"].replace(verdicts))
    return rows


def against_best(comparisons: pd.DataFrame, ranked_by: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The rows between the best estimator of each task and setting, by its ranking metric, and the others."""
    ranking = _ranking(comparisons, ranked_by)
    best = ranking.groupby(["task", "setting"], sort=False)["estimator_a"].transform("first")  # rows come best first
    return ranking[ranking["estimator_a"] == best]


def against_baselines(
    comparisons: pd.DataFrame, ranked_by: Mapping[tuple[str, str], str], against: Sequence[str]
) -> pd.DataFrame:
    """The rows by the ranking metric, swapped if needed so that the baseline comes second."""
    ranking = _ranking(comparisons, ranked_by)
    return _turned(ranking, ranking["estimator_a"].isin(against))


def _ranking(comparisons: pd.DataFrame, ranked_by: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    places = zip(comparisons["task"], comparisons["setting"], strict=True)
    metrics = pd.Series([ranked_by.get(place, "") for place in places], index=comparisons.index, dtype=object)
    return comparisons[(comparisons["metric"] == metrics) & (comparisons["n_pairs"] > 0)]


@dataclass(frozen=True)
class CellStatus:
    cell: str
    status: str
    reason: str


def cell_statuses(folder: Path) -> list[CellStatus]:
    """The status of every requested cell, finished or not: from the cells' own files, else from the run's table.

    Raises        InputError if the folder has no run.
    """
    config = read_config(folder)
    if not isinstance(config.get("cells"), list):
        raise InputError(f"{folder} has no config.json that names cells: it holds no run")
    digests.require_as_written(folder / "config.json")
    table = folder / "metrics.parquet"
    tabled: dict[str, str] = {}
    if table.is_file():
        rows = _metrics(folder)[["cell_id", "status"]].drop_duplicates()
        tabled = dict(zip(rows["cell_id"], rows["status"], strict=True))
    answer = []
    for cell in map(str, config["cells"]):
        if cell != Path(cell).name or cell == "..":
            raise InputError(f"{folder}/config.json names a cell {cell!r}, which is no name of a folder in the run")
        own = records.read_ended(folder / "cells" / cell)
        status = own.get("status") or tabled.get(cell, "not run yet")
        answer.append(CellStatus(cell, str(status), str(own.get("reason", ""))))
    return answer


def reasons_of(folders: Sequence[Path], metrics: pd.DataFrame) -> dict[tuple[str, str], str]:
    """By task and estimator, why its cells were skipped, as far as the folders still have them."""
    skipped = metrics.loc[metrics["status"] == "skipped", ["task", "estimator", "cell_id"]].drop_duplicates()
    reasons: dict[tuple[str, str], str] = {}
    for row in skipped.to_dict("records"):
        cell = Path(str(row["cell_id"])).name
        for ended in (records.read_ended(folder / "cells" / cell) for folder in folders):
            if reason := str(ended.get("reason") or ""):
                reasons.setdefault((str(row["task"]), str(row["estimator"])), reason)
    return reasons
