"""Prepares a run: resolves names, loads tasks, and makes a cell for each estimator, task and seed."""

import contextlib
import functools
import json
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gradebench.analysis import cell_labels, tables
from gradebench.analysis.design import RATE, Variant, parse_sweep, variants
from gradebench.analysis.provenance import Rate, tuned_rate
from gradebench.core import parallel
from gradebench.core.errors import InputError, Unsupported, place_of
from gradebench.core.global_state import PROCESS
from gradebench.core.interrupts import is_users
from gradebench.core.options import with_values
from gradebench.core.seeds import parse_seeds
from gradebench.core.shown import counted
from gradebench.core.task import Task
from gradebench.experiment.behaviour import require_sampler
from gradebench.experiment.cell_files import checkpoint_steps
from gradebench.experiment.cell_setup import cell_key, make_estimator
from gradebench.experiment.cells import Progress, Run
from gradebench.experiment.isolation import unchanged
from gradebench.experiment.launchers import default_jobs
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.request import Request, choose_device, default_folder, require_family, require_numbers
from gradebench.experiment.workers import require_started, usable_cores
from gradebench.plugins import registry
from gradebench.plugins.source_digest import known_files
from gradebench.rewards.text_reward import code_of, names_function
from gradebench.storage import files, followed, records
from gradebench.storage.hub import TRUST
from gradebench.storage.tuned import read_choices, records_of

# --- names and tasks --------------------------------------------------------------------------------------------


def expand(kind: str, specs: Sequence[str]) -> tuple[list[registry.Resolved], dict[str, str]]:
    """The resolved specs, with `all` expanded to every working plugin; and the plugins that `all` leaves out, with reasons."""
    left_out: dict[str, str] = {}
    resolved: dict[str, registry.Resolved] = {}
    for line in registry.collisions(kind):
        warnings.warn(line, stacklevel=2)
    for spec in specs:
        if spec != "all":
            one = registry.resolve(kind, spec)
            if resolved.setdefault(one.label, one).digest != one.digest:
                raise InputError(f"two different {kind} are called {one.label}; rename one of the files")
            continue
        healthy, left_out = registry.names(kind)
        for name in healthy:
            try:
                one = registry.resolve(kind, name)
            except InputError as reason:  # a broken plugin that nobody named must not end the run
                left_out[name] = str(reason)
                continue
            if getattr(one.factory, "in_all", True):
                resolved[name] = one
    if not resolved:
        raise InputError(f"no {kind} to run; {registry.INSTALL_HINT}")
    return list(resolved.values()), left_out


def missing(request: Request, progress: Progress) -> list[str]:
    """The large downloads that these tasks would need; if there are any, the tasks' requirements are printed."""
    tasks = [resolved.create() for resolved in expand("tasks", request.tasks)[0]]
    names = [name for task in tasks for name in task.missing()]
    for line in (line for task in tasks if names for line in task.requirements()):
        progress.note(line)
    return names


def ready_task(resolved: registry.Resolved, device: str, strict: bool, progress: Progress) -> Task:
    """The task, prepared and loaded in this process."""
    task = resolved.create()
    for line in task.requirements():
        progress.note(line)
    torch.set_num_threads(min(2, usable_cores()))  # fixed, so that models trained here don't depend on --jobs
    task.prepare(torch.device(device), progress.note, strict)
    task.load(torch.device(device))
    return task


def saves(task: Task) -> bool:
    """Whether the task can save policies."""
    return type(task).save_policy is not Task.save_policy


