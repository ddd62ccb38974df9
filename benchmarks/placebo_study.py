"""Does the protocol, tuning included, tell an estimator from itself? Two placebos, each with an exact binomial interval.

    python benchmarks/placebo_study.py protocol --out protocol.csv
    python benchmarks/placebo_study.py page --out page.csv

protocol  one estimator under 6 names: each is tuned by itself as `run --tune` does it (6 rates x 5 seeds, a smooth fit,
          grid ends extended), on seeds that no other name has, and trained at its own rate on the comparison's seeds with
          draws of its own. A false positive is a repetition in which any of the 15 pairs is told apart after Holm.
page      the page that `gradebench new` writes, as it stands (it is RLOO), against rloo, by the command that `new`
          prints, on disjoint seed sets. A win is a set in which either is told to be higher.

Rows are appended as repetitions end, and a second start goes on after the last one.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import scipy.stats
import torch

from gradebench.analysis import provenance, rate_curve, tables
from gradebench.core.task import Task
from gradebench.experiment import cell_setup, loaded, runner, train, tuning
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry
from gradebench.plugins.scaffold import write_page
from gradebench.reporting.terminal import TerminalProgress
from gradebench.storage import records

NAMES, RATES, TUNING_SEEDS = 6, 6, 5
TUNED_FROM = 1_000_000  # the first tuning seed, above all of the comparison's


class Placebo:
    """Trainings of one estimator on one task, each with its rate, its seed and draws of its own."""

    def __init__(self, task: str, estimator: str, steps: int, batch: int):
        resolved = registry.resolve("tasks", task)
        self.task: Task = resolved.create()
        self.task.prepare(torch.device("cpu"), lambda message: None)
        self.task.load(torch.device("cpu"))
        self.initial = {f"parameter_{i}": p.detach().clone() for i, p in enumerate(self.task.params)}
        self.plan = Plan("placebo", ".", "cpu", steps, batch, evaluations=1, setting=self.task.setting)
        self.cell = Cell(resolved.label, resolved.spec, self.task.options, estimator, estimator, 0)

    def trained(self, name: str, rate: float, seed: int) -> list[dict[str, Any]]:
        """The rows of one training's evaluations."""
        cell = replace(self.cell, estimator=name, seed=seed, other_draws=name)
        plan = replace(self.plan, learning_rate=rate)
        record = records.CellRecord(cell_setup.identity_of(plan, cell))
        loaded.set_parameters(self.task, self.initial)
        train.train(cell_setup.make_estimator(cell.estimator_spec, self.task, plan), self.task, plan, cell, record)
        return [row for row in record.rows if row["phase"] == "evaluation"]

    def tuned(self, name: str, first_seed: int) -> tuple[rate_curve.Choice, int]:
        """The rate of the protocol on TUNING_SEEDS seeds from the first on, and how often the rates went on."""
        rates = rate_curve.even_rates(self.task.learning_rate / 10, self.task.learning_rate * 10, RATES)
        found: dict[float, list[float]] = {}
        for extensions in range(tuning.EXTENSIONS + 1):
            for rate in (rate for rate in rates if rate not in found):
                seeds = range(first_seed, first_seed + TUNING_SEEDS)
                found[rate] = [self._objective(name, rate, seed) for seed in seeds]
            choice = rate_curve.choose(list(found), pd.DataFrame(found).to_numpy())
            if not choice.end or extensions == tuning.EXTENSIONS:
                break
            rates.append(rate_curve.extended(rates, choice.end))
        return choice, extensions

    def _objective(self, name: str, rate: float, seed: int) -> float:
        (value,) = (
            row["value"]
            for row in self.trained(name, rate, seed)
            if (row["split"], row["metric"], row["step"]) == ("validation", "objective", self.plan.steps)
        )
        return float(value)


