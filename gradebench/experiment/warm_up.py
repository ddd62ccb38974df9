"""Warm-up: an estimator's own state (critic, temperature) is trained at frozen parameters before its gradients are probed."""

import math

import torch
from torch import Tensor

from gradebench.experiment.training import Trainer
from gradebench.measurement.probes import Source

FIRST = 16  # batches in the first window; the length doubles from one to the next


def needs_warm_up(trainer: Trainer) -> bool:
    """Whether gradients depend on earlier calls: through the estimator's own state, or through the optimizer that updates the
    policy between calls that share a batch."""
    return bool(trainer.estimator.state_dict()) or trainer.estimator.period > 1


def warm_up(trainer: Trainer, source: Source, most: int) -> int:
    """Train the estimator's own parameters until their loss stops falling; returns the number of batches.

    The mean losses of windows of batches are compared, each twice as long as the one before. Training stops when a window's
    mean isn't lower than the last one's by more than the standard error of the difference, after the first window if there
    is no own loss, and after `most` batches. The policy doesn't change: `trainer` has learning rate 0, and its optimizer
    only accumulates the moments with which it updates the policy between calls.
    """
    done, length, before = 0, min(FIRST, most), (math.inf, 0.0)
    while done < most:
        losses: list[Tensor] = []
        for number in range(done, min(done + length, most)):
            problem = source.problem(source.contexts(number), None)
            losses += trainer.step(problem, source.generator(number), update_policy=trainer.estimator.period > 1)
        done = min(done + length, most)
        now = _mean_and_error(losses)
        if not before[0] - now[0] > math.hypot(before[1], now[1]):  # also if there is no loss, or if it isn't finite
            break
        before, length = now, 2 * length
    return done


def _mean_and_error(losses: list[Tensor]) -> tuple[float, float]:
    """The mean of a window's losses and its standard error; NaN without losses."""
    if not losses:
        return math.nan, math.nan
    values = torch.stack(losses).double()
    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else values.new_zeros(())
    return float(values.mean()), float(error)
