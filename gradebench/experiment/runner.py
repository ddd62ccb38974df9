"""A run: the grid of estimators, tasks and seeds, its cells side by side in worker processes, and its tables."""

import contextlib
import json
import math
import os
import re
import shutil
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gradebench.analysis import curves, frontier, instances, runs, tables
from gradebench.analysis.design import RATE, Variant, parse_sweep, variants
from gradebench.analysis.provenance import Rate, tuned_rate
from gradebench.analysis.runs import require_rankable
from gradebench.core import parallel, schema
from gradebench.core.errors import InputError, Unsupported
from gradebench.core.global_state import PROCESS
from gradebench.core.interrupts import is_users
from gradebench.core.options import with_values
from gradebench.core.seeds import parse_seeds
from gradebench.core.task import Task
from gradebench.experiment import earlier, harness, repeat
from gradebench.experiment.cells import Failures, Progress, Run, carry_out, drop_damaged, gather, pending, with_inputs
from gradebench.experiment.isolation import unchanged
from gradebench.experiment.launchers import default_jobs, launched
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.workers import require_started, usable_cores
from gradebench.plugins import registry
from gradebench.rewards.text_reward import code_of, names_function
from gradebench.storage import digests, files, records
from gradebench.storage.hub import TRUST
from gradebench.storage.tuned import read_choices, records_of


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    estimators: Sequence[str]
    tasks: Sequence[str]
    seeds: str | None = None
    steps: int | None = None
    batch: int | None = None
    learning_rate: float | None = None
    device: str = "auto"
    out: str | None = None
    jobs: int | None = None
    timeout: float | None = None
    resume: bool = True
    strict: bool = False
    trust_remote_code: bool = False  # of given models
    launcher: str = "local"
    checkpoint_every: float = 60.0  # seconds of training between checkpoints to resume from
    train: bool = True  # False: `gradebench probe`, gradients alone
    draws: int | None = None  # of each gradient probe
    checkpoints: int = 3
    along: str = "reference"
    control: bool = False  # every estimator twice, with other draws: its own A/A control
    shards: int | None = None  # parts of a batch; None: one a process
    save_policies: bool = False
    by: str | None = None  # the metric that ranks; None: the objective
    against: Sequence[str] = ()  # labels of baselines that the others are compared with; none: all pairs
    tuned: str | None = None  # file of `gradebench tune`, whose learning rates are to be used
    tune: bool = False  # tune those first that have no tuned rate; `tuned` is then what that found
    sweep: Sequence[str] = ()  # "OPTION=VALUE,VALUE,..." of the tasks, or of the learning rate
    instances: int | None = None  # of each task; None: the one that its spec names
    clip: float = 1.0  # of the gradient's global norm


@dataclass
class Outcome:
    """How a run ended."""

    metrics: pd.DataFrame
    probes: pd.DataFrame  # every probed metric with its interval
    reasons: dict[str, str]  # cell id to why it isn't `ok`, or what it lacks
    unprobed: dict[str, str]  # task to why its cells have no gradient probes
    interrupted: bool
    reused: int  # cells that an earlier run had finished
    comparisons: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=schema.TESTS_COLUMNS))
    leaderboard: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=schema.LEADERBOARD_COLUMNS))
    # every estimator against its control twin, if the run has them
    controls: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=schema.TESTS_COLUMNS))
    frontier: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=frontier.COLUMNS))
    areas: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=frontier.TESTS_COLUMNS))
    instances: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=instances.BOARD_COLUMNS))
    own: frozenset[str] | None = None  # ids of the cells that the command was for; None: all

    @property
    def complete(self) -> bool:
        """Whether every cell that was asked for gave all that it could."""
        mine = self.metrics if self.own is None else self.metrics[self.metrics["cell_id"].isin(self.own)]
        lacking = any(reason.startswith("ok: ") for reason in self.reasons.values())
        return not (self.unprobed or lacking) and bool(mine["status"].isin(records.FINISHED).all())


# --- before a run -----------------------------------------------------------------------------------------------


