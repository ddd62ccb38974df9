"""A cell's estimator, its learning rate, and the key of everything that its results depend on."""

import torch

from gradebench.analysis.provenance import GIVEN, TASK, Rate, tuned_rate
from gradebench.core.errors import InputError, Unsupported
from gradebench.core.estimator import Estimator
from gradebench.core.shown import counted
from gradebench.core.task import Task
from gradebench.experiment import facts
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry
from gradebench.problems.sharded import Sharded
from gradebench.storage import records


def identity_of(plan: Plan, cell: Cell) -> records.Identity:
    return records.Identity(
        plan.run_id, cell.id, cell.task, plan.setting, cell.estimator, cell.params, cell.source, cell.seed
    )


def make_estimator(spec: str, task: Task, plan: Plan) -> Estimator:
    """The estimator on the plan's device, with its parts built for the task.

    Raises Unsupported if its number of samples doesn't divide the batch, or if the task lacks what the estimator needs.
    """
    resolved = registry.resolve("estimators", spec)
    estimator, label = task.adapted(resolved.create()), resolved.label
    if plan.batch % estimator.n:
        raise Unsupported(
            f"{label} takes {counted(estimator.n, 'sample')} a prompt, which does not divide --batch {plan.batch}"
        )
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
    """The first that exists of: --learning-rate, the rate of `rate-like`, that of --tuned, the recorded one for these steps,
    and the task's default.

    An estimator with options for which no rate was tuned borrows the rate tuned for its default options.
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


def facts_of(plan: Plan, cell: Cell, task: Task, learning_rate: float | None = None) -> facts.Facts:
    """Everything that the cell's results depend on except its seed. The task must be loaded."""
    rate = learning_rate_of(task, plan, cell.estimator_spec).value if learning_rate is None else learning_rate
    lender = learning_rate_of(task, plan, plan.reference).value
    reference = (lender, registry.resolve("estimators", plan.reference).digest)
    return facts.facts_of(facts.Known(plan, cell, task, rate, reference))


def cell_key(plan: Plan, cell: Cell, task: Task, learning_rate: float | None = None) -> str:
    """A digest of everything that the cell's results depend on. Pass the learning rate if it is known."""
    return facts.key_of(facts_of(plan, cell, task, learning_rate), cell)


def require_unchanged(cell: Cell) -> None:
    """Raises InputError if a source file was edited during the run, because its cells would mix two versions."""
    wanted = [("tasks", cell.task_spec), ("estimators", cell.estimator_spec)]
    for (kind, spec), digest in zip(wanted, cell.digests, strict=False):
        if registry.resolve(kind, spec).digest != digest:
            raise InputError(f"a source of {spec} was changed after the run had started; run again for its cells")
