"""The figures of a report: which there are, what each says in words, and the numbers behind it."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from gradebench import across, statistics, svg, tables

CURVES = 8  # estimators in a figure of curves: more would hide each other
_NO_NAME = re.compile(r"[^A-Za-z0-9.=_-]+")


@dataclass(frozen=True)
class Figure:
    """An SVG, its caption, and its numbers: `columns` of `data`."""

    name: str  # of its file
    picture: str
    caption: str
    data: pd.DataFrame
    columns: Sequence[str]


def file_names(by_group: Sequence[tuple[str, Figure]]) -> list[str]:
    """A name for the file of each figure, without an ending; with its group's where two would be called the same."""
    plain = [figure.name for _, figure in by_group]
    named: list[str] = []
    for group, figure in by_group:
        name = figure.name if plain.count(figure.name) == 1 else f"{figure.name}-{_NO_NAME.sub('_', group)[:80]}"
        named.append(name if name not in named else f"{name}-{len(named)}")
    return named


# name, columns of the leaderboard across and up, which axes are logarithmic, what it shows
_SCATTERS = (
    (
        "reward-against-kl",
        "kl_mean",
        "test_reward_mean",
        (False, False),
        "Reward against the divergence paid for it, in nats a sequence.",
    ),
    (
        "proxy-against-gold",
        "test_gold_reward_mean",
        "test_reward_mean",
        (False, False),
        "The reward trained on against an independent judge: one far above the others for the same gold reward is gamed.",
    ),
    (
        "bias-against-variance",
        "gradient_variance_relative",
        "gradient_bias_squared",
        (True, False),
        "Relative variance against relative squared bias: low variance is worth nothing where the gradient points elsewhere.",
    ),
    (
        "variance-against-cost",
        "seconds_per_step",
        "gradient_variance",
        (True, True),
        "Variance against seconds a step, at the same number of sampled sequences.",
    ),
)
_AXES = {
    "kl_mean": "KL to the reference, nats",
    "test_reward_mean": "test reward",
    "test_gold_reward_mean": "gold reward",
    "gradient_variance_relative": "relative variance",
    "gradient_bias_squared": "relative squared bias",
    "seconds_per_step": "seconds a step",
    "gradient_variance": "variance",
}


def of_task(board: pd.DataFrame, metrics: pd.DataFrame, probes: pd.DataFrame, tuning: pd.DataFrame) -> list[Figure]:
    """The figures of one task and setting, from its rows of each table; those that have nothing to show are left out."""
    ranked = board[board["rank"].notna()]
    found = [_rewards(ranked), _pairs(ranked, metrics), _curves(ranked, metrics)]
    found += [_scatter(board, *one) for one in _SCATTERS]
    found += [_scaling(probes), _sensitivity(tuning)]
    return [figure for figure in found if figure is not None]


def of_tasks(metrics: pd.DataFrame) -> list[Figure]:
    """The figures over all tasks; none of one task alone."""
    table = across.across_tasks(metrics)
    if table.empty:
        return []
    means = _named(table, ["estimator", "iqm", "ci_low", "ci_high"])
    found = [
        Figure(
            "interquartile-mean",
            svg.forest(means, "interquartile mean of the gain in test reward"),
            "The interquartile mean over tasks and seeds of the gain in test reward, 1 being the best estimator's on a "
            "task, with its 95 % interval by a bootstrap of the seeds of each task.",
            table,
            across.COLUMNS,
        )
    ]
    profiles = across.profiles(metrics)
    first = list(table["estimator"])[:CURVES]
    points = profiles.assign(low=math.nan, high=math.nan)
    columns = ["score", "share_above", "low", "high"]
    series = {name: _points(points.loc[points["estimator"] == name, columns]) for name in first}
    caption = (
        f"Performance profiles: the share of runs with a larger gain, of the {len(series)} highest. Higher is better."
    )
    picture = svg.curves(series, "gain in test reward, of the best estimator's", "share of runs above")
    found.append(Figure("performance-profiles", picture, caption, profiles, list(profiles.columns)))
    ranks = across.ranks(metrics)
    if not isinstance(ranks, str):
        half = ranks.critical_difference / 2
        bars = [(name, rank, rank - half, rank + half) for name, rank in ranks.mean_ranks.items()]
        data = pd.DataFrame(bars, columns=["estimator", "mean_rank", "low", "high"])
        caption = (
            "Mean ranks over tasks, with half of Nemenyi's critical difference to either side: where two bars don't "
            "overlap, the estimators differ."
        )
        picture = svg.forest(bars, "mean rank")
        found.append(Figure("critical-difference", picture, caption, data, list(data.columns)))
    return found


def _named(table: pd.DataFrame, columns: list[str]) -> list[tuple[str, float, float, float]]:
    """The rows of a name, a value and its interval."""
    return [(str(name), float(value), float(low), float(high)) for name, value, low, high in table[columns].to_numpy()]


def _points(columns: pd.DataFrame) -> list[tuple[float, float, float, float]]:
    """The rows of four columns."""
    return [(float(x), float(value), float(low), float(high)) for x, value, low, high in columns.to_numpy()]


