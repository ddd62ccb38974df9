"""A transformer read step by step whose graph is differentiated once: the loop's gradient without the loop's waste.

Autograd's own graph of a rollout copies all keys and values at every step, and adds a gradient as large as all weights
at every step. Here keys and values are written in place, and a weight's gradient is one product over all steps, made
when the last of them has been differentiated. The answer is that of the plain graph, but for rounding.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gradebench.transformer import Cache, InPlace, ScratchPolicy


class Once:
    """A policy for one rollout, from the prompt to its last token; called and embedding as the policy is.

    `embed` takes the ids (N, L) of relaxed tokens that have the values of one-hots, and looks them up.
    """

    def __init__(self, policy: ScratchPolicy):
        self.policy = policy
        self.table = Collected(policy.token)
        self.layers: dict[nn.Linear, Collected] = {}

    def embed(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        if ids is not None:
            return _LookUp.apply(tokens, ids, self.table.weight, self.table.sums)
        if tokens.is_floating_point():
            return _Mixture.apply(tokens, self.table.weight, self.table.sums)
        return _LookUp.apply(None, tokens, self.table.weight, self.table.sums)

    def __call__(self, embeddings: Tensor, cache: Any = None, last: int | None = None) -> tuple[Tensor, Tensor, Cache]:
        cache = cache or [Recording(self.policy.length) for _ in self.policy.blocks]
        features, cache = self.policy.features(embeddings, cache, self._linear)
        features = features if last is None else features[:, -last:]
        return _Product.apply(features, self.table.weight, None, self.table.sums), features, cache

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if layer not in self.layers:
            self.layers[layer] = Collected(layer.weight, layer.bias)
        collected = self.layers[layer]
        return _Product.apply(x, collected.weight, collected.bias, collected.sums)


# --- weights ------------------------------------------------------------------------------------------------------
# The graph's nodes refer to sums and recordings, which must not refer back to tensors of the graph: such a circle is
# never freed.


ROWS = 512  # of uses summed in one product: few enough to stay in a cache, many enough for the product's speed


class Collected:
    """A weight (O, I), or table (V, D), and its bias, as the steps of one rollout use them."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.sums = Sums(weight)
        self.weight, self.bias = _Collect.apply(weight, bias, self.sums)


class Sums:
    """The gradients of a weight and its bias, summed up while the uses are differentiated."""

    def __init__(self, weight: Tensor):
        self.like = weight.detach()
        self.pending: list[tuple[Tensor, Tensor]] = []  # of gradients (N, O) and inputs (N, I)
        self.waiting = 0  # rows of them
        self.of_weight: Tensor | None = None
        self.of_bias: Tensor | None = None

    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """A use in a product: gradients (..., O) of outputs and the inputs (..., I)."""
        self.pending.append((outputs.flatten(0, -2), inputs.flatten(0, -2)))
        self.waiting += len(self.pending[-1][0])
        if self.waiting >= ROWS:
            self._sum_up()

    def add_rows(self, gradients: Tensor, ids: Tensor) -> None:
        """Rows (...) of a table looked up: their gradients (..., D)."""
        self._of_weight().index_add_(0, ids.flatten(), gradients.flatten(0, -2))

    def total(self) -> tuple[Tensor | None, Tensor | None]:
        """Of weight and bias, over all uses; the next uses start from nothing."""
        self._sum_up()
        of_weight, of_bias, self.of_weight, self.of_bias = self.of_weight, self.of_bias, None, None
        return of_weight, of_bias

    def _sum_up(self) -> None:
        if not self.pending:
            return
        outputs, inputs = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        self._of_weight().addmm_(outputs.T, inputs)
        self.of_bias = outputs.sum(0) if self.of_bias is None else self.of_bias + outputs.sum(0)
        self.pending, self.waiting = [], 0

    def _of_weight(self) -> Tensor:
        if self.of_weight is None:
            self.of_weight = torch.zeros_like(self.like)
        return self.of_weight


