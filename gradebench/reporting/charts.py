"""The charts: intervals below each other, small panels, scatters, and curves. Each mark is of one estimator, and says so.

The caller leaves out values that aren't finite, or aren't positive on a logarithmic axis.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby

from gradebench.reporting import families, svg
from gradebench.reporting.svg import BOTTOM, LEFT, RIGHT, ROW, TOP, WIDTH, Axis

Ends = tuple[float, float, float]  # a value and the ends of its interval, NaN if it has none
NAMES = 132  # pixels of the names left of a forest
PANELS, PANEL_ROW = 3, 118  # small figures side by side, and the height of each
MARKED = 16  # points of a curve: more would hide it
SAID = 8  # points of a longer line that are told in words


def forest(
    rows: Sequence[tuple[str, float, float, float]],
    label: str,
    dots: Mapping[str, Sequence[float]] | None = None,
    tiers: Sequence[int] = (),
) -> str:
    """A value with its interval for each name, one below the other; with `dots`, what it is the mean of, and 0.

    With a tier for each row, 0 for none, every second tier is shaded, and all are named at the right.
    """
    height = TOP + ROW * len(rows) + BOTTOM
    dots = dots or {}
    ends = [end for _, *values in rows for end in values if math.isfinite(end)]
    ends += [value for values in dots.values() for value in values] + ([0.0] if dots else [])
    axis = Axis.over(ends, NAMES, WIDTH - RIGHT - (34 if tiers else 0))
    parts = [*_shades(tiers), *svg.x_axis(axis, height, label, NAMES)]
    if dots:
        at = f"{axis.at(0):.1f}"
        parts.append(f'<line class="leader" x1="{at}" x2="{at}" y1="{TOP}" y2="{height - BOTTOM}"/>')
    for place, (name, value, low, high) in enumerate(rows):
        y, colour = TOP + ROW * (place + 0.5), families.class_of(name)
        mine = [svg.text(NAMES - 8, y + 4, svg.short(name, NAMES - 22), "end")]
        mine += [
            f'<circle class="seed {colour}" cx="{axis.at(dot):.1f}" cy="{y}" r="2.5"/>' for dot in dots.get(name, ())
        ]
        if math.isfinite(low) and math.isfinite(high):
            mine.append(
                f'<line class="bar {colour}" x1="{axis.at(low):.1f}" x2="{axis.at(high):.1f}" y1="{y}" y2="{y}"/>'
            )
        mine.append(svg.mark(name, axis.at(value), y))
        said = f"{name}: {label} {svg.within(value, low, high)}" + (
            f", tier {tiers[place]}" if tiers and tiers[place] else ""
        )
        parts.append(svg.of(name, said, mine))
    return svg.page(parts, height, f"{label}: " + ", ".join(f"{name} {value:.3g}" for name, value, *_ in rows))


def _shades(tiers: Sequence[int]) -> list[str]:
    """A stripe behind the rows of every second tier, and the name of each at its first row; 0 is of no tier."""
    parts, first = [], 0
    for tier, rows in groupby(tiers):
        count, top = len(list(rows)), TOP + ROW * first
        if tier % 2:
            parts.append(f'<rect class="ground" x="0" y="{top}" width="{WIDTH}" height="{ROW * count}"/>')
        if tier and tier not in tiers[:first]:
            parts.append(svg.text(WIDTH - 4, top + 14, f"tier {tier}", "end", "faint"))
        first += count
    return parts


def panels(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    x: str,
    y: str,
    logs: tuple[bool, bool] = (False, False),
    own: bool = False,
    joined: bool = True,
    marked: Mapping[str, float] | None = None,
    notes: Mapping[str, str] | None = None,
) -> str:
    """A small figure for each name: points (x, value, low, high), in a line if `joined`, the one at `marked` large.

    All have the same axes, except that each has its `own` vertical axis if so asked. A note is written below its name.
    """
    columns, head = min(PANELS, len(series)), 18 if notes is None else 31
    row = PANEL_ROW + head - 18
    width, height = (WIDTH - LEFT - RIGHT) / columns, TOP + row * -(-len(series) // columns) + BOTTOM / 2
    middle = (TOP + height - BOTTOM / 2) / 2
    parts = [svg.text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, "middle"), svg.upright(y, middle)]
    everything = [point for line in series.values() for point in line]
    for place, (name, line) in enumerate(series.items()):
        left, top = LEFT + width * (place % columns), TOP + row * (place // columns)
        first, last, high, low = left + (30 if own else 4), left + width - 10, top + head, top + row - 27
        across = Axis.over([point[0] for point in everything], first, last, logs[0])
        ends = [end for point in (line if own else everything) for end in point[1:] if math.isfinite(end)]
        up = Axis.over([end for end in ends if end > 0 or not logs[1]], low, high, logs[1])
        parts.append(svg.text(first, top + 12, svg.short(name, last - first), "start"))
        if notes is not None:
            parts.append(svg.text(first, top + 25, notes.get(name, ""), "start", "faint"))
        parts += svg.x_ticks(across, high, low, 3)
        parts += svg.y_ticks(up, first, last, 3, named=own or place % columns == 0)
        said = f"{name}: {y} " + ", ".join(f"{svg.within(mean, low, high)} at {at:.3g}" for at, mean, low, high in line)
        parts.append(svg.of(name, said, _points(name, line, across, up, joined, (marked or {}).get(name))))
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{a:.3g} at {at:.3g}" for at, a, *_ in line)
        + (f", slope {notes[name]}" if notes and name in notes else "")
        for name, line in series.items()
    )
    return svg.page(parts, height, f"{y} by {x}. {said}")


def _points(
    name: str,
    line: Sequence[tuple[float, float, float, float]],
    across: Axis,
    up: Axis,
    joined: bool,
    marked: float | None,
) -> list[str]:
    parts, colour = [], families.class_of(name)
    for x, _, low, high in line:
        if math.isfinite(low) and math.isfinite(high) and (low > 0 or not up.logarithmic):
            at, ends = f"{across.at(x):.1f}", (f"{up.at(low):.1f}", f"{up.at(high):.1f}")
            parts.append(f'<line class="thin {colour}" x1="{at}" x2="{at}" y1="{ends[0]}" y2="{ends[1]}"/>')
    if joined:
        parts.append(f'<polyline class="line {colour}" points="{svg.path([p[:2] for p in line], across.at, up.at)}"/>')
    for x, value, *_ in line:
        cx, cy = across.at(x), up.at(value)
        parts.append(svg.mark(name, cx, cy, size=0.8))
        if x == marked:
            parts.append(f'<circle class="ring" cx="{cx:.1f}" cy="{cy:.1f}" r="7"/>')
    return parts


def scatter(points: Mapping[str, tuple[Ends, Ends]], x: str, y: str, logs: tuple[bool, bool] = (False, False)) -> str:
    """A named mark for each pair of values, with the intervals of those that have one."""
    height = TOP + svg.PLOT_HEIGHT + BOTTOM
    sides = list(zip(*points.values(), strict=True))
    ends = [
        [end for values in side for end in values if math.isfinite(end) and (end > 0 or not log)]
        for side, log in zip(sides, logs, strict=True)
    ]
    across = Axis.over(ends[0], LEFT, WIDTH - RIGHT - 60, logs[0])
    up = Axis.over(ends[1], height - BOTTOM, TOP, logs[1])
    parts = svg.x_axis(across, height, x, LEFT) + svg.y_axis(up, y)
    dots = {name: (across.at(a[0]), up.at(b[0])) for name, (a, b) in points.items()}
    taken = [(cx - 5, cy - 5, cx + 5, cy + 5) for cx, cy in dots.values()]
    for name, (cx, cy) in dots.items():
        left, right = _ends(across, points[name][0])
        low, high = _ends(up, points[name][1])
        taken += [(left, cy - 1, right, cy + 1)] if left < right else []
        taken += [(cx - 1, high, cx + 1, low)] if high < low else []
    for name, (cx, cy) in sorted(dots.items(), key=lambda item: item[1][::-1]):
        a, b = points[name]
        label = svg.labelled(name, cx, cy, taken, (LEFT, 0, WIDTH, TOP + svg.PLOT_HEIGHT))
        bars = [_bar(name, cy, across, a, False), _bar(name, cx, up, b, True)]
        said = f"{name}: {x} {svg.within(*a)}, {y} {svg.within(*b)}"
        parts.append(svg.of(name, said, [*label[:-1], *bars, svg.mark(name, cx, cy), *label[-1:]]))
    said = "; ".join(f"{name}: {a[0]:.3g}, {b[0]:.3g}" for name, (a, b) in points.items())
    return svg.page(parts, height, f"{y} against {x}. {said}")


def _bar(name: str, at: float, axis: Axis, ends: Ends, upright: bool) -> str:
    """An interval as a thin line; "" without one."""
    low, high = _ends(axis, ends)
    if math.isnan(low):
        return ""
    across, along = ("x", "y") if upright else ("y", "x")
    places = f'{across}1="{at:.1f}" {across}2="{at:.1f}" {along}1="{low:.1f}" {along}2="{high:.1f}"'
    return f'<line class="thin {families.class_of(name)}" {places}/>'


def _ends(axis: Axis, ends: Ends) -> tuple[float, float]:
    """Where an interval begins and ends, at the end of a logarithmic axis where it reaches 0; NaN without one."""
    if not (math.isfinite(ends[1]) and math.isfinite(ends[2])):
        return math.nan, math.nan
    return axis.at(ends[1]) if ends[1] > 0 or not axis.logarithmic else axis.first, axis.at(ends[2])


def curves(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    x: str,
    y: str,
    logarithmic: bool = False,
    strips: Mapping[str, Sequence[tuple[float, float, bool]]] | None = None,
    log_y: bool = False,
) -> str:
    """For each name a line through (x, value) with a band (low, high); x may be `logarithmic`, and with `log_y` y is.

    With `strips`, below the axis, a row for each name with the ranges (from, to) of x in which it leads: solid where it
    does, pale (False) where it isn't significantly different from who does.
    """
    height = TOP + svg.PLOT_HEIGHT + BOTTOM
    points = [point for line in series.values() for point in line]
    across = Axis.over([point[0] for point in points], LEFT, WIDTH - RIGHT - 100, logarithmic)
    up = Axis.over([end for point in points for end in point[1:] if math.isfinite(end)], height - BOTTOM, TOP, log_y)
    parts = svg.x_axis(across, height, x, LEFT) + svg.y_axis(up, y)
    ends = sorted(((up.at(line[-1][1]), name) for name, line in series.items()), key=lambda end: end[0])
    lines: dict[str, float] = {}
    for at, name in ends:
        lines[name] = max([at + 4, *(other + svg.LINE for other in list(lines.values())[-1:])])
    dashes = families.dashes(list(series))
    for name, line in series.items():
        some = line[:: -(-len(line) // SAID)] if len(line) > SAID else line
        said = f"{name}: {y} " + ", ".join(f"{svg.within(mean, low, high)} at {at:.4g}" for at, mean, low, high in some)
        parts.append(svg.of(name, said, _curve(name, line, across, up, dashes[name], lines[name])))
    for row, (name, spans) in enumerate((strips or {}).items()):
        colour, top = families.class_of(name), height + svg.STRIP * row
        mine = [svg.text(WIDTH - RIGHT - 93, top + svg.STRIP - 4, svg.short(name, 105), "start")]
        for first, last, leads in spans:
            corners = [(first, top), (last, top), (last, top + svg.STRIP - 4), (first, top + svg.STRIP - 4)]
            outline = svg.path(corners, across.at, float)
            mine.append(f'<polygon class="{"dot" if leads else "band"} {colour}" points="{outline}"/>')
        ranges = ", ".join(f"{first:.3g} to {last:.3g}" for first, last, leads in spans if leads)
        parts.append(svg.of(name, f"{name}: {f'leads at {x} {ranges}' if ranges else 'leads nowhere'}", mine))
    height += svg.STRIP * len(strips or {})
    said = "; ".join(f"{name} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in series.items())
    return svg.page(parts, height, f"{y} by {x}. {said}")


def _curve(
    name: str, line: Sequence[tuple[float, float, float, float]], across: Axis, up: Axis, dash: str, label: float
) -> list[str]:
    """The band, the line, its points and its name at the right end."""
    colour, parts = families.class_of(name), []
    banded = [point for point in line if math.isfinite(point[2]) and math.isfinite(point[3])]
    outline = [(p[0], p[3]) for p in banded] + [(p[0], p[2]) for p in reversed(banded)]
    if banded:
        parts.append(f'<polygon class="band {colour}" points="{svg.path(outline, across.at, up.at)}"/>')
    line_path = svg.path([p[:2] for p in line], across.at, up.at)
    parts.append(f'<polyline class="line {colour} {dash}" points="{line_path}"/>')
    if len(line) <= MARKED:
        parts += [svg.mark(name, across.at(at), up.at(value), size=0.7) for at, value, *_ in line]
    parts.append(svg.text(across.at(line[-1][0]) + 8, label, svg.short(name, 105), "start"))
    return parts
