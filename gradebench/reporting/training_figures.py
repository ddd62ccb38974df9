"""The figures of what every training step tells: reward and gradient norm, by step."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from gradebench.analysis import statistics, tables
from gradebench.core.shown import counted
from gradebench.reporting import charts
from gradebench.reporting.figure import Figure

WINDOWS = 40  # points of a line: a single step's values are mostly noise, and a page has room for no more
_COLUMNS = ("step", "mean", "ci_low", "ci_high")
_MEANT = {
    "reward": "Mean reward of the sequences that each training step asked about, relaxed ones included.",
    "gradient_norm": "Norm of the gradient estimate of each training step, before clipping; the geometric mean over seeds.",
}


def of_steps(steps: pd.DataFrame, names: Sequence[str]) -> list[Figure]:
    """The training reward and the gradient norm of these estimators, from the rows of one task and setting."""
    rows = steps[(steps["status"] == "ok") & steps["estimator"].isin(names)]
    found = [_of_metric(rows, names, metric) for metric in _MEANT]
    return [figure for figure in found if figure is not None]


def _of_metric(rows: pd.DataFrame, names: Sequence[str], metric: str) -> Figure | None:
    rows = rows[np.isfinite(rows[metric].astype(float))]
    if rows["step"].nunique() < 2:
        return None
    width = max(1, math.ceil((int(rows["step"].max()) + 1) / WINDOWS))
    logarithmic = metric == "gradient_norm"
    series = {name: _line(rows[rows["estimator"] == name], metric, width, logarithmic) for name in names}
    series = {name: line for name, line in series.items() if line}
    if not series:
        return None
    said = metric.replace("_", " ").replace("reward", "training reward")
    caption = f"{_MEANT[metric]} With 95 % bands over seeds, for the {counted(len(series), 'highest estimator')}."
    caption += f" Each point is the mean of {counted(width, 'step')}." if width > 1 else ""
    data = pd.DataFrame(
        [(name, *point) for name, line in series.items() for point in line], columns=["estimator", *_COLUMNS]
    )
    picture = charts.curves(series, "step", said, log_y=logarithmic)
    title = f"{said.capitalize()} by step"
    return Figure(f"training-{metric.replace('_', '-')}", title, picture, caption, data, list(data.columns))


def _line(rows: pd.DataFrame, metric: str, width: int, logarithmic: bool) -> list[tuple[float, float, float, float]]:
    """One estimator's points: the middle of a window of steps, and the mean over seeds with its interval."""
    by_window = rows.assign(window=rows["step"] // width).groupby(["window", "seed"])
    means = by_window[metric].mean().astype(float)
    middles = rows["step"].groupby(rows["step"] // width).agg(lambda steps: (steps.min() + steps.max()) / 2)
    points = []
    for window, seeds in means[means > 0].map(math.log).groupby("window") if logarithmic else means.groupby("window"):
        rng = tables.named_generator("training", metric, str(rows["estimator"].iloc[0]), str(window))
        low, high = statistics.mean_interval(seeds.to_numpy(), rng, resamples=1000)
        unlogged = math.exp if logarithmic else float
        points.append((float(middles[window]), unlogged(seeds.mean()), unlogged(low), unlogged(high)))
    return points
