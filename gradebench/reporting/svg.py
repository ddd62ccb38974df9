"""Small figures as SVG text that takes its colours from the page around it, so that they follow its dark mode.

Axes are linear or logarithmic. The caller leaves out values that aren't finite, or aren't positive on a logarithmic axis.
"""

import html
import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradebench.core.shown import one_line

WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW = 720, 64, 16, 12, 46, 20
PLOT_HEIGHT = 380
LETTER, LINE = 6.6, 12.0  # of a label: pixels a letter, at most, and a line
STRIP, CAPTION = 16, 15  # pixels of a row below a figure, and of a line of its caption
FONTS = "DejaVu Sans, Verdana, Arial, Helvetica, Liberation Sans, Noto Sans, sans-serif"  # the first one installed
PANELS, PANEL_ROW = 4, 110  # small figures side by side, and the height of each
# Every colour is one of words too, so it has a contrast of 4.5 to 1 against the page.
LIGHT = {
    "ink": "#1b1f24", "faint": "#57606a", "rule": "#d0d7de", "page": "#ffffff", "wash": "#f6f8fa", "c0": "#0060a8",
    "c1": "#b34700", "c2": "#00704f", "c3": "#9c3f78", "c4": "#7a5900", "c5": "#1f6f9c", "c6": "#333333", "c7": "#6b6b6b",
}  # fmt: skip
DARK = {
    "ink": "#e6edf3", "faint": "#9aa4af", "rule": "#3d444d", "page": "#0d1117", "wash": "#161b22", "c0": "#6cb6ff",
    "c1": "#ff9d5c", "c2": "#4fd1a5", "c3": "#f0a3d0", "c4": "#e3c14f", "c5": "#8fd3ff", "c6": "#dddddd", "c7": "#aaaaaa",
}  # fmt: skip
COLOURS = sum(name[1:].isdigit() for name in LIGHT)  # classes c0, c1, ...
_RULES = """
svg text { fill: var(--ink); font-size: 12px; } svg text.label { stroke: none; }
.grid { stroke: var(--rule); } .leader { stroke: var(--faint); } .bar { stroke-width: 2; }
svg text.faint { fill: var(--faint); font-size: 11px; } .ground { fill: var(--rule); opacity: 0.35; }
.hollow { fill: var(--page); stroke-width: 1.5; } .thin { stroke-width: 1.2; opacity: 0.75; }
.line { fill: none; stroke-width: 2; } .seed { fill: none; } svg .band { opacity: 0.18; stroke: none; }
""" + "".join(
    f".c{i} {{ stroke: var(--c{i}); }} .dot.c{i}, .band.c{i}, text.c{i} {{ fill: var(--c{i}); }}\n"
    for i in range(COLOURS)
)


Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Axis:
    """From data to pixels, with round ticks."""

    low: float
    high: float
    first: float
    last: float
    logarithmic: bool = False

    @classmethod
    def over(cls, values: Sequence[float], first: float, last: float, logarithmic: bool = False) -> "Axis":
        """An axis with room for all values; logarithmic ones are positive."""
        low, high = min(values), max(values)
        if logarithmic:
            low, high = math.log10(low), math.log10(high)
        room = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
        return cls(low - room, high + room, first, last, logarithmic)

    def at(self, value: float) -> float:
        value = math.log10(value) if self.logarithmic else value
        return self.first + (value - self.low) / (self.high - self.low) * (self.last - self.first)

    def ticks(self, about: int = 6) -> list[float]:
        if self.logarithmic:
            apart = max(1, math.ceil((self.high - self.low) / about))
            exponents = range(math.ceil(self.low), math.floor(self.high) + 1, apart)
            if len(exponents) > 1:
                return [10.0**exponent for exponent in exponents]
            low, high = 10**self.low, 10**self.high
            decades = range(math.floor(self.low), math.ceil(self.high))
            finer = [m * 10.0**exponent for exponent in decades for m in (1, 2, 5) if low <= m * 10.0**exponent <= high]
            return (
                finer if len(finer) > 1 else [float(f"{10**x:.2g}") for x in np.linspace(self.low, self.high, 4)[1:-1]]
            )
        size = 10.0 ** math.floor(math.log10((self.high - self.low) / about))
        step = next(size * factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (size * factor) <= about)
        count = math.floor(self.high / step) - math.ceil(self.low / step) + 1
        return [(math.ceil(self.low / step) + i) * step for i in range(count)]


