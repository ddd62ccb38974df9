"""The commands that repeat a run, from the facts in its config.json."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gradebench.analysis import cell_labels
from gradebench.core.options import parse_spec, text_of
from gradebench.core.sampler import ON_POLICY
from gradebench.experiment import facts
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry

FOLDER = "repeated"  # --out of several commands that together repeat a run


def given(request: Mapping[str, Any], cells: Iterable[tuple[Plan, Cell]]) -> dict[str, Any]:
    """The entry `given` of config.json: how the command line spells tasks and estimators, and where rates come from."""
    typed = {kind: _typed(kind, request.get(kind, ())) for kind in ("estimators", "tasks")}
    answer: dict[str, Any] = {"tasks": {}, "estimators": {}}
    for plan, cell in cells:
        if cell.task not in answer["tasks"]:
            answer["tasks"][cell.task] = _resolved(cell, typed["tasks"].get(cell.task, cell.task_spec))
        one = (
            answer["estimators"]
            .setdefault(cell.task, {})
            .setdefault(
                cell.estimator,
                {
                    "spec": typed["estimators"].get(cell.control_of or cell.estimator, cell.estimator_spec),
                    "control_of": cell.control_of,
                    "learning_rate": plan.learning_rate,
                    "tuned": None if request.get("tune") else request.get("tuned"),
                    "tune": bool(request.get("tune")),
                    "trust_remote_code": bool(request.get("trust_remote_code")),
                    "seeds": [],
                },
            )
        )
        if cell.seed not in one["seeds"]:
            one["seeds"].append(cell.seed)
    return answer


def _typed(kind: str, specs: Sequence[str]) -> dict[str, str]:
    return {registry.resolve(kind, spec).label: spec for spec in specs if spec != "all"}


def _resolved(cell: Cell, spec: str) -> str:
    """The task's spec with the options that `prepare` resolved, because they may resolve differently on another machine."""
    before = registry.resolve("tasks", cell.task_spec)
    options = getattr(before.create(), "options", {})
    resolved = {
        name: text_of(value)
        for name, value in cell.task_options.items()
        if name in before.params and options.get(name) != value
    }
    parsed = parse_spec(spec)
    return (
        f"{parsed.target}:{','.join(f'{k}={v}' for k, v in (parsed.options | resolved).items())}" if resolved else spec
    )


def commands_of(config: Mapping[str, Any]) -> list[str]:
    """The command lines that reproduce every value but seconds and memory; one if possible, else several with one --out.

    For sweeps, for instances, and for a config.json of an earlier version, without facts, the command of the request.
    """
    request = config.get("request", {})
    if request.get("sweep") or request.get("instances") is not None:
        return [_of_request(request)]
    try:
        return _commands(config)
    except (KeyError, TypeError, AttributeError, ValueError):  # a config.json that no run wrote
        return [_of_request(request)]


def _commands(config: Mapping[str, Any]) -> list[str]:
    known, spelled = config.get("facts", {}), config.get("given", {})
    tasks = {
        task: _parts(task, known["tasks"][task], spelled["estimators"][task])
        for task in spelled.get("tasks", {})
        if task in known.get("tasks", {}) and task in spelled.get("estimators", {})
    }
    if not tasks:
        return [_of_request(config.get("request", {}))]
    together: dict[tuple[Any, ...], list[str]] = {}  # command and options -> specs of the tasks that share them
    for task, parts in tasks.items():
        for part in parts:
            together.setdefault(part, []).append(str(spelled["tasks"][task]))
    lines = []
    for (command, estimators, words), specs in together.items():
        named = [word for spec in estimators for word in ("-e", spec)] + [w for spec in specs for w in ("-t", spec)]
        lines.append(["gradebench", command, *named, *words, *_ranking(config.get("request", {}))])
    return [shlex.join(words + (["--out", FOLDER] if len(lines) > 1 else [])) for words in lines]


