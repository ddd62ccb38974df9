"""`gradebench check` on every built-in estimator and every mutant of the tests, with 20 seeds each.

    python benchmarks/check_study.py --seeds 20

Truths run the whole suite, mutants the check that is meant for them (tests/estimators/mutants.py has both lists).
Writes results/check/study.csv, one row an estimator or mutant: how many seeds passed, and the least p-value.
"""

import argparse
import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from gradebench.checks.conformance import Finding, check
from gradebench.plugins import registry

LISTS = Path(__file__).parents[1] / "tests" / "estimators" / "mutants.py"


def judged(kind: str, name: str, seeds: int) -> dict[str, object]:
    """One row of the table."""
    torch.set_num_threads(1)
    listed = registry.load_file(str(LISTS), kind).factory[name]
    make, only = (listed, ()) if kind == "TRUE" else (listed[0], [listed[1]])
    runs = [check(make, seed, only) for seed in range(seeds)]
    passed = [all(finding.status != "fail" for finding in findings) for findings in runs]
    p_values = [p for findings in runs for p in _p_values(findings)]
    return {
        "kind": "true" if kind == "TRUE" else "mutant",
        "name": name,
        "check": "all" if kind == "TRUE" else listed[1],
        "seeds": seeds,
        "passed": sum(passed),
        "least_p": min(p_values, default=float("nan")),
        "most_p": max(p_values, default=float("nan")),
    }


def _p_values(findings: Sequence[Finding]) -> list[float]:
    return [float(p) for finding in findings for p in re.findall(r"\(p = ([0-9.e-]+)", finding.detail)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="regular expression; rows of other names stay as they are")
    arguments = parser.parse_args()
    listed = [(kind, name) for kind in ("TRUE", "MUTANTS") for name in registry.load_file(str(LISTS), kind).factory]
    names = [(kind, name) for kind, name in listed if re.search(arguments.only, name)]
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        futures = [pool.submit(judged, kind, name, arguments.seeds) for kind, name in names]
        rows = []
        for future in futures:
            rows.append(future.result())
            print(rows[-1], flush=True)
    out = Path("results/check/study.csv")
    out.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(rows)
    if out.is_file() and arguments.only:
        table = pd.concat([table, pd.read_csv(out)]).drop_duplicates(["kind", "name"])
    order = {("true" if kind == "TRUE" else "mutant", name): place for place, (kind, name) in enumerate(listed)}
    table["place"] = [order.get(pair) for pair in zip(table["kind"], table["name"], strict=True)]
    table = table.dropna(subset="place").sort_values("place").drop(columns="place")
    table.to_csv(out, index=False, float_format="%.3g")


if __name__ == "__main__":
    main()
