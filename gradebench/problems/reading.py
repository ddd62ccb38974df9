"""Prompts and the tokens that follow them, as causal language models read them: in one pass, or from a cache."""

import copy
import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradebench.core.mixture import Mixture
from gradebench.core.problem import Ledger, Problem
from gradebench.models.end_of_text import Ends, ended_logits, filler, is_end, up_to_end
from gradebench.models.recorded import Recording
from gradebench.models.replayed import Replayed
from gradebench.models.replicas import Replicas
from gradebench.models.transformer import ScratchPolicy
from gradebench.problems.passes import Pass, PassCache, Passed

WORTH_A_PASS = 100  # prompt tokens that reading prompts once for all samples must save to be worth a pass of its own


class Policy(Protocol):
    """A causal language model: `embed` embeds ids or relaxed one-hots, and a call continues from a cache.

    A call returns logits, features and the longer cache; logits and features of the `last` positions only, if given. The
    cache that was passed in must not be used again. `reordered` returns the cache of the rows (M,) of the batch. A policy
    for padded prompts also takes `pads` (N,), the number of padding positions at the beginning of each text.
    """

    feature_size: int

    def embed(self, tokens: Tensor) -> Tensor: ...
    def __call__(
        self, embeddings: Tensor, cache: Any = None, last: int | None = None
    ) -> tuple[Tensor, Tensor, Any]: ...
    def reordered(self, cache: Any, rows: Tensor) -> Any: ...
    def parameters(self) -> Any: ...
    def named_parameters(self) -> Any: ...


class Reward(Protocol):
    """The reward (N,) of embedded texts (N, L, D); `differentiable` says whether in the tokens.

    A reward for texts that end also takes `keep` (N, L) in [0, 1]: the weight of each position, 1 before the end and 0
    from there on. One that is continuous in `keep` has `weighs = True`; others get relaxed texts at full length, which
    are filled up with the end token.
    """

    differentiable: bool

    def embed(self, tokens: Tensor) -> Tensor: ...
    def __call__(self, embeddings: Tensor) -> Tensor: ...


