"""From the tidy `metrics` table to the tables of comparisons and ranks; DataFrames in and out.

A cell is one (task, setting, estimator, seed). Only cells that are ok in all of their rows give numbers; the others
stay visible as a status. Settings are never mixed, and results depend neither on the order of the rows nor on any
generator of the caller: randomness is seeded by the names of what is compared.

A value that was never measured is left out, and counts (n_pairs, status) say so. A value that was measured but has
no answer, such as a ratio to a squared norm that can't be told from zero, makes the aggregate NaN: leaving it out
would favour the estimator that is too noisy to be measured.
"""

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from gradebench.analysis import provenance, statistics
from gradebench.core.schema import LEADERBOARD_COLUMNS, METRICS_COLUMNS, TESTS_COLUMNS
from gradebench.measurement.gradient_columns import gradient_columns
from gradebench.storage.formats import write_csv, write_parquet  # noqa: F401 - where whoever makes a table looks for them

RANKABLE = ("objective", "reward", "gold_reward")  # of the test prompts; without a choice, the first that was measured
CONTROL = " (control)"  # ends the name of an estimator's twin in an A/A control, which no table ranks
MINIMUM_SEEDS = 3  # below three pairs there is no effect size

_CELL = ["task", "setting", "estimator", "seed"]
_KEY = [*_CELL, "phase", "split", "step", "metric"]
_TEXT = [name for name in METRICS_COLUMNS if name not in ("seed", "step", "value")]
SAME = "same draws"  # the verdict on two names of one estimator


@dataclass(frozen=True)
class _Group:
    """One task in one setting: what its ok cells measured, in wide form, and the status of all of its cells."""

    task: str
    setting: str
    rows: pd.DataFrame  # of all cells
    status: pd.Series  # (estimator, seed) -> status of the cell
    measured: pd.DataFrame  # the rows of ok cells that have a value

    @property
    def estimators(self) -> list[str]:
        return sorted(self.status.index.unique("estimator"))

    @functools.cached_property
    def evaluation(self) -> pd.DataFrame:
        return self.measured[self.measured["phase"] == "evaluation"]

    @functools.cached_property
    def last_step(self) -> float:
        """At which test prompts were evaluated; NaN without any."""
        return float(self.evaluation.loc[self.evaluation["split"] == "test", "step"].max())

    @functools.cached_property
    def equals(self) -> Sequence[Sequence[str]]:
        """Estimators whose evaluations are the same bit by bit: they drew the same."""
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
    def rates(self) -> dict[str, provenance.Ran]:
        """By estimator."""
        return provenance.ran(self.rows)

    @functools.cached_property
    def unfair(self) -> dict[frozenset[str], str]:
        """Verdicts of pairs that their rates keep from being compared."""
        return provenance.incomparable(self.rows)


def family_size(n_estimators: int, n_baselines: int = 0) -> int:
    """How many comparisons Holm counts: all pairs, or those of the baselines with all others."""
    return n_baselines * (n_estimators - n_baselines) if n_baselines else math.comb(n_estimators, 2)


def default_seed_count(n_estimators: int, n_baselines: int = 0) -> int:
    """The number of seeds at which every comparison of the family can be decided under Holm; at least 3."""
    return max(MINIMUM_SEEDS, statistics.seeds_needed(family_size(n_estimators, n_baselines)))


