"""How much of GRADE's published gap does each mistake of its code make? As written, as run, and one mistake more or less.

    python benchmarks/grade_ablation.py --task imdb:preset=smollm2,corpus=FILE --seeds 0-4 --out results/grade/ablation
    python benchmarks/grade_ablation.py --steps 3 --seeds 0-1 --only no-kl+whitened --out /tmp/try   # a try, in minutes

One run a setting, into folders of --out: as-written; as-run (all of tasks/as_run.py and a batch of 2, as the published code had,
whose accumulation is never read); as-run-without-X, with one of them mended; as-written-with-X, with one put in. A folder that is
finished is not run again, so the script can be cut off and given again, and --seeds in parts.

Writes ablation.csv: a row a setting and seed, with the test reward of each estimator, and GRADE-STE's less PPO's and less
REINFORCE's; prints their means over seeds, and how far each mistake moves them from the setting that lacks only it.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gradebench.analysis import tables
from gradebench.core.options import parse_spec
from gradebench.experiment import runner
from gradebench.reporting.terminal import TerminalProgress
from gradebench.tasks.as_run import DEVIATIONS

ESTIMATORS = (
    "grade-ste:tau=2,tau_end=0.5,anneal=2000,topk=256",
    "grade:tau=2,tau_end=0.5,anneal=2000,topk=256",
    "ppo",
    "reinforce",
)
SMALL_BATCH = "small-batch"  # a mistake of the harness, beside those of the task
MISTAKES = (*DEVIATIONS, SMALL_BATCH)
BATCHES = {False: 16, True: 2}


def settings(only: Sequence[str]) -> dict[str, frozenset[str]]:
    """The mistakes of each setting by its name; one mistake more or less for those of `only`."""
    everything = frozenset(MISTAKES)
    found = {"as-written": frozenset[str](), "as-run": everything}
    found |= {f"as-run-without-{name}": everything - {name} for name in only}
    return found | {f"as-written-with-{name}": frozenset({name}) for name in only}


def task_of(spec: str, mistakes: frozenset[str]) -> str:
    """The task with these mistakes, as the command line spells it."""
    names = [name for name in DEVIATIONS if name in mistakes]
    return f"{spec}{',' if parse_spec(spec).options else ':'}as_run={'+'.join(names) or 'none'}"


def measured(name: str, mistakes: frozenset[str], arguments: argparse.Namespace) -> pd.DataFrame:
    """Run a setting, and its test rewards: a row a seed, a column an estimator, by its name without options."""
    request = runner.Request(
        ESTIMATORS,
        [task_of(arguments.task, mistakes)],
        seeds=arguments.seeds,
        steps=arguments.steps,
        batch=BATCHES[SMALL_BATCH in mistakes],
        learning_rate=arguments.learning_rate,
        out=str(arguments.out / name),
    )
    progress = TerminalProgress()
    run = runner.prepare(request, progress)
    run = replace(run, cells=[(replace(plan, checkpoints=0), cell) for plan, cell in run.cells])  # without probes
    outcome = runner.execute(request, run, progress)
    if outcome.interrupted:
        raise KeyboardInterrupt
    ((_, values),) = tables.per_seed(outcome.metrics, "reward", "test")
    values = values.rename(columns=lambda label: label.partition(":")[0]).rename_axis(columns=None)
    return values.assign(
        over_ppo=values["grade-ste"] - values["ppo"], over_reinforce=values["grade-ste"] - values["reinforce"]
    )


def effects(means: pd.DataFrame, only: Sequence[str]) -> pd.DataFrame:
    """What each mistake adds to the means over seeds: put in as written, and as run beside all the others."""
    rows = {}
    for name in only:
        rows[name, "as written"] = means.loc[f"as-written-with-{name}"] - means.loc["as-written"]
        rows[name, "as run"] = means.loc["as-run"] - means.loc[f"as-run-without-{name}"]
    return pd.DataFrame(rows).T.rename_axis(["mistake", "added to"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="imdb:corpus=embedded,size=mini", help="imdb, with any options but as_run")
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--steps", type=int, default=None, help="default: the task's")
    parser.add_argument("--learning-rate", type=float, default=None, help="of all; default: each one's own")
    parser.add_argument("--only", default="+".join(MISTAKES), help="mistakes to try one by one, joined by +")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    only = arguments.only.split("+")
    if unknown := set(only) - set(MISTAKES):
        parser.error(f"--only: there is no {min(unknown)}; there are {', '.join(MISTAKES)}")
    runs = {name: measured(name, mistakes, arguments) for name, mistakes in settings(only).items()}
    table = pd.concat(runs, names=["setting"])
    tables.write_csv(table.reset_index(), arguments.out / "ablation.csv")
    means = table.groupby("setting", sort=False).mean()
    print(means.round(3).to_string(), end="\n\n")
    print(effects(means, only).round(3).to_string())


if __name__ == "__main__":
    main()
