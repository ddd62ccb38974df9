"""The command line. `--help` and `list` never import torch; every command loads what it needs inside."""

import dataclasses
import json
import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradebench.core.errors import InputError
from gradebench.core.interrupts import listening
from gradebench.core.shown import one_line
from gradebench.core.streams import make_ready, plugins_aside

if TYPE_CHECKING:
    from pandas import DataFrame

    from gradebench.core.task import Task
    from gradebench.experiment.runner import Outcome, Request

app = typer.Typer(
    help="The referee for gradient estimators of language-model rewards.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: quick, and the same on a terminal and in a file
    pretty_exceptions_enable=False,
)


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


class Along(StrEnum):
    reference = "reference"
    own = "own"


EstimatorOption = Annotated[
    list[str] | None,
    typer.Option("--estimator", "-e", help="NAME[:k=v,...], FILE.py:OBJECT[:k=v,...] or all; repeatable"),
]
TaskOption = Annotated[list[str] | None, typer.Option("--task", "-t", help="NAME[:k=v,...] or all; repeatable")]
BatchOption = Annotated[int | None, typer.Option(help="sampled sequences a step; default: the task's")]
ClipOption = Annotated[float, typer.Option(help="of the gradient's global norm")]
RateOption = Annotated[float | None, typer.Option(help="for all estimators; default: the tuned value of each")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda")]
OutOption = Annotated[str | None, typer.Option(help="folder of the results; default: results/<task>-<time>")]
JobsOption = Annotated[int | None, typer.Option(help="cells side by side, on each GPU if any; default: one a core")]
TimeoutOption = Annotated[float | None, typer.Option(help="seconds a cell may take")]
ResumeOption = Annotated[
    bool,
    typer.Option(
        "--resume/--fresh", help="keep what a folder has, or discard what this command does anew or can't go with"
    ),
]
_BY = "what ranks, on test prompts: objective (reward less kl times KL), reward or gold_reward"
ByOption = Annotated[str | None, typer.Option("--by", metavar="METRIC", help=f"{_BY}; default: objective")]
ByAgainOption = Annotated[str | None, typer.Option("--by", metavar="METRIC", help=f"{_BY}; default: the run's own")]
_AGAINST = "a baseline: it is compared with all others, and these are the family of tests, not all pairs; repeatable"
AgainstOption = Annotated[list[str] | None, typer.Option("--against", metavar="NAME", help=_AGAINST)]
AgainstAgainOption = Annotated[
    list[str] | None,
    typer.Option("--against", metavar="NAME", help=f"{_AGAINST}; default: the run's own; all: all pairs"),
]
StrictOption = Annotated[bool, typer.Option("--strict", help="no fallback: a hub out of reach is an error")]
TrustOption = Annotated[
    bool, typer.Option("--trust-remote-code", help="let given models run code that they bring along")
]


@app.command()
def run(
    estimator: EstimatorOption = None,
    task: TaskOption = None,
    seeds: Annotated[
        str | None, typer.Option(help="0-9 or 0,2,5-7; default: as many as the tests need for p < 0.05 after Holm")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="steps of training; default: the task's")] = None,
    batch: BatchOption = None,
    learning_rate: RateOption = None,
    clip: ClipOption = 1.0,
    tuned: Annotated[
        str | None, typer.Option(metavar="FILE", help="tuned.json of `gradebench tune`, for its learning rates")
    ] = None,
    tune: Annotated[
        bool, typer.Option("--tune", help="tune those first that have no rate tuned for this, as the others were")
    ] = False,
    by: ByOption = None,
    against: AgainstOption = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    jobs: JobsOption = None,
    timeout: TimeoutOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would run, and stop")] = False,
    plan: Annotated[
        Path | None,
        typer.Option(metavar="PILOT", help="say how many seeds it takes, by the spread in this earlier run, and stop"),
    ] = None,
    difference: Annotated[float, typer.Option(help="of what ranks, that --plan is to make visible")] = 0.02,
    control: Annotated[
        bool, typer.Option("--control", help="train every estimator twice, to see how often it is told from itself")
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            help="parts that a batch is cut into, each with random numbers of its own: one after another, in less "
            "memory, or by the processes of torchrun; default: one a process"
        ),
    ] = None,
    save_policies: Annotated[
        bool,
        typer.Option("--save-policies", help="keep each trained policy in its cell's folder, to load with policy="),
    ] = False,
    resume: ResumeOption = True,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
    launcher: Annotated[
        Launcher, typer.Option(help="where cells run: here, on a Ray cluster, as Slurm jobs; see docs/scale.md")
    ] = Launcher.local,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="of a cell's training, between checkpoints to resume from")
    ] = 60.0,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUES",
            help="every estimator at each value of a task's option, as kl=0.02,0.05,0.15, or of learning-rate; repeatable",
        ),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(help="of each task: policy, reward, corpus and splits made anew, for a verdict about its kind"),
    ] = None,
) -> None:
    """Train and probe estimators on tasks, and write the leaderboard with its tests."""
    from gradebench.experiment import newcomers, runner
    from gradebench.reporting import terminal
    from gradebench.reporting.report import write_report
    from gradebench.storage.tuned import keep_curves

    request = runner.Request(
        estimators=estimator or ["all"],
        tasks=task or ["imdb"],
        seeds=seeds,
        steps=steps,
        batch=batch,
        clip=clip,
        learning_rate=learning_rate,
        device=device,
        out=out,
        jobs=jobs,
        timeout=timeout,
        resume=resume,
        strict=strict,
        trust_remote_code=trust_remote_code,
        control=control,
        tuned=tuned,
        by=by,
        against=against or [],
        tune=tune,
        shards=shards,
        save_policies=save_policies,
        launcher=launcher.value,
        checkpoint_every=checkpoint_every,
        sweep=sweep or [],
        instances=instances,
    )
    if plan:
        _print_plan(plan, request, difference)
        return
    progress = terminal.TerminalProgress()
    if dry_run and (missing := runner.missing(request, progress)):
        progress.note(f"dry run: {', '.join(missing)} would be downloaded first; cells can be listed once it is here")
        return
    with plugins_aside():
        if tune:
            request = dataclasses.replace(request, out=str(newcomers.folder_of(request)))
            request = newcomers.tune_newcomers(request, progress, dry_run)
        prepared = runner.prepare(request, progress)
        terminal.announce(prepared, runner.config_of(request, prepared), progress)
    if dry_run:
        for _, cell in prepared.cells:
            typer.echo(cell.id)
        progress.note(f"dry run: {len(prepared.cells)} cells")
        return
    with plugins_aside():
        outcome = runner.execute(request, prepared, progress)
    try:
        if request.tuned:
            keep_curves(Path(request.tuned), prepared.out)
        write_report([prepared.out], outcome.metrics, outcome.leaderboard, by=by, against=against or ())
    except (
        OSError,
        ValueError,
        InputError,
    ) as error:  # the tables are there, and `gradebench report` can write it later
        progress.note(f"no report: {getattr(error, 'strerror', None) or error}")
    terminal.print_outcome(prepared, outcome, progress)
    _exit_by(outcome)


