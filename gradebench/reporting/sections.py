"""The sections of a report: what its template shows, as texts, tables and figures without markup."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import claims, curves, instances, multi_task, provenance
from gradebench.analysis.runs import cell_statuses, read_config
from gradebench.analysis.tables import pareto_front
from gradebench.experiment.repeat import commands_of
from gradebench.plugins.registry import entries
from gradebench.reporting import families, probe_figures, summary, wording
from gradebench.reporting.columns import INSTANCES, INTERVAL, LEADERBOARD, Column, not_empty, records, with_shown
from gradebench.reporting.figures import Figure

WRITERS = 3  # estimators whose texts are shown
NO_FIGURE = {
    "variance-scaling": "No figure of variance by batch size: `gradebench probe` measures it, and `gradebench report RUN "
    "PROBES --out FOLDER` puts both into one report.",
    "learning-rates": "No figure of sensitivity to the learning rate: `gradebench tune` measures it, and a run with its "
    "tuned.json (--tuned) keeps the curves.",
}


@dataclass(frozen=True)
class Row:
    """The texts of a row, whether a tier begins with it, and what estimator it is of, with the numbers behind its cells."""

    cells: list[str]
    new_tier: bool = False
    estimator: str = ""
    numbers: Sequence[Mapping[str, str]] = ()  # of each cell: its value, and low and high where it has an interval

    @property
    def family(self) -> str:
        return families.family_of(self.estimator)

    @property
    def style(self) -> str:
        return families.class_of(self.estimator)

    @property
    def shape(self) -> str:
        return families.SHAPES[self.family]


@dataclass(frozen=True)
class Table:
    """What the template makes a table of; `levels` says which columns are for wide screens, or folded in."""

    columns: Sequence[Column]
    rows: list[Row]
    levels: Sequence[str] = ()


def table(frame: pd.DataFrame, columns: Sequence[Column], tiers: bool = False) -> Table:
    """The columns of a frame as texts, with a rule above each new tier if asked for."""
    rows, last = [], None
    for record in records(frame):
        tier = record["tier"] if tiers and not pd.isna(record["tier"]) else None
        cells = [column.text(record, _text, " to ") for column in columns]
        rows.append(Row(cells, None not in (tier, last) and tier != last))
        last = last if tier is None else tier
    return Table(columns, rows)


def leaderboard(board: pd.DataFrame, order: Sequence[str] = ()) -> Table:
    """The leaderboard with the numbers behind its cells: the first columns on all screens, some on wide ones, others folded.

    `order` are the columns that come first, on all screens; by default those that rank.
    """
    shown = with_shown(board)
    metric = f"test_{board['ranked_by'].iloc[0]}"
    first = order or ("named", "tier", f"{metric}_mean", f"{metric}_ci_low")
    columns = sorted(not_empty(shown, LEADERBOARD), key=lambda one: one.name not in ("named", *order))
    columns = [replace(one, **_REPORTED.get(one.name, {})) for one in columns]
    wide = _WIDE if (board["status"] == "ok").all() else (*_WIDE, "status")
    levels = ["" if one.name in first else "second" if one.name in wide else "extra" for one in columns]
    plain = table(shown, columns, tiers=True)
    rows = [
        replace(row, estimator=str(record["estimator"]), numbers=[_numbers(record, column) for column in columns])
        for row, record in zip(plain.rows, records(shown), strict=True)
    ]
    return Table(columns, rows, levels)


_WIDE = (
    "rank",
    "letters",
    "test_reward_mean",
    "p_vs_best_holm",
    "p_vs_baseline_holm",
    "verdict",
    "kl_mean",
    "gradient_variance_relative",
    "gradient_bias_squared",
    "gradient_cosine",
    "seconds_per_step",
)
_REPORTED: dict[str, dict[str, Any]] = {  # where the terminal's words are short of room
    "gradient_variance_relative": {"heading": "relative variance"},
    "gradient_bias_squared": {"heading": "relative bias²", "form": ".2g"},
}


def _numbers(record: Mapping[Any, Any], column: Column) -> dict[str, str]:
    """The number behind a cell in full, and the interval that the leaderboard has of it."""
    base = column.name.removesuffix("_mean")
    names = {"value": column.name, "low": f"{base}_ci_low", "high": f"{base}_ci_high"}
    values = {key: record.get(name) for key, name in names.items()}
    numbers = {key: f"{value:.12g}" for key, value in values.items() if _is_number(value)}
    if len(numbers) < 3:
        return {key: number for key, number in numbers.items() if key == "value"}
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not pd.isna(value) and math.isfinite(value)


def _text(value: Any, form: str) -> str:
    if isinstance(value, str):
        return value
    return "-" if value is None or pd.isna(value) else format(value, form)


def figure(it: Figure) -> dict[str, Any]:
    """A picture, its title, its caption and its numbers."""
    return {
        "name": it.name,
        "title": it.title,
        "picture": it.picture,
        "caption": it.caption,
        "numbers": _plain(it.data, it.columns, ".6g"),
    }


def _plain(frame: pd.DataFrame, names: Sequence[str], form: str) -> Table:
    """These columns of a frame, under their own names."""
    return table(frame, [Column(name.replace("_", " "), name, form) for name in names])


def of_instances(by_name: Mapping[str, pd.DataFrame]) -> list[dict[str, Any]]:
    """The leaderboard over instances, and the tests of all pairs, of each kind of task and metric."""
    if instances.BOARD not in by_name:
        return []
    found = []
    for (task, metric), rows in by_name[instances.BOARD].groupby(["task", "metric"], sort=False):
        tests = by_name[instances.NAME]
        tests = tests[(tests["task"] == task) & (tests["metric"] == metric)]
        pairs = _plain(tests, instances.COLUMNS[2:], ".3g")
        count = int(rows["n_instances"].max())
        found.append({"task": task, "metric": metric, "count": count, "board": table(rows, INSTANCES), "pairs": pairs})
    return found


_AREAS = ("estimator_a", "estimator_b", "kl_to", "n_pairs", "mean_difference", "ci_low", "ci_high", "p_holm", "verdict")


def of_frontier(rows: pd.DataFrame, areas: pd.DataFrame, drawn: Figure) -> dict[str, Any]:
    """One task's frontiers by one metric: the figure, who leads where, and the areas."""
    task, metric = rows[["task", "metric"]].iloc[0]
    tests = areas[(areas["task"] == task) & (areas["metric"] == metric)]
    return {
        "task": task,
        "metric": metric,
        "setting": tests["setting"].iloc[0] if len(tests) else "",
        "figure": figure(drawn),
        "leaders": wording.frontier_in_words(rows),
        "areas": _plain(tests, _AREAS, ".3g"),
    }


