"""Whether two probe runs agree within the intervals that they print, where draws and reference gradients are others.

    gradebench probe -e all -t imdb:corpus=embedded --seed 0 --out A
    gradebench probe -e all -t imdb:corpus=embedded --seed 1 --out B
    python benchmarks/probe_study.py A B [A B ...] --csv results/verdicts/probe_agreement.csv

Both runs share the policy's parameters at every checkpoint (one trajectory for all seeds) and nothing else. Two values
agree where they differ by no more than the 95 % interval of their difference, for which the two half intervals that
face each other are added in squares; of true intervals 95 % do. One row for each metric, and one for all of them.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from gradebench.analysis import tables

METRICS = [
    "gradient_mse_relative",
    "gradient_direction_error",
    "gradient_variance_relative",
    "gradient_bias_relative",
    "gradient_cosine",
    "gradient_snr",
]
CELL = ["task", "estimator", "step", "samples", "metric"]


def of_run(folder: Path) -> pd.DataFrame:
    """The overall values with an interval, one a cell."""
    probes = pd.read_csv(folder / "probes.csv", keep_default_na=False, na_values=[""])
    probes = probes[(probes["group"].fillna("") == "") & probes["metric"].isin(METRICS)]
    most = probes.groupby(["estimator", "step"])["draws"].transform("max")
    return probes[probes["draws"] == most].dropna(subset=["value", "ci_low", "ci_high"]).set_index(CELL)


def agreement(first: pd.DataFrame, second: pd.DataFrame) -> pd.DataFrame:
    both = first.merge(second, on=CELL, suffixes=("_1", "_2")).reset_index()
    lower, upper = np.where(both["value_1"] < both["value_2"], 1, 2), np.where(both["value_1"] < both["value_2"], 2, 1)

    def of(column: str, which: np.ndarray) -> np.ndarray:
        return np.where(which == 1, both[f"{column}_1"], both[f"{column}_2"])

    gap = of("value", upper) - of("value", lower)
    allowed = np.hypot(of("ci_high", lower) - of("value", lower), of("value", upper) - of("ci_low", upper))
    both["agree"] = gap <= allowed
    return both


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="pairs of folders")
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    if len(arguments.folders) % 2:
        parser.error("give folders in pairs")
    pairs = zip(arguments.folders[::2], arguments.folders[1::2], strict=True)
    both = pd.concat([agreement(of_run(one), of_run(other)) for one, other in pairs])
    whole = both.assign(metric="all")
    found = pd.concat([both, whole]).groupby(["task", "metric"], sort=False)["agree"].agg(cells="size", agree="sum")
    found["share"] = found["agree"] / found["cells"]
    print(found.to_string(float_format="%.3f"))
    if arguments.csv:
        tables.write_csv(found.reset_index(), arguments.csv)


if __name__ == "__main__":
    main()
