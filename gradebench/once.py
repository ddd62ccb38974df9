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
        self.table = Uses(policy.token)
        self.layers: dict[nn.Linear, Uses] = {}

    def embed(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        if ids is not None:
            return _LookUp.apply(tokens, ids, self.table.weight, self.table)
        if tokens.is_floating_point():
            return _Mixture.apply(tokens, self.table.weight, self.table)
        return _LookUp.apply(None, tokens, self.table.weight, self.table)

    def __call__(self, embeddings: Tensor, cache: Any = None, last: int | None = None) -> tuple[Tensor, Tensor, Cache]:
        cache = cache or [Recording(self.policy.length) for _ in self.policy.blocks]
        features, cache = self.policy.features(embeddings, cache, self._linear)
        features = features if last is None else features[:, -last:]
        return _Product.apply(features, self.table.weight, None, self.table), features, cache

    def _linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        if layer not in self.layers:
            self.layers[layer] = Uses(layer.weight, layer.bias)
        uses = self.layers[layer]
        return _Product.apply(x, uses.weight, uses.bias, uses)


# --- weights ------------------------------------------------------------------------------------------------------


ROWS = 512  # of uses summed in one product: few enough to stay in a cache, many enough for the product's speed


class Uses:
    """A weight (O, I), or table (V, D), and how a rollout used it; its steps take `weight` and `bias` from here."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.weight, self.bias = _Collect.apply(weight, bias, self)
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

    def gradient(self) -> tuple[Tensor | None, Tensor | None]:
        """Of weight and bias, summed over all uses; the next uses start from nothing."""
        self._sum_up()
        of_weight, of_bias, self.of_weight, self.of_bias = self.of_weight, self.of_bias, None, None
        return of_weight, of_bias

    def _sum_up(self) -> None:
        if not self.pending:
            return
        outputs, inputs = (torch.cat(parts) for parts in zip(*self.pending, strict=True))
        self._of_weight().addmm_(outputs.T, inputs)
        if self.bias is not None:
            self.of_bias = outputs.sum(0) if self.of_bias is None else self.of_bias + outputs.sum(0)
        self.pending, self.waiting = [], 0

    def _of_weight(self) -> Tensor:
        if self.of_weight is None:
            self.of_weight = torch.zeros_like(self.weight)
        return self.of_weight


class _Collect(torch.autograd.Function):
    """A weight as it is; differentiated after all of its uses, because they depend on it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, uses: Uses) -> tuple[Tensor, Tensor | None]:
        ctx.uses = uses
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *nothing: None) -> tuple[Tensor | None, Tensor | None, None]:
        return *ctx.uses.gradient(), None


class _Product(torch.autograd.Function):
    """x (..., I) times weight (O, I) transposed, plus bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, uses: Uses) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.uses = uses
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, weight = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.uses.add(gradient, x)
        return gradient @ weight if ctx.needs_input_grad[0] else None, None, None, None


class _Mixture(torch.autograd.Function):
    """Rows of a table (V, D) mixed by relaxed tokens (..., V)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor, uses: Uses) -> Tensor:
        ctx.save_for_backward(tokens, table)
        ctx.uses = uses
        return tokens.to(table.dtype) @ table

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        tokens, table = ctx.saved_tensors
        if ctx.needs_input_grad[1]:
            ctx.uses.add(tokens, gradient)
        return gradient @ table.T if ctx.needs_input_grad[0] else None, None, None


class _LookUp(torch.autograd.Function):
    """Rows of a table (V, D) named by ids (...), with a product's gradient for the one-hots (..., V) that they are of."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor | None, ids: Tensor, table: Tensor, uses: Uses) -> Tensor:
        ctx.save_for_backward(ids, table)
        ctx.uses = uses
        return functional.embedding(ids, table)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None]:
        ids, table = ctx.saved_tensors
        if ctx.needs_input_grad[2]:
            ctx.uses.add_rows(gradient, ids)
        return gradient @ table.T if ctx.needs_input_grad[0] else None, None, None, None


# --- attention ----------------------------------------------------------------------------------------------------


class Recording(InPlace):
    """Keys and values (N heads, length, width / heads) of a whole text, written in place, and their gradients.

    Later positions read earlier ones. Each `attend` depends on the one before through `link`, so that it is
    differentiated after all later ones, when the gradient of its own keys and values is complete.
    """

    def __init__(self, length: int):
        self.length, self.filled = length, 0
        self.differentiated = length + 1  # down to this position
        self.link: Tensor | None = None

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Values (N, heads, L, width / heads) mixed for the queries of the L positions that k and v are appended for."""
        if not self.filled:
            shape = (q.shape[0] * q.shape[1], self.length, q.shape[3])
            self.keys, self.values = q.new_empty(shape), q.new_empty(shape)
        mixed, self.link = _Attend.apply(q, k, v, self.link, self, mask)
        return mixed

    def reordered(self, rows: Tensor) -> InPlace:
        raise NotImplementedError("rollouts with a graph are not branched")

    def append(self, k: Tensor, v: Tensor) -> int:
        """Where they begin."""
        start, self.filled = self.filled, self.filled + k.shape[2]
        self.keys.view(*k.shape[:2], *self.keys.shape[1:])[:, :, start : self.filled] = k
        self.values.view(*v.shape[:2], *self.values.shape[1:])[:, :, start : self.filled] = v
        return start

    def gradients(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Sums over the positions differentiated so far, up to `end`, to which those from `start` on are added now."""
        if end > self.differentiated:
            raise RuntimeError("a rollout whose graph serves one derivative was differentiated again")
        if self.differentiated > self.length:
            self.of_keys, self.of_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        self.differentiated = start
        return self.of_keys[:, :end], self.of_values[:, :end]


class _Attend(torch.autograd.Function):
    """softmax(q k^T / sqrt(width / heads) + mask) v over all positions so far."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, link: Tensor | None, recording: Recording, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.start, ctx.end = recording.append(k, v), recording.filled
        ctx.recording = recording
        scaled = (q * q.shape[-1] ** -0.5).flatten(0, 1)
        scores = scaled @ recording.keys[:, : ctx.end].transpose(1, 2)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        ctx.save_for_backward(scaled, weights)
        mixed = weights @ recording.values[:, : ctx.end]
        return mixed.unflatten(0, q.shape[:2]), q.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scaled, weights = ctx.saved_tensors
        recording, start, end = ctx.recording, ctx.start, ctx.end
        of_keys, of_values = recording.gradients(start, end)
        heads, gradient = gradient.shape[:2], gradient.flatten(0, 1)
        _add_product(of_values, weights.transpose(1, 2), gradient)
        of_weights = gradient @ recording.values[:, :end].transpose(1, 2)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        _add_product(of_keys, of_scores.transpose(1, 2), scaled)
        of_q = (of_scores @ recording.keys[:, :end]).mul_(scaled.shape[-1] ** -0.5)
        found = (of_q, of_keys[:, start:], of_values[:, start:])
        return *(x.unflatten(0, heads) for x in found), None, None, None


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums (M, K, D) += a (M, K, L) b (M, L, D), for part of a larger tensor, which `baddbmm_` would do one by one."""
    if a.shape[2] == 1:
        sums.addcmul_(a, b)
    else:
        sums += a @ b