def choose_device(wanted: str) -> str:
    """ "cuda" or "cpu" for "auto"; raises InputError for a device that isn't there."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise InputError(f"--device {wanted!r} is none of auto, cpu and cuda")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {wanted} can't be used: {str(error).splitlines()[0]}; try --device auto") from error
    return str(device)


def expand(kind: str, specs: Sequence[str]) -> tuple[list[registry.Resolved], dict[str, str]]:
    """Resolved specs, `all` standing for every healthy plugin; and what `all` had to leave out."""
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
                resolved[name] = registry.resolve(kind, name)
            except InputError as reason:  # a plugin nobody asked for by name must not end the run
                left_out[name] = str(reason)
    if not resolved:
        raise InputError(f"no {kind} to run; {registry.INSTALL_HINT}")
    return list(resolved.values()), left_out


def prepare(request: Request, progress: Progress) -> Run:
    """Check everything that can be checked before the first cell, and make the tasks ready; writes no results.

    Raises InputError for whatever in the request can't be used.
    """
    require_started()
    _require_numbers(request)
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
    grids, settled = [], dict[tuple[str, float | None], str]()
    ready: dict[str, Task] = {}  # by spec: learning rates share theirs
    for variant in _varied(request, task_specs, progress):
        resolved = variant.resolved
        what = f"task {resolved.label}"
        with plugin_errors(what), unchanged(what, resolved.foreign):
            task = ready.get(resolved.spec) or ready_task(resolved, device, request.strict, progress)
            ready[resolved.spec] = task
            same = settled.setdefault((f"{resolved.name} {task.setting} {task.options}", variant.rate), resolved.label)
            if same != resolved.label:
                progress.note(f"{resolved.label} settled to the same as {same}, and runs under that name alone")
                continue
            if variant.values:
                run.design[resolved.label] = variant.facts
            run.tasks[resolved.label] = task
            if request.save_policies and not _saves(task):
                progress.note(f"--save-policies: {resolved.label} keeps no policies; it runs without")
            rates, mine = _tuned(request, resolved, task, estimators, progress)
            plan = _at_rate(replace(_plan(request, run, task), tuned=rates), variant)
            grids.append((_tried(plan, resolved, task, mine), mine))
    if seeds is None:
        baselines = len(set(request.against))
        seeds = list(range(max(tables.default_seed_count(grid.supported, baselines) for grid, _ in grids)))
    _require_other_seeds(request, seeds)
    for grid, mine in grids:
        cells = grid.cells(mine, seeds)
        run.cells += cells
        if request.control:
            run.cells += [(plan, _twin(cell)) for plan, cell in cells]
    return run


def _varied(request: Request, tasks: Sequence[registry.Resolved], progress: Progress) -> list[Variant]:
    """The tasks at every value of --sweep, in all --instances."""
    sweep = parse_sweep(request.sweep)
    if RATE in sweep and (request.learning_rate is not None or request.tuned):
        other = "--tuned" if request.tuned else "--learning-rate"
        raise InputError(f"--sweep {RATE} and {other} both say at which rates; leave one out")
    found = variants(tasks, sweep, request.instances)
    if request.instances is not None and request.instances > 1:
        progress.note(
            f"{request.instances} instances of each task; what one takes long to make is made once and cached"
        )
    return found


def _at_rate(plan: Plan, variant: Variant) -> Plan:
    """The plan at a swept learning rate, which its setting then names."""
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
    """The learning rates of --tuned for a task, and the estimators with the options that it chose, under their labels.

    Raises InputError where they are of something else than what runs.
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
        progress.note(f"--tuned {request.tuned} is of {choices['steps']} steps, and these are {steps}")
    mine = []
    for estimator in estimators:
        chosen = choices["estimators"].get(estimator.label, {}).get("options", {})
        tuned = registry.resolve("estimators", with_values(estimator.spec, chosen)) if chosen else estimator
        if chosen:
            rates[tuned.label] = rates[estimator.label]
        mine.append(replace(tuned, label=estimator.label))
    return rates, mine


def _require_other_seeds(request: Request, seeds: Sequence[int]) -> None:
    """Raises InputError where a seed of the comparison was tuned on."""
    tuned = read_choices(Path(request.tuned))["seeds"] if request.tuned else []
    if both := sorted(set(seeds) & set(tuned)):
        raise InputError(f"--tuned {request.tuned}: seed {both[0]} was tuned on; compare on other seeds")


