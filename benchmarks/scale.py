"""What a grid of 10,000 cells costs beside the cells themselves, and how long a cluster would take over one.

    python benchmarks/scale.py grid [--cells 10000] [--jobs 2] [--csv FILE]
    python benchmarks/scale.py tasks [--numbers 250,500,1000,2000] [--csv FILE]
    python benchmarks/scale.py schedule RUN [--cells 10000] [--longer 1]

`grid` puts 25 estimators, 4 tasks and 100 seeds through the runner as it is, with workers, keys, files and tables; only
what a cell would compute is replaced by the 137 rows that it would leave. `tasks` gives finished runs of so many tasks,
two estimators and two seeds to the commands that read them. `schedule` deals cells as long as those of a
run (of its metrics.parquet) out to so many places as they get free, with nodes that are lost now and then.
"""

import argparse
import csv
import heapq
import itertools
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from gradebench.analysis import tables
from gradebench.core import schema
from gradebench.experiment import cell_setup, cells, facts, harness, runner
from gradebench.experiment.plan import Cell, Plan
from gradebench.measurement.gradient_metrics import Interval
from gradebench.storage import digests, files, records

EVALUATED = ("reward", "gold_reward", "kl", "entropy", "distinct_2", "reference_nll")
PROBED = tuple(name for name in schema.METRIC_UNITS if name.startswith("gradient_"))[:13]
STEPS = (0, 20, 40)
SECONDS = "seconds_per_step"  # holds the seconds of the whole simulated cell
START = 6.0  # seconds that a place takes to start, for `schedule`: Python, torch and the task


def simulated_cell(plan: Plan, cell: Cell, key: str, known: object = None) -> tuple[str, str]:
    """What a cell of the main job leaves behind, without what it computes."""
    began = time.perf_counter()
    record, chance = records.CellRecord(cell_setup.identity_of(plan, cell)), random.Random(cell.id)
    for step in STEPS:
        for split in ("train", "validation", "test"):
            record.add("evaluation", split, step, {name: chance.random() for name in EVALUATED})
        found = {name: chance.random() for name in PROBED}
        record.add("probe", "train", step, found)
        place = {"along": "reference", "step": step, "draws": 6, "samples": 32, "group": ""}
        record.add_probe(place, {name: Interval(value, value - 0.1, value + 0.1) for name, value in found.items()})
    record.add("train", "train", STEPS[-1], {"reward_calls": 1280.0, "peak_memory_bytes": 1e8, SECONDS: 0.0})
    folder = Path(plan.out) / "cells" / cell.id
    record.rows[-1]["value"] = time.perf_counter() - began
    records.write_cell(folder, key, record.frame("ok"), "ok", "", record.probe_frame())
    return "ok", f"{time.perf_counter() - began:.9f}"


def nothing(number: int) -> tuple[str, str]:
    return "ok", ""


