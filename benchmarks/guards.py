"""What it costs that code of plugins is watched: a step with the guards of a plugin's cell, and without any.

    python benchmarks/guards.py [--runs 9] [--steps 8] [--csv FILE]

Each run is a process of its own, forked off one that has loaded the task, with guards and without in turn: what is put
back after every call, the audit hook and the environment that notes what is read. Seconds are those of the processor, as
others use it too. `cell` is what is done once a cell: settings, functions and the task's fingerprint before and after.
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
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pandas as pd
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


def seconds_of_a_step(task: Task, plan: Plan, name: str, guarded: bool) -> float:
    """The median of so many, after one that warms up."""
    if guarded:
        followed.follow([__file__])
    else:
        training.put_back = lambda *given: contextlib.nullcontext()  # type: ignore[assignment,misc]
    estimator = cell_setup.make_estimator(name, task, plan)
    trainer = training.Trainer(estimator, task, plan, 1e-4)
    prompts, rng, ledger = training.batches(task, plan, estimator.n, 0), generator("cpu", 0), Ledger()
    taken = []
    for _ in range(plan.steps + 1):
        began = time.process_time()
        trainer.step(task.problem("train", next(prompts), ledger), rng)
        taken.append(time.process_time() - began)
    return statistics.median(taken[1:])


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
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--task", default="imdb:corpus=embedded")
    parser.add_argument("--csv", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = registry.resolve("tasks", options.task).create()
    task.prepare(torch.device("cpu"), print)
    task.load(torch.device("cpu"))
    plan = Plan("guards", tempfile.gettempdir(), "cpu", options.steps, task.default_batch)
    rows = []
    for name in ("rloo", "grade-ste"):
        steps = [functools.partial(seconds_of_a_step, task, plan, name, guarded) for guarded in (False, True)]
        pairs = [[forked(one) for one in steps] for _ in range(options.runs)]
        without, guarded = (statistics.median(one) for one in zip(*pairs, strict=True))
        ratios = sorted(b / a for a, b in pairs)
        settings, hook = forked(functools.partial(accounted, task, plan, name))
        rows.append({"what": name, "without_s": without, "guarded_s": guarded, "median_ratio": statistics.median(ratios),
                     "least_ratio": ratios[0], "largest_ratio": ratios[-1], "settings_s": settings, "hook_s": hook,
                     "accounted_share": (settings + hook) / without})  # fmt: skip
        print("{what}: {without_s:.4f} s without, {guarded_s:.4f} s with; ratios {median_ratio:.4f}, {least_ratio:.4f} to "
              "{largest_ratio:.4f}; {settings_s:.6f} s for settings and {hook_s:.6f} s in the hook, {accounted_share:.3%}"
              .format(**rows[-1]), flush=True)  # fmt: skip
    cell = statistics.median(forked(functools.partial(seconds_of_a_cell, task)) for _ in range(options.runs))
    rows.append({"what": "cell", "guarded_s": cell})
    print(f"once a cell: {cell:.4f} s")
    if options.csv:
        pd.DataFrame(rows).round(7).to_csv(options.csv, index=False, lineterminator="\n")


if __name__ == "__main__":
    main()
