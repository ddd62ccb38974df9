"""A report of runs as one HTML file: nothing fetched, whole without its script, readable on a phone, on paper and in the dark."""

import base64
import functools
import hashlib
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from gradebench.analysis import curves, frontier, instances, tables
from gradebench.analysis.design import Design, read_design
from gradebench.analysis.groups import places_of
from gradebench.analysis.once import made_once
from gradebench.analysis.run_files import read_steps
from gradebench.analysis.runs import (
    family_of,
    read_config,
    read_environment,
    read_metrics,
    require_family,
    setting_apart,
    task_names,
)
from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.core.shown import counted, shown
from gradebench.reporting import figures, pictures, sections, summary, svg, training_figures, wording
from gradebench.reporting.console import track
from gradebench.reporting.families import target_of
from gradebench.reporting.figures import Figure
from gradebench.storage import digests
from gradebench.storage.formats import read_csv, read_lines, write_text
from gradebench.storage.records import SAMPLES
from gradebench.storage.shapes import SAMPLE
from gradebench.storage.tuned import CURVES, CURVES_COLUMNS, CURVES_NUMBERS, CURVES_TRUTHS

Place = tuple[str, str]  # task and setting
SECTIONS = 100  # of tasks and settings: a page of more is too large to read, or for a browser to open


@made_once()
def write_report(
    folders: Sequence[Path],
    metrics: pd.DataFrame | None = None,
    board: pd.DataFrame | None = None,
    *,
    out: Path | None = None,
    plots: bool = False,
    form: str = "",
    width: float = 0.0,
    apart: bool = False,
    by: str | None = None,
    against: Sequence[str] = (),
) -> list[Path]:
    """Writes report.html of these runs into `out`, by default the first run's folder; returns the paths written.

    With `plots` each figure too, as SVG and, where the extra `plots` is installed, as PNG; with a `form`, one of
    `pictures.FORMS`, each figure as a file for a page, `width` points wide, into figures/. Tables that aren't given are
    read and computed. Runs of gradients alone only add to the figures of the others. The ranking metric and the baselines
    are those of the runs, unless given.

    Raises        InputError for folders that hold no run, and runs that can't be merged unless `apart`.
    """
    out = out or folders[0]
    trained = [one for one in folders if read_config(one).get("request", {}).get("train", True)] or folders
    by, against = family_of(trained, by, against)
    if metrics is None:
        metrics = read_metrics(trained, apart)
        require_family(metrics, by, against)
    if board is None:
        try:
            board = tables.leaderboard(metrics, tables.comparisons(metrics, against), by, against)
        except ValueError as error:
            raise InputError(str(error)) from error
    content, drawn = page(folders, metrics, board, out, by, against)
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "report.html"]
    write_text(written[0], content)
    for name, table in varied(metrics, read_design(folders)).items():
        written.append(out / f"{name}.csv")
        tables.write_csv(table, written[-1])
    if plots and drawn:
        names = pictures.distinct_names([(figure.name, group) for group, figure in drawn])
        for name, (_, figure) in zip(names, drawn, strict=True):
            written += pictures.write(figure.picture, out / "plots", name)
    if form and drawn:
        names = pictures.distinct_names([(figure.name, group) for group, figure in drawn])
        written += [
            pictures.export(figure.picture, out / "figures", name, form, width)
            for name, (_, figure) in zip(names, drawn, strict=True)
        ]
    return written


def varied(metrics: pd.DataFrame, design: Design) -> dict[str, pd.DataFrame]:
    """The tables over sweeps and instances by the names of their files; none for a run that has neither."""
    return frontier.written(metrics, design) | instances.written(metrics, design)


