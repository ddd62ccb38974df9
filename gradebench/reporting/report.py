"""Runs as one HTML file: no script, nothing fetched, readable on a phone, on paper and in the dark."""

import html
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import claims, curves, frontier, instances, multi_task, provenance, tables
from gradebench.analysis.design import Design, read_design
from gradebench.analysis.runs import (
    cell_statuses,
    family_of,
    read_config,
    read_environment,
    read_metrics,
    require_family,
    task_names,
)
from gradebench.analysis.statistics import ALPHA
from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.core.shown import shown
from gradebench.experiment.repeat import commands_of
from gradebench.plugins.registry import entries
from gradebench.reporting import figures, png, svg, terminal_tables
from gradebench.reporting.console import track
from gradebench.reporting.figures import Figure
from gradebench.storage import digests
from gradebench.storage.formats import read_csv, read_lines, write_text
from gradebench.storage.records import SAMPLES
from gradebench.storage.shapes import SAMPLE
from gradebench.storage.tuned import CURVES, CURVES_COLUMNS, CURVES_NUMBERS, CURVES_TRUTHS

WRITERS = 3  # estimators whose texts are shown

_STYLE = (
    svg.style()
    + """
body { margin: 0 auto; max-width: 60rem; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
h3 { font-size: 1rem; } code, pre { font: 0.9em/1.4 ui-monospace, monospace; background: var(--wash); }
pre { padding: 0.6rem; white-space: pre-wrap; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, .text { text-align: left; }
th:first-child:not(.text), td:first-child:not(.text) { position: sticky; left: 0; background: var(--page); } td.text { white-space: normal; min-width: 14rem; }
thead th { color: var(--faint); font-weight: 600; } tr.new-tier td { border-top: 2px solid var(--faint); }
figure { margin: 1rem 0; } figcaption { color: var(--faint); font-size: 0.9rem; } summary { cursor: pointer; }
svg { width: 100%; min-width: 36rem; height: auto; }
.verdict { font-weight: 700; }
@media print { @page { size: landscape; margin: 1cm; } body { max-width: none; padding: 0; font-size: 11px; }
  .wide { overflow: visible; } table { font-size: 8px; } th, td { padding: 1px 4px; } tr { break-inside: avoid; }
  svg { min-width: 0; max-height: 17cm; } h2, h3 { break-after: avoid; } figure { break-inside: avoid; }
  details:not([open]), h2:has(+ details:not([open])) { display: none; } td.text { min-width: 6rem; } }
"""
)

# heading, column of the leaderboard, format
_BOARD = (
    ("estimator", "named", ""), ("rank", "rank", ".0f"), ("tier", "tier", ".0f"), ("letters", "letters", ""),
    ("seeds", "n_seeds", ".0f"), ("steps", "steps", ".0f"),
    ("objective", "test_objective_mean", ".3f"), ("95 % from", "test_objective_ci_low", ".3f"),
    ("to", "test_objective_ci_high", ".3f"), ("test reward", "test_reward_mean", ".3f"),
    ("95 % from", "test_reward_ci_low", ".3f"), ("to", "test_reward_ci_high", ".3f"),
    ("p against best", "p_vs_best_holm", ".3g"), ("p against baseline", "p_vs_baseline_holm", ".3g"),
    ("verdict", "verdict", ""),
    ("gold reward", "test_gold_reward_mean", ".3f"), ("train-test", "generalization_gap", "+.3f"),
    ("KL, nats", "kl_mean", ".2f"), ("relative MSE", "gradient_mse_relative", ".3g"),
    ("direction error", "gradient_direction_error", ".3f"), ("variance", "gradient_variance", ".3g"),
    ("relative", "gradient_variance_relative", ".3g"), ("bias²", "gradient_bias_squared", ".2f"),
    ("cosine", "gradient_cosine", ".2f"), ("updates/step", "updates_per_step", ".3g"),
    ("clipped", "clipped_updates", ".0%"), ("clip factor", "clip_factor", ".2f"),
    ("clipped tokens", "clipped_tokens", ".1%"), ("s/step", "seconds_per_step", ".3f"),
    ("memory, MB", "peak_memory_mb", ".0f"), ("rate", "learning_rate", ".2g"), ("rate from", "rate_source", ""),
    ("status", "status", ""),
)  # fmt: skip


