"""The figures of a report, each with its caption and its numbers."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd

from gradebench.analysis import curves, frontier, multi_task, statistics, tables
from gradebench.core.shown import counted
from gradebench.reporting import bias_figures, charts, figure, probe_figures
from gradebench.reporting.figure import Figure

CURVES = 8  # estimators in a figure of curves: more would hide each other


# name, title, columns of the leaderboard across and up, which axes are logarithmic, what it shows
_SCATTERS = (
    (
        "objective-against-kl",
        "Objective against divergence",
        "kl_mean",
        "test_objective_mean",
        (False, False),
        "Test objective against the KL to the reference policy, in nats per sequence.",
    ),
    (
        "reward-against-kl",
        "Reward against divergence",
        "kl_mean",
        "test_reward_mean",
        (False, False),
        "Test reward against the KL to the reference policy, in nats per sequence.",
    ),
    (
        "proxy-against-gold",
        "Training reward against gold reward",
        "test_gold_reward_mean",
        "test_reward_mean",
        (False, False),
        "Training reward against the gold reward of an independent judge, which shows whether the reward is being gamed.",
    ),
    (
        "variance-against-cost",
        "Variance against time",
        "seconds_per_step",
        "gradient_variance_relative",
        (True, True),
        "Relative variance of one gradient estimate against seconds per step, with the same number of sampled sequences.",
    ),
)
_AXES = {
    "kl_mean": "KL to the reference, nats",
    "test_objective_mean": "test objective",
    "test_reward_mean": "test reward",
    "test_gold_reward_mean": "gold reward",
    "seconds_per_step": "seconds per step",
    "gradient_variance_relative": "relative variance",
}
_MEASURED = {"kl_mean": "kl", "test_gold_reward_mean": "gold_reward"}  # without an interval in the leaderboard


def of_task(
    board: pd.DataFrame,
    metrics: pd.DataFrame,
    probes: pd.DataFrame,
    tuning: pd.DataFrame,
    against: Sequence[str] = (),
) -> list[Figure]:
    """The figures of one task and setting, from its rows of each table; those that have nothing to show are left out."""
    ranked = board[board["rank"].notna()]
    found = [_means(ranked, name) for name in ("objective", "reward")]
    found += [_pairs(ranked, metrics, against), _curves(ranked, metrics)]
    found += [_scatter(board, metrics, *one) for one in _SCATTERS]
    biases, batches = probe_figures.of_probes(probes)
    found += [*bias_figures.shown(board, biases), *batches, _sensitivity(tuning)]
    return [figure for figure in found if figure is not None]


def at_budgets(board: pd.DataFrame, budgets: pd.DataFrame) -> list[Figure]:
    """Curves at equal budgets, one figure an axis, of one task's rows of `curves.budgets` and of its leaderboard.

    An axis of which a step takes equally many for all estimators, as samples where all draw a batch, has the same curves as
    steps: the caption of steps names it, and it isn't drawn. A run ranked by reward has its curves by step elsewhere.
    """
    names = [str(name) for name in board.loc[board["rank"].notna(), "estimator"]][:CURVES]
    same = curves.proportional(budgets)
    found = [_at_budgets(rows, str(axis), names, same) for axis, rows in budgets.groupby("axis", sort=False)]
    return [figure for figure in found if figure is not None]


def _at_budgets(rows: pd.DataFrame, axis: str, names: Sequence[str], same: Sequence[str]) -> Figure | None:
    metric = str(rows["metric"].iloc[0])
    if axis in same or (axis == "steps" and metric == "reward" and not same):
        return None
    columns = ["budget", "mean", "ci_low", "ci_high"]
    series = {name: _points(rows.loc[rows["estimator"] == name, columns]) for name in names}
    series = {name: line for name, line in series.items() if line}
    if rows["budget"].nunique() < 2 or not series:
        return None
    shown = rows[rows["estimator"].isin(series)]
    said = metric.replace("_", " ")
    caption = (
        f"Test {said} by {curves.axis_name(axis)}, with 95 % bands, for the {len(series)} highest estimators of the "
        "leaderboard. Each seed's curve is read at the same budgets."
    )
    if axis == "steps" and same:
        caption += f" The curves by {' and '.join(same)} are the same, as a step takes equally many for all estimators."
    if axis == "kl":
        caption += " A seed's curve is read where it first reaches a KL, at whatever step that is."
    picture = charts.curves(series, curves.axis_name(axis), f"test {said}", logarithmic=True)
    title = f"Test {said} by {curves.axis_name(axis)}"
    columns = ["axis", "budget", "estimator", *columns[1:], "n_seeds"]
    return Figure(f"at-equal-{axis}", title, picture, caption, shown, columns)


def of_tasks(metrics: pd.DataFrame, by: str | None = None) -> list[Figure]:
    """The figures over all tasks; none of one task alone."""
    table = multi_task.across_tasks(metrics, by)
    if table.empty:
        return []
    means = _named(table, ["estimator", "iqm", "ci_low", "ci_high"])
    ranking = set(tables.ranked_by(metrics, by).values())
    gain = f"test {ranking.pop().replace('_', ' ')}" if len(ranking) == 1 else "what ranks on a task"
    evaluated = metrics[(metrics["phase"] == "evaluation") & (metrics["split"] == "test")]
    last = evaluated.groupby("task")["step"].max()
    budgets = ", ".join(f"{task} {counted(step, 'step')}" for task, step in last.items())
    found = [
        Figure(
            "interquartile-mean",
            "Gain over all tasks",
            charts.forest(means, f"interquartile mean of the gain in {gain}"),
            f"Interquartile mean, over tasks and seeds, of the gain in {gain} as a fraction of the best estimator's gain on the "
            f"task, with its 95 % interval (bootstrap over the seeds of each task). Budgets: {budgets}.",
            table,
            multi_task.COLUMNS,
        )
    ]
    profiles = multi_task.profiles(metrics, by)
    first = list(table["estimator"])[:CURVES]
    points = profiles.assign(low=math.nan, high=math.nan)
    columns = ["score", "share_above", "low", "high"]
    series = {name: _points(points.loc[points["estimator"] == name, columns]) for name in first}
    caption = (
        f"Performance profiles: the share of runs with a larger gain, for the {len(series)} highest estimators. Higher is "
        "better."
    )
    picture = charts.curves(series, f"gain in {gain} / the best estimator's", "share of runs above")
    title = "Performance profiles"
    found.append(Figure("performance-profiles", title, picture, caption, profiles, list(profiles.columns)))
    ranks = multi_task.ranks(metrics, by)
    if not isinstance(ranks, str):
        half = ranks.critical_difference / 2
        bars = [(name, rank, rank - half, rank + half) for name, rank in ranks.mean_ranks.items()]
        data = pd.DataFrame(bars, columns=["estimator", "mean_rank", "low", "high"])
        caption = (
            "Mean ranks over tasks, with half of Nemenyi's critical difference on either side: estimators whose bars don't "
            "overlap are significantly different."
        )
        picture = charts.forest(bars, "mean rank")
        found.append(Figure("critical-difference", "Mean ranks", picture, caption, data, list(data.columns)))
    return found


def of_frontier(table: pd.DataFrame) -> Figure | None:
    """The frontiers of one task and metric, from its rows of `frontier.budgets`, with who leads where below."""
    rows = table[table["rank"].notna()]
    if rows.empty:
        return None
    highest = rows.groupby("estimator")["mean"].mean().sort_values(ascending=False)
    shown = list(highest.index[:CURVES])
    columns = ["kl", "mean", "ci_low", "ci_high"]
    series = {str(name): _points(rows.loc[rows["estimator"] == name, columns].sort_values("kl")) for name in shown}
    ends = [0.0, *sorted(rows["kl"].unique())]
    cell = {float(kl): (float(before), float(kl)) for before, kl in pairwise(ends)}
    strips: dict[str, list[tuple[float, float, bool]]] = {}
    for name in series:
        for row in rows[rows["estimator"] == name].to_dict("records"):
            if row["rank"] == 1 or row["p_vs_leader_holm"] >= statistics.ALPHA:
                strips.setdefault(name, []).append((*cell[float(row["kl"])], row["rank"] == 1))
    metric = str(rows["metric"].iloc[0]).replace("_", " ")
    caption = (
        f"Test {metric} reached within a KL to the reference: the mean over seeds of each seed's frontier, with its 95 % "
        f"band, for the {len(series)} highest estimators. Strips below: the leader at each KL (solid) and those that aren't "
        "significantly different from it (pale; paired by seed, Holm over the pairs at a budget)."
    )
    picture = charts.curves(series, "KL to the reference, nats per sequence", f"test {metric}", strips=strips)
    title = f"Frontiers of test {metric}"
    return Figure(f"frontier-{metric.replace(' ', '-')}", title, picture, caption, table, frontier.COLUMNS[2:])


def _named(table: pd.DataFrame, columns: list[str]) -> list[tuple[str, float, float, float]]:
    """The rows of a name, a value and its interval."""
    return [(str(name), float(value), float(low), float(high)) for name, value, low, high in table[columns].to_numpy()]


def _points(columns: pd.DataFrame) -> list[tuple[float, float, float, float]]:
    """The rows of four columns."""
    return [(float(x), float(value), float(low), float(high)) for x, value, low, high in columns.to_numpy()]


def _ranking(board: pd.DataFrame) -> tuple[str, str, str]:
    """The metric that ranks a leaderboard, as it is called, and its budget in words, such as "at 40 steps"."""
    metric = str(board["ranked_by"].iloc[0])
    return metric, f"test {metric.replace('_', ' ')}", _budget(board)


def _budget(board: pd.DataFrame) -> str:
    steps = board["steps"].iloc[0]
    return "" if pd.isna(steps) else f"at {counted(steps, 'step')}"


def _means(ranked: pd.DataFrame, metric: str) -> Figure | None:
    """The mean of each estimator with its interval, by tiers for the metric that ranks."""
    columns = ["estimator", *(f"test_{metric}_{end}" for end in ("mean", "ci_low", "ci_high"))]
    known = ranked[ranked[columns[1]].notna()]
    if known.empty:
        return None
    tiered = known["ranked_by"].iloc[0] == metric and known["tier"].notna().any()
    tiers = known["tier"].fillna(0).astype(int).tolist() if tiered else []
    title = f"Test {metric} {_budget(known)}"
    picture = charts.forest(_named(known, columns), title[0].lower() + title[1:], tiers=tiers)
    caption = f"{title}: the mean over seeds with its 95 % interval. An interval is of one estimator alone: "
    caption += (
        "tests paired by seed decide which ones differ. No estimator of a tier is significantly different from the first of it."
        if tiered
        else "two that overlap may still be significantly different, as tests are paired by seed."
    )
    return Figure(f"test-{metric}", title, picture, caption, known, columns)


def _pairs(ranked: pd.DataFrame, metrics: pd.DataFrame, against: Sequence[str] = ()) -> Figure | None:
    """Each seed's difference in the ranking metric between the highest estimator, or the first baseline, and each other one."""
    if len(ranked) < 2:
        return None
    metric, called, budget = _ranking(ranked)
    ((place, values),) = tables.per_seed(metrics, metric, "test")
    names = [str(name) for name in ranked["estimator"]]
    chosen = next((name for name in against if name in names), names[0])
    sign = -1.0 if chosen in against else 1.0
    rows, dots, data = [], {}, []
    for name in (name for name in names if name != chosen):
        differences = sign * (values[chosen] - values[name]).dropna()
        if differences.empty:
            continue
        generator = tables.named_generator(metric, *place, chosen, name)
        ends = statistics.difference_interval(differences.to_numpy(), generator)
        rows.append((name, float(differences.mean()), *ends))
        dots[name] = differences.tolist()
        data.append({"estimator": name} | {f"seed {seed}": value for seed, value in differences.items()})
    if not rows:
        return None
    table = pd.DataFrame(data)
    what = f"of {chosen} minus that of each other one" if sign > 0 else f"of each other one minus that of {chosen}"
    caption = (
        f"{called.capitalize()} {budget} {what}: a small dot for each seed, and their mean with its 95 % interval, "
        "which is not adjusted for the number of pairs. Where all dots are on one side of 0, every seed agrees."
    )
    axis = f"{called} of {chosen} minus that of" if sign > 0 else f"{called} minus that of {chosen}"
    title = f"Differences to {chosen}, seed by seed"
    return Figure("pairs-by-seed", title, charts.forest(rows, axis, dots), caption, table, list(table.columns))


