"""Evaluations of a task's splits, with the same prompts and noise for every estimator of a seed."""

import torch

from gradebench.core.sampling import generator
from gradebench.core.task import Task
from gradebench.experiment.loaded import worker
from gradebench.experiment.plan import Plan
from gradebench.storage import records


def evaluate(task: Task, plan: Plan, seed: int, step: int, record: records.CellRecord) -> None:
    """Evaluate all splits, with the same prompts and noise at every step and for every estimator of a seed.

    Train prompts are evaluated, and samples stored, only at the first and the last step. As step 0 is the same for all
    estimators, a process evaluates it once.
    """
    for split in task.splits:
        if split == "train" and 0 < step < plan.steps:
            continue
        known = worker.first_evaluations.get((id(task), seed, split)) if step == 0 else None
        metrics = known[0] if known else evaluated(task, split, generator(plan.device, seed, "evaluation", split))
        record.add("evaluation", split, step, metrics)
        if step in (0, plan.steps):
            samples = known[1] if known else task.samples(split, generator(plan.device, seed, "samples", split))
            record.add_samples(split, step, samples)
        if step == 0:
            worker.first_evaluations[id(task), seed, split] = (metrics, samples)


def evaluated(task: Task, split: str, rng: torch.Generator) -> dict[str, float]:
    """The task's metrics of a split, and the objective, reward - beta KL, if the task measures both."""
    metrics = task.evaluate(split, rng)
    if "reward" in metrics:
        metrics = {"objective": metrics["reward"] - task.beta * metrics.get("kl", 0.0)} | metrics
    return metrics
