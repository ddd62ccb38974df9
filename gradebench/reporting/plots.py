"""Figures of the table of probes, as SVG: what an estimator's gradients are worth, and how that grows with the batch.

The same table gives the same bytes. Colours are safe for the colour-blind, and an estimator keeps its colour and
marker in all figures of a task. Lengths on paper are in points, 1/72 inch: figures have 72 pixels an inch.
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from gradebench.core.errors import InputError
from gradebench.core.shown import one_line
from gradebench.measurement.gradient_metrics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Pair = tuple[float, float]

# Okabe and Ito's colours, with grey for their yellow, which is too pale on white. Times nine markers: 72 pairs.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_INK, _FAINT, _GRID, _BAND = "#222222", "#666666", "#dddddd", "#f3f3f3"
_SIZE, _SMALL = 9.0, 8.0  # of text
_WIDTH = 576.0  # of a figure: 9 points are 12 pixels where it is shown 800 pixels wide
_ROW = 14.0  # from one line of text to the next
_GAP = 7.0  # from a marker to its label
_ANGLES = (0, 45, -45, 180, 135, -135, 90, -90)  # of labels around their marker
_ROUNDING = 1e-12  # relative squares below are those of float32 gradients that agree
_DECADES = 9  # most decades of an axis: what is smaller ends at its edge
_FARTHEST = 30.0  # an axis makes room for ends of intervals up to this factor away
_LONGEST_LABEL = 26  # letters
_NO_MEAN = "relative variance that isn't resolved"
_NO_TRUTH = "bias without a reference gradient that can be told from zero"
_NO_VARIANCE = "no variance"
_NOT_MEASURED = "not measured"
_BAR: dict[str, Any] = {"linewidth": 1.1, "alpha": 0.75, "zorder": 2, "solid_capstyle": "butt"}
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "gradebench",
    "font.family": "sans-serif",
    "font.size": _SIZE,
    "text.color": _INK,
    "text.parse_math": False,  # a name may have a dollar sign
    "axes.labelcolor": _INK,
    "axes.edgecolor": _FAINT,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
}


def require_matplotlib() -> None:
    """Raises InputError where matplotlib isn't installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError("--plots needs matplotlib: pip install 'gradebench[plots]'") from error


def draw_probes(probes: pd.DataFrame, folder: Path) -> list[Path]:
    """Writes the figures of PROBES_COLUMNS rows into the folder, which is made; returns their paths.

    For every task, setting and trajectory: variance-bias-TASK.svg and variance-batch-TASK.svg, numbered from the
    second of a name on; a figure without a point is left out. Only rows on all parameters (group "") count. Over
    several seeds a point is the mean, the geometric one for variances, and its interval takes the seeds as given.

    Raises        InputError where matplotlib isn't installed.
    """
    require_matplotlib()
    import matplotlib.style

    rows = probes[probes["group"].isna() | (probes["group"] == "")].copy()
    for column in ("task", "setting", "estimator", "along"):
        rows[column] = rows[column].astype(object).where(rows[column].notna(), "").astype(str)
    paths: list[Path] = []
    with matplotlib.style.context(["default", _STYLE]):  # whatever the user's own settings
        for (task, _, _), of_task in rows.groupby(["task", "setting", "along"], sort=True):
            styles = _styles(of_task["estimator"])
            for kind, build in (("variance-bias", _variance_bias), ("variance-batch", _variance_batch)):
                drawing = build(of_task, styles)
                if drawing is not None:
                    paths.append(_save(drawing, folder, f"{kind}-{_slug(str(task))}", paths))
    return paths


# --- what is drawn ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Style:
    colour: str
    marker: str


@dataclass(frozen=True)
class _Drawing:
    figure: "Figure"
    title: str
    description: str


@dataclass(frozen=True)
class _Point:
    """x is the relative variance, y the relative squared bias."""

    x: Interval
    y: Interval

    @property
    def told(self) -> bool:
        """Whether the bias can be told from zero; not so without an interval."""
        return self.y.low > _ROUNDING