@app.command()
def tune(
    estimator: EstimatorOption = None,
    task: TaskOption = None,
    trials: Annotated[int, typer.Option(min=1, help="learning rates for each estimator, the same for all")] = 6,
    rates: Annotated[
        str | None,
        typer.Option(help="LOW:HIGH between which, or a list, 1e-4,1e-3; default: a tenth to ten times the task's"),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:option=LOW..HIGH[,option=a|b]: options of NAME to tune along, in as many trials; repeatable"
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="0-9 or 0,2,5-7; a comparison has to use others")] = "1000-1004",
    extensions: Annotated[
        int, typer.Option(min=0, help="rates beyond an end that an estimator tries where its best is at that end")
    ] = 2,
    steps: Annotated[int | None, typer.Option(help="steps of training; default: the task's")] = None,
    batch: BatchOption = None,
    clip: ClipOption = 1.0,
    device: DeviceOption = "auto",
    out: OutOption = None,
    jobs: JobsOption = None,
    timeout: TimeoutOption = None,
    resume: ResumeOption = True,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Choose a learning rate, and options if asked, for each estimator, with equal effort, for `run --tuned`."""
    from gradebench.analysis import rate_curve
    from gradebench.experiment import runner, tuning
    from gradebench.reporting import terminal, terminal_tables

    tasks = task or ["imdb"]
    request = runner.Request(
        estimators=estimator or ["all"],
        tasks=tasks,
        seeds=seeds,
        steps=steps,
        batch=batch,
        clip=clip,
        device=device,
        out=out or str(runner.default_folder(runner.expand("tasks", tasks)[0], "tuning-")),
        jobs=jobs,
        timeout=timeout,
        resume=resume,
        strict=strict,
        trust_remote_code=trust_remote_code,
    )
    given, low, high = _rates(rates)

    def rates_for(task: "Task") -> list[float]:
        ends = (low or task.learning_rate / 10, high or task.learning_rate * 10)
        return given or (tuning.quasi_random_rates if vary else rate_curve.even_rates)(*ends, trials)

    progress = terminal.TerminalProgress()
    with plugins_aside():
        varied = [tuning.parse_varied(text) for text in vary or []]
    if twice := {label for label, _ in varied if sum(label == other for other, _ in varied) > 1}:
        raise InputError(f"--vary {min(twice)} is given twice; name all of its options in one")
    with plugins_aside():
        found = tuning.tune(request, rates_for, progress, dict(varied), extensions)
    terminal_tables.print_tuning(found.curves, found.choices, found.run.out)
    terminal.print_notes(found.run, found.outcome, progress)
    _exit_by(found.outcome)


def _rates(text: str | None) -> tuple[list[float], float | None, float | None]:
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


def _print_plan(pilot: Path, request: "Request", difference: float) -> None:
    """What `run --plan` says: nothing is run, and no task is loaded."""
    from gradebench.analysis import planning
    from gradebench.analysis import runs as folders
    from gradebench.core.seeds import parse_seeds
    from gradebench.experiment import runner
    from gradebench.reporting import terminal_tables

    if not difference > 0:
        raise InputError(f"--difference {difference:g}: a number above 0 is needed")
    metrics = folders.read_metrics([pilot])
    with plugins_aside():
        wanted = {task.name for task in runner.expand("tasks", request.tasks)[0]}
        labels = {one.label for one in runner.expand("estimators", request.estimators)[0]}
    metrics = metrics[metrics["task"].str.partition(":")[0].isin(wanted)]
    if metrics.empty:
        raise InputError(f"{pilot} has no {' or '.join(sorted(wanted))}; give a run of the same task as the pilot")
    skipped = set(metrics.loc[metrics["status"] == "skipped", "estimator"])
    runner.require_family(request, sorted(labels))
    seeds = len(parse_seeds(request.seeds)) if request.seeds else None
    try:
        against = [name for name in request.against if name not in skipped]
        needed = planning.plan(metrics, labels - skipped, difference, seeds, request.by, against)
    except ValueError as error:
        raise InputError(str(error)) from error
    terminal_tables.print_plan(needed)
    if unknown := sorted(labels - set(metrics["estimator"])):
        typer.echo(f"{pilot} lacks {', '.join(unknown)}: the pairs are counted, their spread isn't known", err=True)


@app.command()
def probe(
    estimator: EstimatorOption = None,
    task: TaskOption = None,
    draws: Annotated[
        int | None, typer.Option(help="gradients of each estimator at each checkpoint; default: the task's")
    ] = None,
    checkpoints: Annotated[int, typer.Option(help="points of the trajectory, its start and end included")] = 3,
    along: Annotated[
        Along, typer.Option(help="reference: one trajectory for all; own: each estimator's own training")
    ] = Along.reference,
    seed: Annotated[int, typer.Option(min=0, help="of prompts and noise")] = 0,
    steps: Annotated[int | None, typer.Option(help="steps of the trajectory; default: the task's")] = None,
    batch: BatchOption = None,
    learning_rate: RateOption = None,
    clip: ClipOption = 1.0,
    device: DeviceOption = "auto",
    out: OutOption = None,
    jobs: JobsOption = None,
    timeout: TimeoutOption = None,
    plots: Annotated[bool, typer.Option("--plots", help="draw SVG figures too (needs the extra `plots`)")] = False,
    resume: ResumeOption = True,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure gradients only: variance, bias and cost of each estimator at frozen parameters, with intervals."""
    from gradebench.experiment import runner
    from gradebench.reporting import terminal

    request = runner.Request(
        estimators=estimator or ["all"],
        tasks=task or ["enumerable-lm"],
        seeds=str(seed),
        steps=steps,
        batch=batch,
        clip=clip,
        learning_rate=learning_rate,
        device=device,
        out=out,
        jobs=jobs,
        timeout=timeout,
        resume=resume,
        strict=strict,
        trust_remote_code=trust_remote_code,
        train=False,
        draws=draws,
        checkpoints=checkpoints,
        along=along.value,
    )
    if plots:
        from gradebench.reporting.plots import require_matplotlib

        require_matplotlib()
    progress = terminal.TerminalProgress()
    with plugins_aside():
        prepared = runner.prepare(request, progress)
        terminal.announce(prepared, runner.config_of(request, prepared), progress)
        outcome = runner.execute(request, prepared, progress)
    drawn = []
    if plots:
        from gradebench.reporting.plots import draw_probes

        drawn = draw_probes(outcome.probes, prepared.out / "plots")
    terminal.print_probes(prepared, outcome, drawn, progress)
    _exit_by(outcome)


