"""GradeBench from Python: what the command line does, its tables as DataFrames. docs/python.md shows it in use.

    results = gradebench.run(["rloo", "grade-ste"], "enumerable-lm", seeds=6)
    results.leaderboard

Whatever can't be used raises `InputError` in one line. Scripts that call `run`, `probe` or `tune` do so below
`if __name__ == "__main__":`, because worker processes import the script.
"""

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pandas as pd

from gradebench.analysis import rate_curve
from gradebench.checks import conformance
from gradebench.core.errors import InputError
from gradebench.core.sampler import SAMPLER, Sampler
from gradebench.core.task import Task
from gradebench.experiment import newcomers, runner, tuning
from gradebench.reporting import terminal
from gradebench.reporting.report import write_report
from gradebench.results import Results
from gradebench.storage.tuned import keep_curves

Plugin = str | Callable[..., Any]  # a name or spec, or a class or function that is defined in a file
Some = Plugin | Sequence[Plugin]
_OF_PROBES = ("draws", "checkpoints", "along", "learning_rate", "train")


class Budget(TypedDict, total=False):
    """What a training takes, and where it runs; what is left out is the task's own."""

    steps: int
    batch: int  # sampled sequences a step
    clip: float  # of the gradient's global norm
    stale: int  # training steps between the policy that samples and the one that learns
    temperature: float  # of the samples
    top_k: int
    top_p: float
    noise: float | str  # in the logits that are sampled from: "bfloat16", or the standard deviation of a fixed error
    device: str  # auto, cpu or cuda
    out: str | Path | None  # folder of the results
    jobs: int  # cells side by side
    timeout: float  # seconds a cell may take
    resume: bool  # False: discard what a folder has of it
    strict: bool  # a hub out of reach is an error
    trust_remote_code: bool


class Training(Budget, total=False):
    """The options of `gradebench run`."""

    learning_rate: float
    by: str
    against: Sequence[str]
    tuned: str  # file of an earlier `tune`
    tune: bool
    control: bool
    shards: int
    save_policies: bool
    launcher: str
    checkpoint_every: float
    evaluate_every: int
    sweep: Sequence[str]
    instances: int


def load(*folders: str | Path, apart: bool = False, by: str | None = None, against: Sequence[str] = ()) -> Results:
    """The results of finished runs."""
    return Results(*folders, apart=apart, by=by, against=against)


def run(
    estimators: Some = "all",
    tasks: Some = "imdb",
    seeds: int | str | Iterable[int] | None = None,
    quiet: bool = False,
    **options: Unpack[Training],
) -> Results:
    """Train and probe estimators on tasks, as `gradebench run` does; its tables and report are in a folder.

    seeds     how many (6 is 0 to 5), which ("0-4", [3, 5]), or as many as the tests need
    quiet     no progress on stderr
    options   those of the command: steps, batch, out, jobs, tune, against, ...

    Raises    InputError for what can't be used; KeyboardInterrupt after the tables are written, when interrupted.
    """
    request = _request(estimators, tasks, _seeds(seeds), dict(options))
    progress = _progress(quiet)
    request, prepared = prepare(request, progress)
    outcome = execute(request, prepared, progress)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return Results(prepared.out, by=request.by, against=request.against)


def prepare(
    request: runner.Request, progress: runner.Progress, dry_run: bool = False
) -> tuple[runner.Request, runner.Run]:
    """The first half of a run: newcomers are tuned if that was asked for, tasks are made ready, cells are listed.
    Returns the request as it was resolved."""
    if request.tune:
        request = replace(request, out=str(newcomers.folder_of(request)))
        request = newcomers.tune_newcomers(request, progress, dry_run)
    return request, runner.prepare(request, progress)


def execute(request: runner.Request, prepared: runner.Run, progress: runner.Progress) -> runner.Outcome:
    """The second half: cells, tables and report. Without a report where one can't be written: the tables are there, and
    `gradebench report` can write it later."""
    outcome = runner.execute(request, prepared, progress)
    try:
        if request.tuned:
            keep_curves(Path(request.tuned), prepared.out)
        write_report([prepared.out], outcome.metrics, outcome.leaderboard, by=request.by, against=request.against)
    except (OSError, ValueError, InputError) as error:
        progress.note(f"no report: {getattr(error, 'strerror', None) or error}")
    return outcome


