"""The training of a cell with its evaluations, from the start or from a checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradebench.core import progress
from gradebench.core.estimator import Estimator
from gradebench.core.memory import peak_memory, reset_peak_memory
from gradebench.core.sampling import generator
from gradebench.core.task import Task
from gradebench.experiment.cell_setup import learning_rate_of
from gradebench.experiment.evaluation import evaluate
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.series import Series, ledger_for
from gradebench.experiment.training import Diverged, Trainer, batches
from gradebench.storage import records
from gradebench.storage.checkpoints import Checkpoint


def train(
    estimator: Estimator,
    task: Task,
    plan: Plan,
    cell: Cell,
    record: records.CellRecord,
    checkpoint: Checkpoint | None = None,
) -> Trainer:
    """Train for `steps` steps from the task's initial parameters; records evaluations, costs and the series of all steps.

    With a `checkpoint`, training resumes from it, bit-identical to an uninterrupted training.
    """
    series = Series()
    ledger = ledger_for(estimator, series)
    trainer = Trainer(estimator, task, plan, learning_rate_of(task, plan, cell.estimator_spec).value, series)
    prompts = batches(task, plan, estimator.n, cell.seed)
    rng = generator(plan.device, cell.seed, "sampling", *filter(None, [cell.other_draws]))
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
            record.steps = series.read()
        progress.tell(f"{cell.estimator} seed {cell.seed}", step, plan.steps)
        if step < plan.steps:
            try:
                trainer.learn(task.problem("train", next(prompts), ledger), rng)
            except Diverged:
                record.steps = series.read()
                raise
            if checkpoint and step + 1 < plan.steps:
                checkpoint.after(step + 1, training)
            elif checkpoint:
                checkpoint.keep(plan.steps, training)
    seconds = trainer.clock.estimator + trainer.clock.optimizer
    figures = {"seconds_per_step": seconds / max(1, plan.steps), "peak_memory_bytes": peak_memory(plan.device)}
    record.add("train", "train", plan.steps, figures | trainer.updates.summary())
    return trainer


def _fits(done: int, rows: Sequence[Mapping[str, Any]], plan: Plan) -> bool:
    """Whether a training at this step with these rows can be continued for the plan: it has no more steps, and was evaluated
    at the plan's evaluation steps."""
    evaluated = {row["step"] for row in rows if row["phase"] == "evaluation"}
    return done <= plan.steps and evaluated == {step for step in plan.evaluation_steps if step < done}
