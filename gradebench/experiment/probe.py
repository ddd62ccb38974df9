"""The gradient probes of a cell: moments of its gradients at frozen parameters, compared with the reference gradient."""

import contextlib
import functools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradebench.core.errors import Unsupported
from gradebench.core.estimator import Estimator
from gradebench.core.task import Task
from gradebench.experiment.cell_files import checkpoint_steps
from gradebench.experiment.cell_setup import learning_rate_of
from gradebench.experiment.failures import apart
from gradebench.experiment.plan import Cell, Plan
from gradebench.experiment.references import own_checkpoint, shared_checkpoint, sizes_of, source_of
from gradebench.experiment.training import Trainer
from gradebench.measurement.gradient_metrics import Interval, gradient_metrics, slope_of_log_variance, summaries
from gradebench.measurement.moments import Reference
from gradebench.measurement.probes import Source, by_call, costs_of, moments_of
from gradebench.storage import records


def probe(task: Task, plan: Plan, cell: Cell, record: records.CellRecord) -> list[str]:
    """Probe the estimator's gradients at the probe points, and compare their moments with the reference gradients.

    Returns what could not be computed, and why; those metrics are empty or left out.
    """
    lacking: list[str] = []
    for number, step in enumerate(checkpoint_steps(plan)):
        if cell.checkpoint not in (None, number):
            continue
        if plan.along == "own":
            trainer, reference = own_checkpoint(task, plan, cell, number)
        else:
            trainer, reference = shared_checkpoint(task, plan, cell, number)
        estimator = trainer.estimator.eval()
        rate = learning_rate_of(task, plan, cell.estimator_spec).value
        source = source_of(task, plan, cell, "probe", step, plan.batch // estimator.n, trainer.sampled)
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
            with apart(plan, cell, f"the calls at step {step}", lacking):
                _probe_calls(estimator, task, plan, source, reference, place, record)
        with apart(plan, cell, f"the costs at step {step}", lacking):
            record.add_probe(place | {"group": ""}, _cost_metrics(variance, costs_of(estimator, source)))
        if number == 0:
            with apart(plan, cell, "smaller batches", lacking):
                _probe_batch_sizes(trainer, task, plan, cell, reference, variance, record)
    return lacking


def _measured(
    estimator: Estimator, task: Task, source: Source, draws: int, reference: Reference
) -> tuple[dict[str, dict[str, Interval]], dict[str, Interval], int]:
    """The metrics of each group of parameters, those of all parameters, and the number of draws."""
    moments = moments_of(estimator, source, draws // 2, reference.moments.centre, sizes_of(task))
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
    """The metrics of the gradient of each call that shares a batch, in groups "call 1", "call 2", ..., with the means of
    `Estimate.info`."""
    moments, info = by_call(estimator, source, plan.probe_draws // 2, reference.moments.centre, sizes_of(task))
    names = source.problem(source.contexts(0)[:1], None).parameter_names
    for number, (one, info_of_call) in enumerate(zip(moments, info, strict=True), 1):
        metrics = gradient_metrics(summaries(one, reference, names)[""])
        metrics |= {f"info_{name}": Interval(value, math.nan, math.nan) for name, value in info_of_call.items()}
        record.add_probe(dict(place) | {"group": f"call {number}"}, metrics)


def _probe_batch_sizes(
    trainer: Trainer,
    task: Task,
    plan: Plan,
    cell: Cell,
    reference: Reference,
    whole: Interval,
    record: records.CellRecord,
) -> None:
    """The variance at smaller batches and at the `whole` one, and the slope of its logarithm against that of the batch size."""
    estimator = trainer.estimator
    sizes = [plan.batch // 8, plan.batch // 4, plan.batch // 2]
    measured: dict[int, Interval] = {}
    place = {"along": plan.along, "step": 0, "group": ""}
    for size in (size for size in sizes if size and size % estimator.n == 0):
        source = source_of(task, plan, cell, f"batch {size}", 0, size // estimator.n, trainer.sampled)
        with contextlib.suppress(Unsupported):  # a batch with too few contexts for the estimator's minibatches
            _, overall, draws = _measured(estimator, task, source, max(4, plan.probe_draws // 4), reference)
            measured[size] = overall["gradient_variance"]
            row = {"gradient_variance_by_batch": measured[size]}
            record.add_probe(place | {"samples": size, "draws": draws}, row)
    measured[plan.batch] = whole
    slope = slope_of_log_variance(list(measured), list(measured.values()))
    last = {"gradient_variance_by_batch": whole, "gradient_variance_slope": slope}
    record.add_probe(place | {"samples": plan.batch, "draws": plan.probe_draws}, last)


def _cost_metrics(variance: Interval, costs: dict[str, float]) -> dict[str, Interval]:
    """The costs of one gradient, and variance times cost, which is the cost of a given precision."""
    answer = {}
    for name, cost in costs.items():
        answer[f"cost_{name}"] = Interval(cost, float("nan"), float("nan"))
        answer[f"gradient_variance_times_{name}"] = Interval(
            variance.value * cost, variance.low * cost, variance.high * cost
        )
    return answer