def require_family(request: Request, labels: Sequence[str]) -> None:
    """Raises InputError for a metric that doesn't rank, for baselines that don't run, and where they are all that does."""
    require_rankable(request.by)
    for name in request.against:
        if name not in labels:
            raise InputError(f"--against {name}: it isn't among the estimators, {', '.join(labels)}; add -e {name}")
    if request.against and set(labels) <= set(request.against):
        raise InputError(f"--against {', '.join(request.against)}: nothing else is left to compare with it")


def _twin(cell: Cell) -> Cell:
    return replace(cell, estimator=cell.estimator + tables.CONTROL, twin="control")


def _require_numbers(request: Request) -> None:
    if (request.shards or parallel.world_size()) % parallel.world_size():
        raise InputError(
            f"--micro-batches {request.shards}: {parallel.world_size()} processes can't share them; give a multiple"
        )
    least = {"steps": 1, "batch": 1, "jobs": 1, "draws": 4, "checkpoints": 1, "shards": 1, "instances": 1}
    for name, minimum in least.items():
        value = getattr(request, name)
        if value is not None and value < minimum:
            raise InputError(f"--{name} {value}: at least {minimum} {'is' if minimum == 1 else 'are'} needed")
    for name, number in (
        ("learning-rate", request.learning_rate),
        ("timeout", request.timeout),
        ("clip", request.clip),
    ):
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"--{name} {number:g}: a number above 0 is needed")
    if not 0 <= request.checkpoint_every < math.inf:
        raise InputError(f"--checkpoint-every {request.checkpoint_every:g}: seconds from 0 on are needed")