def _curves(ranked: pd.DataFrame, metrics: pd.DataFrame) -> Figure | None:
    """The ranking metric by step, for the highest estimators."""
    if ranked.empty:
        return None
    metric, called, budget = _ranking(ranked)
    rows = metrics[(metrics["phase"] == "evaluation") & (metrics["split"] == "test") & (metrics["metric"] == metric)]
    rows = rows[(rows["status"] == "ok") & np.isfinite(rows["value"])]
    series: dict[str, list[tuple[float, float, float, float]]] = {}
    for name in list(ranked["estimator"])[:CURVES]:
        for step, values in rows[rows["estimator"] == name].groupby("step")["value"]:
            rng = tables.named_generator("report", str(name), str(step))
            low, high = statistics.mean_interval(values.to_numpy(), rng, resamples=2000)
            series.setdefault(str(name), []).append((float(step), float(values.mean()), low, high))
    if not series:
        return None
    table = pd.DataFrame(
        [(name, *point) for name, line in series.items() for point in line],
        columns=["estimator", "step", f"test_{metric}", "ci_low", "ci_high"],
    )
    caption = f"{called.capitalize()} by step, with 95 % bands, for the {len(series)} highest estimators {budget}."
    picture = charts.curves(series, "step", called)
    return Figure(
        "learning-curves", f"{called.capitalize()} during training", picture, caption, table, list(table.columns)
    )


