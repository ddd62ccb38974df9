"""The design of a run: which values of a task's options are swept, how many instances a task has, and which of the
run's tasks belong together."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradebench.analysis.runs import read_config, task_names
from gradebench.core.errors import InputError
from gradebench.core.options import parse_spec, text_of, with_values
from gradebench.plugins import registry

RATE = "learning-rate"  # is swept like an option of the task, but isn't one
INSTANCE = "instance"
# For each task label in a run: the label that was asked for, and its values of the varied options.
Design = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Variant:
    """A task at one value of each varied option; the label of `resolved` names all values."""

    resolved: registry.Resolved
    base: str  # label of the task that was asked for
    values: Mapping[str, str]  # by option, as the command line spells them
    rate: float | None = None  # where learning rates are swept

    @property
    def facts(self) -> dict[str, Any]:
        """The entry in config.json."""
        return {"task": self.base, "values": dict(self.values)}


def parse_sweep(texts: Sequence[str]) -> dict[str, list[str]]:
    """The values of each "OPTION=VALUE,VALUE,...". Raises InputError for another form, or an option given twice."""
    sweep: dict[str, list[str]] = {}
    for text in texts:
        name, _, listed = text.partition("=")
        name, values = name.strip(), [value.strip() for value in listed.split(",")]
        name = RATE if name.replace("_", "-") == RATE else name
        if not name or not all(values):
            raise InputError(f"--sweep {text}: write OPTION=VALUE,VALUE,..., such as kl=0.02,0.05,0.15")
        if name in sweep:
            raise InputError(f"--sweep {name} is given twice; name all of its values in one")
        sweep[name] = values
    return sweep


def variants(
    tasks: Sequence[registry.Resolved], sweep: Mapping[str, Sequence[str]], instances: int | None = None
) -> list[Variant]:
    """Each task at every combination of the swept values and instances, in their order.

    A value that is the option's default doesn't change the task, so its cells are those of a run without a sweep.

    Raises        InputError for an option that a task lacks or that its spec gives already, for values that won't do,
                  and for a value given twice.
    """
    found = [Variant(task, task.label, {}) for task in tasks]
    for name, values in sweep.items():
        found = [one for variant in found for one in _at_each(variant, name, values, f"--sweep {name}")]
    if instances is not None:
        numbers = [str(number) for number in range(instances)]
        found = [one for variant in found for one in _at_each(variant, INSTANCE, numbers, "--instances")]
    return found


def _at_each(variant: Variant, name: str, values: Sequence[str], what: str) -> list[Variant]:
    task = variant.resolved
    if name == RATE:
        found = [_at_rate(variant, value) for value in values]
    else:
        if name not in task.params:
            has = f"it has {', '.join(task.params)}" if task.params else "it has none"
            raise InputError(f"{what}: task {task.name} has no option {name}; {has}")
        if name in parse_spec(task.spec).options:
            raise InputError(f"{what}: {task.label} gives {name} already; leave it out there")
        found = [_with_option(variant, name, value) for value in values]
    if len({one.resolved.label for one in found}) < len(found):
        raise InputError(f"{what}: a value stands there twice in {','.join(values)}")
    return found


def _with_option(variant: Variant, name: str, value: str) -> Variant:
    task = variant.resolved
    changed = registry.resolve("tasks", with_values(task.spec, {name: value}))
    values = {**variant.values, name: text_of(changed.params[name])}
    label = changed.label if variant.rate is None else with_values(changed.label, {RATE: f"{variant.rate:g}"})
    same = changed.params == task.params
    return replace(variant, resolved=task if same else replace(changed, label=label), values=values)


def _at_rate(variant: Variant, value: str) -> Variant:
    try:
        rate = float(value)
    except ValueError:
        rate = math.nan
    if not 0 < rate < math.inf:
        raise InputError(f"--sweep {RATE}: {value!r} won't do; numbers above 0 are needed, as in 3e-4,1e-3")
    label = with_values(variant.resolved.label, {RATE: f"{rate:g}"})
    values = {**variant.values, RATE: f"{rate:g}"}
    return replace(variant, resolved=replace(variant.resolved, label=label), values=values, rate=rate)


def families(design: Design, over: Sequence[str]) -> dict[str, list[str]]:
    """The labels that differ in nothing but the options `over`, by the label that they have in common.

    Tasks in which none of these options varies are left out.
    """
    found: dict[str, list[str]] = {}
    for label, facts in design.items():
        values = facts["values"]
        if any(name in values for name in over):
            others = {name: value for name, value in values.items() if name not in over}
            found.setdefault(with_values(str(facts["task"]), others), []).append(label)
    return found


def read_design(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The design of these runs together, from their config.json; empty where nothing varied.

    Tasks are called as in the runs' tables, and what was asked for by one name in all of them: the shortest of those
    that resolved to the same.
    """
    design: dict[str, dict[str, Any]] = {}
    bases: dict[str, set[str]] = {}
    for folder, names in zip(folders, task_names(folders), strict=True):
        config = read_config(folder)
        for label, facts in config.get("design", {}).items():
            resolved = _resolved(facts, config.get("facts", {}).get("tasks", {}).get(label, {}))
            bases.setdefault(resolved, set()).add(facts["task"])
            design.setdefault(names.get(label, label), {**facts, "task": resolved})
    shortest = {resolved: min(labels, key=lambda label: (len(label), label)) for resolved, labels in bases.items()}
    return {label: {**facts, "task": shortest[facts["task"]]} for label, facts in design.items()}


def _resolved(facts: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    """What the task that was asked for resolved to, without what varies; its label where that isn't known."""
    options = known.get("options")
    if not isinstance(options, dict) or "task" not in known:
        return str(facts["task"])
    return json.dumps([known["task"], {k: v for k, v in options.items() if k not in facts["values"]}], sort_keys=True)
