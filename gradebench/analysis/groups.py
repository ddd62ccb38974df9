"""The tidy `metrics` table by task and setting: what its ok cells measured, and the status of all of its cells.

A cell is one (task, setting, estimator, seed). Only cells that are ok in all of their rows give numbers; the others
are shown by their status. Settings are never mixed. Results depend neither on the order of the rows nor on a generator
of the caller: randomness is seeded by the names of what is compared.

A value that was never measured is left out, which the counts (n_pairs, status) show. A value that was measured but is
too noisy to report, such as a ratio to a squared norm whose interval contains zero, makes the aggregate NaN: leaving it
out would favour the noisier estimator.
"""

import functools
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from gradebench.analysis import cell_labels, provenance
from gradebench.analysis.once import keep, once
from gradebench.core.schema import METRICS_COLUMNS, RATE_COLUMNS
from gradebench.core.shown import counted

RANKABLE = ("objective", "reward", "gold_reward")  # of the test prompts; by default the first that was measured
_CELL = ["task", "setting", "estimator", "seed"]
_KEY = [*_CELL, "phase", "split", "step", "metric"]
_STRING = pd.Series([""], dtype=object).astype(str).dtype  # in pandas 2 it tells nothing about the values
Values = TypeVar("Values", pd.Series, pd.DataFrame)
_TEXT = [name for name in METRICS_COLUMNS if name not in ("seed", "step", "value")] + cell_labels.COLUMNS


@dataclass(frozen=True)
class Group:
    """One task in one setting: what its ok cells measured, in wide form, and the status of all of its cells."""

    task: str
    setting: str
    rows: pd.DataFrame  # of all cells
    status: pd.Series  # (estimator, seed) -> status of the cell
    ok: pd.DataFrame  # those of cells that are ok
    measured: pd.DataFrame  # and of these, those that have a value

    @property
    def estimators(self) -> list[str]:
        return sorted(self.status.index.unique("estimator"))

    @functools.cached_property
    def evaluation(self) -> pd.DataFrame:
        return self.measured[self.measured["phase"] == "evaluation"]

    @functools.cached_property
    def last_step(self) -> float:
        """The last step at which test prompts were evaluated; NaN without any."""
        return float(self.evaluation.loc[self.evaluation["split"] == "test", "step"].max())

    @functools.cached_property
    def equals(self) -> Sequence[Sequence[str]]:
        """Estimators whose evaluations are bit-identical, because they had the same draws."""
        return _equal_draws(self.evaluation)

    @functools.cached_property
    def final(self) -> pd.DataFrame:
        """(estimator, seed) x (split, metric), at the last evaluated step."""
        rows = self.evaluation
        rows = rows[(rows["step"] == self.last_step) & np.isfinite(rows["value"])]
        return _wide(rows, ["estimator", "seed"], ["split", "metric"])

    @functools.cached_property
    def probe(self) -> pd.DataFrame:
        """(estimator, seed, step) x metric, at the checkpoints."""
        return self._on_train("probe")

    @functools.cached_property
    def train(self) -> pd.DataFrame:
        """(estimator, seed, step) x metric, costs."""
        return self._on_train("train")

    def _on_train(self, phase: str) -> pd.DataFrame:
        rows = self.measured[(self.measured["split"] == "train") & (self.measured["phase"] == phase)]
        return _wide(rows, ["estimator", "seed", "step"], ["metric"])

    @functools.cached_property
    def log_variance(self) -> pd.Series:
        """(estimator, seed) -> mean over checkpoints of ln gradient_variance."""
        return _over_checkpoints(_log(complete(self.probe, "gradient_variance")["gradient_variance"]))

    @functools.cached_property
    def rates(self) -> dict[str, provenance.Ran]:
        """The learning rate of each estimator."""
        return provenance.ran(self.rows)

    @functools.cached_property
    def unfair(self) -> dict[frozenset[str], str]:
        """Verdicts of the pairs whose learning rates make them incomparable."""
        return provenance.incomparable_of(self.rates.values())


def groups_of(metrics: pd.DataFrame, controls: bool = False) -> Iterator[Group]:
    """The groups by task, then setting; within them, groupby and unstack sort by name, seed and step.

    Raises ValueError as `_checked` and `_reject_mixed_parameters` do.
    """
    yield from once(lambda: list(_groups(metrics, controls)), metrics, "groups", controls)