def of_task(
    board: pd.DataFrame,
    drawn: Sequence[Figure],
    samples: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame,
    folders: Sequence[Path],
    against: Sequence[str] = (),
) -> dict[str, Any]:
    """One task and setting: what was run, who leads and by how much, the leaderboard, the figures, and texts.

    `rows` are its metrics. Without any test reward it is a probe: of gradients alone, with the smallest error first.
    """
    ranked = board[board["rank"].notna()]
    probe = ranked.empty and board["gradient_variance"].notna().any()
    lead = f"test-{board['ranked_by'].iloc[0]}"
    names = {one.name for one in drawn}
    said = summary.of_probes(board, probe_figures.last_biases(drawn)) if probe else []
    return {
        "name": board["task"].iloc[0],
        "facts": summary.facts_of_task(board, rows, folders),
        "probe": probe,
        "verdict": (said or [_GRADIENTS])[0] if probe else wording.verdict(ranked, against),
        "said": [*said[1:], _GRADIENTS] if probe else [],
        "sizes": _sizes(summary.sizes(ranked, rows, against)),
        "notices": provenance.notices(rows),
        "legend": summary.families_of(board),
        "board": leaderboard(board.sort_values(["gradient_mse_relative", "estimator"]), _PROBED)
        if probe
        else leaderboard(board),
        "ranked": len(ranked) > 0,
        "ranked_at": wording.ranked_at(board),
        "ranking": "test " + wording.metric_in_words(str(board["ranked_by"].iloc[0])),
        "against": against,
        "front": pareto_front(board),
        "lead": [figure(one) for one in drawn if one.name == lead],
        "figures": [figure(one) for one in drawn if one.name != lead],
        "no_figures": [] if probe else [sentence for name, sentence in NO_FIGURE.items() if name not in names],
        "samples": _of_samples(ranked, samples, board["steps"].iloc[0]),
    }


