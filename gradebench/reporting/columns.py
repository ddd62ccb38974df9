"""The columns of the tables for people, the same in the terminal and in the report."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

INTERVAL = "95 % interval"
P_VS_BEST = "p vs best"


def number(value: Any, form: str) -> str:
    """A value in a format; text as it is, and "-" for what is missing or infinite."""
    if isinstance(value, str):
        return value
    return "-" if value is None or pd.isna(value) or not math.isfinite(value) else format(value, form)


@dataclass(frozen=True)
class Column:
    """A column of a table for people.

    heading   above it
    name      of the column that it is from; of the lower ends, where it is one of intervals
    form      of its numbers
    high      the column of the upper ends; "" for one of single values
    place     in the order in which a terminal chooses columns while it has room; 0 for one that is always there
    short     its heading there, if another
    prose     whether its texts may be folded
    """

    heading: str
    name: str
    form: str = ""
    high: str = ""
    place: int = 99
    short: str = ""
    prose: bool = False

    def text(self, row: Mapping[Any, Any], write: Callable[[Any, str], str] = number, between: str = " ") -> str:
        """The cell of a row; `between` stands between the ends of an interval."""
        ends = [write(row[name], self.form) for name in (self.name, self.high) if name]
        return "-" if set(ends) == {"-"} else between.join(ends)


LEADERBOARD = (
    Column("estimator", "named", place=0),
    Column("rank", "rank", ".0f", place=1),
    Column("tier", "tier", ".0f", place=2),
    Column("letters", "letters", place=9),
    Column("seeds", "n_seeds", ".0f", place=18),
    Column("steps", "steps", ".0f", place=99),
    Column("objective", "test_objective_mean", ".3f", place=3),
    Column(INTERVAL, "test_objective_ci_low", ".3f", high="test_objective_ci_high"),
    Column("test reward", "test_reward_mean", ".3f", place=8),
    Column(INTERVAL, "test_reward_ci_low", ".3f", high="test_reward_ci_high"),
    Column(P_VS_BEST, "p_vs_best_holm", ".3g", place=7),
    Column("p vs baseline", "p_vs_baseline_holm", ".3g", place=7),
    Column("verdict", "verdict", place=2),
    Column("gold reward", "test_gold_reward_mean", ".3f", short="gold", place=10),
    Column("train-test", "generalization_gap", "+.3f", place=14),
    Column("KL, nats", "kl_mean", ".2f", short="KL", place=4),
    Column("relative MSE", "gradient_mse_relative", ".3g", place=19),
    Column("direction error", "gradient_direction_error", ".3f", place=20),
    Column("variance", "gradient_variance", ".3g", place=17),
    Column("relative", "gradient_variance_relative", ".3g", short="relative variance", place=5),
    Column("bias²", "gradient_bias_squared", ".2f", place=6),
    Column("cosine", "gradient_cosine", ".2f", place=11),
    Column("updates/step", "updates_per_step", ".3g", place=16),
    Column("clipped", "clipped_updates", ".0%", place=15),
    Column("clip factor", "clip_factor", ".2f", place=21),
    Column("clipped tokens", "clipped_tokens", ".1%", place=22),
    Column("s/step", "seconds_per_step", ".3f", place=12),
    Column("memory, MB", "peak_memory_mb", ".0f", place=23),
    Column("rate", "learning_rate", ".2g", place=13),
    Column("rate from", "rate_source", place=24),
    Column("status", "status", place=14),
)

INSTANCES = (
    Column("estimator", "estimator", place=0),
    Column("rank", "rank", ".0f", place=1),
    Column("mean", "mean", ".3f", place=2),
    Column(INTERVAL, "ci_low", ".3f", high="ci_high"),
    Column(P_VS_BEST, "p_vs_best_holm", ".3g", place=7),
    Column("first in", "n_first", ".0f", place=3),
    Column("reward", "reward_mean", ".3f", place=4),
    Column("gold reward", "gold_reward_mean", ".3f", short="gold", place=10),
    Column("KL, nats", "kl_mean", ".2f", short="KL", place=4),
    Column("instances", "n_instances", ".0f", place=8),
    Column("seeds in all", "n_seeds", ".0f", place=9),
)


def records(frame: pd.DataFrame) -> Iterator[dict[Any, Any]]:
    """The rows, quicker than by pandas, which looks at each value."""
    names = list(frame.columns)
    for values in zip(*(frame[name].tolist() for name in names), strict=True):
        yield dict(zip(names, values, strict=True))


def with_shown(board: pd.DataFrame) -> pd.DataFrame:
    """A leaderboard with the columns that LEADERBOARD has besides: `named` and `peak_memory_mb`."""
    return board.assign(named=[named(row) for row in records(board)], peak_memory_mb=board["peak_memory_bytes"] / 1e6)


def not_empty(frame: pd.DataFrame, columns: Sequence[Column]) -> list[Column]:
    """Those columns in which anybody has a value."""
    return [column for column in columns if not is_empty(frame[column.name])]


def is_empty(column: pd.Series) -> bool:
    empty = column.isna()
    return bool(empty.all() if pd.api.types.is_numeric_dtype(column) else (empty | (column == "")).all())


def named(row: Mapping[Any, Any]) -> str:
    """An estimator, and the one whose evaluations are bit-identical to its own."""
    same = row["same_as"]
    return f"{row['estimator']} = {same}" if isinstance(same, str) and same else str(row["estimator"])
