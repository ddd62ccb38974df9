"""Figures as PNG, where the extra `plots` is installed."""

from pathlib import Path

from gradebench.reporting import svg
from gradebench.storage.files import atomic_path

ZOOM = 2.0  # pixels a unit of the figure: 1,440 across
ADVICE = "no PNG beside the SVG: pip install 'gradebench[plots]' for them"


def available() -> bool:
    """Whether what turns SVG into PNG is installed, with a font to write in."""
    try:
        import matplotlib  # noqa: F401
        import resvg_py  # noqa: F401
    except ImportError:
        return False
    return True


def write_png(picture: str, path: Path) -> None:
    """Writes a figure in light colours. Its font is matplotlib's own: a machine may have none."""
    import matplotlib
    import resvg_py

    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    drawn = resvg_py.svg_to_bytes(
        svg_string=svg.alone(picture, svg.light_style()),
        background=svg.LIGHT["page"],
        zoom=ZOOM,
        font_files=[str(fonts / "DejaVuSans.ttf")],
        sans_serif_family="DejaVu Sans",
        skip_system_fonts=True,
    )
    with atomic_path(path) as draft:
        draft.write_bytes(bytes(drawn))
