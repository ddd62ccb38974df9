"""Harness overhead: the share of a training step outside estimator and optimizer, with no evaluation in the loop.

    python benchmarks/overhead.py --estimator reinforce --steps 200

Prints the loop's seconds a step, what the estimator and the optimizers took of them, and the rest as a percentage, as
the median of several runs.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace

import torch

from gradebench.core.problem import Ledger
from gradebench.core.sampling import generator
from gradebench.experiment import cell_setup, runner, training
from gradebench.experiment.plan import Plan
from gradebench.experiment.training import Trainer
from gradebench.plugins import registry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--estimator", action="append", help="repeatable; default: reinforce, the quickest step")
    parser.add_argument("--task", default="imdb:corpus=embedded")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    device = runner.choose_device(arguments.device)
    task = registry.resolve("tasks", arguments.task).create()
    task.prepare(torch.device(device), print)
    task.load(torch.device(device))
    plan = Plan("overhead", tempfile.gettempdir(), device, arguments.steps, task.default_batch)
    for name in arguments.estimator or ["reinforce"]:
        shares, seconds = [], []
        for seed in range(arguments.runs):
            estimator = cell_setup.make_estimator(name, task, plan)
            trainer = Trainer(estimator, task, replace(plan, learning_rate=1e-4), 1e-4)
            prompts, rng, ledger = training.batches(task, plan, estimator.n, seed), generator(device, seed), Ledger()
            start = time.perf_counter()
            for _ in range(arguments.steps):
                trainer.step(task.problem("train", next(prompts), ledger), rng)
            total = time.perf_counter() - start
            shares.append(1 - (trainer.clock.estimator + trainer.clock.optimizer) / total)
            seconds.append(total / arguments.steps)
        step = statistics.median(seconds)
        print(f"{name}: {step * 1000:.2f} ms a step, harness overhead {100 * statistics.median(shares):.2f} %")


if __name__ == "__main__":
    main()
