"""Figures as files: their names, SVG, PNG where the extra `plots` and a font are installed, and PDF with the extra `figures`."""

import functools
import importlib.util
import io
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError
from gradebench.reporting import svg
from gradebench.storage.files import atomic_path
from gradebench.storage.formats import write_text

ZOOM = 3.0  # pixels a unit of the figure: 1,620 across
_NO_NAME = re.compile(r"[^A-Za-z0-9.=_-]+")


def no_png() -> str:
    """Why figures are written as SVG only, and what to do about it; "" where PNG is written too."""
    try:
        import resvg_py  # noqa: F401
    except ImportError:
        return "no PNG beside the SVG: pip install 'gradebench[plots]' for them"
    return "" if _has_font() else "no PNG beside the SVG: no font is installed; install one, such as DejaVu Sans"


@functools.cache
def _has_font() -> bool:
    """Whether letters are drawn: without a font the converter leaves them out and doesn't say so."""
    blank = '<svg viewBox="0 0 20 20"></svg>'
    letter = blank.replace("><", '><text y="15">x</text><')
    return _converted(letter) != _converted(blank)


def _converted(picture: str, caption: str = "", title: str = "") -> bytes:
    import resvg_py

    alone = svg.alone(picture, svg.light_style(), caption, title)
    return bytes(resvg_py.svg_to_bytes(svg_string=alone, background=svg.LIGHT["page"], zoom=ZOOM))


def write(picture: str, folder: Path, name: str, caption: str = "", title: str = "") -> list[Path]:
    """Writes a figure as NAME.svg and, where possible, NAME.png, in light colours, into the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.svg"]
    write_text(written[0], svg.alone(picture, svg.style(), caption, title))
    if not no_png():
        written.append(folder / f"{name}.png")
        with atomic_path(written[1]) as draft:
            draft.write_bytes(_converted(picture, caption, title))
    return written


FORMS = ("svg", "pdf", "png")
_UNITS = {"in": 72.0, "cm": 72 / 2.54, "mm": 72 / 25.4, "pt": 1.0}  # points
DOTS = 300  # of PNG for a page, on an inch


def points(width: str) -> float:
    """A width such as 3.25in, 82mm, 8.2cm or 234pt, in points.

    Raises        InputError for anything else.
    """
    found = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)(in|cm|mm|pt)", width.strip())
    if not found or not 36 <= float(found[1]) * _UNITS[found[2]] <= 3600:
        raise InputError(f"--width {width}: a width from half an inch on is needed, as in 3.25in, 82mm, 8.2cm or 234pt")
    return float(found[1]) * _UNITS[found[2]]


def require(form: str) -> None:
    """Raises InputError where nothing is installed that writes figures of that form."""
    if form == "pdf" and importlib.util.find_spec("svglib") is None:
        raise InputError("--figures pdf needs the package svglib: pip install 'gradebench[figures]'")
    if form == "png" and no_png():
        raise InputError(f"--figures png: {no_png()}")


def export(picture: str, folder: Path, name: str, form: str, width: float) -> Path:
    """Writes a figure for a page as NAME.FORM, so many points wide, in light colours, into the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{form}"
    alone = svg.alone(picture, svg.light_style()).replace("var(--page)", svg.LIGHT["page"], 1)
    if form == "svg":
        write_text(path, alone.replace("<svg ", f'<svg width="{width:g}pt" ', 1))
        return path
    with atomic_path(path) as draft:
        draft.write_bytes(_pdf(alone, width) if form == "pdf" else _pixels(alone, width))
    return path


def _pixels(alone: str, width: float) -> bytes:
    import resvg_py

    zoom = width / 72 * DOTS / svg.WIDTH
    return bytes(resvg_py.svg_to_bytes(svg_string=alone, background=svg.LIGHT["page"], zoom=zoom))


def _pdf(alone: str, width: float) -> bytes:
    """With its fonts inside: the first of the figure's that is installed, or else the one that comes with reportlab."""
    from reportlab.graphics import renderPDF
    from svglib import fonts
    from svglib.svglib import svg2rlg

    family = svg.FONTS.partition(",")[0]
    if not fonts.find_font(family)[1]:
        fonts.register_font(family, str(files("reportlab") / "fonts" / "Vera.ttf"))
    drawing: Any = svg2rlg(io.BytesIO(alone.encode()))
    zoom = width / drawing.width
    drawing.width, drawing.height = width, drawing.height * zoom
    drawing.scale(zoom, zoom)
    return bytes(renderPDF.drawToString(drawing))


def file_name(text: str) -> str:
    """The text as a part of a name that any file system takes; "" where nothing of it can be one."""
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip("-.")[:80]


def numbered(names: Sequence[str]) -> list[str]:
    """The names, with a number from the second of a name on."""
    return [f"{name}-{names[:i].count(name) + 1}" if name in names[:i] else name for i, name in enumerate(names)]


def distinct_names(named: Sequence[tuple[str, str]]) -> list[str]:
    """A file name, without an ending, for each (name, group): with the group where two would have the same name."""
    plain = [name for name, _ in named]
    found: list[str] = []
    for name, group in named:
        full = name if plain.count(name) == 1 else f"{name}-{_NO_NAME.sub('_', group)[:80]}"
        found.append(full if full not in found else f"{full}-{len(found)}")
    return found
