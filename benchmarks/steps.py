"""What a gradient costs against the floor: its operations at the machine's measured matrix rate.

    python benchmarks/steps.py --threads 1 --csv results/speed/steps.csv

The floor is sampling and one forward-backward pass of the policy, counted in operations of matrix products. For each
shape: seconds of sampling, of a bare forward-backward pass over tokens that are there, of sampling and the update by what
was sampled (whose forward pass sampling has made), and of a gradient by each estimator with as many samples; as multiples
of the floor, all of a shape taken in turn in one run.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from shapes import Shape, matrix_rate, seconds_of

from gradebench.core.sampling import generator
from gradebench.plugins import registry

BASE = Shape()
SHAPES = [
    BASE,
    replace(BASE, horizon=64),
    replace(BASE, horizon=128),
    replace(BASE, batch=128),
    replace(BASE, width=256, heads=8),
    replace(BASE, vocabulary=8000),
]


def measured(shape: Shape, estimators: list[str], device: str, rounds: int) -> dict[str, object]:
    problem, rng = shape.problem(device), generator(device, 0)
    with torch.no_grad():
        z = problem.sample(1, rng)

    def update() -> None:
        drawn = problem.sample(1, rng)
        problem.grad(problem.log_prob(drawn).sum(-1).mean())

    def gradient_of(name: str) -> Callable[[], object]:
        estimator = registry.resolve("estimators", name).create()
        part = problem.select(torch.arange(shape.batch // estimator.n, device=device))
        return lambda: estimator.gradient(part, rng)

    tasks: dict[str, Callable[[], object]] = {
        "sampling": torch.no_grad()(lambda: problem.sample(1, rng)),
        "forward_backward": lambda: problem.grad(problem.log_prob(z).sum(-1).mean()),
        "sampling_and_update": update,
        "reward": lambda: problem.reward(z),
    }
    tasks |= {name: gradient_of(name) for name in estimators}
    rate = matrix_rate(device)
    seconds = dict(zip(tasks, seconds_of(list(tasks.values()), device, rounds), strict=True))
    floor = shape.floor_operations / rate
    row: dict[str, object] = dict(vars(shape)) | {"rate_gflops": rate / 1e9, "floor_seconds": floor}
    row |= {f"{name}_seconds": value for name, value in seconds.items()}
    return row | {"sampling_and_update_over_floor": seconds["sampling_and_update"] / floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", default="reinforce,rloo,grade-ste,grade")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--csv", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    names = arguments.estimators.split(",")
    rows = []
    for shape in SHAPES:
        rows.append(measured(shape, names, arguments.device, arguments.rounds) | {"threads": arguments.threads})
        floor = rows[-1]["floor_seconds"]
        ratios = "  ".join(f"{name} {rows[-1][f'{name}_seconds'] / floor:.2f}" for name in names)  # type: ignore[operator]
        print(f"{shape}\n  floor {floor:.3f} s; over it: ", end="")
        print(f"sampling and update {rows[-1]['sampling_and_update_over_floor']:.2f}  {ratios}", flush=True)
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(arguments.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
