"""A batch in parts with separate random numbers: one part after another, or spread over several processes."""

import copy
from dataclasses import asdict

import torch
from torch import Tensor

from gradebench.core import parallel
from gradebench.core.estimator import Estimate, Estimator
from gradebench.core.problem import Problem
from gradebench.core.sampling import generator


class Sharded(Estimator):
    """The mean of an estimator's gradients on `shards` parts of the contexts, weighted by their sizes.

    The parts are spread over the processes, which all get the same gradient; the number of processes changes only
    rounding. The number of parts changes more: each has its own generator, seeded from the given one, and what uses a
    whole batch (whitening, a batch-mean baseline) uses a part. A process holds one part in memory at a time.

    The parts share the estimator's parameters; its running state is averaged after each call.
    """

    def __init__(self, inner: Estimator, shards: int):
        super().__init__()
        self.inner, self.shards = inner, shards
        self.n, self.period = inner.n, inner.period
        # The declarations of `inner`, which the harness reads from this estimator.
        for name in ("family", "unbiased", "corrects", "unbiased_if", "pathwise", "needs", "own_learning_rate"):
            vars(self)[name] = getattr(inner, name)
        self._copies: dict[int, Estimator] = {}  # by part, because each has cached rollouts of its own

    def init(self, problem: Problem) -> None:
        self.inner.init(problem.select(self._parts(problem)[0]))

    def reset(self) -> None:
        for estimator in (self.inner, *self._copies.values()):
            estimator.reset()

    def train(self, mode: bool = True) -> "Sharded":
        for estimator in self._copies.values():
            estimator.train(mode)
        return super().train(mode)

    def expected_scale(self, problem: Problem) -> float:
        return self.inner.expected_scale(problem)

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        parts = self._parts(problem)
        seeds = torch.randint(2**62, (len(parts),), generator=rng, device=rng.device).tolist()
        before = asdict(problem.ledger)
        grad = [torch.zeros_like(p) for p in problem.params]
        own = [p for p in self.inner.parameters() if p.requires_grad] if self.training else []
        own_grad, learns = [torch.zeros_like(p) for p in own], False
        state = [torch.zeros_like(b) for b in self._state(self.inner)]
        info: dict[str, float] = {}
        with parallel.agree_on_failure():
            for i in self._mine(len(parts)):
                weight = len(parts[i]) / problem.contexts
                estimator = self._copy(i)
                part_rng = generator(rng.device, seeds[i])
                estimate = estimator.gradient(problem.select(parts[i]), part_rng)
                _add(grad, estimate.grad, weight)
                if own and estimate.own_loss is not None:
                    _add(own_grad, torch.autograd.grad(estimate.own_loss, own, allow_unused=True), weight)
                    learns = True
                _add(state, self._state(estimator), weight)
                info |= {name: info.get(name, 0.0) + weight * float(value) for name, value in estimate.info.items()}
        counts = torch.tensor([count - before[name] for name, count in asdict(problem.ledger).items()])
        parallel.all_reduce([*grad, *own_grad, *state, counts])
        for name, count in zip(before, counts.tolist(), strict=True):
            setattr(problem.ledger, name, before[name] + count)
        if self.training:
            for buffer, mean in zip(self._state(self.inner), state, strict=True):
                buffer.copy_(mean)
        # A loss that is linear in the parameters and has the summed gradient of all parts.
        linear = [(p * g).sum() for p, g in zip(own, own_grad, strict=True)]
        return Estimate(grad, torch.stack(linear).sum() if learns else None, parallel.all_reduce_by_name(info))

    def _parts(self, problem: Problem) -> tuple[Tensor, ...]:
        """The indices of each part's contexts; no part is empty."""
        index = torch.arange(problem.contexts, device=problem.params[0].device)
        return index.tensor_split(min(self.shards, problem.contexts))

    def _mine(self, parts: int) -> range:
        """The parts that this process computes."""
        first, last = (parts * i // parallel.world_size() for i in (parallel.rank(), parallel.rank() + 1))
        return range(first, last)

    def _copy(self, part: int) -> Estimator:
        """The estimator of a part, with the shared parameters and the averaged running state."""
        if part not in self._copies:
            shared = {id(p): p for p in self.inner.parameters()}
            self._copies[part] = copy.deepcopy(self.inner, shared)
        for own, mean in zip(self._copies[part].buffers(), self.inner.buffers(), strict=True):
            own.copy_(mean)
        return self._copies[part]

    def _state(self, estimator: Estimator) -> list[Tensor]:
        """The floating-point buffers, which can be averaged."""
        return [buffer for buffer in estimator.buffers() if buffer.is_floating_point()]


def _add(total: list[Tensor], tensors, weight: float) -> None:
    for sum_, tensor in zip(total, tensors, strict=True):
        if tensor is not None:
            sum_.add_(tensor.detach(), alpha=weight)