def write_report(
    folders: Sequence[Path],
    metrics: pd.DataFrame | None = None,
    board: pd.DataFrame | None = None,
    *,
    out: Path | None = None,
    plots: bool = False,
    apart: bool = False,
    by: str | None = None,
    against: Sequence[str] = (),
) -> list[Path]:
    """Writes report.html of these runs into `out`, by default the first one's folder; returns what was written.

    With `plots` each figure too, as SVG and, where the extra `plots` is installed, as PNG. Tables are read and made
    where they aren't given. Runs of gradients alone add to the figures of the others. What ranks and the baselines are
    those of the runs, unless given.

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
    return written + (_write_figures(drawn, out / "plots") if plots and drawn else [])


def varied(metrics: pd.DataFrame, design: Design) -> dict[str, pd.DataFrame]:
    """The tables over sweeps and instances by the names of their files; none of a run that has neither."""
    return frontier.written(metrics, design) | instances.written(metrics, design)


def _write_figures(drawn: Sequence[tuple[str, Figure]], folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    written = []
    for name, (_, figure) in zip(figures.file_names(drawn), drawn, strict=True):
        written.append(folder / f"{name}.svg")
        write_text(written[-1], svg.alone(figure.picture, svg.style()))
        if png.available():
            written.append(folder / f"{name}.png")
            png.write_png(figure.picture, written[-1])
    return written


def page(
    folders: Sequence[Path],
    metrics: pd.DataFrame,
    board: pd.DataFrame,
    out: Path,
    by: str | None = None,
    against: Sequence[str] = (),
) -> tuple[str, list[tuple[str, Figure]]]:
    """The report, and its figures with the group of each.

    Verdict, leaderboard and figures of each task, then all tasks together, claims, estimators, and how it was made.
    """
    title = f"GradeBench: {out.resolve().name}"
    left_out: list[str] = []
    samples = _samples_of(folders, left_out)
    probes = _gathered(folders, "probes.csv", schema.PROBES_COLUMNS, (schema.PROBES_NUMBERS,), left_out)
    tuning = _gathered(folders, CURVES, CURVES_COLUMNS, (CURVES_NUMBERS, CURVES_TRUTHS), left_out)
    parts = [f"<h1>{_e(title)}</h1>"]
    drawn: list[tuple[str, Figure]] = []
    design = read_design(folders)
    across_design = varied(metrics, design)
    parts += _of_instances(across_design)
    for (task, metric), rows in across_design.get(frontier.NAME, pd.DataFrame(columns=frontier.COLUMNS)).groupby(
        ["task", "metric"], sort=False
    ):
        figure = figures.of_frontier(rows)
        if figure is not None:
            drawn.append((f"{task} {metric}", figure))
            parts += _of_frontier(f"{task}, {metric}", rows, across_design[frontier.TESTS], figure)
    by_place = dict(iter(metrics.groupby(["task", "setting"])))
    probes_of, tuning_of = _by_name(probes), _by_name(tuning)
    boards_of = board.groupby(["task", "setting"], sort=False)
    for (task, setting), mine in track(boards_of, board[["task", "setting"]].drop_duplicates().shape[0], "tasks"):
        rows, texts = by_place[task, setting], samples.get((str(task), str(setting)), [])
        name = (str(task).partition(":")[0], str(setting).partition(" run=")[0])
        found = figures.of_task(
            mine, rows, probes_of.get(name, probes.iloc[:0]), tuning_of.get(name, tuning.iloc[:0]), against
        )
        budgets = curves.budgets(rows, str(mine["ranked_by"].iloc[0]))
        at_budgets = figures.at_budgets(mine, budgets)
        drawn += [(f"{task} {setting}", figure) for figure in [*found, *at_budgets]]
        parts += _of_task(str(task), str(setting), mine, found, texts, provenance.notices(rows), against)
        parts += _at_budgets(budgets, rows, at_budgets)
    together = [] if design else figures.of_tasks(metrics, by)  # its tasks are one kind, and were taken together above
    drawn += [("", figure) for figure in together]
    parts += _of_tasks(metrics, together, by)
    parts += _claims(metrics)
    parts += _cards(sorted({str(name).partition(":")[0] for name in board["estimator"]}))
    for folder in folders:
        parts += _made(folder, folder.resolve().name if len(folders) > 1 else "", left_out)
    parts += [f"<p>{_e(said)}; left out of this report.</p>" for said in left_out]
    for said in left_out:
        print(f"gradebench: {said}; left out of the report", file=sys.stderr)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{_e(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head>\n<body>\n<main>" + "\n".join(parts) + "</main>\n</body></html>\n"
    ), drawn


def _samples_of(folders: Sequence[Path], left_out: list[str]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The texts of all runs by task, which is called as in the tables, and setting."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
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
    """What a reader returns; None, and why, for a file beside the tables that can't be read: it costs itself alone."""
    try:
        digests.require_as_written(path)
        return read(path, *arguments)
    except InputError as error:
        left_out.append(str(error))
        return None