def _exit_by(outcome: "Outcome") -> None:
    if outcome.interrupted:
        raise SystemExit(130)
    if not outcome.complete:
        raise SystemExit(1)


RunsArgument = Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs", show_default=False)]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run", show_default=False)]
CsvOption = Annotated[Path | None, typer.Option("--csv", help="write the table here too")]


@app.command()
def leaderboard(
    runs: RunsArgument,
    csv: CsvOption = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="rank runs apart that differ in what numbers depend on, not refuse them")
    ] = False,
    by: ByAgainOption = None,
    against: AgainstAgainOption = None,
) -> None:
    """Rank the estimators of one run, or of several as if they had been one."""
    from gradebench.analysis import instances, multi_task
    from gradebench.analysis.design import read_design
    from gradebench.analysis.runs import APART
    from gradebench.reporting import terminal_tables
    from gradebench.reporting.console import at_work
    from gradebench.results import Results

    results = Results(*runs, apart=apart, by=by, against=against or (), mend=APART)
    with at_work("comparing", results.metrics["task"].nunique()):
        metrics, board = results.metrics, results.leaderboard
    _write(board, csv)
    _say_unlisted(runs)
    terminal_tables.print_leaderboard(board)
    terminal_tables.print_notices(metrics)
    terminal_tables.print_across(multi_task.across_tasks(metrics, results.by), multi_task.ranks(metrics, results.by))
    terminal_tables.print_underpowered(results.tests, board)
    terminal_tables.print_instances(instances.written(metrics, read_design(runs)).get(instances.BOARD))
    _say_ranking(results.ranked_by, results.by)


