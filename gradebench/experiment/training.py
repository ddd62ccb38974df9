"""Training steps: the order of the data, the optimizers, and divergence."""

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from gradebench.core.estimator import Estimate, Estimator
from gradebench.core.global_state import put_back
from gradebench.core.problem import Ledger, Problem
from gradebench.core.sampling import generator
from gradebench.core.shown import counted
from gradebench.core.task import Task
from gradebench.core.view import Guarded
from gradebench.experiment.behaviour import Sampled
from gradebench.experiment.plan import Plan
from gradebench.experiment.series import FACTOR, Series
from gradebench.storage import records
from gradebench.storage.checkpoints import Training


class Diverged(Exception):
    """The gradient was not finite in too many updates."""


@dataclass
class Clock:
    """Seconds by activity; the rest of a loop's total is the harness itself."""

    estimator: float = 0.0
    optimizer: float = 0.0


@dataclass
class Updates:
    """Counts of the policy's updates: made, clipped, and skipped because the gradient wasn't finite; and of the skipped
    updates of the estimator's own parameters."""

    updates: int = 0
    clipped: int | Tensor = 0  # sums of tensors are read at the end, because a read waits for a GPU
    clip_factors: float | Tensor = 0.0  # sum of the clipping factors, which are 1 for updates that aren't clipped
    updates_refused: int = 0
    own_updates_refused: int = 0
    calls: int = 0
    info: dict[str, float | Tensor] = field(default_factory=dict)  # sums of `Estimate.info` over calls

    def summary(self) -> dict[str, float]:
        """Metrics of a whole training: the share of clipped updates, the mean clipping factor, the means of `Estimate.info`
        over calls, and the numbers of skipped updates if there are any."""
        made = max(1, self.updates)
        figures = {"clipped_updates": float(self.clipped) / made, "clip_factor": float(self.clip_factors) / made}
        figures |= {f"info_{name}": float(total) / self.calls for name, total in self.info.items()}
        refused = {"updates_refused": self.updates_refused, "own_updates_refused": self.own_updates_refused}
        return figures | {name: float(count) for name, count in refused.items() if count}


