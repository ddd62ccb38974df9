"""Gradients of recorded rollouts, from the stored activations instead of an autograd graph.

The backward pass is written by hand: for hard tokens over all positions at once, for relaxed tokens, each of which depends
on those before, backwards in time. Results equal those of autograd up to rounding. Axis letters are those of
`gradebench.models.recorded`; `of_x` is the gradient with respect to x.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradebench.models import kernels
from gradebench.models.recorded import EPS, Layer, Recording

TOGETHER = 8  # number of tokens whose gradients with respect to earlier keys and values are computed in one product


class Derivative:
    """The gradients of the policy's parameters, from those of a recording's logits and features.

    Either all rows at once, or one position after another, beginning with the last. `params` are the policy's, in its
    order, or copies of them (copies, ...); context i belongs to copy i % copies.
    """

    def __init__(self, recording: Recording, params: Sequence[Tensor]):
        self.whole, self.params = recording, params
        self.sums = Sums(params[0].numel() // recording.table.numel())
        self.norm = Norm(recording.out, *recording.norm)
        self.of_normed = torch.zeros_like(recording.out)
        self.layers: list[LayerDerivative] = []
        self.of_layers: list[list[Tensor]] = []
        self.of_embedded = torch.empty_like(recording.out)

    def at_once(self, of_features: Tensor) -> None:
        """The backward pass over all rows, given the gradient (N, T, D) of the features."""
        size = self.whole.size
        self._of_first(of_features[:, 0])
        later = of_features[:, 1:].transpose(0, 1)
        self.of_normed[size.prompt_rows :].view(later.shape).copy_(later)
        rows = slice(0, size.rows)
        of_x = self.norm.back(self.of_normed, rows)
        for recorded in reversed(self.whole.layers):  # one after the other, so that only one is in memory
            layer = LayerDerivative(recorded, of_x)
            of_x = torch.empty_like(of_x)
            layer.through(rows, LayerDerivative.through_attention_at_once, of_x)
            self.of_layers.insert(0, layer.gradients(self.sums))
        self.of_embedded = of_x

    def step(self, number: int, of_features: Tensor) -> Tensor:
        """The backward pass at one token, after all later ones: from the gradient (N, D) of its features to that of its embedding."""
        rows = self.whole.size.step(number)
        self.of_normed[rows] = of_features
        self._down(rows, lambda layer: layer.through_attention_at(number, rows))
        return self.of_embedded[rows]

    def prompts(self, of_features: Tensor) -> None:
        """The backward pass over the prompts, after all tokens: from the gradient (N, D) of the features at their last position."""
        self._of_first(of_features)
        self._down(slice(0, self.whole.size.prompt_rows), LayerDerivative.through_prompts)
        self.of_layers = [layer.gradients(self.sums) for layer in self.layers]

    def gradients(self, of_logits: Tensor, tokens: Tensor) -> list[Tensor]:
        """The gradients of all parameters, after the backward pass over all rows.

        of_logits (N, T, V); tokens: the ids (N, M) of the tokens that were read, or relaxed tokens (N, M, V).
        """
        whole, sums = self.whole, self.sums
        of_table = sums.product(sums.by_position(of_logits), sums.by_position(whole.features))
        ids, read = whole.prompts.T.flatten(), self.of_embedded[: whole.size.prompt_rows]
        if tokens.is_floating_point():
            of_steps = self.of_embedded[whole.size.prompt_rows :]
            of_table += sums.product(tokens.transpose(0, 1).flatten(0, 1).to(of_steps.dtype), of_steps)
        else:
            ids, read = torch.cat([ids, tokens.T.flatten()]), self.of_embedded
        of_table += sums.looked_up(read, ids, len(whole.table))
        of_position = sums.looked_up(self.of_embedded, whole.at, len(whole.position))
        found = [of_table, of_position, *(x for layer in self.of_layers for x in layer)]
        found += self.norm.gradients(self.of_normed, sums)
        return [gradient.view(p.shape) for gradient, p in zip(found, self.params, strict=True)]

    def _of_first(self, of_features: Tensor) -> None:
        """The gradient (N, D) of the first features is that of the prompts' last position, summed over draws."""
        size = self.whole.size
        last = slice(size.prompt_rows - size.contexts, size.prompt_rows)
        self.of_normed[last] = of_features.view(size.draws, size.contexts, -1).sum(0)

    def _down(self, rows: slice, attend: "Callable[[LayerDerivative], None]") -> None:
        if not self.layers:
            self.layers = [LayerDerivative(layer, torch.empty_like(self.whole.out)) for layer in self.whole.layers]
        below = [self.of_embedded, *(layer.of_y for layer in self.layers)]
        below[-1][rows] = self.norm.back(self.of_normed[rows], rows)
        for layer, of_x in zip(reversed(self.layers), reversed(below[:-1]), strict=True):
            layer.through(rows, attend, of_x)