@contextlib.contextmanager
def plugin_errors(what: str) -> Iterator[None]:
    """Whatever a plugin's code raises, as an InputError that says where; its traceback would bury that."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        if is_users(error):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(place.filename).name}, line {place.lineno}"
        message = " ".join(str(error).split())
        raise InputError(f"{what} can't be used: {type(error).__name__}: {message} ({where})") from error


def ready_task(resolved: registry.Resolved, device: str, strict: bool, progress: Progress) -> Task:
    """The task with everything prepared, and loaded in this process."""
    task = resolved.create()
    for line in task.needs():
        progress.note(line)
    torch.set_num_threads(min(2, usable_cores()))  # fixed, so that what is trained here doesn't vary with jobs
    task.prepare(torch.device(device), progress.note, strict)
    task.load(torch.device(device))
    return task


def _saves(task: Task) -> bool:
    """Whether the task can save policies."""
    return type(task).save_policy is not Task.save_policy


def missing(request: Request, progress: Progress) -> list[str]:
    """What a run of these tasks would download for long; where there is any, what they need is told."""
    tasks = [resolved.create() for resolved in expand("tasks", request.tasks)[0]]
    names = [name for task in tasks for name in task.missing()]
    for line in (line for task in tasks if names for line in task.needs()):
        progress.note(line)
    return names


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
        checkpoint_every=request.checkpoint_every,
        train=request.train,
        checkpoints=request.checkpoints,
        along=request.along,
        probe_draws=draws + draws % 2,
        details=not request.train,
        reference_draws=Plan.reference_draws if request.train else 8 * Plan.reference_draws,
        shards=request.shards or parallel.world_size(),
        save_policies=request.save_policies and _saves(task),
        setting=task.setting,
        settled=task.settled,
    )


@dataclass(frozen=True)
class _Grid:
    """A task whose estimators have been tried out."""

    plan: Plan
    resolved: registry.Resolved
    task: Task
    supported: int  # estimators that can run on it

    def cells(self, estimators: Sequence[registry.Resolved], seeds: Sequence[int]) -> list[tuple[Plan, Cell]]:
        """One cell for each estimator and seed; without training, for each checkpoint too, to keep all cores busy."""
        numbers = [None] if self.plan.train else range(len(harness.checkpoint_steps(self.plan)))
        return [
            (self.plan, replace(_cell(self.resolved, self.task, estimator, seed), checkpoint=number))
            for seed in seeds
            for number in numbers
            for estimator in estimators
        ]


def _cell(resolved: registry.Resolved, task: Task, estimator: registry.Resolved, seed: int) -> Cell:
    params, digests = json.dumps(estimator.params, sort_keys=True), (resolved.digest, estimator.digest)
    foreign = (resolved.foreign or _function_of(task), estimator.foreign)
    names = (estimator.label, estimator.spec, seed, params, estimator.source, digests, foreign)
    return Cell(resolved.label, resolved.spec, task.options, *names)


def _function_of(task: Task) -> str:
    """The reward function that the user gave a task, whose code runs in its cells."""
    values = (value for value in task.options.values() if isinstance(value, str))
    return next((code_of(value) for value in values if names_function(value)), "")


def _tried(plan: Plan, resolved: registry.Resolved, task: Task, estimators: Sequence[registry.Resolved]) -> _Grid:
    """Each estimator built once for the task, so that what is wrong with one shows before the first cell."""
    reference = registry.resolve("estimators", plan.reference)
    unsupported: dict[str, str] = {}
    for estimator in [*estimators, reference]:
        what = f"estimator {estimator.label}"
        with plugin_errors(what), unchanged(what, estimator.foreign, [task], PROCESS):
            try:
                harness.make_estimator(estimator.spec, task, plan)
            except Unsupported as reason:
                unsupported[estimator.label] = str(reason)
    supported = sum(estimator.label not in unsupported for estimator in estimators)
    if not supported:
        raise InputError(f"nothing can run on {resolved.label}: {'; '.join(unsupported.values())}")
    plan = replace(plan, reference_key=harness.cell_key(plan, _cell(resolved, task, reference, 0), task))
    return _Grid(plan, resolved, task, supported)


def default_folder(tasks: Sequence[registry.Resolved], prefix: str = "") -> Path:
    """results/<task>-<time> below the present folder."""
    name = "-".join(dict.fromkeys(task.name for task in tasks))[:60]
    return Path("results") / f"{prefix}{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}-{time.strftime('%Y%m%d-%H%M%S')}"


def config_of(request: Request, run: Run) -> dict[str, Any]:
    """config.json: the request, and what it came to."""
    plans = {cell.task: plan for plan, cell in run.cells}
    known = {(cell.task, cell.estimator): run.facts(plan, cell) for plan, cell in run.cells}
    rates: dict[str, dict[str, float]] = {}
    sources: dict[str, dict[str, str]] = {}
    for plan, cell in run.cells:
        rate = run.rate(plan, cell)
        rates.setdefault(cell.task, {})[cell.estimator] = rate.value
        sources.setdefault(cell.task, {})[cell.estimator] = rate.source
    return {
        "request": asdict(request),
        # `settled` names folders of this machine's cache; what ran stands in the setting.
        "plans": {label: {k: v for k, v in asdict(plan).items() if k != "settled"} for label, plan in plans.items()},
        "tasks": {label: {"setting": task.setting, **task.describe()} for label, task in run.tasks.items()},
        "learning_rates": rates,
        "rate_sources": sources,
        "tuned_options": _tuned_options(request),
        "seeds": sorted({cell.seed for _, cell in run.cells}),
        "cells": [cell.id for _, cell in run.cells],
        "left_out": run.left_out,
        "design": run.design,
        "facts": earlier.gathered((*named, mine) for named, mine in known.items()),
        "given": repeat.given(asdict(request), run.cells),
    }


def _tuned_options(request: Request) -> dict[str, dict[str, dict[str, str]]]:
    """By task and estimator, the options that --tuned chose."""
    tasks = read_choices(Path(request.tuned))["tasks"] if request.tuned else {}
    chosen = {
        label: {name: one["options"] for name, one in task["estimators"].items() if one.get("options")}
        for label, task in tasks.items()
    }
    return {label: one for label, one in chosen.items() if one}


# --- the run ----------------------------------------------------------------------------------------------------


def execute(request: Request, run: Run, progress: Progress) -> Outcome:
    """Run all cells that aren't finished yet, and write the tables, also when interrupted.

    Raises        InputError where another run has the folder, and where nothing more can be written.
    """
    with files.exclusive_lock(run.out):
        outcome = measure(request, run, progress)
        written = {"metrics": outcome.metrics, "probes": outcome.probes}
        if request.train:  # without it a cell is one checkpoint, and there is no reward to rank by
            outcome.comparisons = tables.comparisons(outcome.metrics, request.against)
            outcome.leaderboard = tables.leaderboard(outcome.metrics, outcome.comparisons, request.by, request.against)
            written |= {"tests": outcome.comparisons, "leaderboard": outcome.leaderboard}
            written |= curves.written(outcome.metrics, request.by)
            varied = frontier.written(outcome.metrics, run.design) | instances.written(outcome.metrics, run.design)
            outcome.frontier = varied.get(frontier.NAME, outcome.frontier)
            outcome.areas = varied.get(frontier.TESTS, outcome.areas)
            outcome.instances = varied.get(instances.BOARD, outcome.instances)
            written |= varied
        controls = tables.controls(outcome.metrics)
        if request.control or len(controls):
            written["controls"] = outcome.controls = controls
        for name, frame in written.items():
            tables.write_csv(frame, run.out / f"{name}.csv")
        digests.seal(run.out, records.READ_AGAIN)
    return outcome


def measure(request: Request, run: Run, progress: Progress) -> Outcome:
    """Run all cells that aren't finished yet, and gather what they measured, also when interrupted; no comparisons.

    Cells that earlier commands left in the folder, on the same settings, stay in its tables. To be called by who holds
    the folder.

    Raises        InputError where finished cells would be lost, unless the request is for a fresh start.
    """
    before = _config_before(run.out, progress)
    stand_beside(request, run, before, progress)
    config = earlier.united(config_of(request, run), before, run.kept, run.interrupted)
    run.sources, run.design = config["rate_sources"], config["design"]
    digests.unseal(run.out)
    records.write_json(run.out / "config.json", config)
    records.write_json(run.out / "environment.json", records.environment(run.device))
    jobs, troubles, interrupted = pending(run, request.resume), Failures(), False
    reused = len(run.cells) - len(jobs)
    if damaged := drop_damaged(jobs):
        progress.note(f"{len(damaged)} files of unfinished cells are damaged, as {damaged[0]}; they are made again")
    progress.start(len(run.cells), reused)
    try:
        if jobs:
            with launched(request.launcher, request.jobs, run.device, request.timeout) as each:
                carry_out(run, jobs, each, request.resume, progress, troubles)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        progress.stop()
    if (known := with_inputs(run, config, progress.note)) != config:
        records.write_json(run.out / "config.json", known)
    metrics, probes, samples = gather(run, progress.note)
    tables.write_parquet(metrics, run.out / "metrics.parquet")
    if samples:
        records.write_lines(run.out / records.SAMPLES, samples)
    own = frozenset(cell.id for _, cell in run.cells)
    return Outcome(metrics, probes, troubles.reasons, troubles.unprobed, interrupted, reused, own=own)


def _config_before(out: Path, progress: Progress) -> dict[str, Any]:
    """What earlier commands wrote down in the folder; what is damaged or can't be read is written anew, from the cells."""
    path = out / "config.json"
    if not digests.is_as_written(path):
        progress.note(f"{path} is damaged; it is made again, and cells of earlier commands tell what they are")
        return {}
    try:
        return runs.read_config(out)
    except InputError as error:
        progress.note(f"{error}; it is written anew, for the cells that are there")
        return {}