class TextProblem(Problem):
    """The distribution p_theta(z|x) of a policy's texts z (n, B, T) on prompts x, and how models read them.

    prompts (B, P) int64; T = `horizon` new tokens. With `rows_at_once`, parallel passes keep the activations of only that
    many sequences and recompute the others in the backward pass. `pads` and `end`: see SequenceProblem.
    """

    def __init__(
        self,
        policy: Policy,
        prompts: Tensor,
        horizon: int,
        vocabulary: int,
        ledger: Ledger | None = None,
        rows_at_once: int | None = None,
        end: Ends | None = None,
        pads: Tensor | None = None,
    ):
        super().__init__([p for p in policy.parameters() if p.requires_grad], ledger)
        self.policy, self.prompts, self.horizon, self.categories = policy, prompts, horizon, vocabulary
        self.rows_at_once, self.end, self.pads = rows_at_once, end, pads
        self.contexts = len(prompts)
        self.feature_size = policy.feature_size
        self.passes = PassCache()
        self.one_hots: tuple[Tensor | Mixture | None, Tensor] = (
            None,
            torch.empty(0),
        )  # of the last rollout, and their ids

    @property
    def mapped(self) -> bool:
        return isinstance(self.policy, Replicas) and self.policy.mapped

    @property
    def parameter_names(self) -> list[str]:
        return [name for name, p in self.policy.named_parameters() if p.requires_grad]

    def transformer(self) -> ScratchPolicy | None:
        """The policy if it is the built-in transformer, whose rollouts can be recorded, else None."""
        policy: Any = self.policy
        if isinstance(policy, Replicas):
            same = policy.alike and len(policy.trained) == len(list(policy.module.parameters()))
            policy = policy.module if same else None
        able = type(policy) is ScratchPolicy and not torch.is_autocast_enabled(self.prompts.device.type)
        return policy if able else None

    def logits(self, z: Tensor) -> Tensor:
        return self.pass_over(z).passed()[0]

    def log_prob(self, z: Tensor) -> Tensor:
        found = self.pass_over(z).log_p().gather(-1, z.unsqueeze(-1)).squeeze(-1)
        self.ledger.saw("log_prob", found, len(z) * self.contexts)
        return found

    def features(self, z: Tensor) -> Tensor:
        return self.pass_over(z).passed()[1].detach()

    def alive(self, z: Tensor) -> Tensor:
        return super().alive(z) if self.end is None else up_to_end(z, self.end)

    def texts(self, z: Tensor) -> list[list[int]]:
        """The ids of each prompt and its continuation z (B, T), without padding, up to but without the end token."""
        pads = [0] * self.contexts if self.pads is None else self.pads.tolist()
        goes_on = self.alive(z) if self.end is None else self.alive(z) & ~is_end(z, self.end)
        parts = zip(self.prompts.tolist(), pads, z.tolist(), goes_on.sum(-1).tolist(), strict=True)
        return [prompt[pad:] + row[:count] for prompt, pad, row, count in parts]

    def support(self) -> Tensor:
        if "support" not in self.offers:
            return super().support()
        device = self.prompts.device
        values = torch.arange(self.categories, device=device)
        every = torch.cartesian_prod(*[values] * self.horizon).view(-1, self.horizon)
        if self.end is None:
            return every
        return every[(self.alive(every) | (every == filler(self.end))).all(-1)]  # of those with one beginning, only one

    def ids_of(self, tokens: Tensor | Mixture) -> Tensor | None:
        """The ids of hard tokens, or of the last rollout's one-hots; None for relaxed tokens."""
        if isinstance(tokens, Tensor) and not tokens.is_floating_point():
            return tokens
        return self.one_hots[1] if tokens is self.one_hots[0] else None

    def masked(self, logits: Tensor, tokens: Tensor | Mixture) -> Tensor:
        """The logits (n, B, T, V) along hard tokens, with those after an end replaced."""
        ids = self.ids_of(tokens)
        if self.end is None or ids is None:
            return logits
        return ended_logits(logits, ~up_to_end(ids, self.end), self.end)

    def repeated_prompts(self, n: int) -> Tensor:
        return self.prompts.repeat(n, 1)

    def padding(self, n: int) -> dict[str, Any]:
        """The policy's keyword arguments for the padding of the prompts of n draws."""
        return {} if self.pads is None else {"pads": self.pads.repeat(n)}

    def forward(self, policy: Policy, tokens: Tensor | Mixture) -> tuple[Tensor, Tensor]:
        """One parallel pass: the logits (n, B, T, V) of each position, and the features (n, B, T, D) that they come from."""
        self.ledger.forward_passes += 1
        n = len(tokens)
        past = self.embedded(policy, tokens, self.horizon - 1)
        pads = self.padding(n)
        saved = (n - 1) * self.contexts * (self.prompts.shape[1] - 1)
        if saved >= WORTH_A_PASS and self.rows_at_once is None:
            *_, cache = self.read_prompts(policy, n, self.prompts[:, :-1])
            texts = torch.cat([policy.embed(self.repeated_prompts(n)[:, -1:]), past], 1)
            logits, features, _ = policy(texts, cache, **pads)
        else:
            texts = torch.cat([policy.embed(self.repeated_prompts(n)), past], 1)
            parts = [texts, *pads.values()]
            logits, features = self.in_pieces(lambda part, *pads: policy(part, None, self.horizon, *pads)[:2], *parts)
        shape = (n, self.contexts, self.horizon, -1)
        return self.masked(in_single(logits).reshape(shape), tokens), features.reshape(shape)

    def read_prompts(self, policy: Policy, n: int, prompts: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Logits and features (n B, 1, ...) after prompts (B, L), and their cache; prompts are read once for all n samples."""
        logits, features, cache = policy(policy.embed(prompts), last=1, **self.padding(1))
        if n == 1:
            return logits, features, cache
        rows = torch.arange(self.contexts, device=prompts.device).repeat(n)
        return logits.index_select(0, rows), features.index_select(0, rows), policy.reordered(cache, rows)

    def in_pieces(self, model: Callable[..., tuple[Tensor, ...]], *texts: Tensor) -> tuple[Tensor, ...]:
        """The outputs of a model for the rows of `texts`, computed piece by piece with activation checkpointing."""
        if self.rows_at_once is None or not torch.is_grad_enabled():
            return model(*texts)
        pieces = [
            checkpoint(model, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*(x.split(self.rows_at_once) for x in texts), strict=True)
        ]
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))

    def embedded(self, model: Policy | Reward, tokens: Tensor | Mixture, length: int) -> Tensor:
        """The embeddings (n B, length, D) of the first tokens; for a rollout's one-hots by look-up."""
        if isinstance(tokens, Mixture):
            return tokens[:, :, :length].flatten(0, 1).embedded(self.table_of(model))
        first = tokens[:, :, :length].flatten(0, 1)
        if not length:  # at horizon 1: embedding no tokens can't be differentiated twice
            with torch.no_grad():
                return model.embed(first.new_empty(len(first), 0, dtype=torch.int64))
        if tokens is not self.one_hots[0] or isinstance(model, Replicas):
            return model.embed(first)
        return LookUp.apply(first, self.one_hots[1][:, :, :length].flatten(0, 1), self.table_of(model))

    def table_of(self, model: Policy | Reward) -> Tensor:
        """The embedding of every token, (V, D)."""
        return model.embed(torch.arange(self.categories, device=self.prompts.device)[None])[0]

    def pass_over(self, tokens: Tensor | Mixture) -> Pass:
        """`forward` of the policy, computed once for log_prob, features and the penalty of the same tokens."""
        known = self.passes.over(tokens, self.params)
        if known is not None:
            return known
        recording = self.passes.recording_of(tokens, self.params)
        if recording is None or isinstance(tokens, Mixture):
            passed = self.forward(self.policy, tokens)
        else:
            passed = self._replayed(tokens, recording)
        return self.remember(tokens, lambda: passed)

    def remember(self, tokens: Tensor | Mixture, passed: Passed) -> Pass:
        return self.passes.remember(tokens, self.params, passed)

    def _replayed(self, z: Tensor, recording: Recording) -> tuple[Tensor, Tensor]:
        """`forward` of the policy over sampled tokens, from what was computed when they were sampled."""
        self.ledger.forward_passes += 1
        apart = copy.copy(self)  # so that the graph doesn't refer to this problem
        apart.ledger, apart.passes = Ledger(), PassCache()
        again = functools.partial(apart.forward, self.policy, z)
        logits, features = Replayed.apply(recording, z[:, :, :-1].flatten(0, 1), again, *self.policy.parameters())
        return self.masked(in_single(logits), z), features


class LookUp(torch.autograd.Function):
    """Looks up rows of a table (V, D) by ids (...); backward as for the product of one-hots (..., V) with the table."""

    @staticmethod
    def forward(ctx: Any, one_hots: Tensor, ids: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(ids, table)
        return functional.embedding(ids, table)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        ids, table = ctx.saved_tensors
        of_one_hots = gradient @ table.T if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[2]:
            return of_one_hots, None, None
        rows = gradient.flatten(0, -2).to(table.dtype)
        return of_one_hots, None, torch.zeros_like(table).index_add(0, ids.flatten(), rows)


def in_single(x: Tensor) -> Tensor:
    """In float32 or better: logits, rewards and sums, also of models that compute in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