_SIZES = (
    Column("over", "over"),
    Column("lead of", "of"),
    Column("by", "difference", "+.3f"),
    Column("adjusted 95 % interval", "low", "+.3f", high="high"),
    Column("significant", "significant"),
)


def _sizes(found: summary.Sizes | None) -> dict[str, Any] | None:
    if found is None:
        return None
    columns = list(_SIZES)
    if found.pairs == 1:
        columns[3] = replace(_SIZES[3], heading=INTERVAL)
    if len(leaders := set(found.leads["of"])) == 1:
        columns[:2] = [replace(_SIZES[0], heading=f"lead of {leaders.pop()} over")]
    return {"sentence": found.sentence, "leads": table(found.leads, columns), "note": found.note}


_GRADIENTS = "Gradients were measured at frozen parameters; nothing was trained, so nothing is ranked by reward."
_PROBED = ("named", "gradient_mse_relative", "gradient_variance_relative", "gradient_bias_squared")


def _of_samples(ranked: pd.DataFrame, samples: Sequence[Mapping[str, Any]], steps: Any) -> dict[str, Any] | None:
    """Texts on test prompts side by side: before training, then of the highest estimators, all with the same noise."""
    chosen = [str(name) for name in ranked["estimator"]][:WRITERS]
    mine = [one for one in samples if one["split"] == "test" and one["estimator"] in chosen]
    if not mine:
        return None
    seed = min(one["seed"] for one in mine)
    rows: dict[int, dict[str, str]] = {}
    for one in sorted(mine, key=lambda one: (one["number"], one["step"])):
        if one["seed"] == seed:
            who = "before training" if one["step"] == 0 else str(one["estimator"])
            row = rows.setdefault(int(one["number"]), {"prompt": str(one["prompt"])})
            row[who] = f"{str(one['text']).removeprefix(str(one['prompt']))} ({one['reward']:.2f})"
    names = ["prompt", "before training", *chosen]
    texts = table(
        pd.DataFrame(list(rows.values())).reindex(columns=names), [Column(name, name, prose=True) for name in names]
    )
    return {"steps": steps, "seed": seed, "texts": texts}


_LEADERS = (
    Column("budget", "amount"),
    Column("leads", "leader"),
    Column("mean", "mean", ".3f"),
    Column(INTERVAL, "ci_low", ".3f", high="ci_high"),
    Column("seeds", "n_seeds", ".0f"),
    Column("of", "compared", ".0f"),
    Column("not significantly different", "not_different", prose=True),
)
_CROSSINGS = (
    Column("a", "estimator_a"),
    Column("b", "estimator_b"),
    Column("by", "axis"),
    Column("means cross at", "crossing", ".4g"),
    Column(INTERVAL, "ci_low", ".4g", high="ci_high"),
    Column("sign changes", "sign_changes", ".0f"),
    Column("pairs", "n_pairs", ".0f"),
    Column("verdict", "verdict", prose=True),
)


def of_budgets(budgets: pd.DataFrame, rows: pd.DataFrame, drawn: Sequence[Figure]) -> dict[str, Any] | None:
    """Who leads at which budget, where the lead changes between those who lead somewhere, and the curves."""
    if budgets.empty:
        return None
    same = curves.proportional(budgets)
    mine = budgets[~budgets["axis"].isin(same)]
    metric = str(budgets["metric"].iloc[0])
    first = curves.leaders(mine)
    first = first.assign(amount=[curves.amount(b, a) for b, a in zip(first["budget"], first["axis"], strict=True)])
    axes = list(dict.fromkeys(mine["axis"]))
    crossed = curves.crossings_of(rows, metric, axes=axes, pairs=curves.leading_pairs(mine))
    return {
        "metric": wording.metric_in_words(metric),
        "same": same,
        "leaders": table(first, _LEADERS),
        "crossings": table(met, _CROSSINGS) if len(met := crossed[crossed["crossing"].notna()]) else None,
        "all_crossings": table(crossed, _CROSSINGS) if len(crossed) else None,
        "figures": [figure(one) for one in drawn],
    }


