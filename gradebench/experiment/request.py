"""The request of a command, and the outcome of its run."""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch

from gradebench.analysis import frontier, instances
from gradebench.analysis.runs import require_rankable
from gradebench.core import parallel, schema
from gradebench.core.errors import InputError
from gradebench.core.sampler import ON_POLICY, Sampler
from gradebench.core.shown import counted
from gradebench.plugins import registry
from gradebench.storage import records


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

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
    trust_remote_code: bool = False  # of models from the hub or a folder
    launcher: str = "local"
    checkpoint_every: float = 60.0  # seconds of training between checkpoints
    train: bool = True  # False: `gradebench probe`
    draws: int | None = None  # gradients in each probe
    checkpoints: int = 3
    along: str = "reference"
    control: bool = False  # also train every estimator with other random numbers, as its A/A control
    shards: int | None = None  # parts of a batch; None: one for each process
    save_policies: bool = False
    by: str | None = None  # the metric that ranks; None: the objective
    against: Sequence[str] = ()  # labels of the baselines; none: all pairs are compared
    tuned: str | None = None  # the tuned.json whose learning rates are used
    tune: bool = False  # first tune the estimators without a tuned rate, whose file `tuned` then names
    sweep: Sequence[str] = ()  # "OPTION=VALUE,VALUE,..." of the tasks, or of the learning rate
    instances: int | None = None  # number of instances of each task; None: the one that its spec names
    evaluate_every: int | None = None  # steps between evaluations besides those that all runs have
    clip: float = 1.0  # maximum of the gradient's global norm
    sampler: Sampler = ON_POLICY  # of the samples that estimators get


@dataclass
class Outcome:
    """The results of a run, and how it ended."""

    metrics: pd.DataFrame
    probes: pd.DataFrame  # every probed metric with its interval
    reasons: dict[str, str]  # cell id to why it isn't `ok`, or which results it lacks
    unprobed: dict[str, str]  # task to why its cells have no gradient probes
    interrupted: bool
    reused: int  # number of cells that an earlier command had finished
    comparisons: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=schema.TESTS_COLUMNS))
    leaderboard: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=schema.LEADERBOARD_COLUMNS))
    # every estimator against its A/A control, if the run has them
    controls: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=schema.TESTS_COLUMNS))
    frontier: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=frontier.COLUMNS))
    areas: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=frontier.TESTS_COLUMNS))
    instances: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=instances.BOARD_COLUMNS))
    own: frozenset[str] | None = None  # ids of the cells that the command asked for; None: all

    @property
    def complete(self) -> bool:
        """Whether every cell that was asked for is finished and lacks no result."""
        mine = self.metrics if self.own is None else self.metrics[self.metrics["cell_id"].isin(self.own)]
        lacking = any(reason.startswith("ok: ") for reason in self.reasons.values())
        return not (self.unprobed or lacking) and bool(mine["status"].isin(records.FINISHED).all())


def choose_device(wanted: str) -> str:
    """The device, with "auto" resolved to "cuda" or "cpu". Raises InputError if it isn't available."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", wanted):
        raise InputError(f"--device {wanted!r} isn't auto, cpu or cuda")
    try:
        device = torch.device(wanted)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {wanted} can't be used: {str(error).splitlines()[0]}; try --device auto") from error
    return str(device)


def require_family(request: Request, labels: Sequence[str]) -> None:
    """Raises InputError if the metric can't rank, if a baseline isn't run, or if only baselines are."""
    require_rankable(request.by)
    for name in request.against:
        if name not in labels:
            raise InputError(f"--against {name}: it isn't among the estimators, {', '.join(labels)}; add -e {name}")
    if request.against and set(labels) <= set(request.against):
        raise InputError(f"--against {', '.join(request.against)}: nothing else is left to compare with it")


def require_numbers(request: Request) -> None:
    if (request.shards or parallel.world_size()) % parallel.world_size():
        raise InputError(
            f"--micro-batches {request.shards}: {counted(parallel.world_size(), 'process', 'processes')} can't share them; give a multiple"
        )
    least = {"steps": 1, "batch": 1, "jobs": 1, "draws": 4, "checkpoints": 1, "shards": 1, "instances": 1}
    least["evaluate_every"] = 1
    for name, minimum in least.items():
        value = getattr(request, name)
        if value is not None and value < minimum:
            raise InputError(
                f"--{name.replace('_', '-')} {value}: at least {minimum} {'is' if minimum == 1 else 'are'} needed"
            )
    for name, number in (
        ("learning-rate", request.learning_rate),
        ("timeout", request.timeout),
        ("clip", request.clip),
    ):
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"--{name} {number:g}: a number above 0 is needed")
    if not 0 <= request.checkpoint_every < math.inf:
        raise InputError(f"--checkpoint-every {request.checkpoint_every:g}: seconds from 0 on are needed")


def default_folder(tasks: Sequence[registry.Resolved], prefix: str = "") -> Path:
    """results/<task>-<time> in the working directory."""
    name = "-".join(dict.fromkeys(task.name for task in tasks))[:60]
    return Path("results") / f"{prefix}{re.sub(r'[^A-Za-z0-9.-]+', '_', name)}-{time.strftime('%Y%m%d-%H%M%S')}"