def _scatter(
    board: pd.DataFrame,
    metrics: pd.DataFrame,
    name: str,
    title: str,
    x: str,
    y: str,
    logs: tuple[bool, bool],
    caption: str,
) -> Figure | None:
    table = board[["estimator"]].join([_with_interval(board, metrics, column) for column in (x, y)])
    table = table[
        [all(not log or v > 0 for v, log in zip(pair, logs, strict=True)) for pair in table[[x, y]].to_numpy(float)]
    ]
    table = table[np.isfinite(table[[x, y]].to_numpy(float)).all(axis=1)]
    if len(table) < 2:
        return None
    points = {str(row[0]): ((row[1], row[2], row[3]), (row[4], row[5], row[6])) for row in table.to_numpy().tolist()}
    if y.startswith("test_") and (budget := _budget(board)):
        caption = f"{budget.capitalize()}: {caption[0].lower()}{caption[1:]}"
    columns = [column for column in table.columns if table[column].notna().any()]
    if len(columns) > 3:
        caption += " Lines are 95 % intervals over seeds."
    caption += figure.without_number(board, points)
    picture = charts.scatter(points, _AXES[x], _AXES[y], logs)
    return Figure(name, title, picture, caption, table, columns)


def _with_interval(board: pd.DataFrame, metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of the leaderboard, and both ends of its interval: from there, or else over the seeds of the metrics."""
    base = column.removesuffix("_mean")
    names = [column, f"{base}_ci_low", f"{base}_ci_high"]
    found = board.reindex(columns=names).astype(float)
    if column in _MEASURED:
        for _, values in tables.per_seed(metrics, _MEASURED[column], "test"):
            ends = [
                statistics.mean_interval(seeds, tables.named_generator("report", column, str(name)), resamples=2000)
                if len(seeds := values[name].dropna().to_numpy() if name in values else np.empty(0))
                else (math.nan, math.nan)
                for name in board["estimator"]
            ]
            found[names[1:]] = np.array(ends)
    return found


def _sensitivity(tuning: pd.DataFrame) -> Figure | None:
    """The objective of every trial by its learning rate, the chosen one marked."""
    if "steps" in tuning.columns and tuning["steps"].notna().any():
        tuning = tuning[tuning["steps"] == tuning["steps"].max()]
    rows = tuning[tuning["objective"].notna()].sort_values(["estimator", "learning_rate"])
    if rows.empty:
        return None
    error = rows["standard_error"].astype(float).fillna(0.0)
    ends = rows.assign(low=rows["objective"] - error, high=rows["objective"] + error)
    shown = ["learning_rate", "objective", "low", "high"]
    series = {str(name): _points(mine[shown]) for name, mine in ends.groupby("estimator")}
    chosen = rows[rows["chosen"].astype(bool)]
    marked = dict(zip(chosen["estimator"], chosen["learning_rate"], strict=True))
    alone = not rows["options"].fillna("").any()
    caption = (
        f"Sensitivity to the learning rate: the objective on validation prompts after each trial's last step, the mean over "
        f"{counted(rows['seeds'].max(), 'tuning seed')} with a standard error on either side; the chosen rate has a ring. The "
        "vertical axes differ."
    )
    if not alone:
        caption += " Other options varied too, so neighbouring points aren't joined."
    if lost := sorted(set(tuning.loc[tuning["objective"].isna(), "estimator"])):
        caption += f" Trials that didn't finish, of {', '.join(lost)}, are left out."
    columns = ["estimator", "learning_rate", "options", "objective", "standard_error", "seeds", "status", "chosen"]
    data = tuning.assign(
        chosen=np.where(tuning["chosen"].astype(bool), "chosen", ""), options=tuning["options"].fillna("")
    )
    picture = charts.panels(series, "learning rate", "objective", (True, False), own=True, joined=alone, marked=marked)
    return Figure("learning-rates", "Sensitivity to the learning rate", picture, caption, data, columns)
