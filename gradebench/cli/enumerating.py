"""The command that computes expectations exactly: enumerate."""

from enum import StrEnum
from typing import Annotated

import typer

from gradebench.cli.options import (
    EstimatorOption,
    NoiseOption,
    StrictOption,
    TaskOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    sampler_of,
)
from gradebench.core.streams import plugins_aside


class Form(StrEnum):
    table = "table"
    markdown = "markdown"
    csv = "csv"


def enumerate_samples(
    estimator: EstimatorOption = None,
    task: TaskOption = None,
    contexts: Annotated[int, typer.Option(min=1, help="prompts of a batch, the first ones of the training split")] = 4,
    instances: Annotated[
        int | None, typer.Option(min=1, help="instances of the task, with new models; shown are the medians over them")
    ] = None,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    noise: NoiseOption = "0",
    form: Annotated[Form, typer.Option("--format", help="table, markdown or csv")] = Form.table,
    strict: StrictOption = False,
) -> None:
    """Compute bias and variance of gradients exactly.

    Without draws: at the task's initial parameters, every sample that an estimator can get is listed, with its probability.
    For estimators whose only random numbers are their samples.
    """
    from gradebench.experiment.enumeration import enumerated
    from gradebench.experiment.request import Request
    from gradebench.reporting import expectations, terminal

    request = Request(
        estimators=estimator or ["rloo"],
        tasks=task or ["enumerable-lm:vocabulary=3,horizon=3,layers=1,width=4"],
        strict=strict,
        instances=instances,
        sampler=sampler_of(0, temperature, top_k, top_p, noise),
    )
    with plugins_aside():
        found = enumerated(request, contexts, terminal.TerminalProgress())
    expectations.show(found, form.value)
