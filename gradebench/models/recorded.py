"""Rollouts of the built-in transformer that keep all activations, for `gradebench.models.replayed` to differentiate.

Sampling a text computes everything that the autograd graph of its log-probabilities would hold, so it is stored.

Axis letters: n draws, B contexts, N = n B sequences, P prompt positions, T new tokens, M = T - 1 of them read again,
L = P + M positions, V tokens, D width, h heads, d = D / h. Rows are positions times sequences, position by position:
R = P B + M N of them, the prompt's first, which all draws share. So row i belongs to context i % B.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradebench.models import kernels
from gradebench.models.transformer import Block, ScratchPolicy, hidden_by

EPS = 1e-5  # of the norms: nn.LayerNorm's default


@dataclass(frozen=True)
class Sizes:
    """The sizes of a rollout, and the rows of each position."""

    draws: int  # n
    contexts: int  # B
    prompt: int  # P
    steps: int  # M
    keeps: bool

    @property
    def sequences(self) -> int:
        return self.draws * self.contexts

    @property
    def prompt_rows(self) -> int:
        return self.prompt * self.contexts

    @property
    def rows(self) -> int:
        read = self.prompt_rows, self.steps * self.sequences
        return sum(read) if self.keeps else max(self.prompt_rows, self.sequences)

    def step(self, number: int) -> slice:
        """The rows of the token with this number, from 0, that was sampled and read."""
        start = self.prompt_rows + number * self.sequences if self.keeps else 0
        return slice(start, start + self.sequences)


class Recording:
    """A rollout by `policy` from prompts (B, P), of which the first `pads` (B,) positions are padding.

    `start` reads the prompts, `read` one more token of every sequence; both return the logits (N, V) of the next token.
    Without `keeps`, only keys and values are stored, and the rollout can't be differentiated.
    """

    def __init__(
        self, policy: ScratchPolicy, prompts: Tensor, n: int, horizon: int, keeps: bool, pads: Tensor | None = None
    ):
        self.prompts, self.pads = prompts, pads
        size = self.size = Sizes(n, prompts.shape[0], prompts.shape[1], horizon - 1, keeps)
        self.table, self.position = policy.token.detach(), policy.position.detach()
        self.norm = policy.norm.weight.detach(), policy.norm.bias.detach()
        hidden = None if pads is None else hidden_by(pads, size.prompt + size.steps, self.table.dtype)
        self.layers = [Layer(block, size, hidden) for block in policy.blocks]  # type: ignore[arg-type]
        new_empty, kept = self.table.new_empty, horizon if keeps else 1
        self.out = new_empty(size.rows, policy.feature_size)  # of the last layer
        self.features = new_empty(size.sequences, kept, policy.feature_size)
        self.logits = new_empty(size.sequences, kept, len(self.table))
        self.at = self.places()
        self.done = 0  # number of tokens whose logits are computed

    def start(self) -> Tensor:
        """Logits (N, V) after the prompts."""
        rows = slice(0, self.size.prompt_rows)
        read = functional.embedding(self.prompts.T.flatten(), self.table)
        torch.add(read, self.position[self.at[rows]], out=self.layers[0].x[rows])
        self._up(rows, Layer.read_prompts)
        return self._ahead(self.out[rows][-self.size.contexts :])

    def read(self, embeddings: Tensor) -> Tensor:
        """Logits (N, V) after one more token, given its embedding (N, 1, D) without the position."""
        size, number = self.size, self.done - 1
        position = self.position[size.prompt + number]
        if self.pads is not None:
            start = size.prompt_rows + number * size.sequences
            position = self.position[self.at[start : start + size.sequences]]
        rows = size.step(number)
        torch.add(embeddings.squeeze(1), position, out=self.layers[0].x[rows])
        self._up(rows, lambda layer, at: layer.read_step(at, size.prompt + number))
        return self._ahead(self.out[rows])

    def follow(self, rows: Tensor) -> None:
        """Continue each sequence from the one that `rows` (N,) names. After that the rollout can't be differentiated."""
        for layer in self.layers:
            layer.hold(layer.room[:, rows])

    def _up(self, rows: slice, read: "Callable[[Layer, slice], Tensor]") -> None:
        for layer, above in zip(self.layers, [*(layer.x for layer in self.layers[1:]), self.out], strict=True):
            layer.finish(rows, read(layer, rows), above)

    def _ahead(self, last: Tensor) -> Tensor:
        """Logits (N, V) from the last layer's output at the newest position: (N, D), or (B, D) if all draws share it."""
        place = self.done if self.size.keeps else 0
        self.done += 1
        features = kernels.layer_norm(last, *self.norm, EPS)[0]
        self.features[:, place].view(-1, *features.shape)[:] = features
        if len(features) == self.size.sequences:
            return torch.mm(features, self.table.T, out=self.logits[:, place])
        self.logits[:, place].view(-1, len(features), len(self.table))[:] = features @ self.table.T
        return self.logits[:, place]

    def places(self) -> Tensor:
        """The index of the learned position embedding of each row, (R,)."""
        size = self.size
        place = torch.arange(size.prompt + size.steps, device=self.prompts.device)[:, None].expand(-1, size.contexts)
        if self.pads is not None:
            place = (place - self.pads).clamp_min(0)
        return torch.cat([place[: size.prompt].flatten(), place[size.prompt :].repeat(1, size.draws).flatten()])


