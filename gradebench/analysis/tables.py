"""From the tidy `metrics` table to the tables of comparisons and ranks: the names that other packages use."""

from gradebench.analysis.cell_labels import CONTROL
from gradebench.analysis.groups import (
    RANKABLE,
    named_generator,
    ok_rows,
    per_seed,
    ranked_by,
    ranked_per_seed,
)
from gradebench.analysis.leaderboards import leaderboard, pareto_front, ranked_column
from gradebench.analysis.pairwise import SAME, comparisons, controls, default_seed_count, family_size
from gradebench.storage.formats import write_csv, write_parquet

__all__ = [
    "CONTROL",
    "RANKABLE",
    "SAME",
    "comparisons",
    "controls",
    "default_seed_count",
    "family_size",
    "leaderboard",
    "named_generator",
    "ok_rows",
    "pareto_front",
    "per_seed",
    "ranked_by",
    "ranked_column",
    "ranked_per_seed",
    "write_csv",
    "write_parquet",
]