@dataclass(frozen=True)
class _Panel:
    """One checkpoint."""

    step: int
    told: dict[str, _Point]  # estimators by falling bias
    untold: dict[str, _Point]  # those whose bias can't be told from zero, by rising variance
    left_out: dict[str, str]  # estimator -> why


def _styles(names: Iterable[str]) -> dict[str, _Style]:
    """By the order of the names."""
    return {
        name: _Style(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)])
        for i, name in enumerate(sorted(set(names)))
    }


def _over_seeds(rows: pd.DataFrame, metric: str, logarithmic: bool = False) -> dict[tuple[str, int, int], Interval]:
    """(estimator, step, samples) -> mean over seeds; NaN where any seed's is.

    Seeds are independent: the distances to the ends of their intervals add up as squares do.
    """
    found = {}
    for _, seeds in rows[rows["metric"] == metric].groupby(["estimator", "step", "samples"], sort=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = seeds[["value", "ci_low", "ci_high"]].to_numpy(float).T
            values, lows, highs = np.log(ends) if logarithmic else ends
            below, above = (np.linalg.norm(values - end) / len(seeds) for end in (lows, highs))
            pooled = values.mean() + np.array([0.0, -below, above])
            value, low, high = (np.exp(pooled) if logarithmic else pooled).tolist()
        first = seeds.iloc[0]
        found[str(first["estimator"]), int(first["step"]), int(first["samples"])] = Interval(value, low, high)
    return found


def _panel(rows: pd.DataFrame, step: int, names: Sequence[str]) -> _Panel:
    """The checkpoint's estimators, sorted into what can be drawn and what can't."""
    here = rows[rows["step"] == step]
    variance = {key[0]: x for key, x in _over_seeds(here, "gradient_variance_relative", logarithmic=True).items()}
    bias = {key[0]: y for key, y in _over_seeds(here, "gradient_bias_relative").items()}
    left_out = {name: reason for name in names if (reason := _reason(variance.get(name), bias.get(name)))}
    points = {name: _Point(variance[name], bias[name]) for name in names if name not in left_out}
    told = sorted((name for name in points if points[name].told), key=lambda name: -points[name].y.value)
    untold = sorted((name for name in points if not points[name].told), key=lambda name: points[name].x.value)
    return _Panel(step, {name: points[name] for name in told}, {name: points[name] for name in untold}, left_out)


def _reason(x: Interval | None, y: Interval | None) -> str:
    """Why a point can't be drawn; "" where it can."""
    if x is None or y is None:
        return _NOT_MEASURED
    if not math.isfinite(x.value):
        return _NO_MEAN
    if x.value <= _ROUNDING:
        return _NO_VARIANCE
    return "" if math.isfinite(y.value) else _NO_TRUTH


def _heading(measured: pd.DataFrame, what: str, of: str) -> list[str]:
    """The title, how the shown rows were measured, and the setting, folded."""
    first = measured.iloc[0]
    seeds = measured["seed"].nunique()
    how = f"{_counts(measured['draws'])} draws {of}, along the {first['along']} trajectory, 95 % intervals"
    how += f", means over {seeds} seeds" if seeds > 1 else ""
    return [f"{_label(first['task'])}: {what}", how, *textwrap.wrap(one_line(first["setting"]), 100)]


def _notes(left_out: Mapping[str, Mapping[str, str]]) -> list[str]:
    """What isn't shown and why, folded; `left_out` is place -> estimator -> reason."""
    by_reason: dict[str, list[str]] = {}
    for place, reasons in left_out.items():
        for reason in dict.fromkeys(reasons.values()):
            names = ", ".join(name for name, why in reasons.items() if why == reason)
            by_reason.setdefault(reason, []).append(names + place)
    told = "; ".join(f"{'; '.join(names)} ({reason})" for reason, names in by_reason.items())
    return textwrap.wrap(f"not shown: {told}", 115) if told else []


def _description(measured: pd.DataFrame, lines: Sequence[str], notes: Sequence[str]) -> str:
    """For those who can't see the figure, with all names in full."""
    names = ", ".join(sorted(set(measured["estimator"])))
    return " ".join([f"Task {measured['task'].iloc[0]}. {'. '.join(lines[1:])}. Estimators: {names}.", *notes])


def _counts(column: pd.Series) -> str:
    return " or ".join(f"{count:g}" for count in sorted(column.unique()))


# --- variance against bias --------------------------------------------------------------------------------------


def _variance_bias(rows: pd.DataFrame, styles: Mapping[str, _Style]) -> _Drawing | None:
    """Relative variance against relative squared bias at the first and the last checkpoint; None without a point."""
    measured = rows[rows["metric"].isin(["gradient_variance_relative", "gradient_bias_relative"])]
    steps = sorted({int(step) for step in measured["step"]})
    names = sorted(set(measured["estimator"]))
    panels = [_panel(measured, step, names) for step in dict.fromkeys([*steps[:1], *steps[-1:]])]
    if not any(panel.told or panel.untold for panel in panels):
        return None
    shown = measured[measured["step"].isin([panel.step for panel in panels])]
    lines = _heading(shown, "bias and variance of one gradient estimate", f"of batch {_counts(shown['samples'])}")
    notes = _notes({f" at step {panel.step}": panel.left_out for panel in panels})
    figure, all_axes = _page(lines, notes, len(panels), height=215.0 + _ROW * _rows(panels), titled=True)
    area = _area(panels, all_axes[0].bbox.width, all_axes[0].bbox.height)
    for number, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        when = {steps[0]: ", start", steps[-1]: ", end"} if len(steps) > 1 else {}
        axes.set_title(f"step {panel.step}{when.get(panel.step, '')}", fontsize=_SIZE, loc="left")
        _logarithmic(axes, "x", area.x, _round_numbers(*area.x))
        _logarithmic(axes, "y", area.y, _round_numbers(area.floor, area.y[1]))
        axes.set_xlabel("relative variance,  tr Cov g / |∇J|²")
        axes.tick_params(axis="y", labelleft=number == 0)
        _draw_panel(axes, panel, styles, area)
    all_axes[0].set_ylabel("relative squared bias,  |E g - ∇J|² / |∇J|²")
    return _Drawing(figure, lines[0], _description(measured, lines, notes))


@dataclass(frozen=True)
class _Area:
    """What the panels share: their limits, and the band at the bottom for what a logarithmic axis can't show.

    floor  where the band ends and y begins to mean something
    rows   of the band
    """

    x: _Pair
    y: _Pair
    floor: float
    rows: int

    def row(self, number: int) -> float:
        """y of the middle of a row of the band, counted from below."""
        return float(self.y[0] * (self.floor / self.y[0]) ** ((number + 0.5) / self.rows))


def _rows(panels: Sequence[_Panel]) -> int:
    """Rows of the band: one an estimator that is in it, and one for its name; 0 without a band."""
    most = max(len(panel.untold) for panel in panels)
    return most + 1 if most else 0


def _area(panels: Sequence[_Panel], width: float, height: float) -> _Area:
    """Limits around the points of all panels, with room for the labels of the band, right of the intervals."""
    told = [point for panel in panels for point in panel.told.values()]
    untold = [(name, point) for panel in panels for name, point in panel.untold.items()]
    floor, top = _limits([end for point in told for end in _near(point.y)] + [point.y.high for _, point in untold])
    share = _rows(panels) * _ROW / height
    left, right = _limits([end for point in [*told, *(point for _, point in untold)] for end in _near(point.x)])
    for name, point in untold:
        room = min(width / 2, _text_width(_label(name)) + 2 * _GAP)
        right = max(right, left * (max(_near(point.x)) / left) ** (width / (width - room)))
    return _Area((left, right), (top * (floor / top) ** (1 / (1 - share)), top), floor, _rows(panels))


def _draw_panel(axes: "Axes", panel: _Panel, styles: Mapping[str, _Style], area: _Area) -> None:
    """Band, points with intervals, and labels that keep off all of them."""
    obstacles: list[_Box] = []
    if area.rows:
        axes.axhspan(area.y[0], area.floor, color=_BAND, linewidth=0, zorder=0)
        _write(axes, "can't be told from 0; line: 95 % upper end", (area.x[0], area.row(0)), (4.0, 0.0), _SMALL)
        obstacles.append(_box(axes, area.x, (area.y[0], area.floor)))
    for row, (name, point) in enumerate(panel.untold.items(), start=1):
        obstacles += _draw_untold(axes, f"untold-{panel.step}-{name}", point, styles[name], area, row)
        _write(axes, _label(name), (max(_near(point.x)), area.row(row)), (_GAP, 0.0), ground=_BAND)
    for name, point in panel.told.items():
        obstacles += _draw_told(axes, f"told-{panel.step}-{name}", point, styles[name], area)
    for name, point in panel.told.items():
        _place_label(axes, _label(name), (point.x.value, point.y.value), obstacles)


def _draw_told(axes: "Axes", gid: str, point: _Point, style: _Style, area: _Area) -> list["_Box"]:
    """A full marker with both intervals; returns what they cover."""
    x, y = point.x.value, point.y.value
    # Below the floor is the band, where heights mean nothing.
    bars = [(_within(point.x, area.x), (y, y)), ((x, x), _within(point.y, (area.floor, area.y[1])))]
    for bar in bars:
        axes.plot(*bar, color=style.colour, **_BAR)
    _mark(axes, [x], [y], style, gid)
    return [*(_box(axes, *bar, 1.5) for bar in bars), _box(axes, (x, x), (y, y), 5.0)]


def _draw_untold(axes: "Axes", gid: str, point: _Point, style: _Style, area: _Area, row: int) -> list["_Box"]:
    """A hollow marker in a row of the band, with a line up to the upper end of the bias; returns what that covers.

    Rows are filled from below by rising variance: a line then passes left of the labels in all rows above.
    """
    x, y = point.x.value, area.row(row)
    axes.plot(_within(point.x, area.x), (y, y), color=style.colour, **_BAR)
    _mark(axes, [x], [y], style, gid, hollow=True)
    if not point.y.high > area.floor:
        return []
    axes.plot((x, x), (y, point.y.high), color=style.colour, **_BAR)
    axes.plot(x, point.y.high, color=style.colour, marker="_", markersize=8, **_BAR)
    return [_box(axes, (x, x), (y, point.y.high), 4.0)]


def _place_label(axes: "Axes", name: str, point: _Pair, obstacles: list["_Box"]) -> None:
    """Writes the name where it covers least, near before far; a far one gets a line. Adds it to the obstacles."""
    width, height = _text_width(name), _SIZE * 1.2
    here = _box(axes, (point[0], point[0]), (point[1], point[1]))
    frame = _Box(*axes.bbox.p0, *axes.bbox.p1)
    choices = []
    for rank, (distance, angle) in enumerate((d, a) for d in (_GAP, 18.0, 30.0, 44.0) for a in _ANGLES):
        cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        left, middle = distance * cosine - width * (1 - cosine) / 2, (distance + height / 2) * sine
        box = _Box(left - 2, middle - height / 2, left + width + 2, middle + height / 2).moved(here.left, here.bottom)
        outside = (width + 4) * height - box.shared(frame)
        cost = sum(box.shared(other) for other in obstacles) + 5 * outside + rank
        choices.append((cost, distance, (left, middle), box))
    _, distance, offset, box = min(choices, key=lambda choice: choice[0])
    obstacles.append(box)
    _write(axes, name, point, offset, line=distance > _GAP)


# --- variance against batch size --------------------------------------------------------------------------------


def _variance_batch(rows: pd.DataFrame, styles: Mapping[str, _Style]) -> _Drawing | None:
    """The variance by batch size at the first checkpoint that has it, with fitted lines; None without a point."""
    measured = rows[rows["metric"] == "gradient_variance_by_batch"]
    measured = measured[measured["step"] == measured["step"].min()]
    series: dict[str, dict[int, Interval]] = {}  # estimator -> batch -> variance
    for (name, _, batch), variance in _over_seeds(measured, "gradient_variance_by_batch", logarithmic=True).items():
        if math.isfinite(variance.value) and variance.value > 0:
            series.setdefault(name, {})[batch] = variance
    if not series:
        return None
    slopes = {key[0]: slope for key, slope in _over_seeds(rows, "gradient_variance_slope").items()}
    names = sorted(series, key=lambda name: -series[name][max(series[name])].value)
    step = int(measured["step"].iloc[0])
    lines = _heading(measured, f"variance of one gradient estimate by batch, step {step}", "a batch size")
    notes = _notes({"": dict.fromkeys(sorted(set(measured["estimator"]) - set(series)), _NO_VARIANCE)})
    labels = [f"{_label(name)}  {_slope(slopes.get(name))}" for name in names]
    right = max(170.0, *(_text_width(label, _SMALL) for label in labels)) + 42.0
    figure, (axes,) = _page(lines, notes, 1, height=max(270.0, 60 + _ROW * len(names)), right=right)
    batches = sorted({batch for points in series.values() for batch in points})
    apart = (batches[-1] / batches[0]) ** 0.035 if len(batches) > 1 else 1.1
    y = _limits([end for points in series.values() for variance in points.values() for end in _near(variance)])
    _logarithmic(axes, "x", (batches[0] / apart**2, batches[-1] * apart**2), batches)
    _logarithmic(axes, "y", y, _round_numbers(*y))
    axes.set_xlabel("batch, samples")
    axes.set_ylabel("variance,  tr Cov g")
    for number, name in enumerate(names):
        # Moved sideways, lest intervals hide each other.
        factor = apart ** (2 * number / max(1, len(names) - 1) - 1)
        _draw_series(axes, name, series[name], slopes.get(name), styles[name], factor)
    _add_legend(axes, labels, [styles[name] for name in names])
    return _Drawing(figure, lines[0], _description(measured, lines, notes))


def _draw_series(
    axes: "Axes", name: str, points: Mapping[int, Interval], slope: Interval | None, style: _Style, factor: float
) -> None:
    """An estimator's points, moved sideways by a factor, with their intervals and the fitted line."""
    for batch, variance in points.items():
        x = batch * factor
        axes.plot((x, x), _within(variance, axes.get_ylim()), color=style.colour, **_BAR)
    batches = np.array(list(points), float)
    _mark(axes, batches * factor, [variance.value for variance in points.values()], style, f"batch-{name}")
    if slope is not None and math.isfinite(slope.value):
        x, y = _centre(points)
        ends = batches[[0, -1]]
        axes.plot(ends * factor, np.exp(y + slope.value * (np.log(ends) - x)), color=style.colour, linewidth=1.3)


def _centre(points: Mapping[int, Interval]) -> _Pair:
    """Means of ln batch and ln variance, weighted with the intervals as the slope is: its line passes there."""
    lengths = [math.log(v.high / v.low) if v.high > v.low > 0 else math.nan for v in points.values()]
    weights = np.nan_to_num(np.array(lengths) ** -2.0)
    weights = weights if weights.any() else np.ones(len(weights))
    logs = np.log(np.array([(batch, variance.value) for batch, variance in points.items()]).T)
    x, y = np.average(logs, axis=1, weights=weights)
    return float(x), float(y)


def _add_legend(axes: "Axes", labels: Sequence[str], styles: Sequence[_Style]) -> None:
    """Right of the panel, in the order of the variances."""
    from matplotlib.lines import Line2D

    look: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.02), "alignment": "left", "frameon": False}
    axes.legend(
        [Line2D([], [], color=s.colour, marker=s.marker, markersize=6, linewidth=1.3) for s in styles],
        [f"\u200b{label}" for label in labels],  # a label that begins with an underscore would be left out
        title="slope of ln variance against ln batch\n(-1: independent samples)",
        fontsize=_SMALL,
        title_fontsize=_SMALL,
        **look,
    )


