"""Figures as files: their names, SVG, and PNG where the extra `plots` and a font are installed."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

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


def _converted(picture: str, caption: str = "") -> bytes:
    import resvg_py

    alone = svg.alone(picture, svg.light_style(), caption)
    return bytes(resvg_py.svg_to_bytes(svg_string=alone, background=svg.LIGHT["page"], zoom=ZOOM))


def write(picture: str, folder: Path, name: str, caption: str = "") -> list[Path]:
    """Writes a figure as NAME.svg and, where possible, NAME.png, in light colours, into the folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{name}.svg"]
    write_text(written[0], svg.alone(picture, svg.style(), caption))
    if not no_png():
        written.append(folder / f"{name}.png")
        with atomic_path(written[1]) as draft:
            draft.write_bytes(_converted(picture, caption))
    return written


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