def parameters_of(block: Block) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of a `Block`, detached, in the order of its parameters."""
    widen, _, narrow = block.feed_forward
    attention = (block.attention_norm, block.query_key_value, block.attention_out)
    parts: tuple[Any, ...] = (*attention, block.feed_forward_norm, widen, narrow)
    return [(part.weight.detach(), part.bias.detach()) for part in parts]


class Layer:
    """The inputs and activations of one `Block` in a recording."""

    def __init__(self, block: Block, size: Sizes, hidden: Tensor | None):
        self.norm_1, self.qkv, self.mix, self.norm_2, self.widen, self.narrow = parameters_of(block)
        self.size, self.heads = size, block.heads
        new_empty, width = self.qkv[0].new_empty, len(self.norm_1[0])
        self.scale = (width // self.heads) ** -0.5
        length = size.prompt + size.steps
        self.hold(new_empty(3, size.sequences, self.heads, length, width // self.heads))
        self.x, self.mixed, self.between = (new_empty(size.rows, width) for _ in range(3))
        self.hidden, self.active = (new_empty(size.rows, 4 * width) for _ in range(2))
        self.prompt_weights = new_empty(0)  # (B, h, P, P): the attention of the prompts, and (N h, M, L) of the rest
        self.weights = self.x.new_zeros(size.sequences * self.heads, size.steps if size.keeps else 0, length)
        self.unscored = new_empty(())  # in place of a mask, with weight 0
        self.masks = None if hidden is None else hidden.repeat(size.draws, 1).repeat_interleave(self.heads, 0)[:, None]
        self.prompt_mask = hidden

    def hold(self, room: Tensor) -> None:
        """Use this storage for queries, keys and values (3, N, h, L, d)."""
        self.room = room
        self.rooms = room.flatten(1, 2).unbind()  # (N h, L, d)

    def read_prompts(self, rows: slice) -> Tensor:
        """The attention output (P B, D) of the prompts."""
        contexts, length = self.size.contexts, self.size.prompt
        q, k, v = self._in(rows).view(length, contexts, 3, self.heads, -1).permute(2, 1, 3, 0, 4)  # (B, h, P, d)
        for room, part in zip(self.room, (q, k, v), strict=True):
            room.view(-1, contexts, *room.shape[1:])[..., :length, :] = part
        ahead = self.x.new_full((length, length), float("-inf")).triu_(1)
        hidden = ahead if self.prompt_mask is None else ahead + self.prompt_mask[:, None, None, :length]
        self.prompt_weights = ((q @ k.transpose(-1, -2)) * self.scale + hidden).softmax(-1)
        return (self.prompt_weights @ v).permute(2, 0, 1, 3).reshape(self.size.prompt_rows, -1)

    def read_step(self, rows: slice, place: int) -> Tensor:
        """The attention output (N, D) of the next token, at position `place`."""
        sequences = self.size.sequences
        self.room[:, :, :, place] = self._in(rows).view(sequences, 3, self.heads, -1).transpose(0, 1)
        q, k, v = self.rooms
        keys = k[:, : place + 1].transpose(1, 2)
        now = q[:, place : place + 1]
        if self.masks is None:
            scores = torch.baddbmm(self.unscored, now, keys, beta=0, alpha=self.scale)
        else:
            scores = torch.baddbmm(self.masks[:, :, : place + 1], now, keys, alpha=self.scale)
        weights = scores.softmax(-1)
        if self.size.keeps:
            number = place - self.size.prompt
            self.weights[:, number : number + 1, : place + 1] = weights
        return torch.bmm(weights, v[:, : place + 1]).view(sequences, -1)

    def finish(self, rows: slice, mixed: Tensor, above: Tensor) -> None:
        """Compute the rest of the block from the attention output, and write the result into the rows of `above`."""
        self.mixed[rows] = mixed
        between = torch.addmm(self.mix[1], mixed, self.mix[0].T, out=self.between[rows]).add_(self.x[rows])
        normed = kernels.layer_norm(between, *self.norm_2, EPS)[0]
        hidden = torch.addmm(self.widen[1], normed, self.widen[0].T, out=self.hidden[rows])
        active = kernels.gelu(hidden, self.active[rows])
        torch.addmm(self.narrow[1], active, self.narrow[0].T, out=above[rows]).add_(between)

    def _in(self, rows: slice) -> Tensor:
        x = self.x[rows]
        normed = kernels.layer_norm(x, *self.norm_1, EPS)[0]
        return torch.addmm(self.qkv[1], normed, self.qkv[0].T)