def page(
    folders: Sequence[Path],
    metrics: pd.DataFrame,
    board: pd.DataFrame,
    out: Path,
    by: str | None = None,
    against: Sequence[str] = (),
) -> tuple[str, list[tuple[str, Figure]]]:
    """The report as HTML, and its figures, each with the task and setting that it is of.

    Verdict, leaderboard and figures of each task, then all tasks together, claims, estimators, and how it was made.
    """
    left_out: list[str] = []
    design = read_design(folders)
    by_name = varied(metrics, design)
    drawn: list[tuple[str, Figure]] = []
    frontiers = []
    for rows in _each(by_name.get(frontier.NAME), ["task", "metric"]):
        figure = figures.of_frontier(rows)
        if figure is not None:
            drawn.append((" ".join(rows[["task", "metric"]].iloc[0]), figure))
            frontiers.append(sections.of_frontier(rows, by_name[frontier.TESTS], figure))
    tasks, of_tasks = _of_tasks(folders, metrics, board, against, left_out)
    drawn += of_tasks
    together = [] if design else figures.of_tasks(metrics, by)  # the tasks of a design are one, taken together above
    drawn += [("", figure) for figure in together]
    names = sorted({target_of(str(label)) for label in board["estimator"]})
    environments = [_readable(left_out, read_environment, folder) or {} for folder in folders]
    origins = [
        sections.of_origin(folder, folder.resolve().name if len(folders) > 1 else "", environment)
        for folder, environment in zip(folders, environments, strict=True)
    ]
    for said in left_out:
        print(f"gradebench: {said}; left out of the report", file=sys.stderr)
    content = rendered(
        title=out.resolve().name,
        ran=summary.facts_of_runs(folders, environments),
        letters=wording.LETTERS,
        instances=sections.of_instances(by_name),
        frontiers=frontiers,
        tasks=tasks,
        together=sections.of_all_tasks(metrics, together, by),
        claims=sections.of_claims(metrics),
        cards=sections.of_cards(names),
        origins=origins,
        left_out=left_out,
    )
    return content, drawn


def rendered(**fields: Any) -> str:
    """The page of these fields. Every text is escaped, and control characters are shown as escapes such as \\x1b.

    The page may run our script and use our style sheets alone, by their digests, and may fetch nothing.
    """

    environment = _templates()
    loaded = {name: _source(environment, name) for name in ("report.css", "report.js")}
    inside = {"figure_style": svg.style(), "page_style": loaded["report.css"], "script": loaded["report.js"]}
    digests_of = {name: _csp_digest(text) for name, text in inside.items()}
    policy = (
        f"default-src 'none'; script-src {digests_of['script']}; "
        f"style-src {digests_of['figure_style']} {digests_of['page_style']}; base-uri 'none'; form-action 'none'"
    )
    page_of = environment.get_template("report.html.j2")
    return str(page_of.render(policy=policy, **inside, **fields))


@functools.cache
def _templates() -> Environment:
    """Kept, because a template is compiled once for each environment."""

    def visible(value: Any) -> Any:
        return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    return Environment(
        loader=PackageLoader("gradebench.reporting"),
        autoescape=True,
        finalize=visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(environment: Environment, name: str) -> str:
    """A file of ours beside the templates, as it is."""
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0].strip()