def places_of(metrics: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """The rows of each task and setting, as they are."""
    return once(functools.partial(_places, metrics), metrics, "places")


def _places(metrics: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    found = {(str(task), str(setting)): rows for (task, setting), rows in metrics.groupby(["task", "setting"])}
    for group in groups_of(metrics):
        if (rows := found.get((group.task, group.setting))) is not None:
            keep([group], rows, "groups", False)
    return found


def _groups(metrics: pd.DataFrame, controls: bool) -> Iterator[Group]:
    rows = once(lambda: _checked(metrics), metrics, "checked")
    if not controls:
        rows = rows[rows["control_of"] == ""]
    for (task, setting), group in rows.groupby(["task", "setting"], sort=True):
        status = _statuses(group)
        ok = _of_ok_cells(group, status)
        # A row without a value measured nothing. Infinite values stay: an infinite variance is a result.
        measured = ok[ok["value"].notna() & (ok["metric"] != "")]
        _reject_mixed_parameters(measured)
        yield Group(str(task), str(setting), group, status, ok, measured)


def _statuses(rows: pd.DataFrame) -> pd.Series:
    """(estimator, seed) -> status of the cell."""
    distinct = rows[["estimator", "seed", "status"]].drop_duplicates()
    return distinct.groupby(["estimator", "seed"])["status"].agg(_cell_status)


def _of_ok_cells(rows: pd.DataFrame, status: pd.Series) -> pd.DataFrame:
    if (status == "ok").all():
        return rows
    cells = pd.MultiIndex.from_frame(rows[["estimator", "seed"]])
    return rows[(status.reindex(cells) == "ok").to_numpy()]


def ok_rows(metrics: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """For each task and setting its names and the rows of ok cells, without A/A controls.

    Raises        ValueError as `comparisons` does.
    """
    for group in groups_of(metrics):
        once(functools.partial(_reject_mixed_parameters, group.ok), group.ok, "parameters")
        yield (group.task, group.setting), group.ok


def per_seed(metrics: pd.DataFrame, metric: str, split: str) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """For each task and setting its names and the values (seed x estimator) of ok cells, NaN where one is missing.

    `metric` as at the last evaluation of the split; generalization_gap, train minus test reward; validation_gap, the
    best validation reward of any evaluation minus the test reward; gradient_variance, the geometric mean over
    checkpoints; or another metric of gradients, the mean over checkpoints. Estimators without any value have no column.

    Raises        ValueError as `comparisons` does.
    """
    for group in groups_of(metrics):
        yield (group.task, group.setting), values_of(group, metric, split)


def values_of(group: Group, metric: str, split: str) -> pd.DataFrame:
    """The values of one group (seed x estimator), as `per_seed` gives them."""
    if metric == "gradient_variance":
        values = np.exp(group.log_variance)
    elif metric == "generalization_gap":
        values = column_of(group.final, ("train", "reward")) - column_of(group.final, ("test", "reward"))
    elif metric == "validation_gap":
        values = _best_validation(group.evaluation) - column_of(group.final, ("test", "reward"))
    elif metric.startswith("gradient_"):
        values = _over_checkpoints(complete(group.probe, metric)[metric])
    else:
        values = column_of(group.final, (split, metric))
    return values.dropna().unstack("estimator")


def _best_validation(evaluation: pd.DataFrame) -> pd.Series:
    """(estimator, seed) -> the highest reward of validation prompts at any evaluation, that before training included."""
    rows = evaluation[(evaluation["split"] == "validation") & (evaluation["metric"] == "reward")]
    return rows[np.isfinite(rows["value"])].groupby(["estimator", "seed"])["value"].max()


def ranked_per_seed(
    metrics: pd.DataFrame, by: str | None = None
) -> Iterator[tuple[tuple[str, str], str, pd.DataFrame]]:
    """For each task and setting its names, the metric that ranks there, and its values as those of `per_seed`."""
    for group in groups_of(metrics):
        metric = ranking_metric(group, by)
        yield (
            (group.task, group.setting),
            metric,
            column_of(group.final, ("test", metric)).dropna().unstack("estimator"),
        )


def ranked_by(metrics: pd.DataFrame, by: str | None = None) -> dict[tuple[str, str], str]:
    """(task, setting) -> the metric that ranks there, as `leaderboard` does."""
    return {(group.task, group.setting): ranking_metric(group, by) for group in groups_of(metrics)}


def ranking_metric(group: Group, by: str | None) -> str:
    """The ranking metric: as asked, else the objective, else the reward; the first that cells with a reward have."""
    reward = column_of(group.final, ("test", "reward"))
    for metric in (by, *RANKABLE[:2]):
        values = column_of(group.final, ("test", metric))
        if values.notna().any() and (metric == by or values[reward.notna()].notna().all()):
            return str(metric)
    return by or RANKABLE[0]


def _checked(metrics: pd.DataFrame) -> pd.DataFrame:
    """The metrics with "" for missing text and floats for numbers; raises ValueError for inconsistent tables."""
    missing = [name for name in METRICS_COLUMNS if name not in metrics.columns]
    if missing:
        raise ValueError(f"metrics lack the columns {missing}")
    rates = [name for name in RATE_COLUMNS if name in metrics.columns]
    rows = cell_labels.with_columns(metrics)[[*METRICS_COLUMNS, *rates, *cell_labels.COLUMNS]].reset_index(drop=True)
    rows[_TEXT] = rows[_TEXT].apply(text_column)
    for name in ("step", "value"):
        # A table without a single number holds "" or None there.
        rows[name] = pd.to_numeric(rows[name].mask(rows[name] == "")).astype(float)
    if rows["seed"].isna().any():
        raise ValueError("some rows of the metrics have no seed: every row belongs to one cell, also that of a skip")
    # A row without a metric has only the status of its cell; probes have one for each checkpoint.
    duplicated = rows.duplicated(_KEY) & (rows["metric"] != "")
    if duplicated.any():
        example = rows.loc[duplicated, _KEY].iloc[0].to_dict()
        raise ValueError(
            f"{counted(int(duplicated.sum()), 'row of the metrics comes', 'rows of the metrics come')} twice, the first is {example}: pass a run once"
        )
    return rows


def text_column(column: pd.Series) -> pd.Series:
    """The column as strings, "" where missing; pandas reads a CSV column of empty strings as all NaN."""
    if isinstance(_STRING, pd.StringDtype) and column.dtype == _STRING and not column.hasnans:
        return column  # as most are that come from a run
    return column.astype(object).where(column.notna(), "").astype(str)


def _equal_draws(evaluation: pd.DataFrame) -> list[list[str]]:
    """Lists of two or more estimators that have the same value in every evaluation after step 0."""
    trained = evaluation[evaluation["step"] > 0]
    hashes = pd.util.hash_pandas_object(trained[["seed", "split", "step", "metric", "value"]], index=False)
    alike: dict[bytes, list[str]] = {}
    for name, mine in hashes.groupby(trained["estimator"], sort=True):
        alike.setdefault(np.sort(mine.to_numpy()).tobytes(), []).append(str(name))
    return [names for names in alike.values() if len(names) > 1]


def _cell_status(statuses: pd.Series) -> str:
    """ "ok" if every row of the cell is, else the statuses of the other rows."""
    return "+".join(sorted({status or "unknown" for status in statuses} - {"ok"})) or "ok"


def _reject_mixed_parameters(measured: pd.DataFrame) -> None:
    """Raises ValueError if one estimator label has two sets of parameters, as in runs of two versions."""
    kinds = measured.groupby("estimator")["estimator_params"].nunique()
    for estimator in kinds.index[kinds > 1]:
        found = sorted(measured.loc[measured["estimator"] == estimator, "estimator_params"].unique())
        raise ValueError(f"estimator {estimator!r} ran with different parameters in one setting: {found}")


def _wide(rows: pd.DataFrame, index: list[str], columns: list[str]) -> pd.DataFrame:
    """One row per index, one column per metric. Duplicates were rejected before."""
    return rows.set_index([*index, *columns])["value"].unstack(columns)


def column_of(frame: pd.DataFrame, name: Any) -> pd.Series:
    """A column by name; all NaN if it doesn't exist."""
    return frame[name] if name in frame.columns else pd.Series(np.nan, index=frame.index)


def complete(probe: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The checkpoints (estimator, seed, step) at which all of these metrics were measured."""
    return probe.reindex(columns=pd.Index(names)).dropna()


def _over_checkpoints(per_checkpoint: pd.Series) -> pd.Series:
    """Mean over the last index level, step; NaN where any checkpoint of the group is missing or unresolved.

    Estimators must not be averaged over different checkpoints, because the missing ones are the noisy ones.
    """
    with np.errstate(invalid="ignore"):  # ln 0 and ln inf have no mean
        return per_checkpoint.unstack("step").mean(axis=1, skipna=False)


def _log(values: pd.Series) -> pd.Series:
    """Natural logarithm; -inf at 0, NaN below."""
    with np.errstate(divide="ignore"):
        return np.log(values.where(values >= 0))


def finite_mean(per_seed: Values) -> Values:
    """estimator -> mean over the seeds that have a value."""
    with np.errstate(invalid="ignore"):
        return per_seed.groupby("estimator").mean()


def by_mean(means: pd.Series) -> list[str]:
    """Names by mean, the largest first, then by name; those without a mean come last."""
    return sorted(means.index, key=lambda name: (-means[name] if not math.isnan(means[name]) else math.inf, name))


def first_of_equals(group: Group, against: Sequence[str] = ()) -> dict[str, str]:
    """estimator -> the one that represents those with the same draws: a baseline if any, else the first by name."""
    firsts: dict[str, str] = {}
    for names in group.equals:
        first = next((name for name in against if name in names), names[0])
        firsts |= {name: first for name in names if name != first}
    return firsts


def named_generator(*names: str) -> np.random.Generator:
    """A random generator seeded by names, so that results don't depend on the table's order or other content."""
    digest = hashlib.sha256("\0".join(("gradebench tables", *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))