def probe(
    estimators: Some = "all",
    tasks: Some = "enumerable-lm",
    seed: int = 0,
    draws: int | None = None,
    checkpoints: int = 3,
    along: str = "reference",
    learning_rate: float | None = None,
    quiet: bool = False,
    **options: Unpack[Budget],
) -> pd.DataFrame:
    """Variance, bias and cost of gradients at frozen parameters, as `gradebench probe` measures them (probes.csv).

    Raises    InputError for what can't be used; KeyboardInterrupt after the tables are written, when interrupted.
    """
    more = {"draws": draws, "checkpoints": checkpoints, "along": along, "learning_rate": learning_rate, "train": False}
    request = _request(estimators, tasks, str(seed), {**options, **more})
    progress = _progress(quiet)
    outcome = runner.execute(request, runner.prepare(request, progress), progress)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return outcome.probes


def tune(
    estimators: Some,
    tasks: Some,
    rates: Sequence[float] | None = None,
    trials: int = 6,
    seeds: int | str | Iterable[int] = "1000-1004",
    quiet: bool = False,
    **options: Unpack[Budget],
) -> Path:
    """Choose a learning rate for each estimator with equal effort; returns tuned.json, for `run(tuned=...)`.

    rates     to try; default: `trials` of them, even on a logarithmic scale, from a tenth to ten times the task's

    Raises    InputError for what can't be used.
    """
    request = _request(estimators, tasks, _seeds(seeds), dict(options))
    if request.out is None:
        folder = runner.default_folder(runner.expand("tasks", request.tasks)[0], "tuning-")
        request = replace(request, out=str(folder))

    def rates_of(task: Task) -> list[float]:
        return list(rates or rate_curve.even_rates(task.learning_rate / 10, task.learning_rate * 10, trials))

    return tuning.tune(request, rates_of, _progress(quiet)).run.out / "tuned.json"


def check(estimator: Plugin, seed: int = 0) -> dict[str, Any]:
    """Hold an estimator to its contract, as `gradebench check --json` does: `passed`, and all `findings`."""
    return conformance.report(spec_of(estimator), seed)


def spec_of(plugin: Plugin) -> str:
    """How the command line spells a plugin: a string as it is, a class or function by its file and name.

    Raises    InputError for what no worker process could find again.
    """
    if isinstance(plugin, str):
        return plugin
    name = getattr(plugin, "__qualname__", "")
    if not name:
        raise InputError(f"{plugin!r} is neither a name nor a class or function; give the class")
    try:
        file = inspect.getsourcefile(plugin)
    except TypeError:
        file = None
    if "." in name or not file or not Path(file).is_file():
        raise InputError(
            f"{name} isn't at the top of a file, where worker processes could find it; in a notebook, write it into one "
            "with %%writefile mine.py and give mine.py:" + name.rpartition(".")[2]
        )
    return f"{Path(file).resolve()}:{name}"


def _request(estimators: Some, tasks: Some, seeds: str | None, options: dict[str, Any]) -> runner.Request:
    known = {*Training.__annotations__, *Budget.__annotations__, *_OF_PROBES}
    if unknown := sorted(set(options) - known):
        raise TypeError(f"there is no option {unknown[0]}, only {', '.join(sorted(known))}")
    sampler = Sampler(**{name: options.pop(name) for name in SAMPLER if name in options})
    if options.get("out") is not None:
        options["out"] = str(options["out"])
    return runner.Request(_specs(estimators), _specs(tasks), seeds, sampler=sampler, **options)


def _specs(some: Some) -> list[str]:
    return [spec_of(one) for one in (some if isinstance(some, Sequence) and not isinstance(some, str) else [some])]


def _seeds(seeds: int | str | Iterable[int] | None) -> str | None:
    if seeds is None or isinstance(seeds, str):
        return seeds
    if isinstance(seeds, int):
        if seeds < 1:
            raise InputError(f"seeds={seeds}: at least 1 is needed")
        return f"0-{seeds - 1}"
    return ",".join(str(int(seed)) for seed in seeds)


def _progress(quiet: bool) -> runner.Progress:
    return runner.Progress() if quiet else terminal.TerminalProgress()
