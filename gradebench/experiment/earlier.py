"""Cells of earlier commands in a run's folder: which are continued, which are kept, and which would be discarded."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gradebench.analysis import cell_labels, differences
from gradebench.core.shown import counted
from gradebench.experiment import facts
from gradebench.experiment.plan import Cell
from gradebench.storage import records
from gradebench.storage.followed import stale

_OLD = "made by a version of gradebench that didn't record what results depend on"
_SHOWN = 5  # kinds of differences that are listed


@dataclass(frozen=True)
class Left:
    """A cell of an earlier command; `ended` is empty if its cell.json is damaged."""

    folder: Path
    ended: Mapping[str, Any]  # its cell.json
    damaged: tuple[str, ...] = ()  # its damaged files, other than its metrics

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def facts(self) -> facts.Facts:
        known = self.ended.get("facts")
        parts = known if isinstance(known, dict) else {}
        return {part: parts[part] if isinstance(parts.get(part), dict) else {} for part in ("task", "estimator")}

    @property
    def task(self) -> str:
        return str(self.ended.get("task", ""))

    @property
    def estimator(self) -> str:
        return str(self.ended.get("estimator", ""))

    @property
    def seed(self) -> int:
        return int(self.ended["seed"])

    @property
    def finished(self) -> bool:
        return self.ended.get("status") in records.FINISHED


@dataclass
class Earlier:
    """The cells in a run's folder, compared with those that a command asks for."""

    kept: list[Left] = field(default_factory=list)  # cells that aren't asked for, and stay in the tables
    extended: list[str] = field(default_factory=list)  # ids of cells whose training is continued to more steps
    lost: list[Left] = field(
        default_factory=list
    )  # finished cells that can't be in one table with those that are asked for
    damaged: list[str] = field(default_factory=list)  # ids of unreadable cells that aren't asked for
    kinds: Counter[str] = field(default_factory=Counter)  # differences in words, with the number of cells

    def refusal(self, out: Path) -> str:
        """The message that lists what would be discarded."""
        said = [f"{counted(count, 'cell')} {kind}" for kind, count in self.kinds.items()]
        more = f"; and {counted(len(said) - _SHOWN, 'more kind')}" if len(said) > _SHOWN else ""
        return (
            f"{out} has finished cells that this would discard: {'; '.join(said[:_SHOWN])}{more}; give --fresh to "
            "discard them, or another folder with --out"
        )


def beside(out: Path, asked: Sequence[tuple[Cell, facts.Facts]]) -> Earlier:
    """Compares the cells in the folder with those that are asked for.

    A cell with the same facts is kept. One with fewer steps is extended if it is asked for. Any other finished cell would
    be discarded, because cells with different facts are never in one table.
    """
    wanted = {cell.id: known for cell, known in asked}
    tasks = {cell.task: known["task"] for cell, known in asked}
    estimators = {(cell.task, cell.estimator): known["estimator"] for cell, known in asked}
    found = Earlier()
    for left in _left(out):
        if not left.ended:
            found.damaged += [] if left.id in wanted else [left.id]
            continue
        ours = wanted.get(left.id)
        if ours is None and left.task and left.task not in tasks:
            same = next((name for name, mine in tasks.items() if _is_one(left.facts["task"], mine)), None)
            if same:
                _lose(found, left, f"of {left.task}, which resolved to the same as {same} (write -t {left.task})")
            else:
                _keep(found, left)
        elif not left.finished and ours is not None:
            continue
        elif not (left.facts["task"] and left.facts["estimator"]):
            _lose(found, left, _OLD)
        else:
            task = ours["task"] if ours else tasks[left.task]
            name = cell_labels.control_of(left.ended, left.estimator) or left.estimator
            estimator = ours["estimator"] if ours else estimators.get((left.task, name), {})
            difference = _difference(left, task, estimator)
            more = difference == facts.STEPS and not stale(left.ended.get("read"))
            if more and ours is not None and task[facts.STEPS] > left.facts["task"][facts.STEPS]:
                found.extended += [left.id] if left.ended["status"] == "ok" else []
            elif difference:
                _lose(found, left, _words(left, difference, task, estimator, ours is None))
            elif estimator and (gone := stale(left.ended.get("read"))):
                _lose(found, left, f"of {left.estimator} that read {', '.join(gone[:_SHOWN])}, changed since")
            elif ours is None:
                _keep(found, left)
    return found


