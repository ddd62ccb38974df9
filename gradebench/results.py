"""Finished runs, read back from their folders: their tables as DataFrames."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from gradebench.analysis import claims as published
from gradebench.analysis import curves as at_budgets
from gradebench.analysis import frontier as frontiers
from gradebench.analysis import runs, tables
from gradebench.analysis.design import read_design
from gradebench.analysis.fields import AXES, METRICS
from gradebench.analysis.run_files import PROBES, read_probes, read_steps
from gradebench.core.errors import InputError
from gradebench.core.schema import PROBES_COLUMNS

if TYPE_CHECKING:
    from gradebench.reporting.plots import Plots

Found = TypeVar("Found")


class Results:
    """Runs read back from their folders, several as if they had been one.

    `apart` ranks runs apart that differ in what numbers depend on, instead of refusing them; `by` is the metric that
    ranks, and `against` the baselines that all others are compared with (default: as the runs were asked for). A refusal
    of runs that differ ends with the `mend`.

    Raises        InputError for folders that hold no run, and runs that can't be pooled.
    """

    def __init__(
        self,
        *folders: str | Path,
        apart: bool = False,
        by: str | None = None,
        against: Sequence[str] = (),
        mend: str = "give apart=True to rank them apart",
    ):
        if not folders:
            raise InputError("give the folder of a run")
        self.folders = [Path(folder) for folder in folders]
        self.apart = apart
        self.metrics: pd.DataFrame = runs.read_metrics(self.folders, apart, mend)
        self.by, self.against = runs.family_of(self.folders, by, against)
        runs.require_family(self.metrics, self.by, self.against)

    @functools.cached_property
    def tests(self) -> pd.DataFrame:
        """Paired tests of every metric, corrected for their family (tests.csv)."""
        return _refused(tables.comparisons, self.metrics, self.against)

    @functools.cached_property
    def leaderboard(self) -> pd.DataFrame:
        """One row for each estimator on each task (leaderboard.csv)."""
        return tables.leaderboard(self.metrics, self.tests, self.by, self.against)

    @functools.cached_property
    def probes(self) -> pd.DataFrame:
        """Every probed quantity with its interval (probes.csv)."""
        found = [read_probes(folder) for folder in self.folders if (folder / PROBES).is_file()]
        return pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=PROBES_COLUMNS)

    @functools.cached_property
    def training(self) -> pd.DataFrame:
        """Every training step: reward, KL, entropy, gradient norm and clipping (training.parquet)."""
        named = zip(self.folders, runs.task_names(self.folders), strict=True)
        return pd.concat([read_steps(folder).replace({"task": names}) for folder, names in named], ignore_index=True)

    @property
    def ranked_by(self) -> dict[tuple[str, str], str]:
        """The metric that ranks on each (task, setting)."""
        return tables.ranked_by(self.metrics, self.by)

    def compare(self, a: str | None = None, b: str | None = None) -> pd.DataFrame:
        """The tests of two estimators by every metric, their difference as a less b; without names, what ranks of each
        estimator and the baselines, or else the best.

        Raises        InputError for estimators that aren't there.
        """
        _require_both(a, b)
        if a and b:
            return runs.chosen_pair(self.tests, a, b)
        if self.against:
            return runs.against_baselines(self.tests, self.ranked_by, self.against)
        return runs.against_best(self.tests, self.ranked_by)

    def curves(self, axis: str = "steps", by: str | None = None) -> pd.DataFrame:
        """Means of each estimator at equal budgets along an axis: steps, samples, tokens, updates, seconds or kl."""
        return _refused(at_budgets.budgets, self.metrics, *self._along(axis, by))

    def crossings(
        self, a: str | None = None, b: str | None = None, axis: str = "steps", by: str | None = None
    ) -> pd.DataFrame:
        """Where the lead changes: between two estimators, or without names between all that lead at some budget."""
        _require_both(a, b)
        rows = self.curves(axis, by)
        pairs = _refused(at_budgets.named_pair, rows, a, b) if a else at_budgets.leading_pairs(rows)
        return _refused(at_budgets.crossings_of, self.metrics, *self._along(axis, by), pairs)

    def _along(self, axis: str, by: str | None) -> tuple[str | None, list[str]]:
        for name, value, known in (("axis", axis, tuple(AXES)), ("by", by, (*METRICS, None))):
            if value not in known:
                raise InputError(f"{name} {value!r} is none of {', '.join(filter(None, known))}")
        return by, [axis]

    def frontier(
        self, metric: str = "reward", budgets: Sequence[float] | None = None
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The reward (or gold_reward) within budgets of KL, over a sweep or else along the training, with who leads; and
        the areas below, compared."""
        _ = self.tests  # which refuses what can't be compared
        design = read_design(self.folders)
        design = design if frontiers.swept(design) else frontiers.along_training(self.metrics)
        found = frontiers.budgets(self.metrics, design, budgets), frontiers.areas(self.metrics, design)
        table, areas = (one[one["metric"] == metric] for one in found)
        return table, areas

    def claims(self, file: str | Path | None = None, about: Sequence[str] = ()) -> pd.DataFrame:
        """Published claims, or those of a TOML file, tested on these runs; `about` some estimators alone."""
        listed = published.read_claims(Path(file) if file else published.BUILT_IN)
        return _refused(published.judge, published.about(listed, about), self.metrics)

    @functools.cached_property
    def plot(self) -> "Plots":
        """The report's figures, one by one: `results.plot.test_objective()`; `dir(results.plot)` lists them."""
        from gradebench.reporting.plots import Plots  # which waits for torch

        return Plots(self.metrics, self.leaderboard, self.probes, list(self.against))

    def report(self, out: str | Path | None = None, plots: bool = False) -> Path:
        """Writes report.html into `out`, by default the folder of the only run; returns its path."""
        if out is None and len(self.folders) > 1:
            raise InputError("a report of several runs is nobody's own; give it a folder")
        from gradebench.reporting.report import write_report  # which waits for torch

        folder = Path(out) if out else None
        return write_report(self.folders, out=folder, plots=plots, apart=self.apart, by=self.by, against=self.against)[
            0
        ]

    @property
    def complete(self) -> bool:
        """Whether every cell ended as ok, or was skipped with a reason."""
        return all(cell.status in ("ok", "skipped") for folder in self.folders for cell in runs.cell_statuses(folder))

    def __repr__(self) -> str:
        head, shown = f"Results({', '.join(map(str, self.folders))})", self._short()
        return head if shown.empty else head + "\n" + shown.to_string(index=False, na_rep="-")

    def _repr_html_(self) -> str:
        return self._short().to_html(index=False, escape=True, na_rep="-")

    def _short(self) -> pd.DataFrame:
        """The leaderboard in the columns that decide, to three digits."""
        board = self.leaderboard
        columns = [
            "rank",
            "letters",
            "estimator",
            "task",
            "steps",
            "test_objective_mean",
            "test_reward_mean",
            "kl_mean",
        ]
        columns += ["gradient_variance_relative", "gradient_bias_squared", "status"]
        return board[[name for name in columns if not board[name].isna().all()]].round(3)


def _require_both(a: str | None, b: str | None) -> None:
    if a and not b:
        raise InputError(f"{a} is to be compared with nothing; give two estimators, or none")


def _refused(function: Callable[..., Found], *arguments: Any) -> Found:
    """What the function returns; what it can't be made of is the caller's input."""
    try:
        return function(*arguments)
    except ValueError as error:
        raise InputError(str(error)) from error