def forest(
    rows: Sequence[tuple[str, float, float, float]], label: str, dots: Mapping[str, Sequence[float]] | None = None
) -> str:
    """A value with its interval for each name, one below the other; with `dots`, what it is the mean of, and 0."""
    left, height = 150, TOP + ROW * len(rows) + BOTTOM
    dots = dots or {}
    ends = [end for _, *values in rows for end in values if math.isfinite(end)]
    ends += [value for values in dots.values() for value in values] + ([0.0] if dots else [])
    axis = Axis.over(ends, left, WIDTH - RIGHT)
    parts = _x_axis(axis, height, label, left)
    if dots:
        parts.append(
            f'<line class="leader" x1="{axis.at(0):.1f}" x2="{axis.at(0):.1f}" y1="{TOP}" y2="{height - BOTTOM}"/>'
        )
    for place, (name, value, low, high) in enumerate(rows):
        y = TOP + ROW * (place + 0.5)
        parts.append(text(left - 8, y + 4, short(name, left - 12), "end"))
        parts += [f'<circle class="seed c1" cx="{axis.at(dot):.1f}" cy="{y}" r="2.5"/>' for dot in dots.get(name, ())]
        if math.isfinite(low) and math.isfinite(high):
            parts.append(f'<line class="bar c0" x1="{axis.at(low):.1f}" x2="{axis.at(high):.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="dot c0" cx="{axis.at(value):.1f}" cy="{y}" r="4"/>')
    return page(parts, height, f"{label}: " + ", ".join(f"{name} {value:.3g}" for name, value, *_ in rows))


