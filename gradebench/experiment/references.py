"""The probe points on a trajectory, at which gradients are probed, and the reference gradients there.

All estimators of a task share the reference estimator's trajectory; with --along own, each has its own.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gradebench.core import parallel, progress
from gradebench.core.estimator import Estimator
from gradebench.core.problem import Ledger, Problem
from gradebench.core.sampler import ON_POLICY
from gradebench.core.sampling import generator
from gradebench.core.task import Task
from gradebench.experiment.cell_files import checkpoint_file, checkpoint_steps, warm_file, what_was_read
from gradebench.experiment.cell_setup import identity_of, learning_rate_of, make_estimator
from gradebench.experiment.loaded import set_parameters, worker
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.training import Trainer, batches
from gradebench.experiment.warm_up import needs_warm_up, warm_up
from gradebench.measurement.moments import Moments, Reference, flatten
from gradebench.measurement.probes import Source, one_estimate
from gradebench.storage import records, sealed
from gradebench.storage.checkpoints import Checkpoint

EARLIER = "earlier_"  # names of the parameters from which a stale sampler draws, in the file of a probe point


def reference_cell(plan: Plan, cell: Cell, number: int) -> None:
    """Write probe point `number` of the reference trajectory, with the seed's reference gradient there, into its file.

    Unless the first seed's file exists, each worker runs the trajectory up to this point itself, which takes less time
    than waiting for another worker.
    """
    with parallel.agree_on_failure():
        _reference_cell(plan, cell, number)


def _reference_cell(plan: Plan, cell: Cell, number: int) -> None:
    task, first = worker.task(plan, cell), replace(cell, seed=0)
    rng = generator(plan.device, first.seed, "reference", "sampling")
    on_policy, earlier = replace(plan, sampler=ON_POLICY), plan.sampler.stale
    steps, known = checkpoint_steps(plan)[number], checkpoint_file(plan, first, number)
    if cell.seed != first.seed and parallel.world_size() == 1 and sealed.is_whole(known):
        stored = sealed.read(known)[0]
        set_parameters(task, stored)
        tensors = {name: tensor for name, tensor in stored.items() if name.startswith(EARLIER)}
    else:
        trainer = _trajectory(
            make_estimator(plan.reference, task, plan), task, on_policy, first, plan.reference, steps, rng, earlier
        )
        oldest = trainer.sampled.past.steps[:1]
        tensors = {f"{EARLIER}{i}": p for params in oldest for i, p in enumerate(params)}
    tensors |= {f"parameter_{i}": p.detach().clone() for i, p in enumerate(task.params)}
    tensors |= reference_gradient(task, plan, cell.seed, number).tensors()
    if parallel.is_main():
        sealed.write(checkpoint_file(plan, cell, number), tensors)


def reference_gradient(task: Task, plan: Plan, seed: int, number: int) -> Reference:
    """grad J over all train prompts at the task's present parameters: exact if the task can compute it, else the mean of many
    gradients of the unbiased reference estimator."""
    everything = torch.arange(task.sizes["train"], device=plan.device)
    problem = task.problem("train", everything)
    if "exact" in problem.offers:
        return Reference.known(flatten(problem.exact_gradient()), sizes_of(task))
    estimator = make_estimator(plan.reference, task, plan).eval()
    start = torch.zeros(sum(sizes_of(task)), dtype=torch.float64, device=plan.device)
    moments = Moments(start, sizes_of(task), min(8, plan.reference_draws))
    for draw in progress.track(f"reference gradient seed {seed}", range(plan.reference_draws), plan.reference_draws):
        rng = generator(plan.device, seed, "reference", number, draw)
        parts = everything.split(
            max(1, 8 * plan.batch // estimator.n)
        )  # larger passes than a training step's are faster
        vectors = [one_estimate(estimator, task.problem("train", part), rng) * len(part) for part in parts]
        moments.add((torch.stack(vectors).sum(0) / len(everything))[None])
    return Reference(moments.recentred(), exact=False)


def shared_checkpoint(task: Task, plan: Plan, cell: Cell, number: int) -> tuple[Trainer, Reference]:
    """Load the reference trajectory's parameters into the task; returns the estimator with its own state warmed up there."""
    tensors, _ = sealed.read(checkpoint_file(plan, cell, number))
    stored = {name: tensor.to(plan.device) for name, tensor in tensors.items()}
    set_parameters(task, stored)
    trainer = Trainer(make_estimator(cell.estimator_spec, task, plan), task, plan, 0.0)
    if f"{EARLIER}0" in stored:
        trainer.sampled.past.steps = [[stored[f"{EARLIER}{i}"] for i in range(len(task.params))]]
    if needs_warm_up(trainer):
        _warm(trainer, task, plan, cell, number)
    return trainer, Reference.of_tensors(stored, sizes_of(task))


