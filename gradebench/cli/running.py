"""Commands that train and measure: run, tune, probe, check."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gradebench.cli import completion
from gradebench.cli.options import (
    AgainstOption,
    Along,
    BatchOption,
    ByOption,
    ClipOption,
    DeviceOption,
    EstimatorOption,
    JobsOption,
    Launcher,
    NoiseOption,
    OutOption,
    RateOption,
    ResumeOption,
    StaleOption,
    StrictOption,
    TaskOption,
    TemperatureOption,
    TimeoutOption,
    TopKOption,
    TopPOption,
    Tracker,
    TrustOption,
    rates_of,
    sampler_of,
)
from gradebench.cli.power import print_power
from gradebench.core.errors import InputError
from gradebench.core.shown import counted
from gradebench.core.streams import plugins_aside

if TYPE_CHECKING:
    from gradebench.core.task import Task
    from gradebench.experiment.runner import Outcome


def run(
    estimator: EstimatorOption = None,
    task: TaskOption = None,
    seeds: Annotated[
        str | None, typer.Option(help="0-9 or 0,2,5-7; default: as many as the tests need for p < 0.05 after Holm")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="training steps; default: the task's")] = None,
    batch: BatchOption = None,
    learning_rate: RateOption = None,
    clip: ClipOption = 1.0,
    stale: StaleOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    noise: NoiseOption = "0",
    tuned: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="take the learning rates of this tuned.json, written by `gradebench tune`"),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune", help="first tune the estimators that have no tuned rate, by the same protocol as the others"
        ),
    ] = False,
    by: ByOption = None,
    against: AgainstOption = None,
    device: DeviceOption = "auto",
    out: OutOption = None,
    jobs: JobsOption = None,
    timeout: TimeoutOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the cells that would run, and stop")] = False,
    pilot: Annotated[
        Path | None,
        typer.Option(
            "--power",
            metavar="PILOT",
            help="say how many seeds are needed, from the spread in this earlier run, and stop",
        ),
    ] = None,
    difference: Annotated[float, typer.Option(help="the difference, of what ranks, that --power is to detect")] = 0.02,
    control: Annotated[
        bool,
        typer.Option(
            "--aa-test", help="train every estimator twice, and count how often it differs significantly from itself"
        ),
    ] = False,
    shards: Annotated[
        int | None,
        typer.Option(
            "--micro-batches",
            help="cut each batch into so many parts, each with its own random numbers: one after another, in less memory, "
            "or spread over the processes of torchrun; default: one for each process",
        ),
    ] = None,
    save_policies: Annotated[
        bool,
        typer.Option(
            "--save-policies", help="save each trained policy in its cell's folder, to be loaded with policy="
        ),
    ] = False,
    resume: ResumeOption = True,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
    launcher: Annotated[
        Launcher, typer.Option(help="run cells here, on a Ray cluster or as Slurm jobs; see docs/scale.md")
    ] = Launcher.local,
    checkpoint_every: Annotated[
        float, typer.Option(metavar="SECONDS", help="time between the checkpoints that a training resumes from")
    ] = 60.0,
    evaluate_every: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS", help="evaluate at every so many steps too, besides 10, 20, 40, ... and the last one"
        ),
    ] = None,
    log: Annotated[
        list[Tracker] | None,
        typer.Option(
            help="log the curve of each cell as it ends: csv (log.csv), tensorboard, wandb, trackio; repeatable"
        ),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION=VALUES",
            help="run every estimator at each value of a task's option, such as kl=0.02,0.05,0.15, or of learning-rate; repeatable",
        ),
    ] = None,
    instances: Annotated[
        int | None,
        typer.Option(
            help="instances of each task, with new policy, reward, corpus and splits, for a verdict about the kind of task"
        ),
    ] = None,
) -> None:
    """Train and probe estimators on tasks.

    Writes the leaderboard with its statistical tests, all measurements and a report into one folder.
    """
    from gradebench import api
    from gradebench.experiment import runner
    from gradebench.reporting import terminal, trackers

    trackers.require(log or [])
    request = runner.Request(
        estimators=estimator or ["all"],
        tasks=task or ["imdb"],
        seeds=seeds,
        steps=steps,
        batch=batch,
        clip=clip,
        sampler=sampler_of(stale, temperature, top_k, top_p, noise),
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
        evaluate_every=evaluate_every,
        sweep=sweep or [],
        instances=instances,
    )
    if pilot:
        print_power(pilot, request, difference)
        return
    progress = terminal.TerminalProgress()
    if dry_run and (missing := runner.missing(request, progress)):
        progress.note(f"dry run: {', '.join(missing)} would be downloaded first; cells can be listed once it is here")
        return
    with plugins_aside():
        request, prepared = api.prepare(request, progress, dry_run)
        terminal.announce(prepared, runner.config_of(request, prepared), progress)
    if dry_run:
        for _, cell in prepared.cells:
            typer.echo(cell.id)
        progress.note(f"dry run: {counted(len(prepared.cells), 'cell')}")
        return
    with plugins_aside():
        watched = trackers.Tracked(progress, prepared, log) if log else progress
        outcome = api.execute(request, prepared, watched)
    terminal.print_outcome(prepared, outcome, progress, request.against)
    _exit_by(outcome)


def tune(
    estimator: EstimatorOption = None,
    task: TaskOption = None,
    trials: Annotated[int, typer.Option(min=1, help="learning rates tried for each estimator, the same for all")] = 6,
    rates: Annotated[
        str | None,
        typer.Option(
            help="LOW:HIGH, between which they are spread, or a list, 1e-4,1e-3; default: a tenth to ten times the task's"
        ),
    ] = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME:option=LOW..HIGH[,option=a|b]: tune these options of NAME too, in the same number of trials; repeatable"
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="0-9 or 0,2,5-7; comparisons must use other seeds")] = "1000-1004",
    extensions: Annotated[
        int, typer.Option(min=0, help="further rates to try where an estimator's best is the lowest or highest")
    ] = 2,
    steps: Annotated[int | None, typer.Option(help="training steps; default: the task's")] = None,
    batch: BatchOption = None,
    clip: ClipOption = 1.0,
    stale: StaleOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    noise: NoiseOption = "0",
    device: DeviceOption = "auto",
    out: OutOption = None,
    jobs: JobsOption = None,
    timeout: TimeoutOption = None,
    resume: ResumeOption = True,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Tune each estimator's learning rate with the same effort.

    And options, if asked. `gradebench run --tuned FILE` uses what was chosen.
    """
    from gradebench.analysis import rate_curve
    from gradebench.experiment import runner, tuning
    from gradebench.reporting import pair_tables, terminal

    tasks = task or ["imdb"]
    request = runner.Request(
        estimators=estimator or ["all"],
        tasks=tasks,
        seeds=seeds,
        steps=steps,
        batch=batch,
        clip=clip,
        sampler=sampler_of(stale, temperature, top_k, top_p, noise),
        device=device,
        out=out or str(runner.default_folder(runner.expand("tasks", tasks)[0], "tuning-")),
        jobs=jobs,
        timeout=timeout,
        resume=resume,
        strict=strict,
        trust_remote_code=trust_remote_code,
    )
    given, low, high = rates_of(rates)

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
    pair_tables.print_tuning(found.curves, found.choices, found.run.out)
    terminal.print_notes(found.run, found.outcome, progress)
    _exit_by(found.outcome)


