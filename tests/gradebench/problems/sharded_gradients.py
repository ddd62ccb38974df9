"""What one of torchrun's processes does: gradients of every mission estimator on a batch in four parts, into a file,
and a run of the command line with as few draws as give every kind of row.

python sharded_gradients.py FILE ARGUMENT...
"""

import sys
from functools import partial

import torch

from gradebench.core import parallel
from gradebench.core.sampling import generator
from gradebench.plugins import registry
from gradebench.problems.enumerable import random_sequence_problem
from gradebench.problems.sharded import Sharded

MISSION = ("grade-ste", "grade", "reinforce", "ppo", "rebar", "rloo", "grpo")


def gradients():
    """By estimator: the gradients of two batches, those of its own parameters, its running state and the ledger."""
    found = {}
    for name in MISSION:
        problem = random_sequence_problem(4, 3, 8, 0.05, 0)
        problem = problem.select(torch.arange(8).repeat(2))
        torch.manual_seed(0)
        estimator = Sharded(registry.resolve("estimators", name).create(), 4)
        estimator.init(problem)
        rng, values = generator("cpu", name), []
        for _ in range(2 * min(estimator.period, 4)):
            estimate = estimator.gradient(problem, rng)
            values += [g.flatten() for g in estimate.grad]
            own = [p for p in estimator.parameters() if p.requires_grad]
            if estimate.own_loss is not None:
                gradient = torch.autograd.grad(estimate.own_loss, own)
                values += [g.flatten() for g in gradient]
                with torch.no_grad():
                    for p, g in zip(own, gradient, strict=True):
                        p.sub_(0.1 * g)
            with torch.no_grad():
                for p, g in zip(problem.params, estimate.grad, strict=True):
                    p.add_(0.1 * g)
        values += [b.flatten() for b in estimator.buffers()]
        values.append(torch.tensor(list(vars(problem.ledger).values())))
        found[name] = torch.cat([v.detach().double() for v in values])
    return found


def write(path):
    found = gradients()
    torch.save(found, f"{path}-{parallel.rank()}")


def lead():
    from gradebench import cli
    from gradebench.experiment import preparing, runner

    parallel.call(write, sys.argv[1])
    plan = partial(preparing.Plan, evaluations=1, warm_up=1)
    plan.probe_draws, plan.reference_draws = 4, 2  # what a run reads from the class
    preparing.Plan, runner.Request = plan, partial(runner.Request, checkpoints=2)
    cli.app(sys.argv[2:])


if __name__ == "__main__":
    parallel.run(lead)
