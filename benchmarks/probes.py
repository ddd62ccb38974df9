"""What gradient probes cost: 256 draws of an estimate beside as many bare forward-backward passes of the policy.

    python benchmarks/probes.py --csv results/speed/probes.csv

Small models are drawn many at a time in one pass, larger ones one by one (`gradebench.measurement.probes` says where it changes). A
bare pass differentiates log-probabilities of tokens that are there already; a draw samples its own and scores them.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from gradebench.core.sampling import generator
from gradebench.measurement.probes import FEWEST_COPIES, Source, entries_at_once, moments_of
from gradebench.plugins import registry

TASKS = ("enumerable-lm", "imdb:corpus=embedded")


def measured(spec: str, name: str, draws: int, batch: int) -> dict[str, Any]:
    task = registry.resolve("tasks", spec).create()
    task.prepare(torch.device("cpu"), log=print)
    task.load(torch.device("cpu"))
    estimator = registry.resolve("estimators", name).create().eval()
    size = sum(p.numel() for p in task.params)

    def contexts(number: int) -> torch.Tensor:
        return torch.randperm(task.sizes["train"], generator=generator("cpu", number))[: batch // estimator.n]

    source = Source(contexts, lambda index, ledger: task.problem("train", index, ledger), lambda i: generator("cpu", i))
    problem = source.problem(contexts(0), None)
    z = problem.sample(estimator.n, generator("cpu", 0))

    def probe() -> None:
        moments_of(estimator, source, draws // 2, torch.zeros(size, dtype=torch.float64), [size])

    def bare() -> None:
        for _ in range(draws):
            problem.grad(problem.log_prob(z).sum(-1).mean())

    probe_seconds, bare_seconds = (min(seconds_of(task) for _ in range(3)) for task in (probe, bare))
    return {
        "task": spec,
        "estimator": name,
        "parameters": size,
        "sequences": batch,
        "draws": draws,
        "many_at_once": entries_at_once(estimator, source) >= FEWEST_COPIES * size,
        "probe_seconds": probe_seconds,
        "bare_seconds": bare_seconds,
        "ratio": probe_seconds / bare_seconds,
    }


def seconds_of(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", default="reinforce,rloo")
    parser.add_argument("--draws", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for spec in TASKS:
        for name in arguments.estimators.split(","):
            rows.append(measured(spec, name, arguments.draws, arguments.batch))
            print(
                "{task} {estimator}: {draws} draws in {probe_seconds:.2f} s, {ratio:.2f} times the bare passes".format(
                    **rows[-1]
                )
            )
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(arguments.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