def memory() -> float:
    """MB of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize() / 1e6


class Watched(runner.Progress):
    """Memory of the run after each tenth of its cells."""

    def __init__(self, total: int):
        self.every, self.ended, self.memory = max(1, total // 10), 0, list[float]()

    def advance(self, cell: Cell | None, status: str) -> None:
        self.ended += 1
        if self.ended % self.every == 0:
            self.memory.append(memory())


def grid(count: int, jobs: int, statistics: bool) -> dict[str, float]:
    """Seconds and bytes of a simulated grid's parts."""
    measured: dict[str, float] = {}
    cpu = resource.getrusage(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [f"bernoulli-toy:t={t}" for t in (0.45, 0.46, 0.47, 0.48)]
        request = runner.Request(["all"], tasks, seeds="0-99", out=f"{folder}/run", jobs=jobs)
        began = time.perf_counter()
        run = runner.prepare(request, runner.Progress())
        run.cells = [(plan, cell) for plan, cell in run.cells][:count]
        for plan in {id(plan): plan for plan, _ in run.cells}.values():
            object.__setattr__(plan, "checkpoints", 0)  # no reference trajectories
        measured["prepare_s"] = time.perf_counter() - began
        progress = Watched(len(run.cells))
        harness.run_cell = simulated_cell  # by name, so that a worker finds it in its own copy of this file
        with files.exclusive_lock(run.out):
            began, cpu = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
            todo, troubles = cells.pending(run, resume=True), cells.Failures()
            measured["keys_s"] = time.perf_counter() - began
            with runner.launched("local", jobs, "cpu", None) as each:
                list(each(nothing, [(0,)] * jobs))  # the workers have started
                began = time.perf_counter()
                cells.carry_out(run, todo, each, True, progress, troubles)
                wall = time.perf_counter() - began
            after = resource.getrusage(resource.RUSAGE_SELF)
            inside = sum(float(reason.split(": ")[1]) for reason in troubles.reasons.values())
            number = len(todo)
            measured["cells"] = number
            measured["cell_ms"] = 1e3 * inside / number
            measured["overhead_ms"] = 1e3 * (measured["keys_s"] + wall - inside / jobs) / number
            parent = after.ru_utime + after.ru_stime - cpu.ru_utime - cpu.ru_stime
            measured["parent_cpu_ms"] = 1e3 * parent / number
            measured["memory_first_tenth_mb"], measured["memory_last_tenth_mb"] = (
                progress.memory[0],
                progress.memory[-1],
            )
            began = time.perf_counter()
            measured["kept"] = number - len(cells.pending(run, resume=True))
            measured["resume_s"] = time.perf_counter() - began
            began, spent = time.perf_counter(), time.process_time()
            metrics, probes, _ = cells.gather(run, print)
            measured["gather_s"] = time.perf_counter() - began
            tables.write_parquet(metrics, run.out / "metrics.parquet")
            tables.write_csv(metrics, run.out / "metrics.csv")
            tables.write_csv(probes, run.out / "probes.csv")
            measured["merge_s"] = time.perf_counter() - began
            measured["merge_cpu_s"] = time.process_time() - spent
            measured["rows"] = len(metrics) + len(probes)
            if statistics:
                began = time.perf_counter()
                tests = tables.comparisons(metrics)
                measured["tests"] = len(tests)
                tables.leaderboard(metrics, tests)
                measured["statistics_s"] = time.perf_counter() - began
            measured["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return measured


def many_tasks(folder: Path, number: int, seeds: range) -> None:
    """A finished run of so many tasks, as its files are."""
    rows, labels = [], [f"task-{i}" for i in range(number)]
    for task, estimator, seed in itertools.product(labels, ("rloo", "grpo"), seeds):
        identity = records.Identity(
            "run", records.cell_id(task, estimator, seed), task, "kl=0", estimator, "{}", "", seed
        )
        record, chance = records.CellRecord(identity), random.Random(f"{task} {estimator} {seed}")
        for step in (0, 40):
            for split in ("validation", "test"):
                record.add("evaluation", split, step, {name: chance.random() for name in (*EVALUATED, "objective")})
            record.add("probe", "train", step, {name: chance.random() for name in PROBED})
            record.add("train", "train", step, {name: float(step) for name in ("reward_calls", "seconds", "updates")})
        rows += record.rows
    metrics = pd.DataFrame(rows).assign(status="ok", learning_rate=0.1, rate_source="task")
    folder.mkdir()
    tables.write_parquet(metrics[[*schema.METRICS_COLUMNS, "learning_rate", "rate_source"]], folder / "metrics.parquet")
    known = {item.name: 1 for item in facts.TASK} | {"setting": "kl=0"}
    estimators = {name: {"learning rate": 0.1, "options": {}, "source": ""} for name in ("rloo", "grpo")}
    config = {
        "request": {"estimators": ["rloo", "grpo"], "tasks": labels, "seeds": f"{seeds[0]}-{seeds[-1]}"},
        "plans": {label: {"steps": 40, "batch": 8} for label in labels},
        "tasks": {label: {"setting": "kl=0", "options": {"kl": 0.0}} for label in labels},
        "learning_rates": {label: {"rloo": 0.1, "grpo": 0.1} for label in labels},
        "seeds": list(seeds),
        "cells": list(dict.fromkeys(metrics["cell_id"])),
        "facts": {
            "tasks": {label: known | {"task": label} for label in labels},
            "estimators": dict.fromkeys(labels, estimators),
        },
    }
    records.write_json(folder / "config.json", config)
    digests.seal(folder, records.READ_AGAIN)


def reading(number: int) -> Iterator[dict[str, float | str]]:
    """What each command takes that reads runs of so many tasks, in a process of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        one, two = folder / "one", folder / "two"
        many_tasks(one, number, range(2))
        many_tasks(two, number, range(2, 4))
        commands = {
            "merge": ["merge", str(one), str(two), "--out", str(folder / "whole")],
            "report": ["report", str(one), str(two), "--out", str(folder / "page")],
            "leaderboard": ["leaderboard", str(one), str(two)],
            "status": ["status", str(one)],
        }
        for command, words in commands.items():
            began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            ended = subprocess.run(
                [sys.executable, "-m", "gradebench", *words], check=False, capture_output=True, text=True
            )
            wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            if ended.returncode:
                raise SystemExit(f"{command}: {ended.stderr[-2000:]}")
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            lines = len(ended.stderr.splitlines())
            yield {"tasks": number, "command": command, "seconds": wall, "cpu_seconds": cpu, "lines_on_stderr": lines}


def schedule(
    seconds: list[float], places: int, hours_between_losses: float, chance: random.Random
) -> tuple[float, float]:
    """Hours until the last cell has ended, and the part of the places' time that went into cells that count.

    Cells go out in the order of the grid, to whichever place is free first. A place is lost at random times; its cell
    runs again elsewhere, and a new place has to start.
    """
    free = [(START, place) for place in range(places)]
    heapq.heapify(free)
    end = 0.0
    for cell in seconds:
        while True:
            now, place = heapq.heappop(free)
            lost = chance.expovariate(1 / (3600 * hours_between_losses))
            if lost >= cell:
                break
            heapq.heappush(free, (now + lost + START, place))
        heapq.heappush(free, (now + cell, place))
        end = max(end, now + cell)
    return end / 3600, sum(seconds) / (places * end)


def cell_seconds(run: Path, count: int) -> list[float]:
    """As many cells as long as those of a run: steps, and as much again for evaluations and probes, per estimator."""
    metrics = pd.read_parquet(run / "metrics.parquet")
    rows = metrics[(metrics["metric"] == SECONDS) & (metrics["status"] == "ok")]
    whole = (2 * rows["value"] * rows["step"]).tolist()
    return [whole[i % len(whole)] for i in range(count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    parts = commands.add_parser("grid")
    parts.add_argument("--cells", type=int, default=10_000)
    parts.add_argument("--jobs", type=int, default=2)
    parts.add_argument("--statistics", action="store_true", help="time the tests of all pairs, too: minutes")
    parts.add_argument("--csv", type=Path)
    many = commands.add_parser("tasks")
    many.add_argument("--numbers", default="250,500,1000,2000")
    many.add_argument("--csv", type=Path)
    plan = commands.add_parser("schedule")
    plan.add_argument("run", type=Path)
    plan.add_argument("--cells", type=int, default=10_000)
    plan.add_argument("--longer", type=float, default=1.0, help="times as long as the cells of the run")
    options = parser.parse_args()
    if options.command == "grid":
        measured = grid(options.cells, options.jobs, options.statistics)
        for name, value in measured.items():
            print(f"{name:24} {value:,.3f}".rstrip("0").rstrip("."))
        if options.csv:
            with open(options.csv, "w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([("measure", "value"), *measured.items()])
        return
    if options.command == "tasks":
        found = []
        for row in itertools.chain.from_iterable(map(reading, map(int, options.numbers.split(",")))):
            found.append(row)
            said = f"{row['tasks']:5} tasks, {row['command']:12} {row['seconds']:7.1f} s, "
            print(f"{said}{row['cpu_seconds']:7.1f} s of a core", flush=True)
        if options.csv:
            pd.DataFrame(found).round(2).to_csv(options.csv, index=False, lineterminator="\n")
        return
    seconds = [options.longer * one for one in cell_seconds(options.run, options.cells)]
    print(f"{len(seconds)} cells, {sum(seconds) / 3600:.1f} hours of one place, the longest {max(seconds):.0f} s")
    for losses in (1e9, 1.0):
        for places in (1, 16, 64, 256, 1024):
            hours, used = schedule(seconds, places, losses, random.Random(0))
            said = "none lost" if losses == 1e9 else "each lost once an hour"
            print(f"{places:5} places, {said}: {hours:8.3f} h, {used:6.1%} of their time in cells")


if __name__ == "__main__":
    main()
