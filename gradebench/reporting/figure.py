"""What a figure of a report is."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Figure:
    """An SVG with its title, its caption, and its numbers: `columns` of `data`."""

    name: str  # of its file
    title: str
    picture: str
    caption: str
    data: pd.DataFrame
    columns: Sequence[str]


def without_number(board: pd.DataFrame, points: Collection[str]) -> str:
    """Which estimators of a leaderboard a figure can't show, as another sentence; "" where it shows all."""
    left_out = [str(estimator) for estimator in board["estimator"] if estimator not in points]
    return f" Not shown (no value): {', '.join(left_out)}." if left_out else ""
