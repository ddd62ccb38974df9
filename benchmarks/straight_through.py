"""Straight-through gradients by each road of `SequenceProblem`: seconds, peak memory, backward passes by length.

    python benchmarks/straight_through.py --csv results/speed/straight_through.csv

A process for each length and road, one after the other: peak memory is that of the process above what it held before
(CPU), or that of the device's allocator (GPU). The weights are random: the more a trained policy reads its own tokens,
the more terms, and backward passes, the feedback has. `share_of_matrix_rate`: the operations that any gradient needs
(sampling, one forward and backward pass) over what the machine's matrix products would do in the time.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from shapes import Shape, matrix_rate, seconds_of

from gradebench.core.memory import peak_memory, reset_peak_memory
from gradebench.core.sampling import generator
from gradebench.estimators.relaxed import GradeSte
from gradebench.estimators.score_function import Reinforce
from gradebench.problems.sequence import SequenceProblem

ROADS = ("reinforce", "plain", "recorded", "parallel")


def measured(road: str, shape: Shape, device: str, dtype: torch.dtype, residual: float) -> dict[str, object]:
    problem, rng = shape.problem(device, dtype), generator(device, 0)
    estimator = Reinforce() if road == "reinforce" else GradeSte()
    if road != "reinforce":
        SequenceProblem.straight_through, SequenceProblem.residual = road, residual  # type: ignore[assignment]
    idle = _resident(device)
    reset_peak_memory(device)
    estimator.gradient(problem, rng)
    peak, passes = peak_memory(device) - idle, problem.ledger.backward_passes
    (seconds,) = seconds_of([lambda: estimator.gradient(problem, rng)], device, 5)
    share = shape.floor_operations / seconds / matrix_rate(device, dtype)
    row = {"road": road, **vars(shape), "dtype": str(dtype).removeprefix("torch."), "seconds": seconds}
    return row | {"peak_bytes": peak, "backward_passes": passes, "share_of_matrix_rate": share}


def _resident(device: str) -> float:
    if device.startswith("cuda"):
        return float(torch.cuda.memory_allocated(device))
    line = next(x for x in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if "VmRSS" in x)
    return float(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--horizons", default="16,32,64,128,256")
    for name in ("batch", "width", "layers", "heads", "vocabulary"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Shape(), name))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--residual", type=float, default=SequenceProblem.residual)
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--only", nargs=2, metavar=("ROAD", "HORIZON"), help="one measurement, printed as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.only:
        sizes = {name: getattr(arguments, name) for name in ("batch", "width", "layers", "heads", "vocabulary")}
        shape = Shape(horizon=int(arguments.only[1]), **sizes)
        dtype = getattr(torch, arguments.dtype)
        print(json.dumps(measured(arguments.only[0], shape, arguments.device, dtype, arguments.residual)))
        return
    rows = []
    for horizon in arguments.horizons.split(","):
        for road in ROADS:
            command = [sys.executable, __file__, *sys.argv[1:], "--only", road, horizon]
            rows.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        score, *ours = rows[-len(ROADS) :]
        told = [
            f"{row['road']} {row['seconds'] / score['seconds']:.2f} ({row['peak_bytes'] / 1e6:.0f} MB, "
            f"{row['backward_passes']} backward passes)"
            for row in ours
        ]
        print(f"T = {horizon}: reinforce {score['seconds']:.3f} s; as multiples of it: {', '.join(told)}", flush=True)
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows).to_csv(arguments.csv, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