def stand_beside(request: Request, run: Run, before: Mapping[str, Any], progress: Progress) -> None:
    """Takes in what earlier commands left in the folder, and says what goes on and what stays.

    Raises        InputError where finished cells would be lost; a fresh start deletes them.
    """
    found = earlier.beside(run.out, [(cell, run.facts(plan, cell)) for plan, cell in run.cells])
    if found.lost and request.resume:
        raise InputError(found.refusal(run.out))
    asked, gone = {cell.id for _, cell in run.cells}, {left.id for left in found.lost}
    for left in found.lost:
        if left.id not in asked:
            shutil.rmtree(left.folder)
    run.kept = found.kept
    ended = {left.id for left in found.kept} | gone | asked | set(found.damaged)
    run.interrupted = [] if gone else [name for name in before.get("cells", []) if str(name) not in ended]
    if found.extended and request.resume:
        fresh = [name for name in found.extended if not (run.out / "cells" / name / records.TRAINING).is_file()]
        progress.note(f"{len(found.extended) - len(fresh)} trainings go on from their last step")
        if fresh:
            progress.note(f"{len(fresh)} start over: their last state was too large to keep, or no plain data")
    if found.kept:
        progress.note(f"{len(found.kept)} other cells of {run.out} stay in its tables")
    if without := [left for left in found.kept if left.damaged]:
        name = without[0].folder / without[0].damaged[0]
        progress.note(f"{len(without)} of them stay without files that are damaged, as {name}")
    if found.damaged:
        progress.note(f"{len(found.damaged)} cells are damaged and left out, as {found.damaged[0]}; ask for them again")
