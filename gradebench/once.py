"""A transformer read step by step whose graph is differentiated once: the loop's gradient without the loop's waste.

Autograd's own graph of a rollout copies all keys and values at every step, and adds a gradient as large as all weights
at every step. Here keys and values are written in place, and a weight's gradient is one product over all steps, made
when the last of them has been differentiated. The answer is that of the plain graph, but for rounding.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from gradebench.transformer import Block, Cache, InPlace, ScratchPolicy


class Once:
    """A policy for one rollout, from the prompt to its last token; called and embedding as the policy is.

    `embed` takes the ids (N, L) of relaxed tokens that have the values of one-hots, and looks them up.
    """

    def __init__(self, policy: ScratchPolicy):
        self.policy = policy
        self.table = Collected(policy.token)
        self.parts = [[Collected(*part) for part in parameters_of(block)] for block in policy.blocks]

    def embed(self, tokens: Tensor, ids: Tensor | None = None) -> Tensor:
        if ids is not None:
            return _LookUp.apply(tokens, ids, self.table.weight, self.table.sums)
        if tokens.is_floating_point():
            return _Mixture.apply(tokens, self.table.weight, self.table.sums)
        return _LookUp.apply(None, tokens, self.table.weight, self.table.sums)

    def __call__(self, embeddings: Tensor, cache: Any = None, last: int | None = None) -> tuple[Tensor, Tensor, Cache]:
        cache = cache or [Recording(self.policy.length, parts) for parts in self.parts]
        features, cache = self.policy.features(embeddings, cache, _through)
        features = features if last is None else features[:, -last:]
        return _Product.apply(features, self.table.weight, None, self.table.sums), features, cache


def _through(block: Block, x: Tensor, mask: Tensor | None, past: Any, _: Any) -> tuple[Tensor, None]:
    return past.through(block.heads, x, mask), None


def parameters_of(block: Any) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of a `Block`, in the order in which it uses them."""
    hidden, _, out = block.feed_forward
    attention = (block.attention_norm, block.query_key_value, block.attention_out)
    return [(part.weight, part.bias) for part in (*attention, block.feed_forward_norm, hidden, out)]


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
        self.wanted = weight.requires_grad
        self.pending: list[tuple[Tensor, Tensor]] = []  # of gradients (N, O) and inputs (N, I)
        self.waiting = 0  # rows of them
        self.of_weight: Tensor | None = None
        self.of_bias: Tensor | None = None

    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """A use in a product: gradients (..., O) of outputs and the inputs (..., I)."""
        if not self.wanted:
            return
        self.pending.append((outputs.flatten(0, -2), inputs.flatten(0, -2)))
        self.waiting += len(self.pending[-1][0])
        if self.waiting >= ROWS:
            self._sum_up()

    def add_rows(self, gradients: Tensor, ids: Tensor) -> None:
        """Rows (...) of a table looked up: their gradients (..., D)."""
        self._of_weight().index_add_(0, ids.flatten(), gradients.flatten(0, -2))

    def add_scale(self, of_weight: Tensor, of_bias: Tensor) -> None:
        """A use as the scale and shift of a norm: their gradients."""
        self._of_weight().add_(of_weight)
        self.of_bias = of_bias if self.of_bias is None else self.of_bias.add_(of_bias)

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


# --- blocks -------------------------------------------------------------------------------------------------------


class Recording(InPlace):
    """Keys and values of a whole text, written in place, with a graph, and the parameters of their block.

    Later positions read earlier ones. Each step depends on the one before through `link`, so that it is differentiated
    after all later ones, when the gradient of its own keys and values is complete.
    """

    def __init__(self, length: int, parts: list[Collected]):
        self.length = length
        self.filled = 0
        self.link: Tensor | None = None
        self.memory: Memory | None = None
        self.parameters = [tensor for part in parts for tensor in (part.weight, part.bias)]
        self.sums = [part.sums for part in parts]

    def through(self, heads: int, x: Tensor, mask: Tensor | None) -> Tensor:
        """The block's output (N, L, D) at the L positions that come next."""
        if self.memory is None:
            self.memory = Memory(x, heads, self.length)
        y, self.link = _Step.apply(x, self.link, self.memory, self.sums, mask, *self.parameters)
        self.filled = self.memory.filled
        return y

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError("a step is recorded as a whole")

    def reordered(self, rows: Tensor) -> InPlace:
        raise NotImplementedError("rollouts with a graph are not branched")