def _is_one(task: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two spellings of a task resolve to the same task."""
    return bool(task) and not {"task", "setting", "options"} & set(differences.differing(task, other))


def _left(out: Path) -> Iterator[Left]:
    cells = out / "cells"
    for folder in sorted(cells.iterdir()) if cells.is_dir() else ():
        ended = records.read_ended(folder)
        if (folder / records.ENDED).is_file() and isinstance(ended.get("seed", 0), int):
            yield Left(folder, ended)


def _keep(found: Earlier, left: Left) -> None:
    damaged = records.damaged_files(left.folder, left.ended)
    if records.METRICS in damaged:
        found.damaged.append(left.id)
    else:
        found.kept.append(replace(left, damaged=tuple(damaged)))


def _lose(found: Earlier, left: Left, kind: str) -> None:
    if left.finished:  # nothing is lost with a failed cell
        found.lost.append(left)
        found.kinds[kind] += 1


def _difference(left: Left, task: Mapping[str, Any], estimator: Mapping[str, Any]) -> str:
    """The first fact in which the cell differs; the number of steps only if it differs in nothing else."""
    names = differences.differing(left.facts["task"], task)
    names += [f"{name} of {left.estimator}" for name in differences.differing(left.facts["estimator"], estimator)]
    return next((name for name in names if name != facts.STEPS), names[0] if names else "")


def _words(left: Left, difference: str, task: Mapping[str, Any], estimator: Mapping[str, Any], unasked: bool) -> str:
    """How the cell differs, and perhaps how it could be kept."""
    name = difference.removesuffix(f" of {left.estimator}")
    part, ours = ("task", task) if difference in task else ("estimator", estimator)
    there, here = left.facts[part][name], ours[name]
    words = f"of {left.task} with {difference} {differences.said(there, here)}, here {differences.said(here, there)}"
    if unasked and difference == facts.STEPS and here > there:
        words += " (name their estimators and seeds too, and their training is continued)"
    return words


def spoken_of(kept: Sequence[Left]) -> dict[str, Any]:
    """The learning rates and facts of earlier commands' cells, for config.json."""
    rates: dict[str, dict[str, float]] = {}
    for left in kept:
        if "learning rate" in left.facts["estimator"]:
            rates.setdefault(left.task, {})[left.estimator] = left.facts["estimator"]["learning rate"]
    return {"learning_rates": rates, "facts": gathered((left.task, left.estimator, left.facts) for left in kept)}


def gathered(cells: Any) -> dict[str, Any]:
    """The facts of (task, estimator, facts) of many cells, once for each task and estimator."""
    answer: dict[str, Any] = {"tasks": {}, "estimators": {}}
    for task, estimator, known in cells:
        answer["tasks"].setdefault(task, known["task"])
        answer["estimators"].setdefault(task, {}).setdefault(estimator, known["estimator"])
    return answer


def united(
    config: Mapping[str, Any], before: Mapping[str, Any], kept: Sequence[Left], waiting: Sequence[str]
) -> dict[str, Any]:
    """A command's config.json, united with that of earlier commands (`before`) for cells that stay in the folder.

    These are the `kept` ones, and those still `waiting`, which haven't ended.
    """
    stay = {left.id for left in kept} | set(waiting)
    if not stay:
        return dict(config)
    cells = [cell for cell in before.get("cells", []) if cell in stay or cell in config["cells"]]
    mine = spoken_of(kept)
    spelled = before.get("given", {}) if waiting else _staying(before.get("given", {}), kept)
    answer = dict(config) | {"cells": list(dict.fromkeys([*cells, *sorted(stay), *config["cells"]]))}
    answer["seeds"] = sorted({*config["seeds"], *(left.seed for left in kept)})
    for part in ("plans", "tasks", "tuned_options", "design"):
        answer[part] = dict(before.get(part, {})) | config[part]
    answer["given"] = joined(spelled, config["given"])
    for part in ("learning_rates", "facts"):
        answer[part] = joined(mine[part], config[part])
    answer["rate_sources"] = joined(before.get("rate_sources", {}), config["rate_sources"])
    request, earlier = dict(config["request"]), before.get("request", {})
    for part in ("estimators", "tasks"):
        request[part] = list(dict.fromkeys([*earlier.get(part, []), *request[part]]))
    answer["request"] = request | {"seeds": ",".join(map(str, answer["seeds"]))}
    return answer


def _staying(spelled: Mapping[str, Any], kept: Sequence[Left]) -> dict[str, Any]:
    """The entries of `given` for the kept cells."""
    seeds: dict[tuple[str, str], list[int]] = {}
    for left in kept:
        seeds.setdefault((left.task, left.estimator), []).append(left.seed)
    answer: dict[str, Any] = {"tasks": {}, "estimators": {}}
    for (task, estimator), mine in seeds.items():
        if one := spelled.get("estimators", {}).get(task, {}).get(estimator):
            answer["tasks"][task] = spelled["tasks"][task]
            answer["estimators"].setdefault(task, {})[estimator] = one | {"seeds": sorted(set(mine))}
    return answer


def joined(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings with the entries of both; of two values the new one, but the seeds of both."""
    answer = dict(old)
    for key, value in new.items():
        if isinstance(value, Mapping) and isinstance(answer.get(key), Mapping):
            answer[key] = joined(answer[key], value)
        else:
            answer[key] = sorted({*answer.get(key, []), *value}) if key == "seeds" else value
    return answer