@app.command()
def frontier(
    run: RunArgument,
    metric: Annotated[Judged, typer.Option(help="what is reached within the KL")] = Judged.reward,
    kl: Annotated[
        str | None,
        typer.Option(metavar="NATS", help="budgets, as 0.5,1,2; default: ten up to where two estimators get"),
    ] = None,
    csv: CsvOption = None,
) -> None:
    """Show the reward that each estimator reaches within budgets of KL, over a run's sweep, and who leads where."""
    from gradebench.reporting import terminal_tables
    from gradebench.results import Results

    results = Results(run)
    table, areas = results.frontier(metric.value, _budgets(kl))
    if table.empty:
        raise InputError(f"{run} has no frontier of {metric.value}: no task in it measures that beside a KL")
    _write(table, csv)
    terminal_tables.print_frontier(table, areas)
    terminal_tables.print_notices(results.metrics)


def _budgets(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < float("inf") for number in numbers) or len(set(numbers)) < len(numbers):
        raise InputError(f"--kl {text}: different numbers above 0 are needed, as in 0.5,1,2")
    return sorted(numbers)


@app.command()
def merge(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(help="a new folder", show_default=False)],
) -> None:
    """Put shards of one run, made apart, into one folder with its own tables and report."""
    from gradebench.experiment.merging import merge as merged
    from gradebench.reporting import terminal_tables
    from gradebench.reporting.console import at_work
    from gradebench.reporting.report import write_report

    try:
        board = merged(runs, out, lambda folder, metrics, board: write_report([folder], metrics, board), at_work)
    except OSError as error:
        raise InputError(f"can't write into {out}: {error.strerror}") from error
    _say_unlisted(runs)
    _say_left_out(runs)
    terminal_tables.print_leaderboard(board)
    typer.echo(out)