def short(name: str, room: float) -> str:
    """The name, its middle left out where it is longer than the room for it."""
    most = int(room / LETTER)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


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
    parts = [text((LEFT + WIDTH - RIGHT) / 2, height - 8, x, "middle"), upright(y, middle)]
    everything = [point for line in series.values() for point in line]
    for place, (name, line) in enumerate(series.items()):
        left, top = LEFT + width * (place % columns), TOP + row * (place // columns)
        first, last, high, low = left + (30 if own else 4), left + width - 10, top + head, top + row - 22
        across = Axis.over([point[0] for point in everything], first, last, logs[0])
        ends = [end for point in (line if own else everything) for end in point[1:] if math.isfinite(end)]
        up = Axis.over([end for end in ends if end > 0 or not logs[1]], low, high, logs[1])
        parts.append(text(first, top + 12, short(name, last - first), "start"))
        if notes is not None:
            parts.append(text(first, top + 25, notes.get(name, ""), "start", "faint"))
        parts += x_ticks(across, high, low, 3)
        parts += y_ticks(up, first, last, 3, named=own or place % columns == 0)
        parts += _points(line, across, up, joined, (marked or {}).get(name))
    said = "; ".join(
        f"{name}: "
        + ", ".join(f"{a:.3g} at {at:.3g}" for at, a, *_ in line)
        + (f", slope {notes[name]}" if notes and name in notes else "")
        for name, line in series.items()
    )
    return page(parts, height, f"{y} by {x}. {said}")


def _points(
    line: Sequence[tuple[float, float, float, float]], across: Axis, up: Axis, joined: bool, marked: float | None
) -> list[str]:
    parts = []
    for x, _, low, high in line:
        if math.isfinite(low) and math.isfinite(high) and (low > 0 or not up.logarithmic):
            at, ends = f"{across.at(x):.1f}", (f"{up.at(low):.1f}", f"{up.at(high):.1f}")
            parts.append(f'<line class="seed c0" x1="{at}" x2="{at}" y1="{ends[0]}" y2="{ends[1]}"/>')
    if joined:
        parts.append(f'<polyline class="line c0" points="{_path([p[:2] for p in line], across.at, up.at)}"/>')
    for x, value, *_ in line:
        radius, colour = (5, "c1") if x == marked else (2.5, "c0")
        parts.append(f'<circle class="dot {colour}" cx="{across.at(x):.1f}" cy="{up.at(value):.1f}" r="{radius}"/>')
    return parts


def scatter(points: Mapping[str, tuple[float, float]], x: str, y: str, logs: tuple[bool, bool] = (False, False)) -> str:
    """A named dot for each pair of values."""
    height = TOP + PLOT_HEIGHT + BOTTOM
    across = Axis.over([value for value, _ in points.values()], LEFT, WIDTH - RIGHT - 90, logs[0])
    up = Axis.over([value for _, value in points.values()], height - BOTTOM, TOP, logs[1])
    parts = _x_axis(across, height, x, LEFT) + _y_axis(up, y)
    dots = {name: (across.at(a), up.at(b)) for name, (a, b) in points.items()}
    taken = [(cx - 5, cy - 5, cx + 5, cy + 5) for cx, cy in dots.values()]
    for name, (cx, cy) in sorted(dots.items(), key=lambda item: item[1][::-1]):
        label = labelled(name, cx, cy, taken, (LEFT, 0, WIDTH, TOP + PLOT_HEIGHT))
        parts += [*label[:-1], f'<circle class="dot c0" cx="{cx:.1f}" cy="{cy:.1f}" r="4"/>', label[-1]]
    said = "; ".join(f"{name}: {a:.3g}, {b:.3g}" for name, (a, b) in points.items())
    return page(parts, height, f"{y} against {x}. {said}")


def labelled(name: str, cx: float, cy: float, taken: list[Box], frame: Box) -> list[str]:
    """The label of a dot, where it hides nothing, with a line to the dot unless it is next to it; adds its box to `taken`."""
    box = free_box(name, cx, cy, taken, frame)
    taken.append(box)
    middle = (box[1] + box[3]) / 2
    words = text(box[0], middle + 4, name, "start")
    if abs(middle - cy) <= 2:
        return [words]
    near = box[0] if box[0] > cx else box[2]
    return [f'<line class="leader" x1="{cx:.1f}" y1="{cy:.1f}" x2="{near:.1f}" y2="{middle:.1f}"/>', words]


def free_box(name: str, cx: float, cy: float, taken: Sequence[Box], frame: Box) -> Box:
    """Where in the frame the label of a dot hides nothing: next to it, or else above or below, as near as possible."""
    width, middle = LETTER * len(name), cy
    for away in range(40):
        for middle in sorted({cy + away * LINE / 2, cy - away * LINE / 2}):
            for left in (cx + 7, cx - 7 - width):
                box = (left, middle - LINE / 2, left + width, middle + LINE / 2)
                inside = left >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
                if inside and not any(_overlap(box, other) for other in taken):
                    return box
    return cx + 7, middle - LINE / 2, cx + 7 + width, middle + LINE / 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def curves(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    x: str,
    y: str,
    logarithmic: bool = False,
    strips: Mapping[str, Sequence[tuple[float, float, bool]]] | None = None,
) -> str:
    """For each name a line through (x, value) with a band (low, high); x may be `logarithmic`.

    With `strips`, below the axis, a row for each name with the ranges (from, to) of x in which it leads: solid where it
    does, pale (False) where it isn't significantly different from who does.
    """
    height = TOP + PLOT_HEIGHT + BOTTOM
    points = [point for line in series.values() for point in line]
    across = Axis.over([point[0] for point in points], LEFT, WIDTH - RIGHT - 110, logarithmic)
    up = Axis.over([end for point in points for end in point[1:] if math.isfinite(end)], height - BOTTOM, TOP)
    parts = _x_axis(across, height, x, LEFT) + _y_axis(up, y)
    ends = sorted(((up.at(line[-1][1]), name) for name, line in series.items()), key=lambda end: end[0])
    lines: dict[str, float] = {}
    for at, name in ends:
        lines[name] = max([at + 4, *(other + 12 for other in list(lines.values())[-1:])])
    for number, (name, line) in enumerate(series.items()):
        colour = f"c{number % COLOURS}"
        banded = [point for point in line if math.isfinite(point[2]) and math.isfinite(point[3])]
        outline = [(p[0], p[3]) for p in banded] + [(p[0], p[2]) for p in reversed(banded)]
        if banded:
            parts.append(f'<polygon class="band {colour}" points="{_path(outline, across.at, up.at)}"/>')
        parts.append(f'<polyline class="line {colour}" points="{_path([p[:2] for p in line], across.at, up.at)}"/>')
        parts.append(text(across.at(line[-1][0]) + 7, lines[name], name, "start", f"label {colour}"))
    for row, (name, spans) in enumerate((strips or {}).items()):
        colour, top = f"c{list(series).index(name) % COLOURS}", height + STRIP * row
        parts.append(text(WIDTH - RIGHT - 103, top + STRIP - 4, name, "start", f"label {colour}"))
        for first, last, leads in spans:
            corners = [(first, top), (last, top), (last, top + STRIP - 4), (first, top + STRIP - 4)]
            path = _path(corners, across.at, float)
            parts.append(f'<polygon class="{"dot" if leads else "band"} {colour}" points="{path}"/>')
    height += STRIP * len(strips or {})
    said = "; ".join(f"{name} from {line[0][1]:.3g} to {line[-1][1]:.3g}" for name, line in series.items())
    return page(parts, height, f"{y} by {x}. {said}")


def _path(points: Sequence[Sequence[float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(point[0]):.1f},{y(point[1]):.1f}" for point in points)


def _x_axis(axis: Axis, height: float, label: str, left: float) -> list[str]:
    return [text((left + WIDTH - RIGHT) / 2, height - 8, label, "middle"), *x_ticks(axis, TOP, height - BOTTOM)]


def x_ticks(axis: Axis, top: float, bottom: float, about: int = 6) -> list[str]:
    parts = []
    for tick in axis.ticks(about):
        at = axis.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(text(at, bottom + 16, f"{tick:.4g}", "middle"))
    return parts


def _y_axis(axis: Axis, label: str) -> list[str]:
    return [upright(label, (axis.first + axis.last) / 2), *y_ticks(axis, LEFT, WIDTH - RIGHT)]


def upright(label: str, middle: float) -> str:
    return f'<g transform="rotate(-90 14 {middle})">{text(14, middle, label, "middle")}</g>'


def y_ticks(axis: Axis, left: float, right: float, about: int = 6, named: bool = True) -> list[str]:
    parts = []
    for tick in axis.ticks(about):
        at = axis.at(tick)
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        if named:
            parts.append(text(left - 6, at + 4, f"{tick:.4g}", "end"))
    return parts


def text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(one_line(words))}</text>'


def style() -> str:
    """The style sheet of all figures, with the colours of its page as variables; dark on screens that ask for it."""
    light, dark = (" ".join(f"--{name}: {value};" for name, value in colours.items()) for colours in (LIGHT, DARK))
    scheme = "@media screen and (prefers-color-scheme: dark)"
    return f":root {{ color-scheme: light dark; {light} }}\n{scheme} {{ :root {{ {dark} }} }}{_RULES}"


def light_style() -> str:
    """The same without variables, in light colours, for what turns SVG into pictures."""
    return re.sub(r"var\(--(\w+)\)", lambda match: LIGHT[match[1]], _RULES)


def alone(picture: str, sheet: str, caption: str = "") -> str:
    """A figure as a file of its own, with its style sheet, and below it its caption if there is one."""
    lines = textwrap.wrap(one_line(caption), int((WIDTH - 2 * RIGHT) / LETTER))
    if lines:
        height = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', picture)[0])
        words = "".join(text(RIGHT, height + CAPTION * (i + 1), line, "start", "faint") for i, line in enumerate(lines))
        taller = height + CAPTION * len(lines) + BOTTOM / 4
        picture = picture.replace(f' {height:.0f}"', f' {taller:.0f}"', 1).removesuffix("</svg>") + f"{words}</svg>"
    inside = f'<svg xmlns="http://www.w3.org/2000/svg" style="background: var(--page)" font-family="{FONTS}" '
    return picture.replace("<svg ", inside, 1).replace(">", f"><style>{sheet}</style>", 1)


def page(parts: Sequence[str], height: float, description: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(one_line(description))}">{"".join(parts)}</svg>'
