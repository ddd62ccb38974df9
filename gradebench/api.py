"""GradeBench from Python: what the command line does, its tables as DataFrames. docs/python.md shows it in use.

    results = gradebench.run(["rloo", "grade-ste"], "enumerable-lm", seeds=6)
    results.leaderboard

Whatever can't be used raises `InputError` in one line. Scripts that call `run`, `probe` or `tune` do so below
`if __name__ == "__main__":`, because worker processes import the script.
"""

import functools
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import pandas as pd

from gradebench.analysis import claims as published
from gradebench.analysis import curves, rate_curve, runs, tables
from gradebench.checks import conformance
from gradebench.core.errors import InputError
from gradebench.core.schema import PROBES_COLUMNS, PROBES_NUMBERS
from gradebench.core.task import Task
from gradebench.experiment import newcomers, runner, tuning
from gradebench.reporting import report, terminal
from gradebench.storage.digests import require_as_written
from gradebench.storage.formats import read_csv
from gradebench.storage.tuned import keep_curves

Plugin = str | type | Any  # a name or spec, or a class or function that is defined in a file
Some = Plugin | Sequence[Plugin]
_OF_PROBES = ("draws", "checkpoints", "along", "learning_rate", "train")


class Budget(TypedDict, total=False):
    """What a training takes, and where it runs; what is left out is the task's own."""

    steps: int
    batch: int  # sampled sequences a step
    clip: float  # of the gradient's global norm
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
    sweep: Sequence[str]
    instances: int


class Results:
    """Runs read back from their folders, several as if they had been one.

    `apart` ranks runs apart that differ in what numbers depend on, instead of refusing them; `by` is the metric that
    ranks, and `against` the baselines that all others are compared with (default: as the runs were asked for).

    Raises        InputError for folders that hold no run, and runs that can't be pooled.
    """

    def __init__(self, *folders: str | Path, apart: bool = False, by: str | None = None, against: Sequence[str] = ()):
        if not folders:
            raise InputError("give the folder of a run")
        self.folders = [Path(folder) for folder in folders]
        self.apart = apart
        self.metrics: pd.DataFrame = runs.read_metrics(self.folders, apart)
        self.by, self.against = runs.family_of(self.folders, by, against)
        runs.require_family(self.metrics, self.by, self.against)

    @functools.cached_property
    def tests(self) -> pd.DataFrame:
        """Paired tests of every metric, corrected for their family (tests.csv)."""
        try:
            return tables.comparisons(self.metrics, self.against)
        except ValueError as error:
            raise InputError(str(error)) from error

    @functools.cached_property
    def leaderboard(self) -> pd.DataFrame:
        """One row for each estimator on each task (leaderboard.csv)."""
        return tables.leaderboard(self.metrics, self.tests, self.by, self.against)

    @functools.cached_property
    def probes(self) -> pd.DataFrame:
        """Every probed quantity with its interval (probes.csv)."""
        paths = [path for folder in self.folders if (path := folder / "probes.csv").is_file()]
        for path in paths:
            require_as_written(path)
        found = [read_csv(path, PROBES_NUMBERS) for path in paths]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=PROBES_COLUMNS)

    @property
    def ranked_by(self) -> dict[tuple[str, str], str]:
        """The metric that ranks on each (task, setting)."""
        return tables.ranked_by(self.metrics, self.by)

    def compare(self, a: str | None = None, b: str | None = None) -> pd.DataFrame:
        """The tests of two estimators by every metric, their difference as a less b; without names, what ranks of each
        estimator and the baselines, or else the best.

        Raises        InputError for estimators that aren't there.
        """
        if a and not b:
            raise InputError(f"{a} is to be compared with nothing; give two estimators, or none")
        if a and b:
            return runs.chosen_pair(self.tests, a, b)
        if self.against:
            return runs.against_baselines(self.tests, self.ranked_by, self.against)
        return runs.against_best(self.tests, self.ranked_by)

    def curves(self, axis: str = "steps") -> pd.DataFrame:
        """Means of each estimator at equal budgets along an axis: steps, samples, tokens, updates, seconds or kl."""
        if axis not in curves.AXES:
            raise InputError(f"axis {axis!r} is none of {', '.join(curves.AXES)}")
        return curves.budgets(self.metrics, self.by, [axis])

    def claims(self, file: str | Path | None = None) -> pd.DataFrame:
        """Published claims, or those of a TOML file, tested on these runs."""
        try:
            return published.judge(published.read_claims(Path(file) if file else published.BUILT_IN), self.metrics)
        except ValueError as error:
            raise InputError(str(error)) from error

    def report(self, out: str | Path | None = None, plots: bool = False) -> Path:
        """Writes report.html into `out`, by default the folder of the only run; returns its path."""
        if out is None and len(self.folders) > 1:
            raise InputError("a report of several runs is nobody's own; give it a folder")
        folder = Path(out) if out else None
        written = report.write_report(
            self.folders, out=folder, plots=plots, apart=self.apart, by=self.by, against=self.against
        )
        return written[0]

    @property
    def complete(self) -> bool:
        """Whether every cell ended as ok, or was skipped with a reason."""
        return all(cell.status in ("ok", "skipped") for folder in self.folders for cell in runs.cell_statuses(folder))

    def __repr__(self) -> str:
        head, shown = f"Results({', '.join(map(str, self.folders))})", self._short()
        return head if shown.empty else head + "\n" + shown.to_string(index=False, na_rep="-")

    def _repr_html_(self) -> str:
        return self._short().to_html(index=False, escape=True, na_rep="-")

    def _short(self) -> pd.DataFrame:
        """The leaderboard in the columns that decide, to three digits."""
        board = self.leaderboard
        columns = [
            "rank",
            "letters",
            "estimator",
            "task",
            "steps",
            "test_objective_mean",
            "test_reward_mean",
            "kl_mean",
        ]
        columns += ["gradient_variance_relative", "gradient_bias_squared", "status"]
        return board[[name for name in columns if not board[name].isna().all()]].round(3)


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
    if request.tune:
        request = replace(request, out=str(newcomers.folder_of(request)))
        request = newcomers.tune_newcomers(request, progress, False)
    prepared = runner.prepare(request, progress)
    outcome = runner.execute(request, prepared, progress)
    if request.tuned:
        keep_curves(Path(request.tuned), prepared.out)
    report.write_report([prepared.out], outcome.metrics, outcome.leaderboard, by=request.by, against=request.against)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return Results(prepared.out, by=request.by, against=request.against)


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
    if options.get("out") is not None:
        options["out"] = str(options["out"])
    return runner.Request(_specs(estimators), _specs(tasks), seeds, **options)


def _specs(some: Some) -> list[str]:
    return [spec_of(one) for one in (some if isinstance(some, list | tuple) else [some])]


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
