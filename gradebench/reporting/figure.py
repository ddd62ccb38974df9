"""What a figure of a report is."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Figure:
    """An SVG, its caption, and its numbers: `columns` of `data`."""

    name: str  # of its file
    picture: str
    caption: str
    data: pd.DataFrame
    columns: Sequence[str]
