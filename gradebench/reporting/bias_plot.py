"""Squared bias against variance, on logarithmic axes, with a band for biases that aren't significantly different from 0.

A logarithmic axis has no place for those: their debiased estimates lie about 0, many below. In the band an estimator has a
row of its own, with a hollow mark at its variance, and a line up to the upper limit of its squared bias.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gradebench.measurement.gradient_metrics import Interval
from gradebench.reporting import families, svg

HEIGHT, ROW = 260, 15  # pixels of the panels above the band, and of a row of the band
GAP = 32  # pixels between panels
LONGEST_NAME = 22 * svg.LETTER
ROUNDING = 1e-12  # smaller relative squares are of float32 gradients that agree
_DECADES = 9  # at most, of an axis: what is smaller ends at its edge
_FARTHEST = 30.0  # an axis makes room for the ends of intervals up to this factor away


@dataclass(frozen=True)
class Point:
    """The relative variance and the relative squared bias of an estimator."""

    variance: Interval
    bias: Interval

    @property
    def biased(self) -> bool:
        """Whether the bias is significantly different from 0; not so without an interval."""
        return self.bias.low > ROUNDING


Panel = Mapping[str, Point]


def draw(panels: Mapping[str, Panel], x: str, y: str) -> str:
    """A panel for each title, one below the other, with the same axes; in each, every estimator by its name."""
    points = [(name, point) for panel in panels.values() for name, point in panel.items()]
    in_band = [(name, point) for name, point in points if not point.biased]
    rows = max(sum(not point.biased for point in panel.values()) for panel in panels.values())
    band = ROW * (rows + 1) if rows else 0
    left, width = svg.LEFT, svg.WIDTH - svg.LEFT - svg.RIGHT
    lowest, highest = _limits(
        [end for _, point in points if point.biased for end in _near(point.bias)]
        + [point.bias.high for _, point in in_band]
    )
    first, last = _across(points, width)
    across = svg.Axis(math.log10(first), math.log10(last), left, left + width, logarithmic=True)
    tall, parts = svg.TOP + svg.ROW + HEIGHT + band + GAP, []
    for place, (title, panel) in enumerate(panels.items()):
        top = tall * place + svg.TOP + svg.ROW
        up = svg.Axis(math.log10(lowest), math.log10(highest), top + HEIGHT, top, logarithmic=True)
        parts += [svg.text(left, top - 8, title, "start"), svg.upright(y, top + HEIGHT / 2)]
        parts += _panel(panel, across, up, band, (x, y))
    height = tall * len(panels) - GAP + svg.BOTTOM
    parts.append(svg.text(left + width / 2, height - 8, x, "middle"))
    return svg.page(parts, height, f"{y} against {x}, on logarithmic axes. {_in_words(panels)}")


def _across(points: Sequence[tuple[str, Point]], width: float) -> tuple[float, float]:
    """Ends of the axis of variances, with room for the names in the band, which stand right of the intervals."""
    first, last = _limits([end for _, point in points for end in _near(point.variance)])
    for name, point in points:
        if not point.biased:
            room = min(width / 2, svg.LETTER * len(_short(name)) + 16)
            last = max(last, first * (max(_near(point.variance)) / first) ** (width / (width - room)))
    return first, last


def _panel(panel: Panel, across: svg.Axis, up: svg.Axis, band: float, axes: tuple[str, str]) -> list[str]:
    """The band, the marks with their intervals, and names that keep off all of them."""
    left, right, floor = across.first, across.last, up.first
    parts = []
    taken: list[svg.Box] = []
    if band:
        parts.append(
            f'<rect class="ground" x="{left:.1f}" y="{floor:.1f}" width="{right - left:.1f}" height="{band:.1f}"/>'
        )
        words = "bias not significantly different from 0"
        parts.append(svg.text(left + 4, floor + band - 4, words, "start", "faint"))
        taken.append((left, floor, right, floor + band))
    parts += svg.x_ticks(across, up.last, floor + band, 5) + svg.y_ticks(up, left, right, 5)
    drawn: dict[str, list[str]] = {}
    # Filled from below by rising variance: a line up then passes left of the names in the rows above.
    rising = sorted((name for name in panel if not panel[name].biased), key=lambda name: panel[name].variance.value)
    for row, name in enumerate(rising, start=1):
        drawn[name] = _in_band(name, panel[name], across, up, floor + band - ROW * (row + 0.5), taken)
    biased = sorted((name for name in panel if panel[name].biased), key=lambda name: -panel[name].bias.value)
    for name in biased:
        drawn[name] = _above_band(name, panel[name], across, up, taken)
    for name in biased:
        at = _within(panel[name].variance.value, across), _within(panel[name].bias.value, up)
        drawn[name] += svg.labelled(_short(name), *at, taken, (left, up.last, right + svg.RIGHT, floor))
    return [*parts, *(svg.of(name, _said(name, panel[name], axes), mine) for name, mine in drawn.items())]


def _said(name: str, point: Point, axes: tuple[str, str]) -> str:
    """Both values with their intervals, as they appear under the pointer."""
    (x, y), bias = axes, "" if point.biased else ", not significantly different from 0"
    values = [svg.within(one.value, one.low, one.high) for one in (point.variance, point.bias)]
    return f"{name}: {x} {values[0]}; {y} {values[1]}{bias}"


def _in_band(name: str, point: Point, across: svg.Axis, up: svg.Axis, y: float, taken: list[svg.Box]) -> list[str]:
    x, end = _within(point.variance.value, across), _ends(point.variance, across)[1]
    parts = [_line(name, *_ends(point.variance, across), y, y)]
    if point.bias.high > 10**up.low:
        top = _within(point.bias.high, up)
        parts += [_line(name, x, x, top, y), _line(name, x - 4, x + 4, top, top)]
        taken.append((x - 4, top, x + 4, y))
    parts.append(svg.mark(name, x, y, hollow=True, size=0.9))
    return [*parts, svg.text(max(end, x + 4) + 5, y + 4, _short(name), "start")]


def _above_band(name: str, point: Point, across: svg.Axis, up: svg.Axis, taken: list[svg.Box]) -> list[str]:
    x, y = _within(point.variance.value, across), _within(point.bias.value, up)
    (left, right), (low, high) = _ends(point.variance, across), _ends(point.bias, up)
    taken += [(left, y - 2, right, y + 2), (x - 2, high, x + 2, low), (x - 5, y - 5, x + 5, y + 5)]
    return [_line(name, left, right, y, y), _line(name, x, x, high, low), svg.mark(name, x, y)]


def _line(name: str, x1: float, x2: float, y1: float, y2: float) -> str:
    colour = families.class_of(name)
    return f'<line class="thin {colour}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _short(name: str) -> str:
    return svg.short(name, LONGEST_NAME)


def _within(value: float, axis: svg.Axis) -> float:
    """The place of a value on an axis; at its end where the value is farther."""
    return axis.at(min(max(value, 10**axis.low), 10**axis.high))


def _ends(interval: Interval, axis: svg.Axis) -> tuple[float, float]:
    """Where the interval begins and ends within the axis; at the value itself where it has none."""
    low, high = (interval.value if math.isnan(end) else end for end in (interval.low, interval.high))
    return _within(low, axis), _within(high, axis)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Ends of a logarithmic axis around all that is positive: at least a decade, and at most _DECADES."""
    positive = [value for value in values if math.isfinite(value) and value > ROUNDING**2]
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


def _in_words(panels: Mapping[str, Panel]) -> str:
    """Every point, for those who can't see the figure."""
    said = []
    for title, panel in panels.items():
        each = [
            f"{name} {point.variance.value:.3g}, "
            + (f"{point.bias.value:.3g}" if point.biased else "not significantly different from 0")
            for name, point in panel.items()
        ]
        said.append((f"{title}: " if title else "") + "; ".join(each))
    return ". ".join(said)
