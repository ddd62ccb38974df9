"""The leaderboard: one row per task, setting and estimator, from the metrics and their table of tests."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from gradebench.analysis import provenance, statistics, tiers
from gradebench.analysis.groups import (
    RANKABLE,
    Group,
    by_mean,
    column_of,
    finite_mean,
    first_of_equals,
    groups_of,
    named_generator,
    ranking_metric,
    text_column,
)
from gradebench.core.schema import LEADERBOARD_COLUMNS, TESTS_COLUMNS
from gradebench.measurement.gradient_columns import gradient_columns

_COSTS = {  # metric of training -> column
    "seconds_per_step": "seconds_per_step",
    "clipped_updates": "clipped_updates",
    "clip_factor": "clip_factor",
    "info_clipped_tokens": "clipped_tokens",
}
_OLD_BIAS = "gradient_bias_squared"  # relative here, absolute in metrics; its new name is that of metrics
_RESAMPLES = 2_000  # of the intervals of columns that aren't ranked by: there are many


def leaderboard(
    metrics: pd.DataFrame, comparisons: pd.DataFrame, by: str | None = None, against: Sequence[str] = ()
) -> pd.DataFrame:
    """One row per task, setting and estimator, LEADERBOARD_COLUMNS. `comparisons` is the table of tests of the same
    metrics, with the same baselines.

    Means are over ok seeds, at the last step at which the group evaluated test prompts: `steps`.
    ranked_by                    the metric of rank, tier, letters, p and verdict: `by`, one of RANKABLE. By default, or
                                 if that wasn't measured, the objective, or the reward if cells lack it.
    rank, tier                   ties by name; empty without the metric. A tier is its first estimator and those that
                                 aren't significantly different from it: `tiers.tiers`. Empty with baselines.
    letters                      two share a letter exactly if they aren't significantly different: `tiers.letters`.
    same_as                      the estimator with bit-identical evaluations; both count once in the family.
    n_seeds, status              ok seeds that have the metric; "ok", else counts such as "ok 8, failed 2".
                                 An ok cell without it is counted as "no test reward".
    gradient_variance            geometric mean over seeds and checkpoints.
    gradient_mse_relative, gradient_direction_error, gradient_variance_relative, gradient_bias_relative (also under its
    old name, gradient_bias_squared) and gradient_cosine, with their intervals: see `gradient_columns`; empty if they
    are too noisy.
    p_vs_best_holm               p_holm of the test against the first estimator that has a tier.
    p_vs_baseline_holm, verdict  against the baselines: the largest p_holm; and for each of them "above NAME",
                                 "below NAME" or "not significantly different from NAME". Empty without baselines.
    updates_per_step             updates of the policy; a batch has one or several.
    clipped_updates, clip_factor share of updates whose gradient was clipped; mean factor, where 1 is no clipping.
    clipped_tokens               share of tokens, over all calls, that the estimator's own ratio clipping affects.
    learning_rate, rate_source   see `provenance`; only estimators that may be compared have a tier.

    Raises        ValueError as `comparisons` does, and if that table lacks columns.
    """
    missing = [name for name in TESTS_COLUMNS if name not in comparisons.columns]
    if missing:
        raise ValueError(f"comparisons lack the columns {missing}")
    tests = comparisons[comparisons["split"] == "test"]
    by_place = dict(iter(tests.groupby([text_column(tests["task"]), text_column(tests["setting"])])))
    boards = [
        _board(group, by_place.get((group.task, group.setting), tests.iloc[:0]), by, against)
        for group in groups_of(metrics)
    ]
    if not boards:
        return pd.DataFrame(columns=LEADERBOARD_COLUMNS)
    return pd.concat(boards, ignore_index=True)


def _board(group: Group, tests: pd.DataFrame, by: str | None, against: Sequence[str]) -> pd.DataFrame:
    """The leaderboard of one group, best first."""
    metric = ranking_metric(group, by)
    tests = tests[tests["metric"] == metric]
    board = _summary(group)
    order = by_mean(board[f"test_{metric}_mean"])
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
    tier_of = {} if against else tiers.tiers(fair, supported)
    letters = {} if against else tiers.letters(fair, supported)
    counts = _status_counts(group, metric)
    firsts = first_of_equals(group, against)
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


def _summary(group: Group) -> pd.DataFrame:
    """One row per estimator: the columns of the leaderboard that need no comparison."""
    reward, gold = column_of(group.final, ("test", "reward")), column_of(group.final, ("test", "gold_reward"))
    costs = group.train.reindex(columns=pd.Index([*_COSTS, "updates"]))
    costs["updates_per_step"] = costs["updates"] / costs.index.get_level_values("step")
    # At the last step that has one, a cost is that of the whole cell.
    last = costs.groupby(["estimator", "seed"]).last()
    per_seed: dict[str, pd.Series] = {
        "test_gold_reward_mean": gold,
        "generalization_gap": column_of(group.final, ("train", "reward")) - reward,
        "gold_gap": reward - gold,
        "kl_mean": column_of(group.final, ("test", "kl")),
        "gradient_variance": group.log_variance,
        **{column: last[cost] for cost, column in _COSTS.items()},
        "updates_per_step": last["updates_per_step"],
    }
    means = finite_mean(pd.DataFrame(per_seed))
    gradients = {str(name): column for name, column in gradient_columns(group.probe).items()}
    columns: dict[str, pd.Series] = {
        **_with_interval(group, "objective"),
        **_with_interval(group, "reward"),
        **{str(name): column for name, column in means.items()},
        "gradient_variance": np.exp(means["gradient_variance"]),
        **_intervals(group, per_seed),
        **gradients,
        **{name.replace("squared", "relative"): column for name, column in gradients.items() if _OLD_BIAS in name},
        "peak_memory_bytes": column_of(group.train, "peak_memory_bytes").groupby("estimator").max(),
    }
    return pd.DataFrame({name: column.reindex(group.estimators) for name, column in columns.items()})


def _with_interval(group: Group, metric: str) -> dict[str, pd.Series]:
    """The mean over seeds of a metric on test prompts, and its 95 % interval: columns of the leaderboard."""
    values, name = column_of(group.final, ("test", metric)), f"test_{metric}"
    return {f"{name}_mean": finite_mean(values), **_interval(group, name, values, 10_000)}


def _interval(group: Group, column: str, values: pd.Series, resamples: int) -> dict[str, pd.Series]:
    """The columns of the 95 % interval of a mean over seeds, of the values by (estimator, seed)."""
    ends = {
        str(name): statistics.mean_interval(
            seeds.to_numpy(), named_generator(column, group.task, group.setting, str(name)), resamples=resamples
        )
        for name, seeds in values.dropna().groupby("estimator")
    }
    low, high = (pd.Series({name: pair[i] for name, pair in ends.items()}, dtype=float) for i in (0, 1))
    return {f"{column}_ci_low": low, f"{column}_ci_high": high}


def _intervals(group: Group, per_seed: Mapping[str, pd.Series]) -> dict[str, pd.Series]:
    """The intervals of the other means; that of the variance on a log scale, like its mean."""
    found: dict[str, pd.Series] = {}
    for name, values in per_seed.items():
        ends = _interval(group, name.removesuffix("_mean"), values, _RESAMPLES)
        found |= {end: np.exp(column) if name == "gradient_variance" else column for end, column in ends.items()}
    return found


def _against(
    name: str, baselines: Sequence[str], p_of: dict[frozenset[str], float], supported: set[tuple[str, str]]
) -> str:
    """An estimator's verdict against each baseline; "" for a baseline and for pairs that weren't compared."""
    found = []
    for baseline in baselines:
        if math.isnan(p_of.get(frozenset((name, baseline)), math.nan)):
            continue
        above, below = (name, baseline) in supported, (baseline, name) in supported
        found.append(f"{'above' if above else 'below' if below else 'not significantly different from'} {baseline}")
    return "; ".join(found)


def _status_counts(group: Group, metric: str) -> dict[str, Counter[str]]:
    """estimator -> status -> number of cells. In a group that has the metric, an ok cell without it is not ok."""
    values = column_of(group.final, ("test", metric)).reindex(group.status.index)
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


def ranked_column(board: pd.DataFrame) -> str:
    """The column of one group's leaderboard that ranks it."""
    return f"test_{board['ranked_by'].iloc[0] if len(board) else RANKABLE[0]}_mean"


def pareto_front(board: pd.DataFrame) -> list[str]:
    """The estimators of one group's leaderboard that no other dominates, in its order.

    One dominates another if it is at least as good in the ranking metric (more is better), relative variance and
    seconds per step (less is better), and better in one of them. Estimators that lack a value are left out.
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