def _parts(
    task: str, known: Mapping[str, Any], estimators: Mapping[str, Mapping[str, Any]]
) -> list[tuple[str, tuple[str, ...], tuple[str, ...]]]:
    """Command, estimators and options of each command for a task; estimators with the same seeds and rates share one."""
    command = "run" if known.get("training", True) else "probe"
    groups: dict[tuple[str, ...], list[str]] = {}
    controls = {cell_labels.control_of(one, label): one for label, one in estimators.items()}
    for label, one in estimators.items():
        if cell_labels.control_of(one, label):
            continue
        controlled = set(controls.get(label, {}).get("seeds", ()))
        for control in (False, True):
            seeds = [seed for seed in one["seeds"] if (seed in controlled) == control]
            for some in [[seed] for seed in seeds] if command == "probe" else [seeds] if seeds else []:
                groups.setdefault((*_seeds(command, some), *_own(one, control)), []).append(str(one["spec"]))
    shared = _shared(command, known)
    return [(command, tuple(specs), shared + words) for words, specs in groups.items()]


def _shared(command: str, known: Mapping[str, Any]) -> tuple[str, ...]:
    """The options that set a task's facts."""
    words: list[str] = []
    for item in facts.TASK:
        value = known.get(item.name)
        value = value if value is None else item.typed(value)
        if not item.option or value is None or value == item.default or (command == "run" and not item.training):
            continue
        words += [item.option, text_of(value)]
    return tuple(words)


def _seeds(command: str, seeds: Sequence[int]) -> tuple[str, str]:
    """ "0-4,7" of [0, 1, 2, 3, 4, 7]."""
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and runs[-1][-1] == seed - 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    text = ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return ("--seed" if command == "probe" else "--seeds", text)


def _own(one: Mapping[str, Any], control: bool) -> tuple[str, ...]:
    words: list[str] = []
    for name in ("learning_rate", "tuned"):
        if one.get(name) is not None:
            words += [f"--{name.replace('_', '-')}", str(one[name])]
    flags = (
        ("--tune", one.get("tune")),
        ("--trust-remote-code", one.get("trust_remote_code")),
        ("--aa-test", control),
    )
    return (*words, *(flag for flag, wanted in flags if wanted))


def _ranking(request: Mapping[str, Any]) -> list[str]:
    """The options for the ranking of a run's tables."""
    words = ["--by", str(request["by"])] if request.get("by") else []
    return words + [word for name in request.get("against") or () for word in ("--against", str(name))]


def _of_request(request: Mapping[str, Any]) -> str:
    """The command line of a request, without --out."""
    words = ["gradebench", "run"] if request.get("train", True) else ["gradebench", "probe"]
    for name, values in (("-e", request.get("estimators", [])), ("-t", request.get("tasks", []))):
        words += [word for value in values for word in (name, str(value))]
    names = ["steps", "batch", "learning_rate", "shards"]
    names += ["seeds", "tuned", "evaluate_every"] if request.get("train", True) else ["draws", "checkpoints", "along"]
    for name in names:
        if request.get(name) is not None and not (name == "tuned" and request.get("tune")):
            words += [f"--{name.replace('_', '-')}", str(request[name])]
    if request.get("device", "auto") != "auto":
        words += ["--device", str(request["device"])]
    if not request.get("train", True) and request.get("seeds") is not None:
        words += ["--seed", str(request["seeds"])]
    if request.get("clip", 1.0) != 1.0:
        words += ["--clip", text_of(request["clip"])]
    plain = asdict(ON_POLICY)
    for name, value in (request.get("sampler") or {}).items():
        words += [f"--{name.replace('_', '-')}", text_of(value)] if value != plain.get(name) else []
    words += [word for value in request.get("sweep") or () for word in ("--sweep", str(value))]
    if request.get("instances") is not None:
        words += ["--instances", str(request["instances"])]
    flags = {"tune": "--tune", "trust_remote_code": "--trust-remote-code", "control": "--aa-test"}
    words += [flag for name, flag in flags.items() if request.get(name)]
    return shlex.join(words + _ranking(request))
