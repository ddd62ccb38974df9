"""Learning rates for the comparison: the same grid, seeds and steps for every estimator.

    python benchmarks/tune.py --task imdb:corpus=embedded --name embedded

Every estimator is trained with every rate of the grid on the tuning seeds, which no comparison uses, and the rate with
the highest mean objective (reward - beta * KL on validation prompts, at the last step) is chosen. Writes every trial
into results/tuning/NAME.csv, and the choices into tasks/data/imdb_tuned.json, where `gradebench run` reads them.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gradebench import runner

GRID = [1e-4, 3e-4, 1e-3, 3e-3]
SEEDS = "1000-1001"  # the comparison's start at 0
CHOICES = Path(__file__).parents[1] / "tasks" / "data" / "imdb_tuned.json"


class Notes(runner.Progress):
    """The runner's notes as plain lines."""

    def note(self, message: str) -> None:
        print(message, flush=True)


def trials(
    task: str, rate: float, steps: int | None, estimators: Sequence[str] = ("all",)
) -> tuple[pd.DataFrame, dict]:
    """One row an estimator and seed at this learning rate, with its validation metrics; and the run's facts."""
    with tempfile.TemporaryDirectory() as folder:
        request = runner.Request(estimators, [task], SEEDS, steps=steps, learning_rate=rate, out=folder, strict=True)
        run = runner.prepare(request, Notes())
        run.cells = [(replace(plan, evaluations=1, checkpoints=0), cell) for plan, cell in run.cells]
        metrics = runner.execute(request, run, Notes()).metrics
        (prepared,) = run.tasks.values()
        facts = {"setting": prepared.setting, "steps": run.cells[0][0].steps, "beta": prepared.options["kl"]}
    last = metrics[(metrics["split"] == "validation") & (metrics["step"] == facts["steps"])]
    metrics = metrics[metrics["status"] != "skipped"]
    wide = last.pivot(index=["estimator", "seed"], columns="metric", values="value")
    # A cell that diverged has no last step: the worst of all objectives.
    cells = metrics[["estimator", "seed"]].drop_duplicates().sort_values(["estimator", "seed"])
    wide = wide.reindex(pd.MultiIndex.from_frame(cells))
    wide["objective"] = (wide["reward"] - facts["beta"] * wide["kl"]).fillna(float("-inf"))
    return wide.reset_index().assign(learning_rate=rate), facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="imdb:corpus=embedded")
    parser.add_argument("--name", default="embedded", help="embedded or real: the corpora that the choices are for")
    parser.add_argument("--steps", type=int, default=None, help="default: the task's")
    parser.add_argument("--estimator", "-e", action="append", help="repeatable; the others keep their trials")
    arguments = parser.parse_args()

    parts = []
    facts: dict = {}
    for rate in GRID:
        rows, facts = trials(arguments.task, rate, arguments.steps, arguments.estimator or ["all"])
        parts.append(rows)
    table = pd.concat(parts, ignore_index=True)
    out = Path("results/tuning") / f"{arguments.name}.csv"
    if arguments.estimator:
        before = pd.read_csv(out)
        table = pd.concat([before[~before["estimator"].isin(table["estimator"])], table])
    table = table.sort_values(["estimator", "learning_rate", "seed"])
    out.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(out, index=False, float_format="%.6g")
    curves = table.groupby(["estimator", "learning_rate"])["objective"].mean().unstack()
    print(curves.round(3).to_string())
    stored = json.loads(CHOICES.read_text(encoding="utf-8"))
    stored[arguments.name] = {
        "protocol": {"grid": GRID, "seeds": SEEDS, "criterion": "validation reward - beta * KL", **facts},
        "estimators": {name: {"learning_rate": float(rate)} for name, rate in curves.idxmax(axis=1).items()},
    }
    CHOICES.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