@app.command()
def compare(
    run: RunArgument,
    a: Annotated[str | None, typer.Argument(help="an estimator", show_default=False)] = None,
    b: Annotated[str | None, typer.Argument(help="another one", show_default=False)] = None,
    also: Annotated[
        list[Path] | None, typer.Option("--with", metavar="RUN", help="another run to pool with it; repeatable")
    ] = None,
    csv: CsvOption = None,
    by: ByAgainOption = None,
    against: AgainstAgainOption = None,
) -> None:
    """Compare two estimators of a run by every metric; without names, each with the baselines, else with the best."""
    from gradebench.reporting import terminal_tables
    from gradebench.results import Results

    pooled = [run, *(also or [])]
    results = Results(*pooled, by=by, against=against or (), mend="give runs that agree")
    rows = results.compare(a, b)
    if rows.empty:
        raise InputError(f"{run} has nothing to compare: fewer than two estimators, or no rewards")
    _write(rows, csv)
    _say_unlisted(pooled)
    terminal_tables.print_comparisons(rows, results.against)
    if not a:
        _say_ranking(results.ranked_by, results.by)


@app.command()
def curves(
    run: RunArgument,
    a: Annotated[str | None, typer.Argument(help="an estimator", show_default=False)] = None,
    b: Annotated[str | None, typer.Argument(help="another one", show_default=False)] = None,
    axis: Annotated[str, typer.Option(help="steps, samples, tokens, updates, seconds or kl")] = "steps",
    by: Annotated[
        str | None, typer.Option(help="objective, reward or gold_reward; default: the objective", show_default=False)
    ] = None,
    csv: CsvOption = None,
) -> None:
    """Who leads at which budget, and where the lead changes: between two estimators, or between all that lead somewhere."""
    from gradebench.analysis.curves import leaders
    from gradebench.reporting import terminal_tables
    from gradebench.results import Results

    results = Results(run)
    rows = results.curves(axis, by)
    if rows.empty:
        raise InputError(f"{run} has no {by or 'objective or reward'} by {axis}: nothing was evaluated along it")
    found = results.crossings(a, b, axis, by)
    _write(rows, csv)
    terminal_tables.print_budgets(leaders(rows), found)
    terminal_tables.print_notices(results.metrics)


@app.command()
def claims(
    runs: RunsArgument,
    file: Annotated[
        Path | None, typer.Option("--claims", help="TOML file of claims; default: the published ones that come along")
    ] = None,
    csv: CsvOption = None,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME",
            help="an estimator: only claims about it are judged, and are the family of tests; repeatable",
        ),
    ] = None,
) -> None:
    """Test published claims on runs: supported, contradicted, not distinguishable, underpowered or untested."""
    from gradebench.reporting import terminal_tables
    from gradebench.results import Results

    verdicts = Results(*runs, mend="give them one by one").claims(file, against or ())
    _write(verdicts, csv)
    _say_unlisted(runs)
    terminal_tables.print_claims(verdicts)


@app.command()
def report(
    runs: RunsArgument,
    plots: Annotated[
        bool, typer.Option("--plots", help="write each figure too, into plots/: SVG, and PNG with the extra `plots`")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="folder of the report; default: the run's own", show_default=False)
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="show runs apart that differ in what numbers depend on, not refuse them")
    ] = False,
    by: ByAgainOption = None,
    against: AgainstAgainOption = None,
) -> None:
    """Write report.html: one file to look at, send or print, with every number behind its figures."""
    from gradebench.reporting import png
    from gradebench.reporting.report import write_report

    if len(runs) > 1 and out is None:
        raise InputError("a report of several runs is nobody's own; give it a folder with --out")
    try:
        for path in write_report(runs, out=out, plots=plots, apart=apart, by=by, against=against or ()):
            typer.echo(path)
        _say_unlisted(runs)
    except OSError as error:
        raise InputError(f"can't write into {out or runs[0]}: {error.strerror}") from error
    if plots and not png.available():
        typer.echo(png.ADVICE, err=True)