class Memory:
    """Keys and values (N heads, length, D / heads), and their gradients."""

    def __init__(self, like: Tensor, heads: int, length: int):
        self.heads = heads
        shape = (like.shape[0] * heads, length, like.shape[2] // heads)
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.filled = 0
        self.differentiated = length + 1  # down to this position

    def attend(self, qkv: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Values mixed for positions (N, L, D) that come next, from (N, L, 3 D); scaled queries and weights too."""
        q, k, v = self._by_head(qkv, 3)
        start, self.filled = self.filled, self.filled + qkv.shape[1]
        for room, written in ((self.keys, k), (self.values, v)):
            room.view(*written.shape[:2], *room.shape[1:])[:, :, start : self.filled] = written
        scaled = (q * q.shape[-1] ** -0.5).flatten(0, 1)
        scores = scaled @ self.keys[:, : self.filled].transpose(1, 2)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        mixed = weights @ self.values[:, : self.filled]
        return mixed.unflatten(0, q.shape[:2]).transpose(1, 2).flatten(2), scaled, weights

    def differentiate(self, gradient: Tensor, scaled: Tensor, weights: Tensor) -> Tensor:
        """The gradient (N, L, 3 D) of what `attend` got last and has not differentiated, from that (N, L, D) of its mix.

        Keys and values of these positions have had their gradient from all later ones by now.
        """
        end, length = weights.shape[2], weights.shape[1]
        if end > self.differentiated:
            raise RuntimeError("a rollout whose graph serves one derivative was differentiated again")
        if self.differentiated > self.keys.shape[1]:
            self.of_keys, self.of_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        self.differentiated = end - length
        gradient = self._by_head(gradient, 1)[0].flatten(0, 1)  # (N heads, L, D / heads)
        _add_product(self.of_values[:, :end], weights.transpose(1, 2), gradient)
        of_weights = gradient @ self.values[:, :end].transpose(1, 2)
        of_scores = torch.ops.aten._softmax_backward_data(of_weights, weights, -1, weights.dtype)
        _add_product(self.of_keys[:, :end], of_scores.transpose(1, 2), scaled)
        of_q = (of_scores @ self.keys[:, :end]).mul_(scaled.shape[-1] ** -0.5)
        answer = of_q.new_empty(len(of_q) // self.heads, length, 3 * self.heads * of_q.shape[2])
        found = (of_q, self.of_keys[:, end - length : end], self.of_values[:, end - length : end])
        for room, written in zip(self._by_head(answer, 3), found, strict=True):
            room.copy_(written.view(room.shape))
        return answer

    def _by_head(self, x: Tensor, parts: int) -> Tensor:
        """(N, L, parts D) as (parts, N, heads, L, D / heads)."""
        return x.view(*x.shape[:2], parts, self.heads, -1).permute(2, 0, 3, 1, 4)


class _Step(torch.autograd.Function):
    """`Block` at the positions that come next, (N, L, D) to (N, L, D)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, link: Tensor | None, memory: Memory, sums: list[Sums], mask: Tensor | None, *parts: Tensor
    ) -> tuple[Tensor, Tensor]:
        scale_1, shift_1, w_qkv, b_qkv, w_mix, b_mix, scale_2, shift_2, w_hidden, b_hidden, w_out, b_out = parts
        rows = x.reshape(-1, x.shape[2])
        normed_1, *moments_1 = torch.native_layer_norm(rows, scale_1.shape, scale_1, shift_1, EPS)
        qkv = functional.linear(normed_1, w_qkv, b_qkv).view(*x.shape[:2], -1)
        mixed, scaled, weights = memory.attend(qkv, mask)
        mixed = mixed.reshape(rows.shape)
        between = functional.linear(mixed, w_mix, b_mix).add_(rows)
        normed_2, *moments_2 = torch.native_layer_norm(between, scale_2.shape, scale_2, shift_2, EPS)
        hidden = functional.linear(normed_2, w_hidden, b_hidden)
        active = functional.gelu(hidden)
        y = functional.linear(active, w_out, b_out).add_(between).view_as(x)
        ctx.memory, ctx.sums = memory, sums
        ctx.save_for_backward(
            *(rows, normed_1, *moments_1, scaled, weights, mixed, between, normed_2, *moments_2, hidden, active), *parts
        )
        return y, x.new_empty(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        rows, normed_1, mean_1, inverse_1, scaled, weights, mixed, *saved = ctx.saved_tensors
        between, normed_2, mean_2, inverse_2, hidden, active, *parts = saved
        scale_1, shift_1, w_qkv, _, w_mix, _, scale_2, shift_2, w_hidden, _, w_out, _ = parts
        norm_1, to_qkv, to_mix, norm_2, to_hidden, to_out = ctx.sums
        of_y = gradient.reshape(rows.shape)
        to_out.add(of_y, active)
        of_hidden = torch.ops.aten.gelu_backward(of_y @ w_out, hidden)
        to_hidden.add(of_hidden, normed_2)
        of_between = _through_norm(of_hidden @ w_hidden, between, mean_2, inverse_2, scale_2, shift_2, norm_2).add_(
            of_y
        )
        to_mix.add(of_between, mixed)
        of_qkv = ctx.memory.differentiate((of_between @ w_mix).view(gradient.shape), scaled, weights).view(
            len(rows), -1
        )
        to_qkv.add(of_qkv, normed_1)
        of_x = _through_norm(of_qkv @ w_qkv, rows, mean_1, inverse_1, scale_1, shift_1, norm_1).add_(of_between)
        return of_x.view(gradient.shape), *[None] * (len(parts) + 4)


EPS = 1e-5  # of the norms: nn.LayerNorm's default


def _through_norm(
    gradient: Tensor, x: Tensor, mean: Tensor, inverse: Tensor, scale: Tensor, shift: Tensor, sums: Sums
) -> Tensor:
    """The gradient of what a norm reads, from that of what it gives."""
    of_x, of_scale, of_shift = torch.ops.aten.native_layer_norm_backward(
        gradient, x, scale.shape, mean, inverse, scale, shift, [True, sums.wanted, sums.wanted]
    )
    if sums.wanted:
        sums.add_scale(of_scale, of_shift)
    return of_x


def _add_product(sums: Tensor, a: Tensor, b: Tensor) -> None:
    """sums (M, K, D) += a (M, K, L) b (M, L, D), for part of a larger tensor, which `baddbmm_` would do one by one."""
    if a.shape[2] == 1:
        sums.addcmul_(a, b)
    else:
        sums += a @ b