def _checked(metrics: pd.DataFrame) -> pd.DataFrame:
    """The metrics with "" for missing text and floats for numbers; raises ValueError for what can't be trusted."""
    missing = [name for name in METRICS_COLUMNS if name not in metrics.columns]
    if missing:
        raise ValueError(f"metrics lack the columns {missing}")
    rates = [name for name in provenance.RATE_COLUMNS if name in metrics.columns]
    rows = metrics[METRICS_COLUMNS + rates].reset_index(drop=True)
    rows[_TEXT] = rows[_TEXT].apply(_text)
    for name in ("step", "value"):
        # A table without a single number holds "" or None there.
        rows[name] = pd.to_numeric(rows[name].mask(rows[name] == "")).astype(float)
    if rows["seed"].isna().any():
        raise ValueError("some rows of the metrics have no seed: every row belongs to one cell, also that of a skip")
    # A row without a metric says what became of a cell; probes have one of each checkpoint.
    duplicated = rows.duplicated(_KEY) & (rows["metric"] != "")
    if duplicated.any():
        example = rows.loc[duplicated, _KEY].iloc[0].to_dict()
        raise ValueError(
            f"{int(duplicated.sum())} rows of the metrics come twice, the first is {example}: pass a run once"
        )
    return rows


def _text(column: pd.Series) -> pd.Series:
    """The column as strings, "" where missing: a column of empty strings comes back from a CSV as NaN throughout."""
    return column.astype(object).where(column.notna(), "").astype(str)


def _groups(metrics: pd.DataFrame, controls: bool = False) -> Iterator[_Group]:
    """The groups by task, then setting; within them, groupby and unstack sort by name, seed and step.

    Raises ValueError as `_checked` and `_reject_mixed_parameters` do.
    """
    rows = _checked(metrics)
    if not controls:
        rows = rows[~rows["estimator"].str.endswith(CONTROL)]
    for (task, setting), group in rows.groupby(["task", "setting"], sort=True):
        status = group.groupby(["estimator", "seed"])["status"].agg(_cell_status)
        cells = pd.MultiIndex.from_frame(group[["estimator", "seed"]])
        # A row without a value measured nothing. Infinite values stay: an infinite variance is a result.
        measured = group[(status.reindex(cells) == "ok").to_numpy() & group["value"].notna() & (group["metric"] != "")]
        _reject_mixed_parameters(measured)
        yield _Group(str(task), str(setting), group, status, measured)


def _equal_draws(evaluation: pd.DataFrame) -> list[list[str]]:
    """The estimators, two or more a list, that have the same value in every evaluation after step 0."""
    trained = evaluation[evaluation["step"] > 0]
    hashes = pd.util.hash_pandas_object(trained[["seed", "split", "step", "metric", "value"]], index=False)
    alike: dict[bytes, list[str]] = {}
    for name, mine in hashes.groupby(trained["estimator"], sort=True):
        alike.setdefault(np.sort(mine.to_numpy()).tobytes(), []).append(str(name))
    return [names for names in alike.values() if len(names) > 1]


def _cell_status(statuses: pd.Series) -> str:
    """ "ok" where every row of the cell is, else what the other rows say."""
    return "+".join(sorted({status or "unknown" for status in statuses} - {"ok"})) or "ok"


def _reject_mixed_parameters(measured: pd.DataFrame) -> None:
    """Raises ValueError where one estimator label stands for two sets of parameters, as in runs of two versions."""
    kinds = measured.groupby("estimator")["estimator_params"].nunique()
    for estimator in kinds.index[kinds > 1]:
        found = sorted(measured.loc[measured["estimator"] == estimator, "estimator_params"].unique())
        raise ValueError(f"estimator {estimator!r} ran with different parameters in one setting: {found}")


def _wide(rows: pd.DataFrame, index: list[str], columns: list[str]) -> pd.DataFrame:
    """One row an index, one column a metric. Duplicates were rejected before."""
    return rows.set_index([*index, *columns])["value"].unstack(columns)


def _column(frame: pd.DataFrame, name: Any) -> pd.Series:
    """A column by name, NaN throughout where nobody measured it."""
    return frame[name] if name in frame.columns else pd.Series(np.nan, index=frame.index)


def _complete(probe: pd.DataFrame, *names: str) -> pd.DataFrame:
    """The checkpoints (estimator, seed, step) at which all of these metrics were measured."""
    return probe.reindex(columns=pd.Index(names)).dropna()