def _by_name(table: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The rows of each task, with whatever options, in a setting; for runs ranked apart too."""
    places = [(str(a).partition(":")[0], str(b)) for a, b in zip(table["task"], table["setting"], strict=True)]
    index: dict[tuple[str, str], list[int]] = {}
    for number, place in enumerate(places):
        index.setdefault(place, []).append(number)
    return {place: table.iloc[numbers] for place, numbers in index.items()}


def _of_instances(tables_of_design: Mapping[str, pd.DataFrame]) -> list[str]:
    """The leaderboard over instances, and the tests of all pairs."""
    if instances.BOARD not in tables_of_design:
        return []
    board, tests = tables_of_design[instances.BOARD], tables_of_design[instances.NAME]
    parts = []
    for (task, metric), rows in board.groupby(["task", "metric"], sort=False):
        count = int(rows["n_instances"].max())
        parts.append(f"<h2>{_e(str(task))} over {count} instances, by {_e(str(metric))}</h2>")
        parts.append(_table(rows, [(heading, name, form) for heading, name, form in _INSTANCES]))
        mine = tests[(tests["task"] == task) & (tests["metric"] == metric)]
        parts.append(
            "<p>Each instance has its own policy, reward model and prompts, and counts alike. The test is about the kind of "
            "task: Student's t over the instances' mean differences (seeds sharpen each, instances alone add degrees of "
            "freedom), Holm over all pairs.</p>"
        )
        parts.append(
            "<details><summary>all pairs</summary>"
            + _table(mine, [(name.replace("_", " "), name, ".3g") for name in instances.COLUMNS[2:]])
            + "</details>"
        )
    return parts


_INSTANCES = (
    ("estimator", "estimator", ""), ("rank", "rank", ".0f"), ("mean", "mean", ".3f"), ("95 % from", "ci_low", ".3f"),
    ("to", "ci_high", ".3f"), ("p against best", "p_vs_best_holm", ".3g"), ("first in", "n_first", ".0f"),
    ("reward", "reward_mean", ".3f"), ("gold reward", "gold_reward_mean", ".3f"), ("KL, nats", "kl_mean", ".2f"),
    ("instances", "n_instances", ".0f"), ("seeds in all", "n_seeds", ".0f"),
)  # fmt: skip


_FRONTIER = (
    "<p>A seed's frontier is the upper concave envelope, in the root of KL, of its policies at all evaluations and swept "
    "values, chosen on validation prompts and measured on test prompts; nothing is extrapolated. The area is its mean over the range of KL "
    "that all seeds of both estimators reach.</p>"
)


def _of_frontier(title: str, rows: pd.DataFrame, areas: pd.DataFrame, figure: Figure) -> list[str]:
    """One task's frontiers by one metric: the figure, who leads where, and the areas."""
    task, metric = rows[["task", "metric"]].iloc[0]
    tests = areas[(areas["task"] == task) & (areas["metric"] == metric)]
    columns = (
        "estimator_a",
        "estimator_b",
        "kl_to",
        "n_pairs",
        "mean_difference",
        "ci_low",
        "ci_high",
        "p_holm",
        "verdict",
    )
    said = "".join(f"<li>{_e(line)}</li>" for line in terminal_tables.frontier_in_words(rows))
    return [
        f"<h2>Frontiers: {_e(title)}</h2>",
        f"<p><code>{_e(tests['setting'].iloc[0] if len(tests) else '')}</code></p>",
        _figure(figure),
        f"<ul>{said}</ul>",
        _FRONTIER,
        "<details><summary>areas under the frontiers, all pairs</summary>"
        + _table(tests, [(name.replace("_", " "), name, ".3g") for name in columns])
        + "</details>",
    ]


def _of_task(
    task: str,
    setting: str,
    board: pd.DataFrame,
    found: Sequence[Figure],
    samples: Sequence[Mapping[str, Any]],
    notices: Sequence[str],
    against: Sequence[str] = (),
) -> list[str]:
    ranked = board[board["rank"].notna()]
    parts = [
        f"<h2>{_e(task)}</h2>",
        f"<p><code>{_e(setting)}</code></p>",
        f"<p class=verdict>{_e(verdict(ranked, against))}</p>",
        *(f"<p>{_e(notice)}.</p>" for notice in notices),
    ]
    shown = board.assign(
        peak_memory_mb=board["peak_memory_bytes"] / 1e6,
        named=[terminal_tables.named(row) for row in board.to_dict("records")],
    )
    parts.append(_table(shown, [one for one in _BOARD if not terminal_tables.is_empty(shown[one[1]])], tier=True))
    apart = (
        f"Each estimator is compared with {_e(' and '.join(against))}: these comparisons are the family that Holm counts."
        if against
        else "Two estimators share a letter exactly where their difference isn't supported, Holm counting all pairs; a tier "
        "is what isn't significantly different from its first."
    )
    parts.append(
        f"<p>Ranked {_e(terminal_tables.at_budget(board))}. The objective is the reward less the task's weight kl times the KL; means "
        f"over seeds, with 95 % intervals (bootstrap-t). {apart} Tests are paired by seed, by permutation. Variance is that "
        "of one gradient estimate, relative to the squared true gradient, as bias² and MSE are. Clipped: the "
        "share of updates whose gradient clipping shortened, by the clip factor on average. Clipped tokens: those whose ratio the estimator's own clipping held back.</p>"
    )
    front = tables.pareto_front(board)
    if front:
        parts.append(
            f"<p>Nothing else is at least as good in what ranks, relative variance and seconds a step, and better in one, "
            f"than each of: {_e(', '.join(front))}. The front goes by the estimates; it tests nothing.</p>"
        )
    parts += map(_figure, found)
    names = {figure.name for figure in found}
    parts += [f"<p>{_e(said)}</p>" for name, said in _LACKING.items() if name not in names]
    return parts + _samples(ranked, samples, board["steps"].iloc[0])


_LACKING = {
    "variance-scaling": "No figure of variance by batch size: `gradebench probe` measures it, and `gradebench report RUN "
    "PROBES --out FOLDER` shows both.",
    "learning-rates": "No figure of sensitivity to the learning rate: `gradebench tune` measures it, and a run with its "
    "tuned.json (--tuned) keeps the curves.",
}


# heading, column of the leaders by budget and of the crossings, format
_LEADERS = (
    ("budget", "amount", ""), ("leads", "leader", ""), ("mean", "mean", ".3f"),
    ("95 % from", "ci_low", ".3f"), ("to", "ci_high", ".3f"), ("seeds", "n_seeds", ".0f"), ("of", "compared", ".0f"),
    ("not significantly different", "not_different", "text"),
)  # fmt: skip
_CROSSED = (
    ("a", "estimator_a", ""), ("b", "estimator_b", ""), ("by", "axis", ""), ("means cross at", "crossing", ".4g"),
    ("95 % from", "ci_low", ".4g"), ("to", "ci_high", ".4g"), ("changes of sign", "sign_changes", ".0f"),
    ("pairs", "n_pairs", ".0f"), ("supported", "verdict", "text"),
)  # fmt: skip


def _at_budgets(budgets: pd.DataFrame, rows: pd.DataFrame, found: Sequence[Figure]) -> list[str]:
    """Who leads at which budget, where the lead changes between those who lead somewhere, and the curves."""
    if budgets.empty:
        return []
    same = curves.proportional(budgets)
    mine = budgets[~budgets["axis"].isin(same)]
    axes = list(dict.fromkeys(mine["axis"]))
    first = curves.leaders(mine)
    first = first.assign(amount=[curves.amount(b, a) for b, a in zip(first["budget"], first["axis"], strict=True)])
    crossed = curves.crossings_of(rows, str(budgets["metric"].iloc[0]), axes=axes, pairs=curves.leading_pairs(mine))
    metric = str(budgets["metric"].iloc[0]).replace("_", " ")
    parts = ["<h3>Who leads at which budget</h3>", _table(first, _LEADERS)]
    also = f" By {' and '.join(same)}, of which each step takes as many for all, it is as by steps." if same else ""
    parts.append(
        f"<p>By {_e(metric)} on test prompts, each seed's own curve read at the budget. “Of” is how many estimators all of "
        "their seeds bring to it; not significantly different: paired by seed, Holm over all pairs at the budget. "
        f"{_e(also)} All estimators and pairs stand in budgets.csv and crossings.csv.</p>"
    )
    if len(crossed):
        parts.append("<h3>Where the lead changes</h3>")
        parts.append(_table(crossed, _CROSSED))
        parts.append(
            "<p>Between those who lead at some budget. A lead is supported at all budgets of a pair together; where a "
            "true difference is 0, between the ends of the interval, neither lead is (95 %). An end is open where no "
            "lead is supported to that side.</p>"
        )
    return [*parts, *map(_figure, found)]


def _of_tasks(metrics: pd.DataFrame, found: Sequence[Figure], by: str | None) -> list[str]:
    """All tasks together, where there are several."""
    if not found:
        return []
    ranks = multi_task.ranks(metrics, by)
    words = (
        f"No critical-difference diagram: {ranks}." if isinstance(ranks, str) else terminal_tables.ranks_in_words(ranks)
    )
    return ["<h2>Over all tasks</h2>", *map(_figure, found), f"<p>{_e(words)}</p>"]


def verdict(ranked: pd.DataFrame, against: Sequence[str] = ()) -> str:
    """Who leads in one sentence, and who isn't significantly different from it; or who is above and below baselines."""
    if ranked.empty:
        return "No estimator has a test reward here."
    ranked = ranked if against else ranked[ranked["tier"].notna()]  # those whose rates let them be compared
    where, seeds = terminal_tables.at_budget(ranked), int(ranked["n_seeds"].max())
    if against:
        return f"{where[0].upper()}{where[1:]}, with {seeds} seeds: {_against_in_words(ranked)}."
    names = [terminal_tables.named(row) for row in ranked.to_dict("records")]
    p = ranked["p_vs_best_holm"].to_numpy(dtype=float)
    level = [name for name, one in zip(names[1:], p[1:], strict=True) if not one < ALPHA]
    if not level:
        above = ": significantly above each other estimator" if len(names) > 1 else ""
        return f"{names[0]} is highest {where}{above}, with {seeds} seeds."
    if len(level) == len(names) - 1 and len(set(ranked["letters"])) == 1:
        return f"No difference between {len(names)} estimators is supported {where}, by {seeds} seeds."
    return (
        f"{names[0]} is highest {where}; not significantly different from it, with {seeds} seeds: {', '.join(level)}."
    )


def _against_in_words(ranked: pd.DataFrame) -> str:
    """What stands where to the baselines: the verdicts, each with its estimators."""
    said: dict[str, list[str]] = {}
    for row in ranked.to_dict("records"):
        for one in filter(None, str(row["verdict"]).split("; ")):
            said.setdefault(one, []).append(terminal_tables.named(row))
    return "; ".join(f"{one}: {', '.join(said[one])}" for one in sorted(said)) or "nothing was compared"


def _samples(ranked: pd.DataFrame, samples: Sequence[Mapping[str, Any]], steps: Any) -> list[str]:
    """Texts on test prompts side by side: before training, then by the highest estimators, all with the same noise."""
    chosen = list(ranked["estimator"])[:WRITERS]
    mine = [one for one in samples if one["split"] == "test" and one["estimator"] in chosen]
    if not mine:
        return []
    seed = min(one["seed"] for one in mine)
    rows: dict[int, dict[str, str]] = {}
    for one in sorted(mine, key=lambda one: (one["number"], one["step"])):
        if one["seed"] == seed:
            who = "before training" if one["step"] == 0 else str(one["estimator"])
            row = rows.setdefault(int(one["number"]), {"prompt": str(one["prompt"])})
            row[who] = f"{str(one['text']).removeprefix(str(one['prompt']))} ({one['reward']:.2f})"
    columns = [(name, name, "text") for name in ("prompt", "before training", *chosen)]
    frame = pd.DataFrame(list(rows.values())).reindex(columns=[name for name, _, _ in columns])
    note = f"<p>How test prompts are continued after {steps} steps, seed {seed}, with the reward; the same noise for all.</p>"
    return ["<h3>Samples</h3>", note, _table(frame, columns)]


def _claims(metrics: pd.DataFrame) -> list[str]:
    verdicts = claims.judge(claims.read_claims(), metrics)
    open_ = verdicts["verdict"] == "untested"
    if open_.all():
        return []
    rows = verdicts[~open_]
    rows = rows.assign(
        interval=[f"{a:.3g} to {b:.3g}" for a, b in zip(rows["ci_low"], rows["ci_high"], strict=True)],
    )
    columns = (
        ("claim", "says", "text"), ("verdict", "verdict", ""), ("claimed", "claimed", ""), ("measured", "measured", ".3g"),
        ("95 % interval", "interval", ""), ("effect", "effect_size", "+.2f"), ("seeds", "n_pairs", ".0f"), ("steps", "steps", ".0f"),
        ("p (Holm)", "p_holm", ".3g"), ("power", "power", ".2f"), ("seen from", "detectable", ".3g"),
        ("seeds needed", "seeds_needed", ".0f"), ("source", "source", "text"),
    )  # fmt: skip
    note = (
        "<p>Effect is standardised and paired, 0 at the bound. Power is that of the test at these seeds if the truth is as "
        "measured; from the distance “seen from” on it is 0.8. Where "
        "even the highest value of the metric wouldn't reach the bound, nothing can be decided. A verdict is about a claim in these settings, of task, "
        "scale and budget; papers had others.</p>"
    )
    untested = {str(row["says"]): row["reason"] for row in verdicts[open_].to_dict("records")}
    return ["<h2>Published claims</h2>", _table(rows, columns), note, _facts("not tested here", untested)]


def _cards(names: Sequence[str]) -> list[str]:
    """What each registered estimator says of itself, read without importing it."""
    known = entries("estimators")
    parts = []
    for name in names:
        card = known[name].card if name in known else {}
        if card:
            parts.append(_facts(name, card))
    return ["<h2>The estimators</h2>", *parts] if parts else []


def _made(run: Path, name: str, left_out: list[str]) -> list[str]:
    """How to repeat it, on what it ran, and every cell that isn't ok."""
    config, environment = read_config(run), _readable(left_out, read_environment, run) or {}
    parts = [f"<h2>How {_e(name) or 'it'} was made</h2>"]
    if config:
        parts.append(f"<p>To repeat it:</p><pre>{_e(chr(10).join(commands_of(config)))}</pre>")
        failed = [cell for cell in cell_statuses(run) if cell.status != "ok" or cell.reason]
        if failed:
            frame = pd.DataFrame([vars(cell) for cell in failed])
            counted = frame.groupby(["status", "reason"], as_index=False).agg(
                cells=("cell", "size"), first=("cell", "first")
            )
            columns = (
                ("status", "status", ""),
                ("cells", "cells", ".0f"),
                ("such as", "first", ""),
                ("reason", "reason", "text"),
            )
            parts.append(_table(counted, columns))
    facts = dict(environment.get("packages", {})) | {k: v for k, v in environment.items() if k != "packages"}
    parts.append(_facts("versions and machine", facts))
    for task, settings in config.get("tasks", {}).items():
        parts.append(_facts(f"task {task}", settings))
        rates = {name: f"{rate:g}" for name, rate in config.get("learning_rates", {}).get(task, {}).items()}
        for estimator, source in config.get("rate_sources", {}).get(task, {}).items():
            rates[estimator] = f"{rates.get(estimator, '')}, {source}"
        for estimator, options in config.get("tuned_options", {}).get(task, {}).items():
            rates[estimator] = f"{rates.get(estimator, '')}, {', '.join(f'{k}={v}' for k, v in options.items())}"
        tuned = config.get("request", {}).get("tuned")
        parts.append(_facts(f"learning rates{f' and options of {tuned}' if tuned else ''}, {task}", rates))
    return parts


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    """Names and values, folded; empty without any."""
    items = "".join(f"<tr><td>{_e(str(k))}</td><td class=text>{_e(str(v))}</td></tr>" for k, v in facts.items())
    return (
        f"<details><summary>{_e(title)}</summary><div class=wide><table>{items}</table></div></details>"
        if items
        else ""
    )


def _figure(figure: Figure) -> str:
    """A picture, what it shows in words, and its numbers."""
    shown = _table(figure.data, [(name.replace("_", " "), name, ".4g") for name in figure.columns])
    return (
        f"<figure><div class=wide tabindex=0>{figure.picture}</div><figcaption>{_e(figure.caption)}</figcaption>"
        f"<details><summary>the numbers</summary>{shown}</details></figure>"
    )


def _table(frame: pd.DataFrame, columns: Sequence[tuple[str, str, str]], tier: bool = False) -> str:
    head = "".join(
        f"<th scope=col{' class=text' if form == 'text' else ''}>{_e(heading)}</th>" for heading, _, form in columns
    )
    body, last = [], None
    for row in frame.to_dict("records"):
        cells = "".join(_cell(row[column], form) for _, column, form in columns)
        begins = tier and last is not None and row["tier"] is not pd.NA and row["tier"] != last
        last = row.get("tier") if tier else None
        body.append(f"<tr{' class=new-tier' if begins else ''}>{cells}</tr>")
    return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"


def _cell(value: Any, form: str) -> str:
    if isinstance(value, str):
        return f"<td{' class=text' if form == 'text' else ''}>{_e(value)}</td>"
    if value is None or pd.isna(value):
        return "<td>-</td>"
    return f"<td>{_e(format(value, form))}</td>"


def _e(text: str) -> str:
    return html.escape(shown(text))
