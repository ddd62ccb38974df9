"""The state that an estimator has of its own, brought to where it belongs at frozen parameters before gradients are probed."""

import math

import torch
from torch import Tensor

from gradebench.experiment.training import Trainer
from gradebench.measurement.probes import Source

FIRST = 16  # batches of the first window; each next one is twice as long


def needs_warm_up(trainer: Trainer) -> bool:
    """Whether a draw depends on what came before: on the estimator's state, or on the moments of the optimizer that moves
    the policy between calls that share a batch."""
    return bool(trainer.estimator.state_dict()) or trainer.estimator.period > 1


def warm_up(trainer: Trainer, source: Source, most: int) -> int:
    """Train the estimator's own parts until their loss no longer falls; returns the number of batches.

    Windows of batches are compared, each twice as long as the one before: it ends after a window whose mean own loss isn't
    lower than the last one's by more than the standard error of their difference, after the first window where there is
    no own loss, and at `most` batches. The policy stays where it is: `trainer` has a learning rate of 0, at which its
    optimizer gathers the moments that it needs to move the policy between calls.
    """
    done, length, before = 0, min(FIRST, most), (math.inf, 0.0)
    while done < most:
        losses: list[Tensor] = []
        for number in range(done, min(done + length, most)):
            problem = source.problem(source.contexts(number), None)
            losses += trainer.step(problem, source.generator(number), update_policy=trainer.estimator.period > 1)
        done = min(done + length, most)
        now = _mean_and_error(losses)
        if not before[0] - now[0] > math.hypot(before[1], now[1]):  # also where there is no loss, or it isn't finite
            break
        before, length = now, 2 * length
    return done


def _mean_and_error(losses: list[Tensor]) -> tuple[float, float]:
    """The mean of a window's losses, and its standard error; NaN without losses."""
    if not losses:
        return math.nan, math.nan
    values = torch.stack(losses).double()
    error = values.std() / math.sqrt(len(values)) if len(values) > 1 else values.new_zeros(())
    return float(values.mean()), float(error)