def _over_checkpoints(per_checkpoint: pd.Series) -> pd.Series:
    """Mean over the last index level, step; NaN where any checkpoint of the group is missing or unresolved.

    Estimators must not be averaged over different checkpoints: those that fall out are the noisy ones.
    """
    with np.errstate(invalid="ignore"):  # ln 0 and ln inf have no mean
        return per_checkpoint.unstack("step").mean(axis=1, skipna=False)


def _log(values: pd.Series) -> pd.Series:
    """Natural logarithm; -inf at 0, NaN below."""
    with np.errstate(divide="ignore"):
        return np.log(values.where(values >= 0))


def _log_variance(group: _Group) -> pd.Series:
    """(estimator, seed) -> mean over checkpoints of ln gradient_variance."""
    return _over_checkpoints(_log(_complete(group.probe, "gradient_variance")["gradient_variance"]))


def _last_cost(group: _Group, metric: str) -> pd.Series:
    """(estimator, seed) -> the cost at the cell's last step that has it, where the figure for the cell stands."""
    return _complete(group.train, metric)[metric].groupby(["estimator", "seed"]).last()


def _finite_mean(per_seed: pd.Series) -> pd.Series:
    """estimator -> mean over the seeds that have a value."""
    with np.errstate(invalid="ignore"):
        return per_seed.groupby("estimator").mean()


def _summary(group: _Group) -> pd.DataFrame:
    """One row an estimator: the columns of the leaderboard that need no comparison."""
    reward, gold = _column(group.final, ("test", "reward")), _column(group.final, ("test", "gold_reward"))
    log_variance = _log_variance(group)
    updates = _complete(group.train, "updates")["updates"]
    columns: dict[str, pd.Series] = {
        **_with_interval(group, "objective"),
        **_with_interval(group, "reward"),
        "test_gold_reward_mean": _finite_mean(gold),
        "generalization_gap": _finite_mean(_column(group.final, ("train", "reward")) - reward),
        "gold_gap": _finite_mean(reward - gold),
        "kl_mean": _finite_mean(_column(group.final, ("test", "kl"))),
        "gradient_variance": np.exp(_finite_mean(log_variance)),
        **{str(name): column for name, column in gradient_columns(group.probe).items()},
        "seconds_per_step": _finite_mean(_last_cost(group, "seconds_per_step")),
        "peak_memory_bytes": _column(group.train, "peak_memory_bytes").groupby("estimator").max(),
        "updates_per_step": _finite_mean(
            (updates / updates.index.get_level_values("step")).groupby(["estimator", "seed"]).last()
        ),
        "clipped_updates": _finite_mean(_last_cost(group, "clipped_updates")),
        "clip_factor": _finite_mean(_last_cost(group, "clip_factor")),
        "clipped_tokens": _finite_mean(_last_cost(group, "info_clipped_tokens")),
    }
    return pd.DataFrame({name: column.reindex(group.estimators) for name, column in columns.items()})


def _with_interval(group: _Group, metric: str) -> dict[str, pd.Series]:
    """The mean over seeds of a metric on test prompts, and its 95 % interval: columns of the leaderboard."""
    values = _column(group.final, ("test", metric))
    ends = {
        str(name): statistics.mean_interval(
            seeds.to_numpy(), named_generator(f"test_{metric}", group.task, group.setting, str(name))
        )
        for name, seeds in values.dropna().groupby("estimator")
    }
    low, high = (pd.Series({name: pair[i] for name, pair in ends.items()}, dtype=float) for i in (0, 1))
    return {f"test_{metric}_mean": _finite_mean(values), f"test_{metric}_ci_low": low, f"test_{metric}_ci_high": high}