def _warm(trainer: Trainer, task: Task, plan: Plan, cell: Cell, number: int) -> None:
    """The warmed-up state, from the file of another seed's cell or by training. Both are the same, because its random numbers
    don't depend on the seed."""
    anyone = replace(cell, seed=0, checkpoint=None, other_draws="")
    step, estimator = checkpoint_steps(plan)[number], trainer.estimator
    source = source_of(task, plan, anyone, "warm-up", step, plan.batch // estimator.n, trainer.sampled)
    training = trainer.training(
        generator(plan.device, 0, "warm-up"), Ledger(), records.CellRecord(identity_of(plan, anyone))
    )
    # The reference's key depends on everything that results depend on, except the estimator.
    key = f"{plan.reference_key} {cell.estimator_spec} {cell.params} {cell.digests[1:]} {number}"
    kept = Checkpoint(warm_file(plan, cell, number), key, 0.0, plan.device, lambda: what_was_read(cell))
    alone = parallel.world_size() == 1  # several processes must all take the same branch
    if not (alone and kept.restored(training)):
        done = warm_up(trainer, source, plan.warm_up)
        if alone:
            kept.keep(done, training)


def own_checkpoint(task: Task, plan: Plan, cell: Cell, number: int) -> tuple[Trainer, Reference]:
    """Train with the estimator itself up to this step; leaves the parameters in the task, and returns it with its own state."""
    task = worker.task(plan, cell)
    estimator = make_estimator(cell.estimator_spec, task, plan)
    steps = checkpoint_steps(plan)[number]
    rng = generator(plan.device, cell.seed, "sampling")
    trainer = _trajectory(estimator, task, plan, cell, cell.estimator_spec, steps, rng)
    return trainer, reference_gradient(task, plan, cell.seed, number)


def _trajectory(
    estimator: Estimator,
    task: Task,
    plan: Plan,
    cell: Cell,
    spec: str,
    steps: int,
    rng: torch.Generator,
    earlier: int | None = None,
) -> Trainer:
    """Train for `steps` steps without evaluations; the parameters of `earlier` steps ago are kept (None: as the plan needs)."""
    trainer = Trainer(estimator, task, plan, learning_rate_of(task, plan, spec).value)
    if earlier is not None:
        trainer.sampled.past.length = earlier
    prompts = batches(task, plan, estimator.n, cell.seed)
    for _ in range(steps):
        trainer.learn(task.problem("train", next(prompts)), rng)
    return trainer


def source_of(
    task: Task,
    plan: Plan,
    cell: Cell,
    part: str,
    step: int,
    contexts: int,
    sampled: Callable[[Problem], Problem] = lambda problem: problem,
) -> Source:
    """Gradients with new prompts for each pair, on problems `sampled` from; all random numbers are seeded by name."""
    size = task.sizes["train"]

    def indices(number: int) -> Tensor:
        rng = generator("cpu", cell.seed, part, step, number, "prompts")
        return torch.randperm(size, generator=rng)[:contexts].to(plan.device)

    return Source(
        contexts=indices,
        problem=lambda index, ledger: sampled(task.problem("train", index, ledger)),
        generator=lambda draw: generator(plan.device, cell.seed, part, step, draw),
    )


def sizes_of(task: Task) -> list[int]:
    return [p.numel() for p in task.params]
