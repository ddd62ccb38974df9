"""Options that several commands have, and how their values are read."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradebench.cli import completion
from gradebench.core.errors import InputError

if TYPE_CHECKING:
    from gradebench.core.sampler import Sampler


def sampler_of(stale: int, temperature: float, top_k: int, top_p: float, noise: str) -> "Sampler":
    """Raises InputError for what no sampler can be."""
    from gradebench.core.sampler import BFLOAT16, Sampler

    try:
        size: float | str = noise if noise == BFLOAT16 else float(noise)
    except ValueError:
        raise InputError(f"--noise {noise}: bfloat16 or a number from 0 on is needed") from None
    return Sampler(stale, temperature, top_k, top_p, size)


class Kind(StrEnum):
    estimators = "estimators"
    tasks = "tasks"


class Launcher(StrEnum):
    local = "local"
    ray = "ray"
    slurm = "slurm"


class Judged(StrEnum):
    reward = "reward"
    gold_reward = "gold_reward"


class Form(StrEnum):
    table = "table"
    latex = "latex"
    markdown = "markdown"
    csv = "csv"


class FigureForm(StrEnum):
    svg = "svg"
    pdf = "pdf"
    png = "png"


class Tracker(StrEnum):
    csv = "csv"
    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


class Along(StrEnum):
    reference = "reference"
    own = "own"


EstimatorOption = Annotated[
    list[str] | None,
    typer.Option(
        "--estimator",
        "-e",
        help="NAME[:k=v,...], FILE.py:OBJECT[:k=v,...] or all; repeatable",
        autocompletion=completion.estimators,
    ),
]
TaskOption = Annotated[
    list[str] | None,
    typer.Option("--task", "-t", help="NAME[:k=v,...] or all; repeatable", autocompletion=completion.tasks),
]
BatchOption = Annotated[int | None, typer.Option(help="sampled sequences in each step; default: the task's")]
ClipOption = Annotated[float, typer.Option(help="largest global norm of a gradient; longer ones are scaled down to it")]
StaleOption = Annotated[
    int,
    typer.Option(
        metavar="STEPS", help="samples come from the policy of so many training steps ago, as in asynchronous training"
    ),
]
TemperatureOption = Annotated[float, typer.Option(help="samples are drawn at this temperature")]
TopKOption = Annotated[int, typer.Option(help="samples have only the likeliest tokens, so many; 0: all")]
TopPOption = Annotated[float, typer.Option(help="samples have only the likeliest tokens that make up this probability")]
NoiseOption = Annotated[
    str,
    typer.Option(
        metavar="NOISE",
        help="samples are drawn from logits rounded to bfloat16, or with a fixed error of this standard deviation",
    ),
]
RateOption = Annotated[float | None, typer.Option(help="the same for all estimators; default: the tuned value of each")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]
OutOption = Annotated[str | None, typer.Option(help="folder of the results; default: results/<task>-<time>")]
JobsOption = Annotated[
    int | None,
    typer.Option(help="cells that run at the same time, on each GPU if there are any; default: one for each core"),
]
TimeoutOption = Annotated[float | None, typer.Option(help="seconds after which a cell is stopped")]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh",
        help="keep what is finished in the folder, or discard what this command would compute again or can't be combined with",
    ),
]
_BY = "the metric that ranks, on test prompts: objective (reward - kl * KL), reward or gold_reward"
ByOption = Annotated[str | None, typer.Option("--by", metavar="METRIC", help=f"{_BY}; default: objective")]
ByAgainOption = Annotated[str | None, typer.Option("--by", metavar="METRIC", help=f"{_BY}; default: the run's own")]
_AGAINST = "a baseline: only its comparisons with the others are tested, instead of all pairs; repeatable"
AgainstOption = Annotated[list[str] | None, typer.Option("--against", metavar="NAME", help=_AGAINST)]
AgainstAgainOption = Annotated[
    list[str] | None,
    typer.Option("--against", metavar="NAME", help=f"{_AGAINST}; default: the run's own; all: all pairs"),
]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="fail where the hub can't be reached, instead of taking the embedded corpus")
]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="let models from a hub or folder run their own code")
]
RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs", show_default=False)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run", show_default=False)]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="write the table here too")]


def rates_of(text: str | None) -> tuple[list[float], float | None, float | None]:
    """A list, or the ends of an interval."""
    if text is None:
        return [], None, None
    try:
        numbers = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        numbers = []
    interval = ":" in text
    usable = all(0 < number < float("inf") for number in numbers) and len(set(numbers)) == len(numbers)
    if not numbers or not usable or (interval and (len(numbers) != 2 or numbers != sorted(numbers))):
        raise InputError(f"--rates {text}: numbers above 0 are needed, as in 1e-4:1e-2 or 1e-4,1e-3,1e-2")
    return ([], *numbers) if interval else (numbers, None, None)  # type: ignore[return-value]


def budgets_of(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"--kl {text}: different numbers above 0 are needed, as in 0.5,1,2")
    return sorted(numbers)
