"""Small figures as SVG text that takes its colours from the page around it, so that they follow its dark mode.

Axes are linear or logarithmic. The caller leaves out values that aren't finite, or aren't positive on a logarithmic axis.
"""

import html
import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gradebench.core.shown import one_line
from gradebench.reporting import families

WIDTH, LEFT, RIGHT, TOP, BOTTOM, ROW = 540, 62, 14, 12, 46, 20  # narrow: on a phone its letters are still read
PLOT_HEIGHT = 360
LETTER, LINE = 7.8, 14.0  # of a label in the larger letters of a phone: pixels a letter, on average, and a line
FAINT = 6.6  # pixels a letter of a caption
NEXT_TO = 7  # pixels from the middle of a mark to its label
STRIP, CAPTION, TITLE = 16, 15, 20  # pixels of a row below a figure, of a line of its caption, and of its title
FONTS = "DejaVu Sans, Verdana, Arial, Helvetica, Liberation Sans, Noto Sans, sans-serif"  # the first one installed
# Words have a contrast of 4.5 to 1 against the page, and marks of 3 to 1.
LIGHT = {"ink": "#1b1f24", "faint": "#57606a", "rule": "#d0d7de", "page": "#ffffff", "wash": "#f3f5f8"}
DARK = {"ink": "#e6edf3", "faint": "#9aa4af", "rule": "#3d444d", "page": "#0d1117", "wash": "#161b22"}
LIGHT |= {f"f{i}": colour for i, colour in enumerate(families.LIGHT.values())}
DARK |= {f"f{i}": colour for i, colour in enumerate(families.DARK.values())}
_RULES = """
svg text { fill: var(--ink); font-size: 12px; } svg text.faint { fill: var(--faint); font-size: 11px; }
.grid { stroke: var(--rule); } .leader { stroke: var(--faint); } .ground { fill: var(--wash); } .bar { stroke-width: 2; }
.thin { stroke-width: 1.2; opacity: 0.75; } .line { fill: none; stroke-width: 2; } .seed { fill: none; }
.dot, .hollow { stroke-width: 1.2; } svg .hollow { fill: var(--page); } .ring { fill: none; stroke: var(--ink); }
svg .band { opacity: 0.14; stroke: none; }
.d1 { stroke-dasharray: 7 3; } .d2 { stroke-dasharray: 2 2.5; } .d3 { stroke-dasharray: 9 3 2 3; }
.d4 { stroke-dasharray: 12 4; } .d5 { stroke-dasharray: 4 4; }
""" + "".join(
    f".f{i} {{ stroke: var(--f{i}); }} .dot.f{i}, .band.f{i} {{ fill: var(--f{i}); }}\n"
    for i in range(len(families.FAMILIES))
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
            several = 3 * (self.high - self.low) > about + 2  # 1, 2, 5, 10, ... would be too many
            found = self._powers(apart, (1,) if several else (1, 2, 5))
            if len(found) > 1:
                return found
            return Axis(10**self.low, 10**self.high, self.first, self.last).ticks(about)
        size = 10.0 ** math.floor(math.log10((self.high - self.low) / about))
        step = next(size * factor for factor in (1, 2, 5, 10) if (self.high - self.low) / (size * factor) <= about)
        count = math.floor(self.high / step) - math.ceil(self.low / step) + 1
        return [(math.ceil(self.low / step) + i) * step for i in range(count)]

    def _powers(self, apart: int, factors: Sequence[int]) -> list[float]:
        """These multiples of the powers of ten that lie within a logarithmic axis, `apart` decades from each other."""
        low, high = 10**self.low, 10**self.high
        exponents = range(-apart * math.floor(-self.low / apart), math.ceil(self.high) + 1, apart)
        found = [factor * 10.0**exponent for exponent in [exponents.start - apart, *exponents] for factor in factors]
        return [tick for tick in found if low <= tick <= high]


def mark(name: str, x: float, y: float, hollow: bool = False, size: float = 1.0) -> str:
    """The sign of an estimator: the shape of its family in the colour of its family."""
    family, kind = families.family_of(name), "hollow" if hollow else "dot"
    scaled = "" if size == 1 else f" scale({size:g})"
    place = f"translate({x:.1f} {y:.1f}){scaled}"
    return f'<path class="{kind} {families.class_of(name)}" transform="{place}" d="{families.SHAPES[family]}"/>'


def of(name: str, said: str, parts: Sequence[str]) -> str:
    """What a figure shows of one estimator; what is said of it appears under the pointer."""
    family = html.escape(families.family_of(name))
    words = html.escape(one_line(said))
    label = html.escape(one_line(name))
    return f'<g data-estimator="{label}" data-family="{family}"><title>{words}</title>{"".join(parts)}</g>'


def within(value: float, low: float, high: float, form: str = ".4g") -> str:
    """A value with its interval, as it is said of a mark."""
    ends = f" ({low:{form}} to {high:{form}})" if math.isfinite(low) and math.isfinite(high) else ""
    return f"{value:{form}}{ends}"


def short(name: str, room: float) -> str:
    """The name, its middle left out where it is longer than the room for it."""
    most = int(room / LETTER)
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most - most // 2) :]}"


def labelled(name: str, cx: float, cy: float, taken: list[Box], frame: Box) -> list[str]:
    """The label of a dot, where it hides nothing, with a line to the dot unless it is next to it; adds its box to `taken`.
    Nothing where so many are around it that there is no room: it still says its name under the pointer."""
    box = free_box(name, cx, cy, taken, frame)
    if box is None:
        return []
    taken.append(box)
    middle = (box[1] + box[3]) / 2
    near, anchor = (box[0], "start") if box[0] > cx else (box[2], "end")  # so that wider letters don't reach the dot
    words = text(near, middle + 4, name, anchor)
    if abs(middle - cy) <= 2 and abs(near - cx) <= NEXT_TO:
        return [words]
    return [f'<line class="leader" x1="{cx:.1f}" y1="{cy:.1f}" x2="{near:.1f}" y2="{middle:.1f}"/>', words]


def free_box(name: str, cx: float, cy: float, taken: Sequence[Box], frame: Box) -> Box | None:
    """Where in the frame the label of a dot hides nothing: next to it, or else above or below, as near as possible; None
    where that is nowhere."""
    width = LETTER * len(name)
    places = [(aside, away * LINE / 2) for aside in (NEXT_TO, 42, 84, 126) for away in range(40)]
    for aside, away in sorted(places, key=lambda place: math.hypot(*place)):
        for middle in sorted({cy + away, cy - away}):
            for left in (cx + aside, cx - aside - width):
                box = (left, middle - LINE / 2, left + width, middle + LINE / 2)
                inside = left >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]
                if inside and not any(overlap(box, other) for other in taken):
                    return box
    return None


def overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def path(points: Sequence[Sequence[float]], x: Callable[[float], float], y: Callable[[float], float]) -> str:
    return " ".join(f"{x(point[0]):.1f},{y(point[1]):.1f}" for point in points)


def tick_label(tick: float) -> str:
    """The number of a tick; powers of ten are written as such where zeros would have to be counted."""
    if tick == 0 or (1e-3 <= abs(tick) < 1e5 and abs(tick) != 1e4):
        return f"{float(f'{tick:.4g}'):g}"
    factor, exponent = f"{tick:.3e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    written = f"{float(factor):g}"
    return f"10{raised}" if written == "1" else f"{written}·10{raised}"


def x_axis(axis: Axis, height: float, label: str, left: float) -> list[str]:
    middle = (left + WIDTH - RIGHT) / 2
    words = short(label, 2 * (WIDTH - middle))
    return [text(middle, height - 8, words, "middle"), *x_ticks(axis, TOP, height - BOTTOM)]


def x_ticks(axis: Axis, top: float, bottom: float, about: int = 6) -> list[str]:
    parts = []
    for tick in axis.ticks(about):
        at = axis.at(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(text(at, bottom + 16, tick_label(tick), "middle"))
    return parts


def y_axis(axis: Axis, label: str) -> list[str]:
    return [upright(label, (axis.first + axis.last) / 2), *y_ticks(axis, LEFT, WIDTH - RIGHT)]


def upright(label: str, middle: float) -> str:
    return f'<g transform="rotate(-90 13 {middle})">{text(13, middle, label, "middle")}</g>'


def y_ticks(axis: Axis, left: float, right: float, about: int = 6, named: bool = True) -> list[str]:
    parts = []
    for tick in axis.ticks(about):
        at = axis.at(tick)
        parts.append(f'<line class="grid" x1="{left:.1f}" x2="{right:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>')
        if named:
            parts.append(text(left - 6, at + 4, tick_label(tick), "end"))
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


def alone(picture: str, sheet: str, caption: str = "", title: str = "") -> str:
    """A figure as a file of its own, with its style sheet, above it its title and below it its caption, if there are any."""
    lines = textwrap.wrap(one_line(caption), int((WIDTH - 2 * RIGHT) / FAINT))
    if lines:
        height = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', picture)[0])
        words = "".join(text(RIGHT, height + CAPTION * (i + 1), line, "start", "faint") for i, line in enumerate(lines))
        taller = height + CAPTION * len(lines) + BOTTOM / 4
        picture = picture.replace(f' {height:.0f}"', f' {taller:.0f}"', 1).removesuffix("</svg>") + f"{words}</svg>"
    if title:
        words = f'<g font-weight="bold">{text(RIGHT, -TITLE / 4, title, "start")}</g></svg>'
        height = float(re.findall(r'viewBox="0 0 \d+ (\d+)"', picture)[0])
        picture = picture.replace(f'"0 0 {WIDTH} {height:.0f}"', f'"0 -{TITLE} {WIDTH} {height + TITLE:.0f}"', 1)
        picture = picture.removesuffix("</svg>") + words
    inside = f'<svg xmlns="http://www.w3.org/2000/svg" style="background: var(--page)" font-family="{FONTS}" '
    return picture.replace("<svg ", inside, 1).replace(">", f"><style>{sheet}</style>", 1)


def page(parts: Sequence[str], height: float, description: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{html.escape(one_line(description))}">{"".join(parts)}</svg>'
