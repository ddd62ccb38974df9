"""The figures of a report in a notebook, one by one: `results.plot.test_objective()`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import curves
from gradebench.analysis.groups import places_of
from gradebench.core.errors import InputError
from gradebench.reporting import figures, pictures, svg
from gradebench.reporting.figure import Figure
from gradebench.storage.tuned import CURVES_COLUMNS

FORMS = ("svg", "pdf", "png")


@dataclass(frozen=True)
class Plot:
    """A figure that a notebook displays. `data` are its numbers, `caption` says what it shows."""

    figure: Figure

    @property
    def data(self) -> pd.DataFrame:
        return self.figure.data[list(self.figure.columns)]

    @property
    def caption(self) -> str:
        return self.figure.caption

    def save(self, path: str | Path, width: float = 3.25) -> Path:
        """Writes it as SVG, PDF or PNG, by the path's ending, so many inches wide; PDF and PNG need the extra `figures`.

        Raises        InputError for another ending.
        """
        path = Path(path)
        form = path.suffix.removeprefix(".")
        if form not in FORMS:
            raise InputError(f"{path.name}: a figure is saved as {', '.join(FORMS)}; give one of these endings")
        return pictures.export(self.figure.picture, path.parent, path.stem, form, 72 * width)

    def _repr_svg_(self) -> str:
        return svg.alone(self.figure.picture, svg.light_style(), self.figure.caption)


class Plots:
    """The figures that there are for these runs, as methods by name; `dir` lists them.

    A run of several tasks has a figure of each: give `task`.
    """

    def __init__(self, metrics: pd.DataFrame, board: pd.DataFrame, probes: pd.DataFrame, against: list[str]):
        self._by_task: dict[str, dict[str, Figure]] = {}
        rows_of = places_of(metrics)
        for (task, setting), mine in board.groupby(["task", "setting"], sort=False):
            rows = rows_of[str(task), str(setting)]
            own = probes[(probes["task"] == task) & (probes["setting"] == setting)]
            found = figures.of_task(mine, rows, own, pd.DataFrame(columns=CURVES_COLUMNS), against)
            found += figures.at_budgets(mine, curves.budgets(rows, str(mine["ranked_by"].iloc[0])))
            named = self._by_task.setdefault(str(task), {})
            named |= {figure.name.replace("-", "_"): figure for figure in found}

    def __dir__(self) -> list[str]:
        return sorted({name for named in self._by_task.values() for name in named})

    def __repr__(self) -> str:
        return f"figures: {', '.join(dir(self))}"

    def __getattr__(self, name: str) -> Callable[..., Plot]:
        if name.startswith("_"):
            raise AttributeError(name)

        def plot(task: str | None = None) -> Plot:
            having: dict[str, Any] = {label: named[name] for label, named in self._by_task.items() if name in named}
            if not having:
                raise InputError(f"there is no figure {name}, only {', '.join(dir(self))}")
            if task is None and len(having) > 1:
                raise InputError(f"there are several tasks; give task= one of {', '.join(having)}")
            if task is not None and task not in having:
                raise InputError(f"there is no figure {name} of {task}, only of {', '.join(having)}")
            return Plot(having[task if task is not None else next(iter(having))])

        return plot