def named_generator(*names: str) -> np.random.Generator:
    """A random generator seeded by names, so that no result depends on what else is in the table, or on its order."""
    digest = hashlib.sha256("\0".join(("gradebench tables", *names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


# (metric, split, what is compared by (estimator, seed), what the name of the test adds)
_FAMILIES: tuple[tuple[str, str, Callable[[_Group], pd.Series], str], ...] = (
    ("objective", "test", lambda group: _column(group.final, ("test", "objective")), ""),
    ("reward", "test", lambda group: _column(group.final, ("test", "reward")), ""),
    ("gold_reward", "test", lambda group: _column(group.final, ("test", "gold_reward")), ""),
    ("gradient_variance", "train", _log_variance, " of ln gradient_variance"),
)


def comparisons(metrics: pd.DataFrame, against: Sequence[str] = ()) -> pd.DataFrame:
    """The table of tests: pairs of estimators within each task and setting, TESTS_COLUMNS.

    One Holm family is one metric in one task and setting: all pairs, or, `against` baselines, each of these with each
    estimator that is none; `family` is its size. Estimators that drew the same count once in it, and their own pair,
    with the verdict "same draws", not at all. Seeds are paired by their id. `gradient_variance` is
    compared by the mean over checkpoints of its natural logarithm, so its differences and intervals are in nats of
    ratio: exp(mean_difference) is a ratio of variances. estimator_a has the larger mean (ties by name). A metric
    that nobody measured has no rows; an estimator without ok cells has rows with n_pairs 0.

    Raises        ValueError for missing columns, rows that come twice, and one label with two sets of parameters.
    """
    rows = [row for group in _groups(metrics) for family in _FAMILIES for row in _family(group, against, *family)]
    return pd.DataFrame(rows, columns=TESTS_COLUMNS)


def controls(metrics: pd.DataFrame) -> pd.DataFrame:
    """The tests of every estimator against its control twin, which differs from it in nothing but what it drew.

    TESTS_COLUMNS; the verdict is "false alarm" where p < 0.05, as it should be in 5 % of the rows of a metric, else
    "not distinguishable". Not adjusted: each row is a test of the test.

    Raises        ValueError as `comparisons` does.
    """
    rows = []
    for group in _groups(metrics, controls=True):
        for metric, split, per_seed_of, suffix in _FAMILIES:
            values = per_seed_of(group).dropna().unstack("estimator")
            for twin in [name for name in values.columns if name.endswith(CONTROL)]:
                a = twin.removesuffix(CONTROL)
                if a in values.columns:
                    row = _compared(group, metric, split, suffix, values, a, twin)
                    alarm = row["p_value"] < statistics.ALPHA
                    rows.append(row | {"verdict": "false alarm" if alarm else "not distinguishable"})
    return pd.DataFrame(rows, columns=TESTS_COLUMNS)


def per_seed(metrics: pd.DataFrame, metric: str, split: str) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """For each task and setting its names and the values (seed x estimator) of ok cells, NaN where one is missing.

    `metric` as at the last evaluation of the split; generalization_gap, train less test reward; or gradient_variance,
    the geometric mean over checkpoints. Estimators without any value have no column.

    Raises        ValueError as `comparisons` does.
    """
    for group in _groups(metrics):
        if metric == "gradient_variance":
            values = np.exp(_log_variance(group))
        elif metric == "generalization_gap":
            values = _column(group.final, ("train", "reward")) - _column(group.final, ("test", "reward"))
        else:
            values = _column(group.final, (split, metric))
        yield (group.task, group.setting), values.dropna().unstack("estimator")


def ranked_per_seed(
    metrics: pd.DataFrame, by: str | None = None
) -> Iterator[tuple[tuple[str, str], str, pd.DataFrame]]:
    """For each task and setting its names, the metric that ranks there, and its values as those of `per_seed`."""
    for group in _groups(metrics):
        metric = _ranked_by(group, by)
        yield (group.task, group.setting), metric, _column(group.final, ("test", metric)).dropna().unstack("estimator")


def _ranked_by(group: _Group, by: str | None) -> str:
    """The metric that ranks: as asked, else the objective, else the reward; the first that cells with a reward have."""
    reward = _column(group.final, ("test", "reward"))
    for metric in (by, *RANKABLE[:2]):
        values = _column(group.final, ("test", metric))
        if values.notna().any() and (metric == by or values[reward.notna()].notna().all()):
            return str(metric)
    return by or RANKABLE[0]


def ok_rows(metrics: pd.DataFrame) -> Iterator[tuple[tuple[str, str], pd.DataFrame]]:
    """For each task and setting its names and the rows of ok cells, control twins left out.

    Raises        ValueError as `comparisons` does.
    """
    rows = _checked(metrics)
    rows = rows[~rows["estimator"].str.endswith(CONTROL)]
    for (task, setting), group in rows.groupby(["task", "setting"], sort=True):
        status = group.groupby(["estimator", "seed"])["status"].agg(_cell_status)
        cells = pd.MultiIndex.from_frame(group[["estimator", "seed"]])
        ok = group[(status.reindex(cells) == "ok").to_numpy()]
        _reject_mixed_parameters(ok)
        yield (str(task), str(setting)), ok


def _family(
    group: _Group,
    against: Sequence[str],
    metric: str,
    split: str,
    per_seed_of: Callable[[_Group], pd.Series],
    suffix: str,
) -> list[dict[str, Any]]:
    """The rows of one Holm family."""
    per_seed = per_seed_of(group)
    if not per_seed.notna().any():
        return []
    values = per_seed.unstack("estimator").reindex(columns=group.estimators)  # (seed, estimator)
    ranked = _by_mean(_finite_mean(per_seed).reindex(group.estimators))
    firsts = _firsts(group, against)
    stands_for = {n: firsts[n] if n in firsts and values[n].equals(values[firsts[n]]) else n for n in ranked}
    rows, hypotheses = [], []
    for a, b in combinations(ranked, 2):
        if not against or (a in against) != (b in against):
            row = _compared(group, metric, split, suffix, values, a, b)
            # Gradients are probed on a trajectory that all share, whatever their rates.
            rows.append(row if metric == "gradient_variance" else provenance.unless_unfair(row, group.unfair))
            hypotheses.append(frozenset((stands_for[a], stands_for[b])))
    p_values = {pair: row["p_value"] for pair, row in zip(hypotheses, rows, strict=True) if len(pair) == 2}
    adjusted = dict(zip(p_values, statistics.holm(list(p_values.values())).tolist(), strict=True))
    size = sum(not math.isnan(p_holm) for p_holm in adjusted.values())
    for pair, row in zip(hypotheses, rows, strict=True):
        row["p_holm"], row["family"] = adjusted.get(pair, math.nan), size
        least, difference = size * row["smallest_attainable_p"], row["mean_difference"]
        if pair not in adjusted:
            row["verdict"] = SAME
        elif "verdict" not in row:
            row["verdict"] = statistics.verdict(row["p_holm"], least, difference, statistics.ALPHA)
    return rows


def _firsts(group: _Group, against: Sequence[str] = ()) -> dict[str, str]:
    """estimator -> the one that it drew the same as: a baseline where there is one, else the first by name."""
    firsts: dict[str, str] = {}
    for names in group.equals:
        first = next((name for name in against if name in names), names[0])
        firsts |= {name: first for name in names if name != first}
    return firsts


def _compared(
    group: _Group, metric: str, split: str, suffix: str, values: pd.DataFrame, a: str, b: str
) -> dict[str, Any]:
    """The row of two columns of values (seed, estimator), without p_holm and verdict."""
    generator = named_generator(metric, group.task, group.setting, a, b)
    result = vars(statistics.compare(values[a].to_numpy(), values[b].to_numpy(), generator))
    names = {"task": group.task, "setting": group.setting, "metric": metric, "split": split}
    return {**names, "estimator_a": a, "estimator_b": b, **result, "test": result["test"] + suffix}


def _by_mean(means: pd.Series) -> list[str]:
    """Names by mean, the largest first, then by name; those without a mean come last."""
    return sorted(means.index, key=lambda name: (-means[name] if not math.isnan(means[name]) else math.inf, name))


def leaderboard(
    metrics: pd.DataFrame, comparisons: pd.DataFrame, by: str | None = None, against: Sequence[str] = ()
) -> pd.DataFrame:
    """One row a task, setting and estimator, LEADERBOARD_COLUMNS; `comparisons` is the table of the same metrics, with
    the same baselines.

    Means are over ok seeds, at the last step at which the group evaluated test prompts: `steps`.
    ranked_by                    the metric of rank, tier, letters, p and verdict: `by`, one of RANKABLE; where that was
                                 not measured, and by default, the objective, or the reward where cells lack it.
    rank, tier                   ties by name; empty without the metric. A tier: its first, and what isn't significantly
                                 different from that: `statistics.tiers`. Empty where baselines are given.
    letters                      shared by two exactly where they aren't significantly different: `statistics.letters`.
    same_as                      the estimator whose evaluations these are, bit by bit; both count once in the family.
    n_seeds, status              ok seeds that gave the metric; "ok", else counts such as "ok 8, failed 2".
                                 An ok cell without it is counted as "no test reward".
    gradient_variance            geometric mean over seeds and checkpoints.
    gradient_mse_relative, gradient_direction_error, gradient_variance_relative, gradient_bias_squared (relative, too)
    and gradient_cosine, with their intervals: see `gradient_columns`; empty where they aren't resolved.
    p_vs_best_holm               p_holm against the first of those that have a tier.
    p_vs_baseline_holm, verdict  against the baselines: the largest p_holm of them; and for each in words "above NAME",
                                 "below NAME" or "not significantly different from NAME". Empty without baselines.
    updates_per_step             of the policy, a batch having one to several.
    clipped_updates, clip_factor share of updates whose gradient clipping shortened; mean factor, 1 being not at all.
    clipped_tokens               share of tokens, over all calls, whose ratio the estimator's own clipping held back.
    learning_rate, rate_source   see `provenance`; only estimators that may be compared by it have a tier.

    Raises        ValueError as `comparisons` does, and where its table lacks columns.
    """
    missing = [name for name in TESTS_COLUMNS if name not in comparisons.columns]
    if missing:
        raise ValueError(f"comparisons lack the columns {missing}")
    tests = comparisons[comparisons["split"] == "test"]
    by_place = dict(iter(tests.groupby([_text(tests["task"]), _text(tests["setting"])])))
    boards = [
        _board(group, by_place.get((group.task, group.setting), tests.iloc[:0]), by, against)
        for group in _groups(metrics)
    ]
    if not boards:
        return pd.DataFrame(columns=LEADERBOARD_COLUMNS)
    return pd.concat(boards, ignore_index=True)


def _board(group: _Group, tests: pd.DataFrame, by: str | None, against: Sequence[str]) -> pd.DataFrame:
    """The leaderboard of one group, best first."""
    metric = _ranked_by(group, by)
    tests = tests[tests["metric"] == metric]
    board = _summary(group)
    order = _by_mean(board[f"test_{metric}_mean"])
    board = board.loc[order]
    ranked = list(board.index[board[f"test_{metric}_mean"].notna()])
    pairs = list(zip(tests["estimator_a"], tests["estimator_b"], strict=True))
    supported = {
        pair[:: 1 if outcome == "a higher" else -1]
        for pair, outcome in zip(pairs, tests["verdict"], strict=True)
        if outcome in ("a higher", "b higher")
    }  # (higher, lower)
    p_of = {frozenset(pair): p_holm for pair, p_holm in zip(pairs, tests["p_holm"], strict=True)}
    fair = provenance.together(group.rates[name] for name in ranked)
    tier_of = {} if against else statistics.tiers(fair, supported)
    letters = {} if against else statistics.letters(fair, supported)
    counts = _status_counts(group, metric)
    firsts = _firsts(group, against)
    board["rank"] = pd.array([ranked.index(n) + 1 if n in ranked else pd.NA for n in order], dtype="Int64")
    board["tier"] = pd.array([tier_of.get(name, pd.NA) for name in order], dtype="Int64")
    board["letters"] = [letters.get(name, "") for name in order]
    board["same_as"] = [firsts.get(name, "") for name in order]
    board["steps"] = pd.array([pd.NA if math.isnan(group.last_step) else group.last_step] * len(order), dtype="Int64")
    board["ranked_by"] = metric
    board["n_seeds"] = [counts[name]["ok"] for name in order]
    board["status"] = [_status_text(counts[name]) for name in order]
    board["p_vs_best_holm"] = [p_of.get(frozenset((fair[0], n)), math.nan) if fair else math.nan for n in order]
    baselines = [name for name in against if name in ranked]
    held = {name: [p_of[pair] for b in baselines if (pair := frozenset((name, b))) in p_of] for name in order}
    board["p_vs_baseline_holm"] = [max(held[name], default=math.nan) for name in order]
    board["verdict"] = [_against(name, baselines, p_of, supported) for name in order]
    board["learning_rate"] = [group.rates[name].rate for name in order]
    board["rate_source"] = [group.rates[name].source for name in order]
    board["task"], board["setting"], board["estimator"] = group.task, group.setting, order
    return board[LEADERBOARD_COLUMNS].reset_index(drop=True)


def _against(
    name: str, baselines: Sequence[str], p_of: dict[frozenset[str], float], supported: set[tuple[str, str]]
) -> str:
    """Where an estimator stands to each baseline, in words; "" for a baseline and for what wasn't compared."""
    found = []
    for baseline in baselines:
        if math.isnan(p_of.get(frozenset((name, baseline)), math.nan)):
            continue
        above, below = (name, baseline) in supported, (baseline, name) in supported
        found.append(f"{'above' if above else 'below' if below else 'not significantly different from'} {baseline}")
    return "; ".join(found)


def ranked_by(metrics: pd.DataFrame, by: str | None = None) -> dict[tuple[str, str], str]:
    """(task, setting) -> the metric that ranks there, as `leaderboard` does."""
    return {(group.task, group.setting): _ranked_by(group, by) for group in _groups(metrics)}


def ranked_column(board: pd.DataFrame) -> str:
    """The column of one group's leaderboard that ranks it."""
    return f"test_{board['ranked_by'].iloc[0] if len(board) else RANKABLE[0]}_mean"


def pareto_front(board: pd.DataFrame) -> list[str]:
    """The estimators of one group's leaderboard that no other one dominates, in its order.

    One dominates another that is at least as good in what ranks (more), relative variance and seconds a step (less),
    and better in one of them. Those without a number for each take no part.
    """
    columns = [ranked_column(board), "gradient_variance_relative", "seconds_per_step"]
    costs = board[columns].to_numpy(dtype=float) * [-1.0, 1.0, 1.0]
    known = np.isfinite(costs).all(axis=1)
    others = costs[known]
    return [
        str(name)
        for name, mine in zip(board["estimator"][known], others, strict=True)
        if not ((others <= mine).all(axis=1) & (others < mine).any(axis=1)).any()
    ]


def _status_counts(group: _Group, metric: str) -> dict[str, Counter[str]]:
    """estimator -> status -> number of cells. In a group that has the metric, an ok cell without it is not ok."""
    values = _column(group.final, ("test", metric)).reindex(group.status.index)
    status = group.status
    if values.notna().any():
        lacking = f"no test {'reward' if metric == 'objective' else metric}"
        status = status.mask((status == "ok") & values.isna(), lacking)
    return {str(name): Counter(cells) for name, cells in status.groupby("estimator")}


def _status_text(counts: Counter[str]) -> str:
    """ "ok", or the counts with ok first."""
    if set(counts) == {"ok"}:
        return "ok"
    return ", ".join(f"{status} {counts[status]}" for status in sorted(counts, key=lambda name: (name != "ok", name)))
