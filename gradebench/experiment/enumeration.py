"""`gradebench enumerate`: exact bias and variance of estimators on a task whose samples can all be listed."""

import pandas as pd
import torch

from gradebench.analysis.design import variants
from gradebench.core import progress
from gradebench.core.errors import InputError, Unsupported
from gradebench.core.problem import Behaviour, Problem
from gradebench.core.sampler import Sampler
from gradebench.core.shown import counted
from gradebench.experiment.cells import Progress
from gradebench.experiment.preparing import expand, plugin_errors, ready_task
from gradebench.experiment.request import Request
from gradebench.measurement.expectation import expectation, mixes_contexts
from gradebench.measurement.moments import flatten
from gradebench.plugins import registry

COLUMNS = {
    "bias_squared": "|E g - grad J|^2 / |grad J|^2",
    "bias_after_scaling": "the same for the best multiple of g: the bias of the direction",
    "cosine": "between E g and grad J",
    "length": "|E g| / |grad J|",
    "variance": "trace of the covariance of one batch's g, / |grad J|^2",
    "mse": "squared bias + variance",
}


def enumerated(request: Request, contexts: int, shown: Progress) -> pd.DataFrame:
    """A row of COLUMNS for each task and estimator, at the task's initial parameters, on its first train prompts.

    With several instances of the task, the medians over them.

    Raises InputError for a task that can't be listed, and for an estimator with random numbers of its own.
    """
    estimators, _ = expand("estimators", request.estimators)
    if request.sampler.stale:
        raise InputError(
            "--stale needs a training: `gradebench probe` has one; here give --temperature, --top-p, --noise"
        )
    rows = []
    specs = [
        (spec, one) for spec in expand("tasks", request.tasks)[0] for one in variants([spec], {}, request.instances)
    ]
    for named, variant in specs:
        spec = variant.resolved
        with plugin_errors(f"task {spec.label}", spec.foreign):
            task = ready_task(spec, "cpu", request.strict, shown)
        index = torch.arange(min(contexts, task.sizes["train"]))
        problem = task.problem("train", index)
        if "support" not in problem.offers:
            raise InputError(f"{spec.label}: its samples can't all be listed; enumerable-lm is a task where they can")
        truth = flatten(problem.exact_gradient())
        sampled = _sampled(problem, spec.label, request.sampler)
        for one in progress.track(f"enumerating {spec.label}", estimators, len(estimators)):
            rows.append({"task": named.label, "estimator": one.label} | _row(one, sampled, truth))
    found = pd.DataFrame(rows, columns=["task", "estimator", *COLUMNS])
    return found.groupby(["task", "estimator"], sort=False, as_index=False).median()


def _sampled(problem: Problem, label: str, sampler: Sampler) -> Problem:
    try:
        return problem if sampler.on_policy else problem.sampled_by(Behaviour(sampler))
    except Unsupported as reason:
        raise InputError(f"{label}: {reason}, not with {sampler}") from reason


def _row(resolved: registry.Resolved, problem: Problem, truth: torch.Tensor) -> dict[str, float]:
    with plugin_errors(f"estimator {resolved.label}", resolved.foreign):
        estimator = resolved.create().to(problem.params[0])
        if lacking := estimator.needs - problem.offers:
            raise InputError(f"{resolved.label} needs {', '.join(sorted(lacking))}, which the task does not offer")
        if estimator.period > 1:
            raise InputError(
                f"{resolved.label} takes {counted(estimator.period, 'gradient')} from a batch; give options with which it takes one"
            )
        try:
            torch.manual_seed(0)
            estimator.init(problem)
            found = expectation(estimator, problem, mixes_contexts(estimator, problem))
        except (Unsupported, ValueError) as reason:
            raise InputError(f"{resolved.label}: {reason}") from reason
    return found.compared(truth)
