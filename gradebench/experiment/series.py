"""What every step of a training tells by the way: reward, divergence, entropy, gradient norm, clipping.

Nothing is computed for it but sums of what is there anyway, and nothing waits for a GPU: values stay on their device until
they are read, at evaluations and checkpoints.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from gradebench.core.estimator import Estimator
from gradebench.core.problem import Ledger

LOG_PROB, FACTOR = "log_prob", "clip_factor"
_LISTS = frozenset({"support", "exact"})  # needs of estimators whose sequences are no draws, but all there are

Part = tuple[str, float | None, int]  # a name, the sum of so many values, and how many; None: the sum is on the device


class Series:
    """The steps of one training."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []  # of the steps that were read: their number, and means by name
        self._ended: list[tuple[list[Part], Tensor | None]] = []  # steps that weren't read yet
        self._parts: list[Part] = []  # of the present step
        self._sums: list[Tensor] = []  # those that are on the device

    def add(self, name: str, total: float | Tensor, count: int = 1) -> None:
        """The sum of `count` more values of the present step, whose mean is the step's."""
        if isinstance(total, Tensor) and total.device.type != "cpu":
            self._sums.append(total.detach())
            self._parts.append((name, None, count))
        else:
            self._parts.append((name, float(total), count))

    def end_step(self) -> None:
        self._ended.append((self._parts, torch.stack(self._sums) if self._sums else None))
        self._parts, self._sums = [], []

    def read(self) -> list[dict[str, float]]:
        """A row for each step that has ended; waits for the device."""
        there = [sums for _, sums in self._ended if sums is not None]
        numbers = iter(torch.cat(there).tolist() if there else ())
        for parts, _ in self._ended:
            self._rows.append({"step": float(len(self._rows)), **_means(parts, numbers)})
        self._ended = []
        return self._rows

    def state(self) -> dict[str, Tensor]:
        """All rows as columns, for a checkpoint; NaN where a step has no value."""
        rows = self.read()
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: torch.tensor([row.get(name, math.nan) for row in rows], dtype=torch.float64) for name in names}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        columns = [column.tolist() for column in state.values()]
        rows = [dict(zip(state, values, strict=True)) for values in zip(*columns, strict=True)]
        self._rows = [{name: value for name, value in row.items() if not math.isnan(value)} for row in rows]


def _means(parts: Sequence[Part], on_device: Iterator[float]) -> dict[str, float]:
    totals: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name, known, count in parts:
        total = next(on_device) if known is None else known
        for one, value in _named(name, total).items():
            totals[one] = totals.get(one, 0.0) + value
            counts[one] = counts.get(one, 0) + count
    return {name: total / counts[name] for name, total in totals.items()}


def _named(name: str, total: float) -> dict[str, float]:
    if name == LOG_PROB:
        return {"entropy": -total}
    return {name: total} | ({"clipped_updates": float(total < 1)} if name == FACTOR else {})


class Heard(Ledger):
    """A ledger that passes on to a series what a problem says of the sequences that an estimator draws."""

    __slots__ = ("series",)  # so that it is no part of the ledger's counts

    def __init__(self, series: Series):
        super().__init__()
        self.series = series

    def saw(self, name: str, values: Tensor, count: int) -> None:
        self.series.add(name, values.detach().sum(), count)


def ledger_for(estimator: Estimator, series: Series) -> Ledger:
    """The ledger of a training. Where an estimator lists all sequences, their plain mean says nothing, and isn't kept."""
    return Ledger() if estimator.needs & _LISTS else Heard(series)
