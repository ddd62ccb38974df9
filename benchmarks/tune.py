"""The learning rates that the committed comparisons use: `gradebench tune` on a fixed grid, its choices recorded.

    python benchmarks/tune.py --task imdb:corpus=embedded --name embedded

Every estimator is trained with every rate of the grid on the tuning seeds, which no comparison uses, and the rate with
the highest mean objective (reward - beta * KL on validation prompts, at the last step) is chosen. Writes every trial
into results/tuning/NAME.csv, and the choices into tasks/data/imdb_tuned.json, where `gradebench run` reads them.
"""

import argparse
import json
from pathlib import Path

import pandas as pd

from gradebench import runner, tables, tuning
from gradebench.boards import print_tuning
from gradebench.terminal import TerminalProgress

GRID = [1e-4, 3e-4, 1e-3, 3e-3]
SEEDS = "1000-1001"  # the comparison's start at 0
CHOICES = Path(__file__).parents[1] / "tasks" / "data" / "imdb_tuned.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="imdb:corpus=embedded")
    parser.add_argument("--name", default="embedded", help="embedded or real: the corpora that the choices are for")
    parser.add_argument("--steps", type=int, default=None, help="default: the task's")
    parser.add_argument("--estimator", "-e", action="append", help="repeatable; the others keep their trials and rates")
    parser.add_argument("--out", default=None, help="folder of the cells; default: results/tuning-NAME")
    arguments = parser.parse_args()

    request = runner.Request(
        arguments.estimator or ["all"],
        [arguments.task],
        SEEDS,
        steps=arguments.steps,
        out=arguments.out or f"results/tuning-{arguments.name}",
        strict=True,
    )
    tuned = tuning.tune(request, lambda task: GRID, TerminalProgress())
    print_tuning(tuned.curves, tuned.choices, tuned.run.out)

    trials = pd.read_csv(tuned.run.out / "trials.csv")
    trials = trials[trials["status"] != "skipped"]
    out = Path("results/tuning") / f"{arguments.name}.csv"
    if arguments.estimator:
        before = pd.read_csv(out)
        trials = pd.concat([before[~before["estimator"].isin(trials["estimator"])], trials])
    order = ["estimator", "learning_rate", "seed"]
    tables.write_csv(trials.sort_values(order)[[*order, "reward", "kl", "objective"]], out)

    (task,) = tuned.choices["tasks"].values()
    stored = json.loads(CHOICES.read_text(encoding="utf-8"))
    kept = stored[arguments.name]["estimators"] if arguments.estimator else {}
    rates = {name: {"learning_rate": one["learning_rate"]} for name, one in task["estimators"].items()}
    facts = {name: task[name] for name in ("setting", "steps", "beta")}
    stored[arguments.name] = {
        "protocol": {"grid": GRID, "seeds": SEEDS, "criterion": "validation reward - beta * KL", **facts},
        "estimators": dict(sorted((kept | rates).items())),
    }
    CHOICES.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