def _require_shapes(gradient: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    found, wanted = ([tuple(one.shape) for one in tensors] for tensors in (gradient, params))
    if len(found) != len(wanted):
        raise ValueError(
            f"its gradient has {counted(len(found), 'tensor')}, and the task has {counted(len(wanted), 'parameter')}"
        )
    if found != wanted:
        i = next(i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
        raise ValueError(f"tensor {i} of its gradient has the shape {found[i]}, and the parameter {wanted[i]}")


def _finite(gradients: Sequence[Tensor]) -> bool:
    return not gradients or bool(torch.stack([g.isfinite().all() for g in gradients]).all())


def _number(value: float | Tensor) -> float | Tensor:
    """A value of `Estimate.info` in double precision; a tensor stays one."""
    return value.detach().double().reshape(()) if isinstance(value, Tensor) else float(value)


class Trainer:
    """The optimizers of policy and estimator, and the order in which they step."""

    def __init__(
        self, estimator: Estimator, task: Task, plan: Plan, learning_rate: float, series: Series | None = None
    ):
        """With a `series`, every step is kept in it."""
        self.estimator, self.task, self.plan, self.series = estimator, task, plan, series
        self.optimizer = torch.optim.Adam(task.params, lr=learning_rate, fused=True)
        own = [p for p in estimator.parameters() if p.requires_grad]
        self.own_optimizer = torch.optim.Adam(own, lr=estimator.own_learning_rate) if own else None
        self.sampled = Sampled(task, plan.sampler)  # of a problem: the one whose samples are drawn as the plan says
        self.updates = Updates()
        self.clock = Clock()

    def step(self, problem: Problem, rng: torch.Generator, update_policy: bool = True) -> list[Tensor]:
        """All calls that share one new batch, with an update after each; returns the estimator's own losses, if any."""
        guarded = Guarded(problem, self.estimator.needs)
        losses = []
        for _ in range(self.estimator.period):
            start = time.perf_counter()
            with put_back(type(self.estimator).__name__):
                estimate = self.estimator.gradient(guarded, rng)  # type: ignore[arg-type]
            _require_shapes(estimate.grad, self.task.params)
            middle = time.perf_counter()
            self._descend_own_loss(estimate)
            if update_policy:
                self._ascend(estimate, problem)
            self.clock.estimator += middle - start
            self.clock.optimizer += time.perf_counter() - middle
            if estimate.own_loss is not None:
                losses.append(estimate.own_loss.detach())
        if self.series is not None:
            self.series.end_step()
        return losses

    def learn(self, problem: Problem, rng: torch.Generator) -> None:
        """A step of the training, on samples drawn as the plan says."""
        sampled = self.sampled(problem)
        self.sampled.past.add(self.task.params)
        self.step(sampled, rng)

    def _descend_own_loss(self, estimate: Estimate) -> None:
        """Update the estimator's own parameters, before the policy's, because the graph of own_loss uses those."""
        if estimate.own_loss is None or self.own_optimizer is None:
            return
        own = self.own_optimizer.param_groups[0]["params"]
        gradients = torch.autograd.grad(estimate.own_loss, own, allow_unused=True)
        if _finite([g for g in gradients if g is not None]):
            for p, g in zip(own, gradients, strict=True):
                p.grad = g
            self.own_optimizer.step()
        else:
            self.updates.own_updates_refused += 1

    def _ascend(self, estimate: Estimate, problem: Problem) -> None:
        self.updates.calls += 1
        info = {name: _number(value) for name, value in estimate.info.items()}
        for name, value in info.items():
            self.updates.info[name] = self.updates.info.get(name, 0.0) + value
        made = self._update(estimate.grad)
        if made is None:
            self.updates.updates_refused += 1
            refused = self.updates.updates_refused
            if refused > min(self.plan.patience, self.plan.steps * self.estimator.period - 1):
                raise Diverged(f"the gradient was not finite in {counted(refused, 'update')}{cause_in(problem)}")
            return
        norm, factor = made
        self.updates.updates += 1
        self.updates.clipped += factor < 1
        self.updates.clip_factors += factor
        if self.series is not None:
            told = {"gradient_norm": norm, FACTOR: factor} | {f"info_{name}": value for name, value in info.items()}
            for name, value in told.items():
                self.series.add(name, value)

    def _update(self, gradient: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
        """One ascent step of the policy's optimizer along the clipped gradient; returns the gradient's norm and the clipping
        factor, or None if the gradient isn't finite and the update was skipped. Reading that is the only wait for a GPU in a
        step."""
        norm = nn.utils.get_total_norm(gradient)
        if not bool(norm.isfinite()):  # squares in float32 overflow above 1e38
            norm = nn.utils.get_total_norm([g.double() for g in gradient])
            if not bool(norm.isfinite()):
                return None
        factor = self.plan.clip / norm.clamp_min(self.plan.clip)
        for p, g in zip(self.task.params, gradient, strict=True):
            p.grad = g * -factor  # negative, because optimizers descend
        self.optimizer.step()
        # The fused step doesn't do it, and problems rely on it to invalidate caches.
        increment_version(self.task.params)
        return norm, factor.double()

    @contextmanager
    def moving(self, learning_rate: float) -> Iterator[Callable[[Sequence[Tensor]], object]]:
        """A context with a function that updates the policy as training does; at the end, policy and optimizer are restored."""
        params = [p.detach().clone() for p in self.task.params]
        state = copy.deepcopy(self.optimizer.state_dict())
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        try:
            yield self._update
        finally:
            self.optimizer.load_state_dict(state)
            with torch.no_grad():
                for p, before in zip(self.task.params, params, strict=True):
                    p.copy_(before)

    def costs(self, ledger: Ledger) -> dict[str, float]:
        """The costs of the training so far: seconds of estimator and optimizer, updates, and the ledger's counts."""
        spent = {"seconds": self.clock.estimator + self.clock.optimizer, "updates": self.updates.updates}
        return {name: float(count) for name, count in (spent | asdict(ledger)).items()}

    def training(self, rng: torch.Generator, ledger: Ledger, record: records.CellRecord) -> Training:
        """Everything that changes in training, for a checkpoint."""
        optimizers = [optimizer for optimizer in (self.optimizer, self.own_optimizer) if optimizer is not None]
        counters = (self.clock, self.updates, ledger, self.sampled.past)
        lists = (record.rows, record.samples)
        return Training(self.task.params, self.estimator, optimizers, rng, counters, lists, self.series)


@torch.no_grad()
def cause_in(problem: Problem) -> str:
    """What is wrong with the rewards of new samples, to be appended to the message about a gradient that isn't finite."""
    try:
        rewards = problem.raw_reward(problem.sample(4, generator(problem.params[0].device, "cause")))
    except Exception as error:  # noqa: BLE001 - it only adds to a message
        return f"; asked again, the reward {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    odd, largest = int((~rewards.isfinite()).sum()), float(rewards.abs().max())
    if odd:
        return f"; neither was the reward of {odd} among {counted(rewards.numel(), 'draw')}"
    if largest > math.sqrt(torch.finfo(rewards.dtype).max):
        return f"; rewards as large as {largest:.3g} have no square in {str(rewards.dtype).removeprefix('torch.')}"
    return ""


def batches(task: Task, plan: Plan, n: int, seed: int) -> Iterator[Tensor]:
    """Indices (B,) of the train prompts of each step, B = batch / n, in the same order for every estimator of a seed.

    Each step has `batch` prompts, of which an estimator with n samples a prompt uses the first B.
    """
    size = task.sizes["train"]
    rng = generator("cpu", seed, "data")
    order = torch.empty(0, dtype=torch.int64)
    while True:
        while len(order) < plan.batch:
            order = torch.cat([order, torch.randperm(size, generator=rng)])
        window, order = order[: plan.batch], order[plan.batch :]
        yield window[: plan.batch // n].to(plan.device)