def _slope(slope: Interval | None) -> str:
    if slope is None or math.isnan(slope.value):
        return "no slope"
    return f"{slope.value:.2f}" + ("" if math.isnan(slope.low) else f" [{slope.low:.2f}, {slope.high:.2f}]")


# --- axes -------------------------------------------------------------------------------------------------------


def _logarithmic(axes: "Axes", letter: str, limits: _Pair, ticks: Sequence[float]) -> None:
    """Makes the axis logarithmic, with these ticks only."""
    from matplotlib.ticker import NullLocator

    axes.set(**{f"{letter}scale": "log", f"{letter}lim": limits})
    axis = axes.xaxis if letter == "x" else axes.yaxis
    axis.set_minor_locator(NullLocator())
    axis.set_ticks(list(ticks), [_number(tick) for tick in ticks])


def _round_numbers(low: float, high: float) -> list[float]:
    """Powers of ten between the ends, every second or so where there are many, or 1, 2 and 5 times those."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = 1 + (last - first) // 7
    factors = (1, 2, 5) if high / low < 100 else (1,)
    found = [factor * 10.0**power for power in range(first, last + 1) if power % every == 0 for factor in factors]
    last_shown = high * (low / high) ** 0.03  # the label of one at the very end would stick out
    return [value for value in found if low <= value <= last_shown]


def _number(value: float) -> str:
    """Short, in plain text: SVG readers know no mathematics."""
    if 1e-4 <= value < 1e6:
        return f"{value:,.0f}" if value >= 1 else f"{value:.5f}".rstrip("0")
    power = math.floor(math.log10(value) + 1e-9)
    factor = round(value / 10.0**power)
    return ("" if factor == 1 else f"{factor}·") + "10" + str(power).translate(_RAISED)


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _limits(values: Sequence[float]) -> _Pair:
    """Ends of a logarithmic axis around all that is positive: at least a decade, and at most _DECADES."""
    positive = [value for value in values if math.isfinite(value) and value > _ROUNDING**2]
    if not positive:
        return 0.1, 10.0
    high = max(positive) * 1.5
    low = max(min(positive) / 1.5, high / 10.0**_DECADES)
    widen = max(1.0, math.sqrt(10 * low / high))
    return low / widen, high * widen


def _near(interval: Interval) -> tuple[float, ...]:
    """The value, and the ends as far as an axis makes room for them: an end next to zero would take decades."""
    low, high = interval.value / _FARTHEST, interval.value * _FARTHEST
    return interval.value, *(min(max(end, low), high) for end in (interval.low, interval.high) if math.isfinite(end))


def _within(interval: Interval, limits: _Pair) -> _Pair:
    """The ends of the interval within the limits; the value itself where it has none."""
    low, high = (interval.value if math.isnan(end) else end for end in (interval.low, interval.high))
    return max(low, limits[0]), min(high, limits[1])


# --- on paper ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Box:
    """A rectangle, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def moved(self, x: float, y: float) -> "_Box":
        return _Box(self.left + x, self.bottom + y, self.right + x, self.top + y)

    def shared(self, other: "_Box") -> float:
        """Area in both."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)


def _box(axes: "Axes", x: _Pair, y: _Pair, margin: float = 0.0) -> _Box:
    """What a rectangle of data covers on paper."""
    (left, bottom), (right, top) = axes.transData.transform([(x[0], y[0]), (x[1], y[1])])
    return _Box(float(left) - margin, float(bottom) - margin, float(right) + margin, float(top) + margin)


def _page(
    lines: Sequence[str], notes: Sequence[str], panels: int, height: float, right: float = 12.0, titled: bool = False
) -> tuple["Figure", list["Axes"]]:
    """A figure with its heading, panels side by side of a given height, and notes below."""
    from matplotlib.figure import Figure

    above, below = _ROW * len(lines) + (26.0 if titled else 14.0), 40.0 + _ROW * len(notes)
    total = above + height + below
    figure = Figure(figsize=(_WIDTH / 72, total / 72), dpi=72)
    for number, line in enumerate(lines):
        size: dict[str, Any] = {"weight": "bold", "fontsize": _SIZE + 2} if number == 0 else {"color": _FAINT}
        figure.text(10 / _WIDTH, 1 - _ROW * (number + 0.8) / total, line, va="center", **size)
    for number, note in enumerate(reversed(notes)):
        figure.text(
            10 / _WIDTH, _ROW * (number + 0.6) / total, one_line(note), va="center", fontsize=_SMALL, color=_FAINT
        )
    left, gap = 58.0, 14.0
    width = (_WIDTH - left - right - gap * (panels - 1)) / panels
    places = [(left + number * (width + gap), below, width, height) for number in range(panels)]
    return figure, [_panel_axes(figure, (x / _WIDTH, y / total, w / _WIDTH, h / total)) for x, y, w, h in places]


def _panel_axes(figure: "Figure", place: tuple[float, float, float, float]) -> "Axes":
    axes = figure.add_axes(place)
    axes.grid(color=_GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=2.5)
    return axes


def _mark(axes: "Axes", x: Any, y: Any, style: _Style, gid: str, hollow: bool = False) -> None:
    """Markers. Full ones have a white edge, which sets them apart where they overlap."""
    size = (7.5 if style.marker in "PX" else 6.5) + (0.0 if hollow else 1.8)
    face, edge, width = ("white", style.colour, 1.3) if hollow else (style.colour, "white", 0.7)
    look: dict[str, Any] = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": width}
    axes.plot(x, y, linestyle="none", marker=style.marker, markersize=size, zorder=3, gid=gid, **look)


def _write(
    axes: "Axes", text: str, point: _Pair, offset: _Pair, size: float = _SIZE, line: bool = False, ground: str = ""
) -> None:
    """Text whose left end is that far from the point, in points; with a line to the point, or over a ground."""
    arrow: dict[str, Any] = {"arrowstyle": "-", "color": _FAINT, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
    arrow["relpos"] = (0.0 if offset[0] > 0 else 1.0, 0.5)  # from the nearer end of the text
    look: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": size}
    if ground:  # covers the interval that goes on below it
        look["bbox"] = {"facecolor": ground, "linewidth": 0, "boxstyle": "square,pad=0.1"}
    axes.annotate(text, point, offset, arrowprops=arrow if line else None, **look)


def _label(name: str) -> str:
    """The name; the middle of a long one is left out, as files are told apart by their ends."""
    half, name = _LONGEST_LABEL // 2, one_line(name)
    return name if len(name) <= _LONGEST_LABEL else f"{name[: half - 1]}…{name[-half:]}"


def _text_width(text: str, size: float = _SIZE) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextToPath

    width, _, _ = TextToPath().get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return float(width)


def _slug(name: str) -> str:
    """A name that any file system takes."""
    return re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII).strip("-.")[:80] or "task"


def _save(drawing: _Drawing, folder: Path, stem: str, taken: Sequence[Path]) -> Path:
    """Writes the SVG without a date or a version, under a name that no other figure of this call has."""
    number, path = 1, folder / f"{stem}.svg"
    while path in taken:
        number += 1
        path = folder / f"{stem}-{number}.svg"
    folder.mkdir(parents=True, exist_ok=True)
    words = {"Title": one_line(drawing.title), "Description": one_line(drawing.description)}
    about = words | {"Creator": "gradebench", "Date": None}
    drawing.figure.savefig(path, format="svg", metadata=about)
    return path