def of_all_tasks(metrics: pd.DataFrame, drawn: Sequence[Figure], by: str | None) -> dict[str, Any] | None:
    """All tasks together, where there are several."""
    if not drawn:
        return None
    ranks = multi_task.ranks(metrics, by)
    words = f"No critical-difference diagram: {ranks}." if isinstance(ranks, str) else wording.ranks_in_words(ranks)
    return {"figures": [figure(one) for one in drawn], "ranks": words}


_CLAIMS = (
    Column("claim", "says", prose=True),
    Column("verdict", "verdict"),
    Column("claimed", "claimed"),
    Column("measured", "measured", ".3g"),
    Column(INTERVAL, "ci_low", ".3g", high="ci_high"),
    Column("effect", "effect_size", "+.2f"),
    Column("seeds", "n_pairs", ".0f"),
    Column("steps", "steps", ".0f"),
    Column("p (Holm)", "p_holm", ".3g"),
    Column("power", "power", ".2f"),
    Column("detectable", "detectable", ".3g"),
    Column("seeds needed", "seeds_needed", ".0f"),
    Column("source", "source", prose=True),
)


def of_claims(metrics: pd.DataFrame) -> dict[str, Any] | None:
    """The published claims that these runs test, and why they don't test the others; None where they test none."""
    verdicts = claims.judge(claims.read_claims(), metrics)
    untested = verdicts["verdict"] == "untested"
    if untested.all():
        return None
    reasons = {str(row["says"]): row["reason"] for row in verdicts[untested].to_dict("records")}
    return {"judged": table(verdicts[~untested], _CLAIMS), "untested": reasons}


def of_cards(names: Sequence[str]) -> dict[str, Mapping[str, str]]:
    """What each registered estimator says of itself, read without importing it."""
    known = entries("estimators", names)
    return {name: known[name].card for name in names if name in known and known[name].card}


_FAILURES = (
    Column("status", "status"),
    Column("cells", "cells", ".0f"),
    Column("such as", "first"),
    Column("reason", "reason", prose=True),
)


def of_origin(run: Path, name: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """How to repeat a run, what it ran on, and every cell that isn't ok."""
    config = read_config(run)
    failed = [vars(cell) for cell in cell_statuses(run) if cell.status != "ok" or cell.reason] if config else []
    failures = None
    if failed:
        by_reason = pd.DataFrame(failed).groupby(["status", "reason"], as_index=False)
        failures = table(by_reason.agg(cells=("cell", "size"), first=("cell", "first")), _FAILURES)
    machine = dict(environment.get("packages", {})) | {k: v for k, v in environment.items() if k != "packages"}
    facts: list[tuple[str, Mapping[str, Any]]] = [("versions and machine", machine)]
    tuned = config.get("request", {}).get("tuned")
    for task, settings in config.get("tasks", {}).items():
        options = f" and options of {tuned}" if tuned else ""
        facts += [(f"task {task}", settings), (f"learning rates{options}, {task}", _rates(config, task))]
    commands = commands_of(config) if config else []
    return {"name": name, "commands": commands, "failures": failures, "facts": facts}


def _rates(config: Mapping[str, Any], task: str) -> dict[str, str]:
    """Each estimator's learning rate, where it is from, and its tuned options."""
    rates = {name: f"{rate:g}" for name, rate in config.get("learning_rates", {}).get(task, {}).items()}
    for estimator, source in config.get("rate_sources", {}).get(task, {}).items():
        rates[estimator] = f"{rates.get(estimator, '')}, {source}"
    for estimator, options in config.get("tuned_options", {}).get(task, {}).items():
        rates[estimator] = f"{rates.get(estimator, '')}, {', '.join(f'{k}={v}' for k, v in options.items())}"
    return rates