class _Collect(torch.autograd.Function):
    """A weight as it is; differentiated after all of its uses, because they depend on it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, sums: Sums) -> tuple[Tensor, Tensor | None]:
        ctx.sums = sums
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *nothing: None) -> tuple[Tensor | None, Tensor | None, None]:
        of_weight, of_bias = ctx.sums.total()
        return of_weight, of_bias if ctx.needs_input_grad[1] else None, None


class _Product(torch.autograd.Function):
    """x (..., I) times weight (O, I) transposed, plus bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sums: Sums) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sums = sums
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.sums.add(gradient, x)
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _Mixture(torch.autograd.Function):
    """Rows of a table (V, D) mixed by relaxed tokens (..., V)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, sums: Sums) -> Tensor:
        ctx.save_for_backward(tokens, table)
        ctx.sums = sums
        return tokens.to(table.dtype) @ table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        tokens, table = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.sums.add(tokens, gradient)
        return gradient @ table.T if ctx.needs_input_grad[0] else None, None, None


class _LookUp(torch.autograd.Function):
    """Rows of a table (V, D) named by ids (...), with a product's gradient for the one-hots (..., V) that they are of."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor | None, ids: Tensor, table: Tensor, sums: Sums) -> Tensor:
        ctx.save_for_backward(ids, table)
        ctx.sums = sums
        return functional.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        ids, table = ctx.saved_tensors
        if ctx.needs_input_grad[2]:
            ctx.sums.add_rows(gradient, ids)
        return gradient @ table.T if ctx.needs_input_grad[0] else None, None, None, None


# --- attention ----------------------------------------------------------------------------------------------------


class Recording(InPlace):
    """Keys and values of a whole text, written in place, with a graph.

    Later positions read earlier ones. Each `attend` depends on the one before through `link`, so that it is
    differentiated after all later ones, when the gradient of its own keys and values is complete.
    """

    def __init__(self, length: int):
        self.length = length
        self.filled = 0
        self.link: Tensor | None = None
        self.memory: Memory | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Values (N, heads, L, width / heads) mixed for the queries of the L positions that k and v are appended for."""
        if self.memory is None:
            self.memory = Memory(q, self.length)
        mixed, self.link = _Attend.apply(q, k, v, self.link, self.memory, mask)
        self.filled = self.memory.filled
        return mixed

    def reordered(self, rows: Tensor) -> InPlace:
        raise NotImplementedError("rollouts with a graph are not branched")


class Memory:
    """Keys and values (N heads, length, width / heads), and their gradients."""

    def __init__(self, like: Tensor, length: int):
        shape = (like.shape[0] * like.shape[1], length, like.shape[3])
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.filled = 0
        self.differentiated = length + 1  # down to this position

    def append(self, k: Tensor, v: Tensor) -> int:
        """Where they begin."""
        start, self.filled = self.filled, self.filled + k.shape[2]
        for room, written in ((self.keys, k), (self.values, v)):
            room.view(*written.shape[:2], *room.shape[1:])[:, :, start : self.filled] = written
        return start

    def gradients(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Sums over the positions differentiated so far, up to `end`, to which those from `start` on are added now."""
        if end > self.differentiated:
            raise RuntimeError("a rollout whose graph serves one derivative was differentiated again")
        if self.differentiated > self.keys.shape[1]:
            self.of_keys, self.of_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        self.differentiated = start
        return self.of_keys[:, :end], self.of_values[:, :end]


class _Attend(torch.autograd.Function):
    """softmax(q k^T / sqrt(width / heads) + mask) v over all positions so far."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, link: Tensor | None, memory: Memory, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.start, ctx.end = memory.append(k, v), memory.filled
        ctx.memory = memory
        scaled = (q * q.shape[-1] ** -0.5).flatten(0, 1)
        scores = scaled @ memory.keys[:, : ctx.end].transpose(1, 2)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        ctx.save_for_backward(scaled, weights)
        mixed = weights @ memory.values[:, : ctx.end]
        return mixed.unflatten(0, q.shape[:2]), q.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled, weights = ctx.saved_tensors
        memory, start, end = ctx.memory, ctx.start, ctx.end
        of_keys, of_values = memory.gradients(start, end)
        heads, gradient = gradient.shape[:2], gradient.flatten(0, 1)
        _add_product(of_values, weights.transpose(1, 2), gradient)
        of_weights = gradient @ memory.values[:, :end].transpose(1, 2)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        _add_product(of_keys, of_scores.transpose(1, 2), scaled)
        of_q = (of_scores @ memory.keys[:, :end]).mul_(scaled.shape[-1] ** -0.5)
        found = (of_q, of_keys[:, start:], of_values[:, start:])
        return *(x.unflatten(0, heads) for x in found), None, None, None


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums (M, K, D) += a (M, K, L) b (M, L, D), for part of a larger tensor, which `baddbmm_` would do one by one."""
    if a.shape[2] == 1:
        sums.addcmul_(a, b)
    else:
        sums += a @ b
