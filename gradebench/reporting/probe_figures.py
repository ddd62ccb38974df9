"""The figures of the table of probes: bias against variance at the start and end of training, and variance by batch size.

Only rows on all parameters count (group ""). Over several seeds a point is the mean, the geometric one for variances.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from gradebench.core.shown import counted
from gradebench.measurement.gradient_metrics import Interval
from gradebench.reporting import bias_figures, bias_plot, charts, pictures
from gradebench.reporting.bias_plot import Point
from gradebench.reporting.figure import Figure

NOT_RESOLVED = "relative variance not resolved"
NO_TRUTH = "bias not resolved: the reference gradient isn't significantly different from 0"
NO_VARIANCE = "no variance"
NOT_MEASURED = "not measured"
VARIANCE, BIAS = "relative variance, tr Cov g / |∇J|²", "relative squared bias, |E g - ∇J|² / |∇J|²"
ENDS = ("value", "ci_low", "ci_high")


def write_figures(probes: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes the figures of PROBES_COLUMNS rows into the folder, which is made; returns their paths.

    For every task, setting and trajectory variance-bias-TASK.svg, variance-direction-TASK.svg and variance-batch-TASK.svg,
    each with its title and caption, and PNG where they can be written; a figure without a point is left out.
    """
    found = []
    for (task, setting, _), rows in _overall(probes).groupby(["task", "setting", "along"], sort=True):
        for kind, draw in _KINDS.items():
            if (figure := draw(rows)) is not None:
                name = f"variance-{kind}-{pictures.file_name(str(task)) or 'task'}"
                found.append((name, f"{task} [{setting}]: {figure.caption}", figure))
    written: list[Path] = []
    names = pictures.numbered([name for name, _, _ in found])
    for name, (_, caption, figure) in zip(names, found, strict=True):
        written += pictures.write(figure.picture, folder, name, caption, figure.title)
    return written


def of_probes(probes: pd.DataFrame) -> tuple[list[Figure], list[Figure]]:
    """Of one task and setting: both kinds of bias against variance, and variance by batch size, of each trajectory."""
    groups = [rows for _, rows in _overall(probes).groupby("along", sort=True)]
    biases = [draw(rows) for rows in groups for draw in (variance_bias, variance_direction)]
    batches = map(variance_by_batch, groups)
    return [it for it in biases if it is not None], [it for it in batches if it is not None]


def _overall(probes: pd.DataFrame) -> pd.DataFrame:
    rows = probes[probes["group"].isna() | (probes["group"] == "")].copy()
    for column in ("task", "setting", "estimator", "along"):
        rows[column] = rows[column].astype(object).where(rows[column].notna(), "").astype(str)
    return rows


