"""What it costs that code of plugins is watched: a step with the guards of a plugin's cell, and without any.

    python benchmarks/guards.py [--pairs 1000] [--runs 9] [--csv FILE]

Steps with guards and without take turns in one process, so that both meet the same machine, however busy: what is put
back after every call, the audit hook and the environment that notes what is read. Seconds are those of the processor.
The ratio of a pair says little, their median over a thousand is known to half a percent. `cell` is what is done once a cell: settings, functions and the task's fingerprint before and after.
"""

import argparse
import contextlib
import functools
import os
import pickle
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import pandas as pd
import scipy.stats
import torch

from gradebench.core.problem import Ledger
from gradebench.core.sampling import generator
from gradebench.core.task import Task
from gradebench.experiment import cell_setup, isolation, loaded, training
from gradebench.experiment.plan import Plan
from gradebench.plugins import registry
from gradebench.storage import followed

Answer = TypeVar("Answer")


def forked(function: Callable[[], Answer]) -> Answer:
    """What the function returns in a process of its own."""
    read, write = os.pipe()
    if not (child := os.fork()):
        with os.fdopen(write, "wb") as file:
            pickle.dump(function(), file)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as file:
        answer: Answer = pickle.load(file)
    os.waitpid(child, 0)
    return answer


class Guards:
    """What is around a step of a plugin's cell, to be switched on and off within one process."""

    def __init__(self) -> None:
        self.on = False
        self.put_back, self.environment = training.put_back, os.environ.__class__
        sys.addaudithook(self.hear)  # for good: without guards it still is called, and returns

    def hear(self, event: str, details: tuple[object, ...]) -> None:
        if self.on:
            followed._hear(event, details)

    def switch(self, on: bool) -> None:
        self.on = on
        training.put_back = self.put_back if on else lambda *given: contextlib.nullcontext()  # type: ignore[assignment,misc]
        os.environ.__class__ = followed._Environment if on else self.environment


def seconds_of_steps(task: Task, plan: Plan, name: str, pairs: int) -> list[tuple[float, float]]:
    """Of each pair of steps, one after the other: without guards and with; which comes first alternates."""
    guards = Guards()
    estimator = cell_setup.make_estimator(name, task, plan)
    trainer = training.Trainer(estimator, task, plan, 1e-4)
    prompts, rng, ledger = training.batches(task, plan, estimator.n, 0), generator("cpu", 0), Ledger()

    def step(on: bool) -> float:
        guards.switch(on)
        problem = task.problem("train", next(prompts), ledger)
        began = time.process_time()
        trainer.step(problem, rng)
        return time.process_time() - began

    step(False), step(True)
    taken = []
    for number in range(pairs):
        first = step(bool(number % 2))
        second = step(not number % 2)
        taken.append((second, first) if number % 2 else (first, second))
    return taken


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 %, by the order statistics that a sign test doesn't reject."""
    ordered = sorted(values)
    rank = int(scipy.stats.binom.ppf(0.025, len(ordered), 0.5))
    return ordered[rank - 1], ordered[-rank]


def seconds_of_a_cell(task: Task) -> float:
    initial = list(task.params)
    loaded.worker.loaded = loaded.Loaded("it", task, initial, loaded._print(task, initial))
    began = time.process_time()
    isolation.Watch(("", __file__), "mine").ended()
    return time.process_time() - began


def accounted(task: Task, plan: Plan, name: str) -> tuple[float, float]:
    """Seconds that a call's settings take to be read and put back, and that the events of a step take in the audit hook;
    the latter counted, and each timed in a loop."""
    events, on = 0, True

    def count(event: str, details: object) -> None:
        nonlocal events
        events += on

    began = time.process_time()
    for _ in range(10_000):
        with training.put_back("it"):
            pass
    settings = (time.process_time() - began) / 10_000
    began = time.process_time()
    for _ in range(10_000):
        followed._hear("object.__getattr__", ())
    each = (time.process_time() - began) / 10_000
    estimator = cell_setup.make_estimator(name, task, plan)
    trainer = training.Trainer(estimator, task, plan, 1e-4)
    problem = task.problem("train", next(training.batches(task, plan, estimator.n, 0)))
    trainer.step(problem, generator("cpu", 0))
    sys.addaudithook(count)
    trainer.step(problem, generator("cpu", 0))
    on = False
    return settings, events * each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimators", default="rloo,grade-ste")
    parser.add_argument("--pairs", type=int, default=1000, help="of steps")
    parser.add_argument("--runs", type=int, default=9, help="of the checks that a cell begins and ends with")
    parser.add_argument("--task", default="imdb:corpus=embedded")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = registry.resolve("tasks", options.task).create()
    task.prepare(torch.device("cpu"), print)
    task.load(torch.device("cpu"))
    plan = Plan("guards", tempfile.gettempdir(), "cpu", 2 * options.pairs + 2, task.default_batch)
    rows = []
    for name in options.estimators.split(","):
        pairs = forked(functools.partial(seconds_of_steps, task, plan, name, options.pairs))
        without, guarded = (statistics.median(one) for one in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        low, high = median_interval(ratios)
        settings, hook = forked(functools.partial(accounted, task, plan, name))
        rows.append({"what": name, "pairs": len(pairs), "without_s": without, "guarded_s": guarded, "median_ratio": statistics.median(ratios),
                     "ci_low": low, "ci_high": high, "settings_s": settings, "hook_s": hook,
                     "accounted_share": (settings + hook) / without})  # fmt: skip
        print("{what}: {without_s:.4f} s without, {guarded_s:.4f} s with; median ratio of {pairs} pairs {median_ratio:.4f}, "
              "{ci_low:.4f} to {ci_high:.4f}; {settings_s:.6f} s for settings and {hook_s:.6f} s in the hook, "
              "{accounted_share:.3%}".format(**rows[-1]), flush=True)  # fmt: skip
    cell = statistics.median(forked(functools.partial(seconds_of_a_cell, task)) for _ in range(options.runs))
    rows.append({"what": "cell", "guarded_s": cell})
    print(f"once a cell: {cell:.4f} s")
    if options.csv:
        pd.DataFrame(rows).round(7).to_csv(options.csv, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
