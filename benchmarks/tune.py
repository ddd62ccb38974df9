"""Learning rates for the comparison: the same grid, seeds and steps for every estimator.

    python benchmarks/tune.py --task imdb:corpus=embedded --name embedded --out results/tuning

Every estimator is trained with every rate of the grid on the tuning seeds, which no comparison uses, and the rate with
the highest mean objective (reward - beta * KL on validation prompts, at the last step) is chosen. Writes the whole
grid as OUT/NAME.csv, and the choices into tasks/data/imdb_tuned.json, where `gradebench run` reads them.
"""

import argparse
import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch

from gradebench import harness, records, registry, runner
from gradebench.harness import Cell, Plan

GRID = [1e-4, 3e-4, 1e-3, 3e-3]
SEEDS = [1000, 1001]  # the comparison's start at 0
CHOICES = Path(__file__).parents[1] / "tasks" / "data" / "imdb_tuned.json"


def trial(plan: Plan, cell: Cell) -> dict[str, float | str]:
    """Validation metrics at the last step of one training run, without probes."""
    torch.set_num_threads(1)
    task = harness.loaded_task(plan, cell)
    record = records.CellRecord(harness.identity_of(plan, cell))
    estimator = harness.make_estimator(cell.estimator_spec, task, plan)
    answer: dict[str, float | str] = {
        "estimator": cell.estimator,
        "learning_rate": plan.learning_rate or 0.0,
        "seed": cell.seed,
    }
    try:
        harness.train(estimator, task, plan, cell, record)
    except harness.Diverged:
        return answer | {"objective": float("-inf")}
    rows = record.frame("ok")
    last = rows[(rows["split"] == "validation") & (rows["step"] == plan.steps)].set_index("metric")["value"]
    beta = float(cell.task_options["kl"])
    return answer | last.to_dict() | {"objective": float(last["reward"] - beta * last["kl"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="imdb:corpus=embedded")
    parser.add_argument("--name", default="embedded", help="embedded or real: the corpora the choices are for")
    parser.add_argument("--out", type=Path, default=Path("results/tuning"))
    parser.add_argument("--jobs", type=int, default=runner.usable_cores())
    parser.add_argument("--steps", type=int, default=None)
    arguments = parser.parse_args()

    resolved = registry.resolve("tasks", arguments.task)
    task = resolved.create()
    task.prepare(torch.device("cpu"), print, True)
    steps = arguments.steps or task.default_steps
    names, _ = registry.names("estimators")
    work = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in SEEDS:
            for rate in GRID:
                plan = Plan("tune", folder, "cpu", steps, task.default_batch, rate, evaluations=1, checkpoints=0)
                work += [(plan, Cell(resolved.label, resolved.spec, task.options, n, n, seed)) for n in names]
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            rows = pd.DataFrame(pool.map(trial, *zip(*work, strict=True)))

    arguments.out.mkdir(parents=True, exist_ok=True)
    rows.to_csv(arguments.out / f"{arguments.name}.csv", index=False, float_format="%.6g")
    curves = rows.groupby(["estimator", "learning_rate"])["objective"].mean().unstack()
    print(curves.round(3).to_string())
    chosen = {name: {"learning_rate": float(rate)} for name, rate in curves.idxmax(axis=1).items()}
    stored = json.loads(CHOICES.read_text(encoding="utf-8"))
    protocol = {"task": arguments.task, "setting": task.setting, "grid": GRID, "seeds": SEEDS, "steps": steps}
    stored[arguments.name] = {"protocol": protocol, "estimators": chosen}
    CHOICES.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