def over_seeds(rows: pd.DataFrame, metric: str, logarithmic: bool = False) -> dict[tuple[str, int, int], Interval]:
    """(estimator, step, samples) -> mean over seeds; NaN where any seed's is.

    Seeds are independent: the distances to the ends of their intervals add up as squares do.
    """
    found = {}
    for _, seeds in rows[rows["metric"] == metric].groupby(["estimator", "step", "samples"], sort=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = seeds[list(ENDS)].to_numpy(float).T
            values, lows, highs = np.log(ends) if logarithmic else ends
            below, above = (np.linalg.norm(values - end) / len(seeds) for end in (lows, highs))
            pooled = values.mean() + np.array([0.0, -below, above])
            value, low, high = (np.exp(pooled) if logarithmic else pooled).tolist()
        first = seeds.iloc[0]
        found[str(first["estimator"]), int(first["step"]), int(first["samples"])] = Interval(value, low, high)
    return found


# --- bias against variance --------------------------------------------------------------------------------------


def variance_bias(rows: pd.DataFrame) -> Figure | None:
    """Relative variance against relative squared bias at the first and the last checkpoint; None without a point."""
    panels, how, left_out = _at_both_ends(rows, "gradient_bias_relative")
    if not any(panels.values()):
        return None
    picture = bias_plot.draw(panels, VARIANCE, BIAS)
    caption = f"Relative variance against relative squared bias of one gradient estimate, {how}. {bias_figures.BAND}{left_out}"
    data = pd.DataFrame(
        [
            (_step_of(title), name, *_values(point.variance), *_values(point.bias))
            for title, panel in panels.items()
            for name, point in panel.items()
        ],
        columns=[
            "step",
            "estimator",
            *(f"{a}{b}" for a in ("variance", "bias_squared") for b in bias_figures.WITH_ENDS),
        ],
    )
    return Figure("variance-bias", "Bias against variance", picture, caption, data, list(data.columns))


def variance_direction(rows: pd.DataFrame) -> Figure | None:
    """The same with the bias of direction alone."""
    panels, how, left_out = _at_both_ends(rows, "gradient_cosine")
    if not any(panels.values()):
        return None
    turned = {
        title: {name: Point(one.variance, bias_figures.of_direction(one.bias)) for name, one in panel.items()}
        for title, panel in panels.items()
    }
    picture = bias_plot.draw(turned, VARIANCE, bias_figures.DIRECTION)
    caption = f"{bias_figures.ABOUT_DIRECTION} The same variances, {how}. {bias_figures.BAND}{left_out}"
    data = pd.DataFrame(
        [
            {"step": _step_of(title), **bias_figures.row_of(name, point)}
            for title, panel in turned.items()
            for name, point in panel.items()
        ]
    )
    return Figure(
        "variance-direction", "Bias of direction against variance", picture, caption, data, list(data.columns)
    )


def last_biases(drawn: Sequence[Figure]) -> dict[str, Interval]:
    """The relative squared biases at the last checkpoint that the figure of them shows, by estimator."""
    for figure in drawn:
        if {"step", "bias_squared"} <= set(figure.data.columns):
            rows = figure.data[figure.data["step"] == figure.data["step"].max()]
            columns = ["estimator", *(f"bias_squared{end}" for end in bias_figures.WITH_ENDS)]
            return {str(name): Interval(*values) for name, *values in rows[columns].itertuples(index=False)}
    return {}


def _at_both_ends(rows: pd.DataFrame, bias: str) -> tuple[dict[str, dict[str, Point]], str, str]:
    """The points at the first and the last checkpoint by its title, how they were measured, and who isn't shown."""
    measured = rows[rows["metric"].isin(["gradient_variance_relative", bias])]
    steps = sorted({int(step) for step in measured["step"]})
    names = sorted(set(measured["estimator"]))
    ends = {steps[0]: ", start", steps[-1]: ", end"} if len(steps) > 1 else {}
    panels: dict[str, dict[str, Point]] = {}
    left_out: dict[str, list[str]] = {}  # reason -> who, and where
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        here = measured[measured["step"] == step]
        panels[f"step {step}{ends.get(step, '')}"], missing = _panel(here, names, bias)
        for name, reason in missing.items():
            left_out.setdefault(reason, []).append(f"{name} at step {step}")
    if not any(panels.values()):
        return {}, "", ""
    shown = measured[measured["step"].isin([*steps[:1], *steps[-1:]])]
    return panels, _how(shown, batch=True), _not_shown(left_out)


def _step_of(title: str) -> int:
    return int(title.removeprefix("step ").partition(",")[0])


def _values(interval: Interval) -> tuple[float, float, float]:
    return interval.value, interval.low, interval.high


def _panel(rows: pd.DataFrame, names: Sequence[str], metric: str) -> tuple[dict[str, Point], dict[str, str]]:
    """The points of one checkpoint, and why the others can't be drawn."""
    variance = {key[0]: x for key, x in over_seeds(rows, "gradient_variance_relative", logarithmic=True).items()}
    bias = {key[0]: y for key, y in over_seeds(rows, metric).items()}
    missing = {name: reason for name in names if (reason := _reason(variance.get(name), bias.get(name)))}
    return {name: Point(variance[name], bias[name]) for name in names if name not in missing}, missing


def _reason(variance: Interval | None, bias: Interval | None) -> str:
    """Why a point can't be drawn; "" where it can."""
    if variance is None or bias is None:
        return NOT_MEASURED
    if not math.isfinite(variance.value):
        return NOT_RESOLVED
    if variance.value <= bias_plot.ROUNDING:
        return NO_VARIANCE
    return "" if math.isfinite(bias.value) else NO_TRUTH


# --- variance by batch size -------------------------------------------------------------------------------------


def variance_by_batch(rows: pd.DataFrame) -> Figure | None:
    """Variance against the sequences that a gradient is made of, at the first checkpoint; None without a point."""
    measured = rows[rows["metric"] == "gradient_variance_by_batch"]
    measured = measured[measured["step"] == measured["step"].min()]
    points = [
        (name, samples, *_values(variance))
        for (name, _, samples), variance in over_seeds(measured, "gradient_variance_by_batch", logarithmic=True).items()
        if math.isfinite(variance.value) and variance.value > 0
    ]
    if not points:
        return None
    data = pd.DataFrame(points, columns=["estimator", "samples", *ENDS])
    series = {
        str(name): [(float(a), float(b), float(c), float(d)) for a, b, c, d in mine[["samples", *ENDS]].to_numpy()]
        for name, mine in data.groupby("estimator")
    }
    slopes = {key[0]: slope for key, slope in over_seeds(rows, "gradient_variance_slope").items()}
    notes = {name: _slope(slopes.get(name)) for name in series} if slopes else None
    left_out = sorted(set(measured["estimator"]) - set(series))
    caption = (
        f"Variance of one gradient by the sequences sampled for it, at step {int(measured['step'].iloc[0])}, "
        f"{_how(measured, batch=False)}. Both axes are logarithmic: independent samples fall on a slope of -1."
    )
    caption += " Below each name: the slope of ln variance against ln batch, with its 95 % interval." if slopes else ""
    caption += _not_shown({NO_VARIANCE: left_out} if left_out else {})
    picture = charts.panels(series, "sequences per gradient", "variance", (True, True), notes=notes)
    return Figure("variance-scaling", "Variance by batch size", picture, caption, data, list(data.columns))


def _slope(slope: Interval | None) -> str:
    if slope is None or math.isnan(slope.value):
        return "no slope"
    return f"{slope.value:.2f}" + ("" if math.isnan(slope.low) else f" [{slope.low:.2f}, {slope.high:.2f}]")


_KINDS = {"bias": variance_bias, "direction": variance_direction, "batch": variance_by_batch}  # of a file's name


# --- captions ---------------------------------------------------------------------------------------------------


def _how(measured: pd.DataFrame, batch: bool) -> str:
    """How the shown rows were measured: draws, batch, trajectory and seeds, as far as they are known."""
    facts = ["with 95 % intervals"]
    if measured["draws"].notna().any():
        drawn = f"from {counted(_counts(measured['draws']), 'draw')}"
        facts.append(f"{drawn} of batch {_counts(measured['samples'])}" if batch else f"{drawn} a batch size")
    along = measured["along"].iloc[0]
    facts += [f"along {'their own trajectories' if along == 'own' else f'the {along} trajectory'}"] if along else []
    seeds = measured["seed"].nunique()
    return ", ".join([*facts, *([f"means over {counted(seeds, 'seed')}"] if seeds > 1 else [])])


def _counts(column: pd.Series) -> str:
    return " or ".join(f"{count:g}" for count in sorted(column.dropna().unique()))


def _not_shown(left_out: Mapping[str, Sequence[str]]) -> str:
    """What isn't shown and why, as another sentence; "" where all is."""
    said = "; ".join(f"{', '.join(names)} ({reason})" for reason, names in left_out.items())
    return f" Not shown: {said}." if said else ""
