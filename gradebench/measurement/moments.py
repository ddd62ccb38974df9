"""Streaming moments of gradients, from which variance and bias are computed, in memory O(parameters)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 20  # blocks of draws, for the jackknife


def flatten(gradient: Sequence[Tensor]) -> Tensor:
    """All entries as one vector (d,), float64."""
    return torch.cat([g.detach().reshape(-1).double() for g in gradient])


class Moments:
    """Sums over a stream of vectors, in memory O(blocks x d), float64.

    A unit is a vector, or the mean of a pair that shares its prompts. Units are assigned to the blocks in turn.
    `centre` (d,), a vector near their mean, is subtracted from each, so that a small variance isn't lost to rounding.
    `sizes` are the numbers of entries of the parameters, each of which has its own sum of squares.
    """

    def __init__(self, centre: Tensor, sizes: Sequence[int], blocks: int = BLOCKS):
        self.centre, self.sizes = centre, list(sizes)
        device, kind = centre.device, torch.float64
        self.sums = torch.zeros(blocks, len(centre), dtype=kind, device=device)
        self.counts = torch.zeros(blocks, dtype=kind, device=device)
        self.squares = torch.zeros(blocks, len(self.sizes), dtype=kind, device=device)  # sum of |unit - centre|^2
        self.halves = torch.zeros_like(self.squares)  # sum of |first - second|^2 / 4 over pairs
        self.paired = False
        self.count = 0  # the sum of `counts`, which a GPU would have to be waited for

    @property
    def mean(self) -> Tensor:
        """(d,). Raises ValueError if nothing was added."""
        if not self.count:
            raise ValueError("no vector was added")
        return self.centre + self.sums.sum(0) / self.count

    def add(self, vectors: Tensor, twins: Tensor | None = None) -> None:
        """Add vectors (D, d), each a unit by itself, or the mean with its twin, a vector from the same prompts."""
        block = (torch.arange(len(vectors), device=vectors.device) + self.count) % len(self.counts)
        self.count += len(vectors)
        units = vectors - self.centre
        if twins is not None:
            self.paired = True
            self.halves.index_add_(0, block, self._squares((vectors - twins) / 2))
            units = (units + twins - self.centre) / 2
        self.sums.index_add_(0, block, units)
        self.squares.index_add_(0, block, self._squares(units))
        self.counts.index_add_(0, block, torch.ones_like(block, dtype=torch.float64))

    def recentred(self) -> "Moments":
        """The same moments, with their own mean as the centre."""
        shift = self.centre - self.mean
        answer = Moments(self.mean, self.sizes, len(self.counts))
        answer.counts, answer.count = self.counts, self.count
        answer.halves, answer.paired = self.halves, self.paired
        answer.sums = self.sums + self.counts[:, None] * shift
        cross = torch.stack([part.sum(1) for part in (self.sums * shift).split(self.sizes, 1)], 1)
        answer.squares = self.squares + 2 * cross + self.counts[:, None] * self._squares(shift[None])
        return answer

    def _squares(self, vectors: Tensor) -> Tensor:
        """Squared norm of each parameter's part: (D, d) to (D, parameters)."""
        return torch.stack([part.square().sum(1) for part in vectors.split(self.sizes, 1)], 1)


@dataclass(frozen=True)
class Reference:
    """grad J at given parameters: exact, or the mean of a long unbiased run, whose noise is included in the intervals."""

    moments: Moments  # of the long run, or of the one exact vector
    exact: bool

    @classmethod
    def known(cls, gradient: Tensor, sizes: Sequence[int]) -> "Reference":
        moments = Moments(gradient, sizes, 1)
        moments.add(gradient[None])
        return cls(moments, exact=True)

    def tensors(self) -> dict[str, Tensor]:
        """What a file stores; `of_tensors` reads it back."""
        moments = self.moments
        return {
            "reference_centre": moments.centre,
            "reference_sums": moments.sums,
            "reference_counts": moments.counts,
            "reference_squares": moments.squares,
            "reference_exact": torch.tensor(self.exact),
        }

    @classmethod
    def of_tensors(cls, stored: Mapping[str, Tensor], sizes: Sequence[int]) -> "Reference":
        moments = Moments(stored["reference_centre"], sizes, len(stored["reference_counts"]))
        moments.sums, moments.counts = stored["reference_sums"], stored["reference_counts"]
        moments.squares, moments.count = stored["reference_squares"], int(stored["reference_counts"].sum())
        return cls(moments, exact=bool(stored["reference_exact"]))