def protocol(arguments: argparse.Namespace) -> None:
    """Repetitions of tuning and comparing, one row a name."""
    placebo = Placebo(arguments.task, "rloo", arguments.steps, arguments.batch)
    seeds = tables.default_seed_count(NAMES)
    source = f"tuned: {RATES} rates x {TUNING_SEEDS} seeds at {arguments.steps} steps"
    for repetition in range(done(arguments.out), arguments.repetitions):
        began, rows, facts = time.perf_counter(), [], []
        for number in range(NAMES):
            name = f"name {number + 1}"
            block = TUNED_FROM + (repetition * NAMES + number) * TUNING_SEEDS
            choice, extensions = placebo.tuned(name, block)
            for seed in range(repetition * seeds, (repetition + 1) * seeds):
                rate = {"learning_rate": choice.rate, "rate_source": source}
                rows += [row | rate | {"status": "ok"} for row in placebo.trained(name, choice.rate, seed)]
            facts.append({"repetition": repetition, "name": name, **vars(choice), "extensions": extensions})
        tests = tables.comparisons(pd.DataFrame(rows))
        told = tests[tests["verdict"].isin(["a higher", "b higher"])]
        least = float(tests["p_holm"].min())
        seconds = time.perf_counter() - began
        append(
            arguments.out,
            [fact | {"told_apart": len(told), "least_p_holm": least, "seconds": seconds} for fact in facts],
        )
    frame = pd.read_csv(arguments.out).drop_duplicates("repetition")
    report("repetitions with a false positive", int((frame["told_apart"] > 0).sum()), len(frame))


def page(arguments: argparse.Namespace) -> None:
    """The page of `new` against rloo: one run for all seeds, tested on each set apart."""
    with TemporaryDirectory() as folder:
        file, cls = write_page("placebo", Path(folder))
        labels = [f"{file.name}:{cls}:rate-like=rloo", "rloo"]
        specs = ["rloo", f"{file}:{cls}:rate-like=rloo"]
        size = tables.default_seed_count(2)
        seeds = f"0-{arguments.repetitions * size - 1}"
        request = runner.Request(
            specs,
            [arguments.task],
            seeds,
            steps=arguments.steps,
            out=f"{folder}/run",
            checkpoints=1,
            jobs=arguments.jobs,
        )
        progress = TerminalProgress()
        metrics = runner.execute(request, runner.prepare(request, progress), progress).metrics
    rows = []
    for number in range(arguments.repetitions):
        mine = metrics[metrics["seed"] // size == number]
        tests = tables.comparisons(mine).query("metric == 'reward'")
        rows += [{"set": number, "seeds": size} | row for row in tests.drop(columns=["setting"]).to_dict("records")]
    frame = pd.DataFrame(rows)
    tables.write_csv(frame, arguments.out)
    assert set(frame["estimator_a"]) | set(frame["estimator_b"]) == set(labels)
    report("sets with a win", int(frame["verdict"].isin(["a higher", "b higher"]).sum()), len(frame))
    print("notices:", provenance.notices(metrics))


def done(path: Path) -> int:
    """Repetitions that an earlier start has finished."""
    return int(pd.read_csv(path)["repetition"].max()) + 1 if path.is_file() else 0


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_csv(path, mode="a", header=not path.is_file(), index=False, float_format="%.6g")


def report(what: str, count: int, total: int) -> None:
    ends = scipy.stats.binomtest(count, total).proportion_ci(method="exact")
    print(f"{what}: {count} of {total}, {count / total:.3f} ({ends.low:.3f} to {ends.high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=["protocol", "page"])
    parser.add_argument(
        "--task",
        default=None,
        help="default: a small enumerable-lm, and imdb:corpus=embedded",
    )
    parser.add_argument("--steps", type=int, default=None, help="default: 10 and 40")
    parser.add_argument("--batch", type=int, default=8, help="of protocol")
    parser.add_argument("--repetitions", type=int, default=None, help="default: 40 and 20")
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.study == "protocol":
        arguments.task = arguments.task or "enumerable-lm:vocabulary=3,horizon=2,layers=1,width=4"
        arguments.steps, arguments.repetitions = arguments.steps or 10, arguments.repetitions or 40
        protocol(arguments)
    else:
        arguments.task, arguments.steps = arguments.task or "imdb:corpus=embedded", arguments.steps or 40
        arguments.repetitions = arguments.repetitions or 20
        page(arguments)


if __name__ == "__main__":
    main()