class LayerDerivative:
    """The gradients of the activations of one `Layer`."""

    def __init__(self, layer: Layer, of_y: Tensor):
        self.layer, size, self.of_y = layer, layer.size, of_y
        self.norm_1, self.norm_2 = Norm(layer.x, *layer.norm_1), Norm(layer.between, *layer.norm_2)
        self.of_between, self.of_normed_1, self.of_normed_2 = (torch.empty_like(layer.x) for _ in range(3))
        self.of_hidden = torch.empty_like(layer.hidden)
        self.of_mixed = torch.empty_like(layer.x[: size.sequences])  # of the present rows
        self.of_qkv = layer.x.new_empty(size.rows, 3 * layer.x.shape[1])
        self.of_scores = torch.zeros_like(layer.weights)
        self.of_k, self.of_v = (torch.zeros_like(x) for x in layer.rooms[1:])  # (N h, L, d), from the tokens so far
        self.of_mixes = torch.empty_like(layer.rooms[0][:, : size.steps])  # (N h, M, d)

    def through(self, rows: slice, attend: "Callable[[LayerDerivative], None]", of_x: Tensor) -> None:
        """The backward pass of the block for these rows: from the gradient `of_y` of its output to that of its input, `of_x`."""
        layer, of_y = self.layer, self.of_y[rows]
        of_hidden = self.of_hidden[rows]
        kernels.gelu_backward(of_y @ layer.narrow[0], layer.hidden[rows], of_hidden)
        of_normed = torch.mm(of_hidden, layer.widen[0], out=self.of_normed_2[rows])
        of_between = torch.add(self.norm_2.back(of_normed, rows), of_y, out=self.of_between[rows])
        self.of_mixed = of_between @ layer.mix[0]
        attend(self)
        of_normed = torch.mm(self.of_qkv[rows], layer.qkv[0], out=self.of_normed_1[rows])
        torch.add(self.norm_1.back(of_normed, rows), of_between, out=of_x[rows])

    def through_attention_at(self, number: int, rows: slice) -> None:
        """The backward pass of attention at one token, whose key and value were used by itself and by all later tokens.

        The gradients with respect to earlier tokens' keys and values are accumulated for TOGETHER tokens at a time.
        """
        layer, size = self.layer, self.layer.size
        q, k, v = layer.rooms
        place, now = size.prompt + number, slice(number, number + 1)
        of_mix = self.of_mixed.view(len(q), 1, -1)
        self.of_mixes[:, now] = of_mix
        of_weights = torch.bmm(of_mix, v[:, : place + 1].transpose(1, 2))
        weights = layer.weights[:, now, : place + 1]
        of_scores = kernels.softmax_backward(of_weights, weights)
        self.of_scores[:, now, : place + 1] = of_scores
        of_q = torch.baddbmm(layer.unscored, of_scores, k[:, : place + 1], beta=0, alpha=layer.scale)
        end = min(number // TOGETHER * TOGETHER + TOGETHER, size.steps)
        late, seen = slice(number, end), slice(place, place + 1)
        scores, weights = (x[:, late].transpose(1, 2) for x in (self.of_scores, layer.weights))
        late_q, of_late = q[:, place : size.prompt + end], self.of_mixes[:, late]
        of_k = torch.baddbmm(self.of_k[:, seen], scores[:, seen], late_q, alpha=layer.scale)
        of_v = torch.baddbmm(self.of_v[:, seen], weights[:, seen], of_late)
        if number % TOGETHER == 0:
            self.of_k[:, :place] += torch.bmm(scores[:, :place], late_q).mul_(layer.scale)
            self.of_v[:, :place] += torch.bmm(weights[:, :place], of_late)
        parts = [part.view(-1, layer.heads, part.shape[2]) for part in (of_q, of_k, of_v)]
        torch.stack(parts, 1, out=self.of_qkv[rows].view(len(parts[0]), 3, *parts[0].shape[1:]))

    def through_attention_at_once(self) -> None:
        """The backward pass of attention for all rows."""
        layer, size = self.layer, self.layer.size
        q, k, v = layer.rooms
        later = self.of_mixed[size.prompt_rows :].view(size.steps, *q.shape[::2])
        self.of_mixes.copy_(later.transpose(0, 1))
        of_weights = torch.bmm(self.of_mixes, v.transpose(1, 2))
        of_scores = kernels.softmax_backward(of_weights, layer.weights)
        of_q = torch.bmm(of_scores, k).mul_(layer.scale)
        self.of_k = torch.bmm(of_scores.transpose(1, 2), q[:, size.prompt :]).mul_(layer.scale)
        self.of_v = torch.bmm(layer.weights.transpose(1, 2), self.of_mixes)
        answer = self.of_qkv[size.prompt_rows :].view(size.steps, size.sequences, 3, layer.heads, q.shape[2])
        for number, part in enumerate((of_q, self.of_k[:, size.prompt :], self.of_v[:, size.prompt :])):
            answer[:, :, number] = part.unflatten(0, (size.sequences, layer.heads)).permute(2, 0, 1, 3)
        self.through_prompts()

    def through_prompts(self) -> None:
        """The backward pass of attention for the prompts, after all tokens."""
        layer, size = self.layer, self.layer.size
        contexts, length = size.contexts, size.prompt
        by_later = (
            x[:, :length].unflatten(0, (size.draws, contexts, layer.heads)).sum(0) for x in (self.of_k, self.of_v)
        )
        q, k, v = layer.room[:, :contexts, :, :length]  # (B, h, P, d)
        of_mix = self.of_mixed[: size.prompt_rows].view(length, contexts, layer.heads, -1).permute(1, 2, 0, 3)
        weights, of_weights = layer.prompt_weights, of_mix @ v.transpose(-1, -2)
        of_scores = kernels.softmax_backward(of_weights, weights)
        of_q = (of_scores @ k) * layer.scale
        own = (of_scores.transpose(-1, -2) @ q) * layer.scale, weights.transpose(-1, -2) @ of_mix
        answer = self.of_qkv[: size.prompt_rows].view(length, contexts, 3, layer.heads, -1)
        for number, part in enumerate((of_q, *(a + b for a, b in zip(own, by_later, strict=True)))):
            answer[:, :, number] = part.permute(2, 0, 1, 3)

    def gradients(self, sums: "Sums") -> list[Tensor]:
        """The gradients of the block's parameters, in their order."""
        layer = self.layer
        found = self.norm_1.gradients(self.of_normed_1, sums)
        found += sums.affine(self.of_qkv, self.norm_1.normed)
        found += sums.affine(self.of_between, layer.mixed)
        found += self.norm_2.gradients(self.of_normed_2, sums)
        found += sums.affine(self.of_hidden, self.norm_2.normed)
        return found + sums.affine(self.of_y, layer.active)


class Norm:
    """A layer norm of rows (R, D), recomputed for its backward pass."""

    def __init__(self, x: Tensor, scale: Tensor, shift: Tensor):
        self.x, self.scale, self.shift = x, scale, shift
        self.normed, self.mean, self.inverse = kernels.layer_norm(x, scale, shift, EPS)

    def back(self, of_normed: Tensor, rows: slice) -> Tensor:
        """The gradient of its input rows, from that of its output rows."""
        return self._back(of_normed, rows, [True, False, False])[0]

    def gradients(self, of_normed: Tensor, sums: "Sums") -> list[Tensor]:
        """The gradients of scale and shift."""
        if sums.copies == 1:
            return [found[None] for found in self._back(of_normed, slice(None), [False, True, True])[1:]]
        standard = (self.x - self.mean).mul_(self.inverse)
        return [sums.over(standard.mul_(of_normed)), sums.over(of_normed)]

    def _back(self, of_normed: Tensor, rows: slice, wanted: list[bool]) -> Sequence[Tensor]:
        inputs = (self.x[rows], self.mean[rows], self.inverse[rows], self.scale, self.shift)
        return kernels.layer_norm_backward(of_normed, *inputs, wanted)


class Sums:
    """Sums over rows (R, ...), separately for each copy of the parameters; row i belongs to copy i % copies."""

    def __init__(self, copies: int):
        self.copies = copies

    def over(self, rows: Tensor) -> Tensor:
        """The sum over rows, (copies, ...)."""
        return rows.view(-1, self.copies, *rows.shape[1:]).sum(0)

    def product(self, outputs: Tensor, inputs: Tensor) -> Tensor:
        """outputs^T inputs: (copies, O, I) from (R, O) and (R, I)."""
        if self.copies == 1:
            return (outputs.T @ inputs)[None]
        outputs, inputs = (x.view(-1, self.copies, x.shape[1]).transpose(0, 1) for x in (outputs, inputs))
        return torch.bmm(outputs.transpose(1, 2), inputs)

    def affine(self, outputs: Tensor, inputs: Tensor) -> list[Tensor]:
        """The gradients of weight and bias of a linear layer."""
        return [self.product(outputs, inputs), self.over(outputs)]

    def looked_up(self, rows: Tensor, ids: Tensor, size: int) -> Tensor:
        """The gradient of an embedding table (copies, size, D), of which the rows `ids` (R,) were looked up."""
        found = rows.new_zeros(self.copies * size, rows.shape[1])
        turn = torch.arange(len(ids), device=ids.device) % self.copies
        return found.index_add_(0, turn * size + ids, rows).view(self.copies, size, -1)

    def by_position(self, x: Tensor) -> Tensor:
        """Rows (T N, ...) of (N, T, ...), in an order in which row i belongs to copy i % copies."""
        return x.flatten(0, 1) if self.copies == 1 else x.transpose(0, 1).flatten(0, 1)


# --- nodes of a graph ---------------------------------------------------------------------------------------------
# They must not hold tensors of their own graph: such a reference cycle is never freed.


class Replayed(torch.autograd.Function):
    """Logits (n, B, T, V) and features (n, B, T, D) of a recording of hard tokens, `ids` (N, M).

    `again` recomputes them with an autograd graph, for second derivatives.
    """

    @staticmethod
    def forward(
        ctx: Any, recording: Recording, ids: Tensor, again: Callable[[], Sequence[Tensor]], *params: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*params)
        ctx.given = recording, ids, again
        return _by_draw(recording, recording.logits), _by_draw(recording, recording.features)

    @staticmethod
    def backward(ctx: Any, of_logits: Tensor | None, of_features: Tensor | None) -> tuple[Tensor | None, ...]:
        recording, ids, again = ctx.given
        params = ctx.saved_tensors
        if torch.is_grad_enabled():
            pairs = [(x, of_x) for x, of_x in zip(again(), (of_logits, of_features), strict=True) if of_x is not None]
            values, weights = zip(*pairs, strict=True)
            trained = [p for p in params if p.requires_grad]
            found = iter(torch.autograd.grad(values, trained, weights, create_graph=True, allow_unused=True))
            return *[None] * 3, *(next(found) if p.requires_grad else None for p in params)
        derivative = Derivative(recording, params)
        of_logits = torch.zeros_like(recording.logits) if of_logits is None else of_logits.reshape_as(recording.logits)
        flat = of_logits @ recording.table
        derivative.at_once(flat if of_features is None else flat + of_features.reshape_as(flat))
        return *[None] * 3, *derivative.gradients(of_logits, ids)


@dataclass
class Step:
    """One token of a relaxed rollout, with its own graph: a function of `raw` logits and perhaps of the token before."""

    raw: Tensor  # (N, V), a leaf
    before: Tensor | None  # (n, B, V), a leaf
    logits: Tensor  # (n, B, V), with those after an end replaced
    token: Tensor  # (n, B, V)

    def back(self, of_logits: Tensor | None, of_token: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradients of `raw` and `before`."""
        pairs = [(self.logits, of_logits), (self.token, of_token)]
        pairs = [(x, of_x) for x, of_x in pairs if of_x is not None and x.requires_grad]
        inputs = [x for x in (self.raw, self.before) if x is not None and x.requires_grad]
        if not pairs:
            return torch.zeros_like(self.raw), None
        values, weights = zip(*pairs, strict=True)
        found = torch.autograd.grad(values, inputs, weights, allow_unused=True)
        return torch.zeros_like(self.raw) if found[0] is None else found[0], None if len(found) == 1 else found[1]


class Relaxed(torch.autograd.Function):
    """Tokens, logits and features (n, B, T, ...) of a recording of relaxed tokens, each of which depends on those before.

    `ids` (N, M) if the tokens have the values of one-hots, else None.
    """

    @staticmethod
    def forward(
        ctx: Any, recording: Recording, steps: list[Step], ids: Tensor | None, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*params)
        ctx.given = recording, steps, ids
        tokens, logits = (torch.stack(parts, 2) for parts in zip(*((x.token, x.logits) for x in steps), strict=True))
        return tokens, logits, _by_draw(recording, recording.features)

    @staticmethod
    def backward(
        ctx: Any, of_tokens: Tensor | None, of_logits: Tensor | None, of_features: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError("a recorded rollout can't be differentiated twice")
        recording, steps, ids = ctx.given
        derivative = Derivative(recording, ctx.saved_tensors)
        of_raw = torch.empty_like(recording.logits)
        of_next: Tensor | None = None  # of the token that the step before returned
        for t in reversed(range(len(steps))):
            of_token = torch.zeros_like(steps[t].token) if of_tokens is None else of_tokens[:, :, t]
            of_token = of_token if of_next is None else of_token + of_next.view_as(of_token)
            found, of_next = steps[t].back(None if of_logits is None else of_logits[:, :, t], of_token)
            of_raw[:, t] = found
            of_feature = of_raw[:, t] @ recording.table
            if of_features is not None:
                of_feature += of_features[:, :, t].flatten(0, 1)
            if t:
                of_read = derivative.step(t - 1, of_feature) @ recording.table.T
                of_next = of_read if of_next is None else of_next.flatten(0, 1) + of_read
            else:
                derivative.prompts(of_feature)
        read = ids if ids is not None else torch.stack([x.token.detach() for x in steps], 2)[:, :, :-1].flatten(0, 1)
        return *[None] * 3, *derivative.gradients(of_raw, read)


def _by_draw(recording: Recording, x: Tensor) -> Tensor:
    """(N, T, ...) reshaped to (n, B, T, ...)."""
    return x.view(recording.size.draws, -1, *x.shape[1:])