def _rewards(ranked: pd.DataFrame) -> Figure | None:
    if ranked.empty:
        return None
    columns = ["estimator", "test_reward_mean", "test_reward_ci_low", "test_reward_ci_high"]
    picture = svg.forest(_named(ranked, columns), "test reward")
    return Figure("test-reward", picture, "Test reward with its 95 % interval.", ranked, columns)


def _pairs(ranked: pd.DataFrame, metrics: pd.DataFrame) -> Figure | None:
    """Each seed's difference in test reward between the highest estimator and each of the others."""
    if len(ranked) < 2:
        return None
    ((place, values),) = tables.per_seed(metrics, "reward", "test")
    best, *others = map(str, ranked["estimator"])
    rows, dots, data = [], {}, []
    for name in others:
        differences = (values[best] - values[name]).dropna()
        if differences.empty:
            continue
        generator = tables.named_generator("reward", *place, best, name)
        ends = statistics.difference_interval(differences.to_numpy(), generator)
        rows.append((name, float(differences.mean()), *ends))
        dots[name] = differences.tolist()
        data.append({"estimator": name} | {f"seed {seed}": value for seed, value in differences.items()})
    if not rows:
        return None
    table = pd.DataFrame(data)
    caption = (
        f"Test reward of {best} less that of each other one: a small dot each seed, their mean and its 95 % interval. "
        "Where all lie on one side of 0, every seed agrees."
    )
    picture = svg.forest(rows, f"test reward of {best} less that of", dots)
    return Figure("pairs-by-seed", picture, caption, table, list(table.columns))


def _curves(ranked: pd.DataFrame, metrics: pd.DataFrame) -> Figure | None:
    """Test reward by step of the highest estimators."""
    rows = metrics[(metrics["phase"] == "evaluation") & (metrics["split"] == "test") & (metrics["metric"] == "reward")]
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
        columns=["estimator", "step", "test_reward", "ci_low", "ci_high"],
    )
    caption = f"Test reward by step, with 95 % bands, of the {len(series)} highest."
    picture = svg.curves(series, "step", "test reward")
    return Figure("learning-curves", picture, caption, table, list(table.columns))


def _scatter(board: pd.DataFrame, name: str, x: str, y: str, logs: tuple[bool, bool], caption: str) -> Figure | None:
    points = {}
    for estimator, a, b in board[["estimator", x, y]].itertuples(index=False):
        values = ((a, logs[0]), (b, logs[1]))
        if all(not pd.isna(v) and math.isfinite(v) and (v > 0 or not log) for v, log in values):
            points[str(estimator)] = (float(a), float(b))
    if len(points) < 2:
        return None
    left_out = [str(estimator) for estimator in board["estimator"] if estimator not in points]
    if left_out:
        caption += f" Without a number for it: {', '.join(left_out)}."
    picture = svg.scatter(points, _AXES[x], _AXES[y], logs)
    return Figure(name, picture, caption, board[board["estimator"].isin(points)], ["estimator", x, y])


def _scaling(probes: pd.DataFrame) -> Figure | None:
    """Variance against the sequences that a gradient is made of, at the first checkpoint."""
    rows = probes[(probes["metric"] == "gradient_variance_by_batch") & (probes["value"] > 0)]
    rows = rows[rows["group"].isna() | (rows["group"] == "")]
    if rows.empty:
        return None
    first = rows[rows["step"] == rows["step"].min()].sort_values(["estimator", "samples"])
    first = first.drop_duplicates(["estimator", "samples"])
    columns = ["estimator", "samples", "value", "ci_low", "ci_high"]
    series = {str(name): _points(mine[columns[1:]]) for name, mine in first.groupby("estimator")}
    caption = (
        f"Variance of one gradient by the sequences sampled for it, at step {first['step'].iloc[0]:g}, with 95 % "
        "intervals. Both axes are logarithmic: independent samples fall on a slope of -1."
    )
    picture = svg.panels(series, "sequences a gradient", "variance", (True, True))
    return Figure("variance-scaling", picture, caption, first, columns)


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
    marked = dict(rows[rows["chosen"].astype(bool)].set_index("estimator")["learning_rate"])
    alone = not rows["options"].fillna("").any()
    caption = (
        f"Sensitivity to the learning rate: the objective on validation prompts at the end, mean over "
        f"{rows['seeds'].max():g} tuning seeds with a standard error to either side; the chosen rate is the large dot. Upright axes differ."
    )
    if not alone:
        caption += " Other options varied along with it, so that neighbours aren't joined."
    if lost := sorted(set(tuning.loc[tuning["objective"].isna(), "estimator"])):
        caption += f" Trials that didn't end, of {', '.join(lost)}, are left out."
    columns = ["estimator", "learning_rate", "options", "objective", "standard_error", "seeds", "status", "chosen"]
    data = tuning.assign(
        chosen=np.where(tuning["chosen"].astype(bool), "chosen", ""), options=tuning["options"].fillna("")
    )
    picture = svg.panels(series, "learning rate", "objective", (True, False), own=True, joined=alone, marked=marked)
    return Figure("learning-rates", picture, caption, data, columns)
