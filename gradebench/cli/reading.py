"""Commands that read runs back: leaderboard, frontier, merge, compare, curves, claims, report, status, cite."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import gradebench
from gradebench.cli.options import (
    AgainstAgainOption,
    ByAgainOption,
    CsvOption,
    FigureForm,
    Form,
    Judged,
    RunArgument,
    RunsArgument,
    budgets_of,
)
from gradebench.core.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame


def leaderboard(
    runs: RunsArgument,
    csv: CsvOption = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="rank runs apart that differ in what numbers depend on, not refuse them")
    ] = False,
    by: ByAgainOption = None,
    against: AgainstAgainOption = None,
    form: Annotated[
        Form,
        typer.Option(
            "--format", help="a table for the terminal; for a paper as LaTeX or Markdown; or CSV, all columns"
        ),
    ] = Form.table,
) -> None:
    """Rank the estimators of one run, or of several pooled."""
    from gradebench.analysis import instances, multi_task
    from gradebench.analysis.design import read_design
    from gradebench.analysis.once import made_once
    from gradebench.analysis.runs import APART, reasons_of
    from gradebench.core import progress
    from gradebench.core.shown import counted
    from gradebench.reporting import next_steps, terminal_tables
    from gradebench.reporting.console import stdout_console
    from gradebench.results import Results

    results = Results(*runs, apart=apart, by=by, against=against or (), mend=APART)
    with made_once():
        with progress.doing(f"comparing {counted(results.metrics['task'].nunique(), 'task')}"):
            metrics, board = results.metrics, results.leaderboard
        _write(board, csv)
        _say_unlisted(runs)
        if form is not Form.table:
            _print_as(form, board, results.tests)
            return
        reasons = next_steps.why_skipped(board, reasons_of(runs, metrics))
        terminal_tables.print_leaderboard(board, results.tests, reasons, results.against)
        terminal_tables.print_notices(metrics)
        across = multi_task.across_tasks(metrics, results.by), multi_task.ranks(metrics, results.by)
        terminal_tables.print_across(*across)
        underpowered = terminal_tables.print_underpowered(results.tests, board)
        terminal_tables.print_instances(instances.written(metrics, read_design(runs)).get(instances.BOARD))
        next_steps.print_next(stdout_console(), next_steps.after_leaderboard(runs, board, underpowered))
        _say_ranking(results.ranked_by, results.by)


def frontier(
    run: RunArgument,
    metric: Annotated[Judged, typer.Option(help="what is reached within the KL")] = Judged.reward,
    kl: Annotated[
        str | None,
        typer.Option(metavar="NATS", help="budgets, as 0.5,1,2; default: ten up to where two estimators get"),
    ] = None,
    csv: CsvOption = None,
) -> None:
    """Show the reward that each estimator reaches within a KL.

    Over a run's sweep of the penalty, or else along its trainings; with who leads at which KL.
    """
    from gradebench.reporting import pair_tables, terminal_tables
    from gradebench.results import Results

    results = Results(run)
    table, areas = results.frontier(metric.value, budgets_of(kl))
    if table.empty:
        raise InputError(f"{run} has no frontier of {metric.value}: no task in it measures that beside a KL")
    _write(table, csv)
    pair_tables.print_frontier(table, areas)
    terminal_tables.print_notices(results.metrics)


def merge(
    runs: RunsArgument,
    out: Annotated[Path, typer.Option(help="a new folder", show_default=False)],
) -> None:
    """Join runs that are parts of one into a new folder.

    With tables and a report of their own, as if they had been one run.
    """
    from gradebench.experiment.merging import merge as merged
    from gradebench.reporting import terminal_tables
    from gradebench.reporting.report import write_report

    try:
        board = merged(runs, out, lambda folder, metrics, board: write_report([folder], metrics, board))
    except OSError as error:
        raise InputError(f"can't write into {out}: {error.strerror}") from error
    _say_unlisted(runs)
    _say_left_out(runs)
    terminal_tables.print_leaderboard(board)
    typer.echo(out)


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
    """Compare two estimators of a run by every metric.

    Without names: each estimator with the baselines, or else with the best.
    """
    from gradebench.reporting import next_steps, pair_tables
    from gradebench.reporting.console import stdout_console
    from gradebench.results import Results

    pooled = [run, *(also or [])]
    results = Results(*pooled, by=by, against=against or (), mend="give runs that agree")
    rows = results.compare(a, b)
    if rows.empty:
        raise InputError(f"{run} has nothing to compare: fewer than two estimators, or no rewards")
    _write(rows, csv)
    _say_unlisted(pooled)
    pair_tables.print_comparisons(rows, results.against, (a, b) if a and b else None)
    if not a:
        pair_tables.print_leads(results.leaderboard, results.tests, results.against)
        _say_ranking(results.ranked_by, results.by)
    next_steps.print_next(stdout_console(), next_steps.after_comparison(pooled, rows, bool(a)))


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
    """Show who leads at which budget, and where the lead changes.

    Between two estimators, or between all that lead at some budget.
    """
    from gradebench.analysis.curves import leaders
    from gradebench.reporting import pair_tables, terminal_tables
    from gradebench.results import Results

    results = Results(run)
    rows = results.curves(axis, by)
    if rows.empty:
        raise InputError(f"{run} has no {by or 'objective or reward'} by {axis}: nothing was evaluated along it")
    found = results.crossings(a, b, axis, by)
    _write(rows, csv)
    pair_tables.print_budgets(leaders(rows), found)
    terminal_tables.print_notices(results.metrics)


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
    """Test published claims on runs.

    Each is supported, contradicted, not distinguishable, underpowered or untested.
    """
    from gradebench.reporting import terminal_tables
    from gradebench.results import Results

    verdicts = Results(*runs, mend="give them one by one").claims(file, against or ())
    _write(verdicts, csv)
    _say_unlisted(runs)
    terminal_tables.print_claims(verdicts)


def report(
    runs: RunsArgument,
    plots: Annotated[
        bool, typer.Option("--plots", help="write each figure too, into plots/: SVG, and PNG with the extra `plots`")
    ] = False,
    figures: Annotated[
        FigureForm | None,
        typer.Option(
            help="write each figure for a page, into figures/: pdf with the extra `figures`, png with `plots`"
        ),
    ] = None,
    width: Annotated[str, typer.Option(help="of these figures: in, cm, mm or pt")] = "3.25in",
    out: Annotated[
        Path | None, typer.Option(help="folder of the report; default: the run's own", show_default=False)
    ] = None,
    apart: Annotated[
        bool, typer.Option("--apart", help="show runs apart that differ in what numbers depend on, not refuse them")
    ] = False,
    by: ByAgainOption = None,
    against: AgainstAgainOption = None,
) -> None:
    """Write report.html, one file to look at, send or print."""
    from gradebench.reporting import pictures
    from gradebench.reporting.report import write_report

    if len(runs) > 1 and out is None:
        raise InputError("a report of several runs is nobody's own; give it a folder with --out")
    form, points = figures.value if figures else "", pictures.points(width)
    if form:
        pictures.require(form)
    try:
        for path in write_report(
            runs, out=out, plots=plots, form=form, width=points, apart=apart, by=by, against=against or ()
        ):
            typer.echo(path)
        _say_unlisted(runs)
    except OSError as error:
        raise InputError(f"can't write into {out or runs[0]}: {error.strerror}") from error
    if plots and pictures.no_png():
        typer.echo(pictures.no_png(), err=True)


def status(run: RunArgument) -> None:
    """Show the state of every cell, also of a run in progress.

    The exit status is 1 unless all cells are ok or skipped.
    """
    from gradebench.analysis import runs as folders
    from gradebench.reporting import next_steps, terminal_tables

    statuses = folders.cell_statuses(run)
    complete = all(cell.status in ("ok", "skipped") for cell in statuses)
    terminal_tables.print_statuses(statuses, next_steps.after_status(run, folders.read_config(run), complete))
    if not complete:
        raise SystemExit(1)


def cite(run: RunArgument) -> None:
    """Print a BibTeX entry and a paragraph on methods for a run, to copy."""
    from gradebench.analysis.runs import read_config, read_environment
    from gradebench.reporting import paper
    from gradebench.results import Results

    results, known = Results(run), read_environment(run)
    typer.echo(paper.bibtex(known.get("packages", {}).get("gradebench", gradebench.__version__)))
    typer.echo()
    typer.echo(paper.methods(read_config(run), known, results.leaderboard, results.tests))


def _print_as(form: Form, board: "DataFrame", tests: "DataFrame") -> None:
    """A leaderboard for other programs, and nothing else."""
    from gradebench.reporting import paper

    if form is Form.csv:
        typer.echo(board.to_csv(index=False), nl=False)
        return
    typer.echo("\n\n".join(paper.tables(board, tests, form.value)))


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
    from gradebench.analysis.run_files import left_out

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
