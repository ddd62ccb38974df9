"""One cell: train with one estimator on one task and one seed, evaluate, and probe its gradients.

Everything here is the same for every estimator; what differs is behind `Estimator` and `Problem`.
"""

import contextlib
import functools
import math
import shutil
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradebench.analysis.provenance import GIVEN, TASK, Rate, tuned_rate
from gradebench.core import parallel
from gradebench.core.errors import InputError, Unsupported
from gradebench.core.estimator import Estimator
from gradebench.core.interrupts import is_users
from gradebench.core.memory import peak_memory, reset_peak_memory
from gradebench.core.panics import panics_raised
from gradebench.core.problem import Ledger
from gradebench.core.sampling import generator
from gradebench.core.task import Task
from gradebench.experiment import facts, isolation
from gradebench.experiment.loaded import first_evaluations, loaded_task, set_parameters
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.training import Diverged, Trainer, batches
from gradebench.experiment.warm_up import needs_warm_up, warm_up
from gradebench.experiment.workers import said
from gradebench.measurement.gradient_metrics import Interval, gradient_metrics, slope_of_log_variance, summaries
from gradebench.measurement.moments import Moments, Reference, flatten
from gradebench.measurement.probes import Source, by_call, costs_of, moments_of, one_estimate
from gradebench.plugins import registry
from gradebench.plugins.source_digest import known_files
from gradebench.problems.sharded import Sharded
from gradebench.storage import followed, records, sealed
from gradebench.storage.checkpoints import Checkpoint
from gradebench.storage.files import atomic_path, out_of_room
from gradebench.storage.formats import write_text

# --- the parts of a cell ----------------------------------------------------------------------------------------


def train(
    estimator: Estimator,
    task: Task,
    plan: Plan,
    cell: Cell,
    record: records.CellRecord,
    checkpoint: Checkpoint | None = None,
) -> Trainer:
    """`steps` steps from the task's initial parameters, with evaluations on the way; records rewards and costs.

    With a `checkpoint`, from where an earlier process had come to, and to the bit as if it had been this one.
    """
    ledger = Ledger()
    trainer = Trainer(estimator, task, plan, learning_rate_of(task, plan, cell.estimator_spec).value)
    prompts = batches(task, plan, estimator.n, cell.seed)
    rng = generator(plan.device, cell.seed, "sampling", *filter(None, [cell.twin]))
    evaluated = plan.evaluation_steps
    estimator.train()
    reset_peak_memory(plan.device)
    training = trainer.training(rng, ledger, record)
    done = checkpoint.restored(training, lambda step, rows: _fits(step, rows, plan)) if checkpoint else 0
    for _ in range(done):
        next(prompts)
    for step in range(done, plan.steps + 1):
        if step in evaluated:
            record.add("train", "train", step, trainer.costs(ledger))
            evaluate(task, plan, cell.seed, step, record)
        if step < plan.steps:
            trainer.step(task.problem("train", next(prompts), ledger), rng)
            if checkpoint and step + 1 < plan.steps:
                checkpoint.after(step + 1, training)
            elif checkpoint:
                checkpoint.keep(plan.steps, training)
    seconds = trainer.clock.estimator + trainer.clock.optimizer
    figures = {"seconds_per_step": seconds / max(1, plan.steps), "peak_memory_bytes": peak_memory(plan.device)}
    record.add("train", "train", plan.steps, figures | trainer.updates.summary())
    return trainer


def _fits(done: int, rows: Sequence[Mapping[str, Any]], plan: Plan) -> bool:
    """Whether a training that has come so far and has these rows can go on to the plan's steps: it isn't too far, and
    was evaluated where the plan is."""
    evaluated = {row["step"] for row in rows if row["phase"] == "evaluation"}
    return done <= plan.steps and evaluated == {step for step in plan.evaluation_steps if step < done}


