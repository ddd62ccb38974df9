"""Who leads at which budget, by objective, in several runs, and the budget at which RLOO overtakes GRADE-STE, or not.

    gradebench tune -e rloo -e grade-ste -e st -e reinforce -t enumerable-lm --steps 640
    gradebench run -e rloo -e grade-ste -e st -e reinforce -t enumerable-lm --steps 640 --seeds 0-9 --tuned .../tuned.json
    python benchmarks/budgets.py RUN RUN ... --csv results/budgets

One table: a row a task and budget, the leader with its interval, and who isn't told apart from it; then one row a task of
the two that are named, which `--pair` changes. Each run has its own task or setting; what differs is not pooled.
"""

import argparse
from pathlib import Path

import pandas as pd

from gradebench.analysis import curves, fields, runs, tables
from gradebench.reporting import pair_tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders of `gradebench run --steps 640`")
    parser.add_argument("--axis", default="steps", choices=list(fields.AXES))
    parser.add_argument("--by", default=None, choices=fields.METRICS, help="default: the objective")
    parser.add_argument("--pair", nargs=2, default=["grade-ste", "rloo"], metavar=("A", "B"))
    parser.add_argument("--csv", type=Path, help="folder for leaders.csv and crossings.csv")
    chosen = parser.parse_args()
    leaders, crossings = study(chosen.runs, chosen.axis, chosen.by, (chosen.pair[0], chosen.pair[1]))
    pair_tables.print_budgets(leaders, crossings)
    if chosen.csv:
        chosen.csv.mkdir(parents=True, exist_ok=True)
        tables.write_csv(leaders, chosen.csv / "leaders.csv")
        tables.write_csv(crossings, chosen.csv / "crossings.csv")


def study(folders: list[Path], axis: str, by: str | None, pair: tuple[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The leaders by budget, and the crossing of the pair, of every task and setting of all runs."""
    metrics = runs.read_metrics(folders, apart=True)
    rows = curves.budgets(metrics, by, [axis])
    return curves.leaders(rows), curves.crossings_of(metrics, by, [axis], [pair])


if __name__ == "__main__":
    main()