def probe(
    estimator: EstimatorOption = None,
    task: TaskOption = None,
    draws: Annotated[
        int | None, typer.Option(help="gradient estimates of each estimator at each probe step; default: the task's")
    ] = None,
    checkpoints: Annotated[int, typer.Option(help="probe steps along the trajectory, its start and end included")] = 3,
    along: Annotated[
        Along, typer.Option(help="reference: one trajectory for all estimators; own: each one's own training")
    ] = Along.reference,
    seed: Annotated[int, typer.Option(min=0, help="of prompts and noise")] = 0,
    steps: Annotated[int | None, typer.Option(help="steps of the trajectory; default: the task's")] = None,
    batch: BatchOption = None,
    learning_rate: RateOption = None,
    clip: ClipOption = 1.0,
    stale: StaleOption = 0,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    noise: NoiseOption = "0",
    device: DeviceOption = "auto",
    out: OutOption = None,
    jobs: JobsOption = None,
    timeout: TimeoutOption = None,
    plots: Annotated[
        bool, typer.Option("--plots", help="write figures too, into plots/: SVG, and PNG with the extra `plots`")
    ] = False,
    resume: ResumeOption = True,
    strict: StrictOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Measure the variance, bias and cost of gradients only.

    At frozen parameters of a training trajectory, each quantity with its interval.
    """
    from gradebench.experiment import runner
    from gradebench.reporting import terminal

    request = runner.Request(
        estimators=estimator or ["all"],
        tasks=task or ["enumerable-lm"],
        seeds=str(seed),
        steps=steps,
        batch=batch,
        clip=clip,
        sampler=sampler_of(stale, temperature, top_k, top_p, noise),
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
    progress = terminal.TerminalProgress()
    with plugins_aside():
        prepared = runner.prepare(request, progress)
        terminal.announce(prepared, runner.config_of(request, prepared), progress)
        outcome = runner.execute(request, prepared, progress)
    drawn = []
    if plots:
        from gradebench.reporting.pictures import no_png
        from gradebench.reporting.probe_figures import write_figures

        drawn = write_figures(outcome.probes, prepared.out / "plots")
        if no_png():
            typer.echo(no_png(), err=True)
    terminal.print_probes(prepared, outcome, drawn, progress)
    _exit_by(outcome)


def check(
    estimator: Annotated[
        str, typer.Argument(help="NAME[:k=v,...] or FILE.py:OBJECT[:k=v,...]", autocompletion=completion.estimators)
    ],
    seed: Annotated[int, typer.Option(min=0, help="of all random numbers")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON document")] = False,
) -> None:
    """Test whether an estimator keeps its contract.

    Reproducible, without side effects, honest about what it needs, and unbiased where it says so.
    """
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


def _exit_by(outcome: "Outcome") -> None:
    if outcome.interrupted:
        raise SystemExit(130)
    if not outcome.complete:
        raise SystemExit(1)