def _csp_digest(text: str) -> str:
    """What a content security policy calls a text that the page contains."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _of_tasks(
    folders: Sequence[Path], metrics: pd.DataFrame, board: pd.DataFrame, against: Sequence[str], left_out: list[str]
) -> tuple[list[dict[str, Any]], list[tuple[str, Figure]]]:
    """The section of each task and setting, and the figures of all."""
    samples = _samples_of(folders, left_out)
    probes = _gathered(folders, "probes.csv", schema.PROBES_COLUMNS, (schema.PROBES_NUMBERS,), left_out)
    tuning = _gathered(folders, CURVES, CURVES_COLUMNS, (CURVES_NUMBERS, CURVES_TRUTHS), left_out)
    probes_of, tuning_of = _by_target(probes, folders), _by_target(tuning, folders)
    read = [_readable(left_out, read_steps, folder) for folder in folders]
    steps_of = _by_target(pd.concat([one for one in read if one is not None] or [probes.iloc[:0]]), folders)
    by_place = places_of(metrics)
    found, drawn = [], []
    boards = list(_each(board, ["task", "setting"]))
    if len(boards) > SECTIONS:
        left_out.append(
            f"{len(boards) - SECTIONS} of {counted(len(boards), 'task')} and settings, as the page has sections and figures of "
            f"{SECTIONS}; `gradebench leaderboard RUN --csv FILE` has all"
        )
        boards = boards[:SECTIONS]
    for mine in track(boards, len(boards), "tasks"):
        task, setting = map(str, mine[["task", "setting"]].iloc[0])
        rows, place = by_place[task, setting], (target_of(task), setting)
        shapes = figures.of_task(
            mine, rows, probes_of.get(place, probes.iloc[:0]), tuning_of.get(place, tuning.iloc[:0]), against
        )
        if place in steps_of:
            names = [str(name) for name in mine.loc[mine["rank"].notna(), "estimator"]][: figures.CURVES]
            shapes = _after(shapes, "learning-curves", training_figures.of_steps(steps_of[place], names))
        budgets = curves.budgets(rows, str(mine["ranked_by"].iloc[0]))
        at_budgets = figures.at_budgets(mine, budgets)
        drawn += [(f"{task} {setting}", figure) for figure in [*shapes, *at_budgets]]
        section = sections.of_task(mine, shapes, samples.get((task, setting), []), rows, folders, against)
        found.append(section | {"budgets": sections.of_budgets(budgets, rows, at_budgets)})
    return found, drawn


def _after(shapes: list[Figure], name: str, more: list[Figure]) -> list[Figure]:
    """The figures with more of them behind the one of that name, or at the end."""
    place = next((number + 1 for number, one in enumerate(shapes) if one.name == name), len(shapes))
    return [*shapes[:place], *more, *shapes[place:]]


def _each(table: pd.DataFrame | None, columns: list[str]) -> list[pd.DataFrame]:
    """The rows of each place, in their order; none without a table."""
    return [] if table is None else [rows for _, rows in table.groupby(columns, sort=False)]


def _by_target(table: pd.DataFrame, folders: Sequence[Path]) -> dict[Place, pd.DataFrame]:
    """The rows of each task, with whatever options, and setting; also by what a setting is called in each run apart."""
    places = [(target_of(str(a)), str(b)) for a, b in zip(table["task"], table["setting"], strict=True)]
    index: dict[Place, list[int]] = {}
    for number, place in enumerate(places):
        index.setdefault(place, []).append(number)
    found = {place: table.iloc[numbers] for place, numbers in index.items()}
    apart = {(task, setting_apart(setting, run)): rows for (task, setting), rows in found.items() for run in folders}
    return apart | found


def _samples_of(folders: Sequence[Path], left_out: list[str]) -> dict[Place, list[dict[str, Any]]]:
    """The texts of all runs by task, named as in the tables, and setting."""
    found: dict[Place, list[dict[str, Any]]] = {}
    for folder, names in zip(folders, task_names(folders), strict=True):
        for one in _readable(left_out, read_lines, folder / SAMPLES, SAMPLE) or []:
            found.setdefault((names.get(one["task"], one["task"]), one["setting"]), []).append(one)
    return found


def _gathered(
    folders: Sequence[Path],
    name: str,
    columns: Sequence[str],
    kinds: Sequence[Collection[str]],
    left_out: list[str],
) -> pd.DataFrame:
    """A table that runs may have, of all of them; columns that one lacks are empty. See `read_csv` for the kinds."""
    paths = [folder / name for folder in folders]
    read = [_readable(left_out, read_csv, path, *kinds) for path in paths if path.is_file()]
    found = [one for one in read if one is not None and len(one)]
    return pd.concat(found or [pd.DataFrame()], ignore_index=True).reindex(columns=list(columns))


def _readable(left_out: list[str], read: Callable[..., Any], path: Path, *arguments: Any) -> Any:
    """What a reader returns; None for a damaged file, which is then left out of the report, with the reason."""
    try:
        digests.require_as_written(path)
        return read(path, *arguments)
    except InputError as error:
        left_out.append(str(error))
        return None