def evaluate(task: Task, plan: Plan, seed: int, step: int, record: records.CellRecord) -> None:
    """All splits, with the same prompts and noise at every step and for every estimator of a seed; train prompts and
    samples at the ends alone, where they are compared with the others.

    So step 0 is the same for all of them, and evaluated once a process.
    """
    for split in task.splits:
        if split == "train" and 0 < step < plan.steps:
            continue
        known = first_evaluations.get((id(task), seed, split)) if step == 0 else None
        metrics = known[0] if known else evaluated(task, split, generator(plan.device, seed, "evaluation", split))
        record.add("evaluation", split, step, metrics)
        if step in (0, plan.steps):
            samples = known[1] if known else task.samples(split, generator(plan.device, seed, "samples", split))
            record.add_samples(split, step, samples)
        if step == 0:
            first_evaluations[id(task), seed, split] = (metrics, samples)


def evaluated(task: Task, split: str, rng: torch.Generator) -> dict[str, float]:
    """The task's metrics of a split, and its objective: the reward less beta times the divergence, where it has one."""
    metrics = task.evaluate(split, rng)
    if "reward" in metrics:
        metrics = {"objective": metrics["reward"] - task.beta * metrics.get("kl", 0.0)} | metrics
    return metrics


def probe(task: Task, plan: Plan, cell: Cell, record: records.CellRecord) -> list[str]:
    """The estimator's gradients at the checkpoints: their moments against the truth there.

    Returns what could not be computed, and why; its metrics are empty, or left out.
    """
    lacking: list[str] = []
    for number, step in enumerate(checkpoint_steps(plan)):
        if cell.checkpoint not in (None, number):
            continue
        if plan.along == "own":
            trainer, reference = _own_checkpoint(task, plan, cell, number)
        else:
            trainer, reference = _shared_checkpoint(task, plan, cell, number)
        estimator = trainer.estimator.eval()
        rate = learning_rate_of(task, plan, cell.estimator_spec).value
        source = _source(task, plan, cell, "probe", step, plan.batch // estimator.n)
        source = replace(source, moving=functools.partial(trainer.moving, rate))
        found, overall, draws = _measured(estimator, task, source, plan.probe_draws, reference)
        record.add("probe", "train", step, {name: interval.value for name, interval in overall.items()})
        if not math.isfinite(overall["gradient_variance"].value):
            lacking.append(f"the probe at step {step} is empty: gradients, or their squares, were not finite")
        place = {"along": plan.along, "step": step, "draws": draws, "samples": plan.batch}
        record.add_probe(place | {"group": ""}, overall)
        if not plan.details:
            continue
        for group, metrics in found.items():
            record.add_probe(place | {"group": group}, metrics)
        variance = overall["gradient_variance"]
        if estimator.period > 1:
            with _apart(plan, cell, f"the calls at step {step}", lacking):
                _probe_calls(estimator, task, plan, source, reference, place, record)
        with _apart(plan, cell, f"the costs at step {step}", lacking):
            record.add_probe(place | {"group": ""}, _cost_metrics(variance, costs_of(estimator, source)))
        if number == 0:
            with _apart(plan, cell, "smaller batches", lacking):
                _probe_batch_sizes(estimator, task, plan, cell, reference, variance, record)
    return lacking


@contextlib.contextmanager
def _apart(plan: Plan, cell: Cell, what: str, lacking: list[str]) -> Iterator[None]:
    """A diagnostic that takes nothing else with it where it fails: what it was and why is added to `lacking`."""
    try:
        with parallel.agree_on_failure():
            yield
    except BaseException as error:
        if is_users(error) or (isinstance(error, OSError) and out_of_room(error)):
            raise  # nor could the rest be written down
        lacking.append(f"{what}: {_told(error, cell)}")
        _keep_traceback(plan, cell)


def _keep_traceback(plan: Plan, cell: Cell) -> None:
    """That of the error being handled, into the cell's folder."""
    if parallel.is_main():
        file = Path(plan.out) / "cells" / cell.id / "error.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, traceback.format_exc())


def _told(error: BaseException, cell: Cell) -> str:
    """An error in one line, with what to do where memory ran out."""
    line = said(error)
    return f"{line[:300]}; {_memory_advice(cell)}" if is_out_of_memory(error) else line


def _measured(
    estimator: Estimator, task: Task, source: Source, draws: int, reference: Reference
) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval], int]:
    """The metrics of each group of parameters, those of all parameters, and from how many draws they are."""
    moments = moments_of(estimator, source, draws // 2, reference.moments.centre, _sizes(task))
    names = source.problem(source.contexts(0)[:1], None).parameter_names
    found = {group: gradient_metrics(summary) for group, summary in summaries(moments, reference, names).items()}
    overall = found.pop("")
    return found, overall, 2 * moments.count


def _probe_calls(
    estimator: Estimator,
    task: Task,
    plan: Plan,
    source: Source,
    reference: Reference,
    place: Mapping[str, Any],
    record: records.CellRecord,
) -> None:
    """Of each call that shares a batch with others, the metrics of its gradient, in groups "call 1", "call 2", ..., and
    what its estimates say of themselves."""
    moments, info = by_call(estimator, source, plan.probe_draws // 2, reference.moments.centre, _sizes(task))
    names = source.problem(source.contexts(0)[:1], None).parameter_names
    for number, (one, info_of_call) in enumerate(zip(moments, info, strict=True), 1):
        metrics = gradient_metrics(summaries(one, reference, names)[""])
        metrics |= {f"info_{name}": Interval(value, math.nan, math.nan) for name, value in info_of_call.items()}
        record.add_probe(dict(place) | {"group": f"call {number}"}, metrics)


def _probe_batch_sizes(
    estimator: Estimator,
    task: Task,
    plan: Plan,
    cell: Cell,
    reference: Reference,
    atomic_path: Interval,
    record: records.CellRecord,
) -> None:
    """The variance at smaller batches beside that of a `whole` one, and the slope of its logarithm: what samples buy."""
    sizes = [plan.batch // 8, plan.batch // 4, plan.batch // 2]
    measured: dict[int, Interval] = {}
    place = {"along": plan.along, "step": 0, "group": ""}
    for size in (size for size in sizes if size and size % estimator.n == 0):
        source = _source(task, plan, cell, f"batch {size}", 0, size // estimator.n)
        with contextlib.suppress(Unsupported):  # too few contexts for its minibatches
            _, overall, draws = _measured(estimator, task, source, max(4, plan.probe_draws // 4), reference)
            measured[size] = overall["gradient_variance"]
            row = {"gradient_variance_by_batch": measured[size]}
            record.add_probe(place | {"samples": size, "draws": draws}, row)
    measured[plan.batch] = atomic_path
    slope = slope_of_log_variance(list(measured), list(measured.values()))
    last = {"gradient_variance_by_batch": atomic_path, "gradient_variance_slope": slope}
    record.add_probe(place | {"samples": plan.batch, "draws": plan.probe_draws}, last)


def _cost_metrics(variance: Interval, costs: dict[str, float]) -> dict[str, Interval]:
    """What one draw costs, and its variance times that: what a given precision costs."""
    answer = {}
    for name, cost in costs.items():
        answer[f"cost_{name}"] = Interval(cost, float("nan"), float("nan"))
        answer[f"gradient_variance_times_{name}"] = Interval(
            variance.value * cost, variance.low * cost, variance.high * cost
        )
    return answer


def _source(task: Task, plan: Plan, cell: Cell, part: str, step: int, contexts: int) -> Source:
    """Draws with fresh prompts for each pair, all seeded by name."""
    size = task.sizes["train"]

    def indices(number: int) -> Tensor:
        rng = generator("cpu", cell.seed, part, step, number, "prompts")
        return torch.randperm(size, generator=rng)[:contexts].to(plan.device)

    return Source(
        contexts=indices,
        problem=lambda index, ledger: task.problem("train", index, ledger),
        generator=lambda draw: generator(plan.device, cell.seed, part, step, draw),
    )


def _sizes(task: Task) -> list[int]:
    return [p.numel() for p in task.params]


# --- checkpoints ------------------------------------------------------------------------------------------------


def checkpoint_steps(plan: Plan) -> list[int]:
    """Start, middle and end (or more) of a trajectory; fewer where it has fewer steps."""
    return sorted({round(plan.steps * i / max(1, plan.checkpoints - 1)) for i in range(plan.checkpoints)})


def checkpoint_file(plan: Plan, cell: Cell, number: int) -> Path:
    """Shared by all cells of a task and seed; its name changes with whatever the trajectory depends on.

    The parameters are those of all seeds. The reference gradient is a seed's own, so that seeds are independent and the
    spread between them holds its error.
    """
    name = records.cell_id(cell.task, f"reference-{plan.reference}", number)
    return Path(plan.out) / "cells" / name / f"checkpoint-{plan.reference_key[:12]}-s{cell.seed}.safetensors"


def training_file(plan: Plan, cell: Cell) -> Path:
    """What the training of a cell goes on from, that was cut off or is to have more steps."""
    return Path(plan.out) / "cells" / cell.id / records.TRAINING


def files_to_go_on_from(plan: Plan, cell: Cell) -> list[Path]:
    """What an earlier command may have left for a cell that runs now."""
    numbers = range(len(checkpoint_steps(plan)))
    places = (checkpoint_file, warm_file)
    return [training_file(plan, cell), *(place(plan, cell, number) for number in numbers for place in places)]


def warm_file(plan: Plan, cell: Cell, number: int) -> Path:
    """An estimator's own state at a checkpoint: one for all seeds, as that costs more than what is probed with it."""
    name = records.cell_id(cell.task, f"warm-{cell.estimator}", number)
    return Path(plan.out) / "cells" / name / "state.safetensors"


def _shared_checkpoint(task: Task, plan: Plan, cell: Cell, number: int) -> tuple[Trainer, Reference]:
    """The reference trajectory's parameters, put into the task; the estimator with its own state warmed up there."""
    tensors, _ = sealed.read(checkpoint_file(plan, cell, number))
    stored = {name: tensor.to(plan.device) for name, tensor in tensors.items()}
    set_parameters(task, stored)
    trainer = Trainer(make_estimator(cell.estimator_spec, task, plan), task, plan, 0.0)
    if needs_warm_up(trainer):
        _warm(trainer, task, plan, cell, number)
    return trainer, Reference.of_tensors(stored, _sizes(task))


def _warm(trainer: Trainer, task: Task, plan: Plan, cell: Cell, number: int) -> None:
    """The state as another seed's cell has left it, else by training; the same either way, since its draws are those of
    no seed."""
    anyone = replace(cell, seed=0, checkpoint=None, twin="")
    step, estimator = checkpoint_steps(plan)[number], trainer.estimator
    source = _source(task, plan, anyone, "warm-up", step, plan.batch // estimator.n)
    training = trainer.training(
        generator(plan.device, 0, "warm-up"), Ledger(), records.CellRecord(identity_of(plan, anyone))
    )
    # The reference's key changes with whatever a number depends on, but for the estimator.
    key = f"{plan.reference_key} {cell.estimator_spec} {cell.params} {cell.digests[1:]} {number}"
    kept = Checkpoint(warm_file(plan, cell, number), key, 0.0, plan.device, lambda: what_was_read(cell))
    alone = parallel.world_size() == 1  # several processes must do the same, whatever each of them finds
    if not (alone and kept.restored(training)):
        done = warm_up(trainer, source, plan.warm_up)
        if alone:
            kept.keep(done, training)


def _own_checkpoint(task: Task, plan: Plan, cell: Cell, number: int) -> tuple[Trainer, Reference]:
    """The parameters that the estimator itself has trained by then, in the task, and its own state with them."""
    task = loaded_task(plan, cell)
    estimator = make_estimator(cell.estimator_spec, task, plan)
    steps = checkpoint_steps(plan)[number]
    rng = generator(plan.device, cell.seed, "sampling")
    trainer = _trajectory(estimator, task, plan, cell, cell.estimator_spec, steps, rng)
    return trainer, reference_gradient(task, plan, cell.seed, number)


def _trajectory(
    estimator: Estimator, task: Task, plan: Plan, cell: Cell, spec: str, steps: int, rng: torch.Generator
) -> Trainer:
    """Train for `steps` steps and measure nothing."""
    trainer = Trainer(estimator, task, plan, learning_rate_of(task, plan, spec).value)
    prompts = batches(task, plan, estimator.n, cell.seed)
    for _ in range(steps):
        trainer.step(task.problem("train", next(prompts)), rng)
    return trainer


def reference_cell(plan: Plan, cell: Cell, number: int) -> None:
    """Checkpoint `number` of the reference trajectory, and the seed's true gradient there, into its file.

    Each worker runs the trajectory up to it, unless the first seed's is there: cheaper than waiting for another one.
    """
    with parallel.agree_on_failure():
        _reference_cell(plan, cell, number)


def _reference_cell(plan: Plan, cell: Cell, number: int) -> None:
    task, first = loaded_task(plan, cell), replace(cell, seed=0)
    rng = generator(plan.device, first.seed, "reference", "sampling")
    steps, known = checkpoint_steps(plan)[number], checkpoint_file(plan, first, number)
    if cell.seed != first.seed and parallel.world_size() == 1 and sealed.is_whole(known):
        set_parameters(task, sealed.read(known)[0])
    else:
        _trajectory(make_estimator(plan.reference, task, plan), task, plan, first, plan.reference, steps, rng)
    tensors = {f"parameter_{i}": p.detach().clone() for i, p in enumerate(task.params)}
    tensors |= reference_gradient(task, plan, cell.seed, number).tensors()
    if parallel.is_main():
        sealed.write(checkpoint_file(plan, cell, number), tensors)


def reference_gradient(task: Task, plan: Plan, seed: int, number: int) -> Reference:
    """grad J over all train prompts at the task's present parameters: exact where the task knows it, else a long run
    of the (unbiased) reference estimator."""
    everything = torch.arange(task.sizes["train"], device=plan.device)
    atomic_path = task.problem("train", everything)
    if "exact" in atomic_path.offers:
        return Reference.known(flatten(atomic_path.exact_gradient()), _sizes(task))
    estimator = make_estimator(plan.reference, task, plan).eval()
    start = torch.zeros(sum(_sizes(task)), dtype=torch.float64, device=plan.device)
    moments = Moments(start, _sizes(task), min(8, plan.reference_draws))
    for draw in range(plan.reference_draws):
        rng = generator(plan.device, seed, "reference", number, draw)
        parts = everything.split(max(1, 8 * plan.batch // estimator.n))  # larger passes than a step's: quicker
        vectors = [one_estimate(estimator, task.problem("train", part), rng) * len(part) for part in parts]
        moments.add((torch.stack(vectors).sum(0) / len(everything))[None])
    return Reference(moments.recentred(), exact=False)


# --- the whole cell, as a worker runs it ------------------------------------------------------------------------


def run_cell(plan: Plan, cell: Cell, key: str, known: facts.Facts | None = None) -> tuple[str, str]:
    """Run the cell and write its folder; returns its status and, in one line, why it isn't `ok` or what
    of it is lacking.

    What is `known` to count for its numbers is written with it, and lets its training go on with more steps.
    """
    folder = Path(plan.out) / "cells" / cell.id
    record = records.CellRecord(identity_of(plan, cell))
    watch = isolation.Watch(cell.foreign, cell.estimator)
    status, reason, lacking = "ok", "", list[str]()
    try:
        with parallel.agree_on_failure(), panics_raised():
            lacking = _run_parts(plan, cell, facts.training_key_of(known, cell) if known else key, record, folder)
    except Unsupported as error:
        status, reason = "skipped", str(error)
    except Diverged as error:
        status, reason = "diverged", str(error)
    except BaseException as error:
        if is_users(error) or (isinstance(error, OSError) and out_of_room(error)):
            raise  # nor could this be written down
        status, reason = "oom" if is_out_of_memory(error) else "failed", _told(error, cell)
        _keep_traceback(plan, cell)
    if lacking:
        reason, key = "; ".join(lacking)[:1000], f"{key} in part"  # so that a later run tries again
    if (status == "oom" or lacking) and torch.cuda.is_available():
        torch.cuda.empty_cache()  # the next cell may have other shapes
    if changed := watch.ended():
        status, reason = "failed", f"{changed} ({reason})" if reason else changed
        record = records.CellRecord(identity_of(plan, cell))
    if parallel.is_main():
        if changed:
            _discard(plan, cell, folder)
        found = (record.frame(status), status, reason, record.probe_frame(), record.samples)
        read = what_was_read(cell)
        also = about(cell, known) | {"read": read, "inputs": followed.inputs(read)}
        records.write_cell(folder, key, *found, about=also)
        if status == "skipped":
            training_file(plan, cell).unlink(missing_ok=True)
    return status, reason


def _discard(plan: Plan, cell: Cell, folder: Path) -> None:
    """What the cell has written besides its rows, that a later one would go on from."""
    training_file(plan, cell).unlink(missing_ok=True)
    shutil.rmtree(folder / records.POLICY, ignore_errors=True)
    for number in range(len(checkpoint_steps(plan))):
        shutil.rmtree(warm_file(plan, cell, number).parent, ignore_errors=True)


def what_was_read(cell: Cell) -> dict[str, str | None]:
    """Files and variables that code of plugins has read in this process, besides those that the facts have."""
    return followed.read(known_files()) if any(cell.foreign) else {}


def about(cell: Cell, known: facts.Facts | None) -> dict[str, Any]:
    """What cell.json says of a cell, so that another command in its folder can tell what it is."""
    return {"task": cell.task, "estimator": cell.estimator, "seed": cell.seed, "facts": known}


def _run_parts(plan: Plan, cell: Cell, key: str, record: records.CellRecord, folder: Path) -> list[str]:
    """Train, keep the policy where that is asked for, and probe; returns which diagnostics could not be computed.

    A probe that fails takes no training with it, and where nothing is trained it is all that was asked for.
    """
    _require_unchanged(cell)
    task = loaded_task(plan, cell)
    if plan.train:
        every = plan.checkpoint_every if parallel.is_main() else math.inf
        checkpoint = Checkpoint(training_file(plan, cell), key, every, plan.device, lambda: what_was_read(cell))
        train(make_estimator(cell.estimator_spec, task, plan), task, plan, cell, record, checkpoint)
        if plan.save_policies and parallel.is_main():
            _save_policy(task, folder / records.POLICY)
    if not plan.checkpoints or cell.twin:
        return []
    if not plan.train:
        return probe(task, plan, cell, record)
    lacking: list[str] = []
    with _apart(plan, cell, "no gradient probes", lacking):
        lacking += probe(task, plan, cell, record)
    return lacking


def _save_policy(task: Task, folder: Path) -> None:
    """Whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(folder) as draft:
        draft.mkdir()
        task.save_policy(draft)
        shutil.rmtree(folder, ignore_errors=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Also torch's allocator on a CPU, which raises a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)


def _memory_advice(cell: Cell) -> str:
    """What to do where memory ran out."""
    advice = getattr(registry.resolve("tasks", cell.task_spec).factory, "memory_advice", "")
    return f"take a smaller --batch, or --micro-batches 2 or more{f', or {advice}' if advice else ''}"


def _require_unchanged(cell: Cell) -> None:
    """Raises InputError where a source was edited while the run went on: its cells would mix two versions."""
    wanted = [("tasks", cell.task_spec), ("estimators", cell.estimator_spec)]
    for (kind, spec), digest in zip(wanted, cell.digests, strict=False):
        if registry.resolve(kind, spec).digest != digest:
            raise InputError(f"a source of {spec} was changed after the run had started; run again for its cells")


def identity_of(plan: Plan, cell: Cell) -> records.Identity:
    return records.Identity(
        plan.run_id, cell.id, cell.task, plan.setting, cell.estimator, cell.params, cell.source, cell.seed
    )


def cell_key(plan: Plan, cell: Cell, task: Task, learning_rate: float | None = None) -> str:
    """Changes with anything that the cell's numbers depend on. The rate may be given where it is known."""
    return facts.key_of(facts_of(plan, cell, task, learning_rate), cell)


def facts_of(plan: Plan, cell: Cell, task: Task, learning_rate: float | None = None) -> facts.Facts:
    """What the cell's numbers depend on but its seed; the task is loaded."""
    rate = learning_rate_of(task, plan, cell.estimator_spec).value if learning_rate is None else learning_rate
    lender = learning_rate_of(task, plan, plan.reference).value
    reference = (lender, registry.resolve("estimators", plan.reference).digest)
    return facts.facts_of(facts.Known(plan, cell, task, rate, reference))


def make_estimator(spec: str, task: Task, plan: Plan) -> Estimator:
    """The estimator on the plan's device, with its parts built for the task.

    Raises Unsupported where its samples don't divide the batch, and where the task lacks what it needs.
    """
    resolved = registry.resolve("estimators", spec)
    estimator, label = resolved.create(), resolved.label
    if plan.batch % estimator.n:
        raise Unsupported(f"{label} takes {estimator.n} samples a prompt, which does not divide --batch {plan.batch}")
    contexts = min(plan.batch // estimator.n, task.sizes["train"])
    problem = task.problem("train", torch.arange(contexts, device=plan.device))
    lacking = estimator.needs - problem.offers
    if lacking:
        reasons = "; ".join(reason for need, reason in task.lacks.items() if need in lacking)
        offer = f"which the task does not offer{f': {reasons}' if reasons else ''}"
        raise Unsupported(f"{label} needs {', '.join(sorted(lacking))}, {offer}")
    if plan.shards > 1:
        estimator = Sharded(estimator, plan.shards)
    torch.manual_seed(0)  # initial weights of its own parts
    try:
        estimator.init(problem)
    except Unsupported as reason:
        raise Unsupported(f"{label}: {reason}") from reason
    return estimator.to(plan.device)


def learning_rate_of(task: Task, plan: Plan, estimator_spec: str) -> Rate:
    """--learning-rate, else that of `rate-like`, else of --tuned, else the recorded one for these steps, else the task's.

    With other options than those that were tuned, an estimator borrows the rate of the one that was.
    """
    if plan.learning_rate is not None:
        return Rate(plan.learning_rate, GIVEN)
    resolved = registry.resolve("estimators", estimator_spec)
    if resolved.rate_like:
        return learning_rate_of(task, plan, resolved.rate_like).borrowed(resolved.rate_like)
    if resolved.label in plan.tuned:
        return plan.tuned[resolved.label]
    tuned = plan.tuned.get(resolved.name)
    if tuned is None and (recorded := task.tuned(resolved.name)):
        tuned = tuned_rate(recorded, plan.steps, plan.setting, "recorded by the task")
    if tuned is None:
        return Rate(task.learning_rate, TASK)
    return tuned if resolved.label == resolved.name else tuned.borrowed(resolved.name)
