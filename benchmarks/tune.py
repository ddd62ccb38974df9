"""The learning rates that the committed comparisons use: `gradebench tune` on a fixed grid, its choices recorded.

    python benchmarks/tune.py --task imdb:corpus=embedded --name embedded --steps 320
    python benchmarks/tune.py --name embedded --budgets 40,80,160,320 FOLDER [FOLDER ...]

Every estimator is trained with every rate of the grid on the tuning seeds, which no comparison uses; for each budget, a
number of steps, the rate is chosen at which a smooth fit of the objective (reward - beta * KL on validation prompts) is
highest. With folders of finished tunings, one or several of each estimator, nothing is trained: the choices are made from
their trials. Writes every trial into results/tuning/NAME.csv, and the choices into tasks/data/imdb_tuned.json, where
`gradebench run` reads them; --results and --choices name other files, for a try.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.analysis import tables
from gradebench.experiment import runner, tuning
from gradebench.reporting.pair_tables import print_tuning
from gradebench.reporting.terminal import TerminalProgress

GRID = [1e-4, 2.2e-4, 4.6e-4, 1e-3, 2.2e-3, 4.6e-3]
SEEDS = "1000-1004"  # the comparison's start at 0
BUDGETS = "40,80,160,320"
CHOICES = Path(__file__).parents[1] / "tasks" / "data" / "imdb_tuned.json"
COLUMNS = ["estimator", "learning_rate", "seed", "step", "reward", "kl", "objective", "status"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="finished tunings of one task; default: tune here")
    parser.add_argument("--task", default="imdb:corpus=embedded")
    parser.add_argument("--name", default="embedded", help="embedded or real: the corpora that the choices are for")
    parser.add_argument("--steps", type=int, default=None, help="default: the task's")
    parser.add_argument("--budgets", default=BUDGETS, help="numbers of steps that rates are chosen for")
    parser.add_argument("--estimator", "-e", action="append", help="repeatable; the others keep their trials and rates")
    parser.add_argument("--out", default=None, help="folder of the cells; default: results/tuning-NAME")
    parser.add_argument("--results", type=Path, default=None, help="default: results/tuning/NAME.csv")
    parser.add_argument("--choices", type=Path, default=CHOICES)
    arguments = parser.parse_args()
    folders = arguments.folders or [tuned_here(arguments)]
    trials, facts = gathered(folders)
    budgets = [step for step in map(int, arguments.budgets.split(",")) if step in set(trials["step"])]
    trials = trials[trials["step"].isin(budgets)]

    out = arguments.results or Path("results/tuning") / f"{arguments.name}.csv"
    kept = pd.read_csv(out) if arguments.estimator and out.is_file() else pd.DataFrame(columns=COLUMNS)
    kept = kept[~kept["estimator"].isin(trials["estimator"])]
    table = trials[COLUMNS] if kept.empty else pd.concat([kept, trials[COLUMNS]])
    out.parent.mkdir(parents=True, exist_ok=True)
    tables.write_csv(table.sort_values(COLUMNS[:4], ignore_index=True), out)

    stored = json.loads(arguments.choices.read_text(encoding="utf-8")) if arguments.choices.is_file() else {}
    last = stored.get(arguments.name, {})
    alike = bool(arguments.estimator) and last.get("protocol", {}).get("grid") == facts["grid"]
    stored[arguments.name] = recorded(trials, budgets, facts, last["estimators"] if alike else {})
    arguments.choices.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    for name, one in stored[arguments.name]["estimators"].items():
        at_end = [budget for budget, mine in one["ties"].items() if mine["at_the_end"]]
        said = ", ".join(f"{budget}: {rate:g}" for budget, rate in one["budgets"].items())
        print(f"{name}: {said}{f'; at an end of the rates at {at_end}' if at_end else ''}")


def tuned_here(arguments: argparse.Namespace) -> Path:
    """The folder of a tuning that this starts, or goes on with."""
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
    return Path(tuned.run.out)


def gathered(folders: list[Path]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The trials of all folders at every evaluated step, and what they share; refused where they don't share it."""
    found, shared = [], []
    for folder in folders:
        metrics = pd.read_parquet(folder / "metrics.parquet")
        choices = json.loads((folder / "tuned.json").read_text(encoding="utf-8"))
        ((label, task),) = choices["tasks"].items()
        steps = sorted({int(step) for step in metrics.loc[metrics["phase"] == "evaluation", "step"] if step > 0})
        trials = tuning.trials_of(metrics, {label: steps}, {label: task["beta"]})
        found.append(trials[trials["status"] != "skipped"])
        facts = {name: task[name] for name in ("setting", "beta")}
        shared.append(facts | {"grid": sorted(task["rates"]), "seeds": choices["protocol"]["seeds"]})
        if shared[-1] != shared[0]:
            raise SystemExit(f"{folder} was tuned otherwise than {folders[0]}: {shared[-1]} and {shared[0]}")
    trials = pd.concat(found, ignore_index=True).drop_duplicates()  # a longer trial goes through what a shorter one has
    if twice := trials.duplicated(["estimator", "learning_rate", "options", "seed", "step"]).sum():
        raise SystemExit(f"{twice} trials come twice, with different numbers")
    return trials, shared[0]


def chosen(trials: pd.DataFrame, budget: int, grid: list[float]) -> dict[str, dict[str, Any]]:
    """What a tuning for this budget alone would choose: a rate of the grid, and with rates beyond it only where the best is
    at one of its ends."""
    among_all = tuning.chosen(trials, budget)
    in_grid = tuning.chosen(trials[trials["learning_rate"].isin(grid)], budget)
    return {name: among_all[name] if one["at_the_end"] else one for name, one in in_grid.items()}


def recorded(trials: pd.DataFrame, budgets: list[int], facts: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """The entry of one corpus: the protocol, and by estimator the rate for its longest budget and for each."""
    by_budget = {budget: chosen(trials, budget, facts["grid"]) for budget in budgets}
    estimators = dict(before)
    for name in sorted({name for found in by_budget.values() for name in found}):
        mine = {str(budget): found[name] for budget, found in by_budget.items() if name in found}
        longest = max(mine, key=int)
        estimators[name] = {
            "learning_rate": mine[longest]["learning_rate"],
            "steps": int(longest),
            "budgets": {budget: one["learning_rate"] for budget, one in mine.items()},
            "ties": {
                budget: {key: one[key] for key in ("rate_low", "rate_high", "at_the_end")}
                for budget, one in mine.items()
            },
        }
    seeds = facts["seeds"]
    consecutive = seeds == list(range(seeds[0], seeds[-1] + 1))
    protocol = {
        "grid": facts["grid"],
        "seeds": f"{seeds[0]}-{seeds[-1]}" if consecutive else ",".join(map(str, seeds)),
        "criterion": "validation reward - beta * KL",
        "choice": "the maximum of a local quadratic along the logarithm of the rate",
        "setting": facts["setting"],
        "steps": min(one["steps"] for one in estimators.values()),
        "beta": facts["beta"],
    }
    return {"protocol": protocol, "estimators": dict(sorted(estimators.items()))}


if __name__ == "__main__":
    main()