@app.command()
def status(run: RunArgument) -> None:
    """What became of every cell of a run, also while it goes on; exit status 1 unless all are ok or skipped."""
    from gradebench.analysis import runs as folders
    from gradebench.reporting import terminal_tables

    statuses = folders.cell_statuses(run)
    terminal_tables.print_statuses(statuses)
    if any(cell.status not in ("ok", "skipped") for cell in statuses):
        raise SystemExit(1)


def _say_ranking(ranked_by: dict[tuple[str, str], str], by: str | None) -> None:
    """A note where something else ranks than what was asked for, or than the objective."""
    wanted = by or "objective"
    for task, metric in dict.fromkeys((task, metric) for (task, _), metric in ranked_by.items()):
        if metric != wanted:
            typer.echo(f"{task} is ranked by {metric}: its test prompts have no {wanted} in all cells", err=True)


def _say_unlisted(runs: list[Path]) -> None:
    """On stderr, which runs could be compared only in part."""
    from gradebench.analysis.runs import unlisted

    if said := unlisted(runs):
        typer.echo(said, err=True)


def _say_left_out(runs: list[Path]) -> None:
    """On stderr, which damaged files were left out."""
    from gradebench.analysis.runs import left_out

    for line in left_out(runs):
        typer.echo(line, err=True)


def _write(table: "DataFrame", path: Path | None) -> None:
    if path is None:
        return
    from gradebench.analysis.tables import write_csv

    try:
        write_csv(table, path)
    except OSError as error:
        raise InputError(f"can't write {path}: {error.strerror}; give another --csv") from error


@app.command()
def check(
    estimator: Annotated[str, typer.Argument(help="NAME[:k=v,...] or FILE.py:OBJECT[:k=v,...]")],
    seed: Annotated[int, typer.Option(min=0, help="of all random numbers")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON document")] = False,
) -> None:
    """Hold an estimator to its contract: reproducible, without side effects, and unbiased where it says so."""
    from gradebench.checks import conformance
    from gradebench.reporting import terminal

    with plugins_aside():
        report = conformance.report(estimator, seed)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        terminal.print_check(report)
    if not report["passed"]:
        raise SystemExit(1)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="such as my-estimator, for my_estimator.py", show_default=False)],
) -> None:
    """Write an estimator to start from into this folder: a page that works, with three holes to fill."""
    from gradebench.plugins.scaffold import write_page

    file, cls = write_page(name, Path())
    spec = f"./{file.name}:{cls}"
    typer.echo(
        f"{file.name} has the estimator {cls}. Next:\n  gradebench check {spec}\n"
        f"At the learning rate of rloo, against rloo:\n  gradebench run -e rloo -e {spec}:rate-like=rloo\n"
        f"With a rate of its own, tuned as all others were, against any:\n  gradebench run --tune -e rloo -e {spec}"
    )


@app.command()
def doctor() -> None:
    """Say what a run will find here: versions, devices, plugins, folders, the hub; exit status 1 where it would fail."""
    from gradebench.doctor import findings

    bad = False
    for finding in findings():
        typer.echo(f"{finding.state:4}  {finding.subject:10}  {finding.detail}")
        bad = bad or finding.state == "bad"
    if bad:
        raise SystemExit(1)


@app.command("list")
def list_plugins(
    kind: Annotated[Kind | None, typer.Argument(help="estimators or tasks; default: both")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON document")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="import each plugin, and show its card and options")
    ] = False,
) -> None:
    """List the registered estimators and tasks, without importing them."""
    from gradebench.reporting.listing import print_listing

    print_listing(kind.value if kind else None, as_json, verbose)


def main() -> None:
    """Entry point: errors of the user end in one line and exit status 2."""
    make_ready()
    try:
        with listening():
            _run_app()
    except InputError as error:
        print(f"gradebench: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # a disk that is full or gone; cells and tables appear whole or not at all
        where = f"{error.filename}: " if error.filename else ""
        print(f"gradebench: {one_line(f'{where}{error.strerror or error}')}; what is finished is kept", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("gradebench: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run_app() -> None:
    """The command, in this process or, where torchrun has started several, in the first of them for all."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        app(standalone_mode=True)
        return
    from gradebench.core import parallel

    if parallel.launched():
        parallel.run(lambda: app(standalone_mode=True))
    else:
        app(standalone_mode=True)