@contextlib.contextmanager
def plugin_errors(what: str, own: str = "") -> Iterator[None]:
    """A context that turns any exception of plugin code into an InputError with its place, in its `own` file or package if that
    has any part in it, instead of a long traceback."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if is_users(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        anywhere = f" ({Path(place.filename).name}, line {place.lineno})"
        where = place_of(error, [own] if own else []) or anywhere
        message = " ".join(str(error).split())
        raise InputError(f"{what} can't be used: {type(error).__name__}: {message}{where}") from error


# --- the cells of a run ------------------------------------------------------------------------------------------


def prepare(request: Request, progress: Progress) -> Run:
    """Check all that can be checked before the first cell, and load the tasks; writes no results.

    Raises InputError for anything invalid in the request.
    """
    require_started()
    require_numbers(request)
    if request.trust_remote_code:
        os.environ[TRUST] = "1"
    estimators, left_out = expand("estimators", request.estimators)
    task_specs, left_out_tasks = expand("tasks", request.tasks)
    require_family(request, [one.label for one in estimators])
    seeds = None if request.seeds is None else parse_seeds(request.seeds)
    device = choose_device(request.device)
    out = Path(request.out or default_folder(task_specs, "" if request.train else "probe-"))
    records.require_writable(out)
    files.require_unlocked(out)
    jobs = request.jobs or default_jobs(device)
    run = Run(out, device, jobs, [], {}, left_out | left_out_tasks)
    grids, labels = [], dict[tuple[str, float | None], str]()
    ready: dict[str, tuple[Task, dict[str, str | None]]] = {}  # by spec, because swept learning rates share a task
    for variant in _varied(request, task_specs, progress):
        resolved = variant.resolved
        what = f"task {resolved.label}"
        with plugin_errors(what, resolved.foreign), unchanged(what, resolved.foreign):
            if resolved.spec not in ready:
                with followed.apart(resolved.foreign or _function_of(resolved.params), known_files) as read:
                    task = ready_task(resolved, device, request.strict, progress)
                ready[resolved.spec] = task, read
            task, read = ready[resolved.spec]
            require_sampler(task, resolved.label, request.sampler)
            same = labels.setdefault((f"{resolved.name} {task.setting} {task.options}", variant.rate), resolved.label)
            if same != resolved.label:
                progress.note(f"{resolved.label} resolves to the same as {same}, and runs under that name alone")
                continue
            if variant.values:
                run.design[resolved.label] = variant.facts
            run.tasks[resolved.label] = task
            if request.save_policies and not saves(task):
                progress.note(f"--save-policies: {resolved.label} can't save policies; it runs without")
            rates, mine = _tuned(request, resolved, task, estimators, progress)
            plan = _at_rate(replace(_plan(request, run, task), tuned=rates), variant)
            grids.append((_tried(plan, resolved, task, read, mine), mine))
    if seeds is None:
        baselines = len(set(request.against))
        seeds = list(range(max(tables.default_seed_count(grid.supported, baselines) for grid, _ in grids)))
    _require_other_seeds(request, seeds)
    for grid, mine in grids:
        cells = grid.cells(mine, seeds)
        run.cells += cells
        if request.control:
            run.cells += [(plan, _aa_control(cell)) for plan, cell in cells]
    return run


def _varied(request: Request, tasks: Sequence[registry.Resolved], progress: Progress) -> list[Variant]:
    """The tasks with every combination of --sweep values and --instances."""
    sweep = parse_sweep(request.sweep)
    if RATE in sweep and (request.learning_rate is not None or request.tuned):
        other = "--tuned" if request.tuned else "--learning-rate"
        raise InputError(f"--sweep {RATE} and {other} both set learning rates; leave one out")
    found = variants(tasks, sweep, request.instances)
    if request.instances is not None and request.instances > 1:
        progress.note(
            f"{counted(request.instances, 'instance')} of each task; models that an instance has to train are trained once and cached"
        )
    return found


def _at_rate(plan: Plan, variant: Variant) -> Plan:
    """The plan with a swept learning rate, which is added to its setting."""
    if variant.rate is None:
        return plan
    return replace(plan, learning_rate=variant.rate, setting=f"{plan.setting} {RATE}={variant.rate:g}")


def _tuned(
    request: Request,
    resolved: registry.Resolved,
    task: Task,
    estimators: Sequence[registry.Resolved],
    progress: Progress,
) -> tuple[dict[str, Rate], Sequence[registry.Resolved]]:
    """The learning rates of --tuned for a task, and the estimators with the tuned options, under their own labels.

    Raises InputError if they were tuned for another task or setting.
    """
    if not request.tuned:
        return {}, estimators
    found = read_choices(Path(request.tuned))
    label, tasks = resolved.label, found["tasks"]
    if label not in tasks and request.tune:
        return {}, estimators
    if label not in tasks:
        raise InputError(f"--tuned {request.tuned}: it has no {label}, only {', '.join(tasks)}")
    choices = tasks[label]
    if choices["setting"] != task.setting:
        raise InputError(
            f"--tuned {request.tuned}: it is of [{choices['setting']}], and this would run [{task.setting}]"
        )
    steps = request.steps or task.default_steps
    rates = {
        name: tuned_rate(recorded, steps, task.setting, request.tuned)
        for name, recorded in records_of(found, label).items()
    }
    lacking = [estimator.label for estimator in estimators if estimator.label not in rates]
    if lacking and not request.tune:
        progress.note(f"--tuned {request.tuned} has no rate for {', '.join(lacking)}; they keep theirs")
    if steps not in {choices["steps"], *map(int, choices.get("budgets", {}))}:
        progress.note(f"--tuned {request.tuned} is of {counted(choices['steps'], 'step')}, and this runs {steps}")
    mine = []
    for estimator in estimators:
        chosen = choices["estimators"].get(estimator.label, {}).get("options", {})
        tuned = registry.resolve("estimators", with_values(estimator.spec, chosen)) if chosen else estimator
        if chosen:
            rates[tuned.label] = rates[estimator.label]
        mine.append(replace(tuned, label=estimator.label))
    return rates, mine


def _require_other_seeds(request: Request, seeds: Sequence[int]) -> None:
    """Raises InputError if a seed of the comparison was used for tuning."""
    tuned = read_choices(Path(request.tuned))["seeds"] if request.tuned else []
    if both := sorted(set(seeds) & set(tuned)):
        raise InputError(f"--tuned {request.tuned}: seed {both[0]} was tuned on; compare on other seeds")


def _plan(request: Request, run: Run, task: Task) -> Plan:
    draws = request.draws or (Plan.probe_draws if request.train else task.default_draws)
    return Plan(
        run_id=run.out.resolve().name,
        out=str(run.out),
        device=run.device,
        steps=request.steps or task.default_steps,
        batch=request.batch or task.default_batch,
        learning_rate=request.learning_rate,
        clip=request.clip,
        sampler=request.sampler,
        evaluate_every=request.evaluate_every,
        checkpoint_every=request.checkpoint_every,
        train=request.train,
        checkpoints=request.checkpoints,
        along=request.along,
        probe_draws=draws + draws % 2,
        details=not request.train,
        reference_draws=Plan.reference_draws if request.train else 8 * Plan.reference_draws,
        shards=request.shards or parallel.world_size(),
        save_policies=request.save_policies and saves(task),
        setting=" ".join(filter(None, [task.setting, str(request.sampler)])),
        prepared=task.prepared,
    )


@dataclass(frozen=True)
class _Grid:
    """A task whose estimators were all built once."""

    plan: Plan
    resolved: registry.Resolved
    task: Task
    read: dict[str, str | None]  # by code of the task's plugin while it was prepared
    supported: int  # number of estimators that can run on it

    def cells(self, estimators: Sequence[registry.Resolved], seeds: Sequence[int]) -> list[tuple[Plan, Cell]]:
        """One cell for each estimator and seed; without training also for each probe point, to use all cores."""
        numbers = [None] if self.plan.train else range(len(checkpoint_steps(self.plan)))
        return [
            (self.plan, replace(_cell(self.resolved, self.task, self.read, estimator, seed), checkpoint=number))
            for seed in seeds
            for number in numbers
            for estimator in estimators
        ]


_own_commit = functools.cache(records.commit)  # of the code that this process has loaded


def _cell(
    resolved: registry.Resolved, task: Task, read: dict[str, str | None], estimator: registry.Resolved, seed: int
) -> Cell:
    params, digests = json.dumps(estimator.params, sort_keys=True), (resolved.digest, estimator.digest)
    foreign = (resolved.foreign or _function_of(task.options), estimator.foreign)
    names = (estimator.label, estimator.spec, seed, params, estimator.source, digests, foreign)
    return Cell(resolved.label, resolved.spec, task.options, *names, read, commit=_own_commit())


def _aa_control(cell: Cell) -> Cell:
    label = cell_labels.control_label(cell.estimator)
    return replace(cell, estimator=label, control_of=cell.estimator, other_draws="control")


def _function_of(options: Mapping[str, Any]) -> str:
    """The origin of the reward function that the user gave, whose code runs in the task's cells; "" without one."""
    values = (value for value in options.values() if isinstance(value, str))
    return next((code_of(value) for value in values if names_function(value)), "")


def _tried(
    plan: Plan,
    resolved: registry.Resolved,
    task: Task,
    read: dict[str, str | None],
    estimators: Sequence[registry.Resolved],
) -> _Grid:
    """Build each estimator once for the task, so that errors show before the first cell."""
    reference = registry.resolve("estimators", plan.reference)
    unsupported: dict[str, str] = {}
    for estimator in [*estimators, reference]:
        what = f"estimator {estimator.label}"
        with plugin_errors(what, estimator.foreign), unchanged(what, estimator.foreign, [task], PROCESS):
            try:
                make_estimator(estimator.spec, task, plan)
            except Unsupported as reason:
                unsupported[estimator.label] = str(reason)
    supported = sum(estimator.label not in unsupported for estimator in estimators)
    if not supported:
        raise InputError(f"nothing can run on {resolved.label}: {'; '.join(unsupported.values())}")
    plan = replace(plan, reference_key=cell_key(plan, _cell(resolved, task, read, reference, 0), task))
    return _Grid(plan, resolved, task, read, supported)
