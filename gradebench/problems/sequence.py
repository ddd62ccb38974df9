"""The problem of aligning an autoregressive language model, on any policy and reward that read embeddings."""

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from gradebench.core.problem import ENUMERABLE, Choose, Ledger, Problem, Relax, chosen, continued
from gradebench.core.sampling import categorical, straight_through
from gradebench.models.end_of_text import Ends, ended_logits, ending_token, filler, is_end, share_ended, up_to_end
from gradebench.models.recorded import Recording
from gradebench.models.replayed import Relaxed, Replayed, Step
from gradebench.models.replicas import Replicas
from gradebench.models.transformer import ScratchPolicy

WORTH_A_PASS = 100  # tokens of prompts that are read once for several samples, at least: reading them apart is a pass


class Policy(Protocol):
    """A causal language model: `embed` reads ids or relaxed one-hots, the call continues from a cache.

    A call gives logits, features and the grown cache; of the `last` positions only, if that is given. A cache that was
    continued is used up. `reordered` gives the cache of the rows (M,) of the batch that it was grown on. One that is to
    read padded prompts takes `pads` (N,) too: how many of a text's first positions are padding.
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
    """Reward (N,) of embedded texts (N, L, D); `differentiable` in what `embed` reads, or not.

    One for texts that end takes `keep` (N, L) too, in [0, 1]: how much each position counts, 1 up to the end and 0 from
    there on. One that is continuous in `keep` says so by `weighs = True`; others get relaxed texts whole, with the end
    token for what follows.
    """

    differentiable: bool

    def embed(self, tokens: Tensor) -> Tensor: ...
    def __call__(self, embeddings: Tensor) -> Tensor: ...


class Memo(NamedTuple):
    """One parallel pass of the policy over tokens, while they and the parameters stay as they are."""

    tokens: Tensor
    state: tuple[int, ...]
    passed: Callable[[], tuple[Tensor, Tensor]]  # logits (n, B, T, V) and features (n, B, T, D)
    log_p: Callable[[], Tensor]  # the logits normalised


class SequenceProblem(Problem):
    """J = mean over prompts of E [ r(x, z) - beta * sum_t KL(p_theta(.|x, z_<t) || p_ref(.|x, z_<t)) ].

    The penalty is the sum of exact per-position divergences along the sampled prefix. Its expectation is the divergence
    of the sequence distributions, and one definition serves hard and relaxed tokens alike.

    prompts (B, P) int64; T = `horizon` new tokens; `beta` in reward per nat. With `rows_at_once`, parallel passes keep
    the activations of so many sequences at a time and compute the others again when they are differentiated.

    `pads` (B,): how many of a prompt's first positions are padding, which is read by nobody.

    `end`: the token that ends a text, or several, any of which does. Nothing can follow but the first of them, so z
    stays one distribution over (n, B, T) and every estimator's formula holds: log-probability and penalty are 0 from
    there on, and the reward reads the text before the end. Relaxed tokens end gradually: a text that has ended with probability 1 - a continues with
    a relax(logits) + (1 - a) one_hot(end), and its penalty there counts a.
    """

    straight_through: Literal["auto", "plain", "recorded", "parallel"] = "auto"  # how rollouts are differentiated
    residual: float = 1e-4  # of a parallel one: the last term of the feedback that is added, relative to their sum

    def __init__(
        self,
        policy: Policy,
        reward_model: Reward,
        prompts: Tensor,
        horizon: int,
        vocabulary: int,
        reference: Policy | None = None,
        beta: float = 0.0,
        ledger: Ledger | None = None,
        rows_at_once: int | None = None,
        end: Ends | None = None,
        pads: Tensor | None = None,
    ):
        super().__init__([p for p in policy.parameters() if p.requires_grad], ledger)
        if beta and reference is None:
            raise ValueError("a KL penalty needs a reference policy")
        self.policy, self.reward_model, self.reference, self.beta = policy, reward_model, reference, beta
        self.prompts, self.horizon, self.categories = prompts, horizon, vocabulary
        self.rows_at_once, self.end, self.pads = rows_at_once, end, pads
        self.contexts = len(prompts)
        self.feature_size = policy.feature_size
        offers = {"soft_reward"} if reward_model.differentiable else set()
        offers |= set() if beta else {"fixed_reward"}
        offers |= {"support", "exact"} if vocabulary**horizon <= ENUMERABLE else set()
        offers |= {"binary"} if vocabulary == 2 else set()
        self.offers = frozenset(offers)
        # logits of a parallel rollout, embeddings that it read as constants, and those that its tokens give
        self._feedback: tuple[Tensor, Tensor, Tensor] | None = None
        self._one_hots: tuple[Tensor | None, Tensor] = (None, torch.empty(0))  # of the last rollout, and their ids
        self._memo: Memo | None = None
        self._drawn: tuple[Tensor, tuple[int, ...], Recording] | None = None  # tokens that were drawn last

    def select(self, index: Tensor) -> "SequenceProblem":
        if isinstance(self.policy, Replicas):
            raise NotImplementedError("a part of the contexts would deal them out to other copies")
        return SequenceProblem(
            self.policy,
            self.reward_model,
            self.prompts[index],
            self.horizon,
            self.categories,
            self.reference,
            self.beta,
            self.ledger,
            self.rows_at_once,
            self.end,
            None if self.pads is None else self.pads[index],
        )

    def replicated(self, copies: int) -> "SequenceProblem":
        if self.pads is not None:
            raise NotImplementedError("padded prompts aren't read by several copies at once")
        if self.contexts % copies:
            raise ValueError(f"{self.contexts} contexts can't be dealt out evenly to {copies} copies")
        return SequenceProblem(
            Replicas(self.policy, copies),
            self.reward_model,
            self.prompts,
            self.horizon,
            self.categories,
            self.reference,
            self.beta,
            end=self.end,
        )

    @property
    def mapped(self) -> bool:
        return isinstance(self.policy, Replicas) and self.policy.mapped

    @property
    def parameter_names(self) -> list[str]:
        return [name for name, p in self.policy.named_parameters() if p.requires_grad]

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        return self.draw(lambda logits: categorical(logits, rng), n)

    def draw(self, choose: Choose, n: int) -> Tensor:
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        transformer = self._transformer()
        keeps = transformer is not None and torch.is_grad_enabled() and self.rows_at_once is None
        with torch.no_grad():
            if transformer is None:
                reader: Recording | Decoding = Decoding(self, n)
            else:
                reader = Recording(transformer, self.prompts, n, self.horizon, keeps, self.pads)
            z = torch.empty(n, self.contexts, self.horizon, dtype=torch.int64, device=self.prompts.device)
            for t in range(self.horizon):
                logits = reader.read(self.policy.embed(z[:, :, t - 1].reshape(-1, 1))) if t else reader.start()
                here = in_single(logits).view(n, self.contexts, -1)
                if t and self.end is not None:
                    here = ended_logits(here, is_end(z[:, :, t - 1], self.end), self.end)
                z[:, :, t], parents = chosen(choose(here))
                if parents is not None:
                    z[:, :, :t] = continued(z[:, :, :t], parents)
                    reader.follow((parents * self.contexts + torch.arange(self.contexts, device=z.device)).flatten())
                    keeps = False  # activations stay with the rows that they were computed for
        self._memo = None
        self._drawn = (z, self._versions(z), reader) if keeps and isinstance(reader, Recording) else None
        return z

    def _transformer(self) -> ScratchPolicy | None:
        """The policy where it is the transformer made here, and no variant of it: its rollouts can be recorded."""
        policy: Any = self.policy
        if isinstance(policy, Replicas):
            same = policy.alike and len(policy.trained) == len(list(policy.module.parameters()))
            policy = policy.module if same else None
        able = type(policy) is ScratchPolicy and not torch.is_autocast_enabled(self.prompts.device.type)
        return policy if able else None

    def logits(self, z: Tensor) -> Tensor:
        return self._pass(z).passed()[0]

    def log_prob(self, z: Tensor) -> Tensor:
        return self._pass(z).log_p().gather(-1, z.unsqueeze(-1)).squeeze(-1)

    def features(self, z: Tensor) -> Tensor:
        return self._pass(z).passed()[1].detach()

    def rollout(
        self,
        relax: Relax,
        n: int,
        together: bool = False,
        rng: torch.Generator | None = None,
        hard: bool = False,
    ) -> Tensor:
        road = "plain" if rng is None else self._rollout_mode(hard)
        if road == "parallel":
            assert rng is not None
            return self._parallel_rollout(relax, n, rng)
        self.ledger.forward_passes += 1
        self.ledger.tokens_sampled += n * self.contexts * self.horizon
        return (self._recorded_rollout if road == "recorded" else self._plain_rollout)(relax, n, hard)

    def _plain_rollout(self, relax: Relax, n: int, hard: bool) -> Tensor:
        pads = self._padding(n)
        logits, features, cache = self.policy(self.policy.embed(self._prompts(n)), last=1, **pads)
        tokens: list[Tensor] = []
        seen: list[tuple[Tensor, Tensor]] = []
        for t in range(self.horizon):
            if t:
                read = tokens[-1].view(-1, 1, self.categories)
                logits, features, cache = self.policy(self.policy.embed(read), cache, **pads)
            here, token = self._relaxed(relax, logits[:, -1], tokens[-1] if t else None, hard)
            tokens.append(token)
            seen.append((here, features.view(n, self.contexts, -1)))
        y = torch.stack(tokens, 2)
        if hard:
            self._one_hots = (y, y.argmax(-1))
        self._remember(y, lambda: tuple(torch.stack(parts, 2) for parts in zip(*seen, strict=True)))  # type: ignore[arg-type, return-value]
        return y

    def _recorded_rollout(self, relax: Relax, n: int, hard: bool) -> Tensor:
        """One node for the whole graph, and a graph of its own for each token."""
        transformer = self._transformer()
        assert transformer is not None
        ids: list[Tensor] = []  # of one-hots
        steps: list[Step] = []
        with torch.no_grad():
            recording = Recording(transformer, self.prompts, n, self.horizon, True, self.pads)
            for t in range(self.horizon):
                before = steps[-1].token.detach() if t else None
                if before is None:
                    raw = recording.start()
                else:
                    raw = recording.read(self.policy.embed((ids[-1] if hard else before).flatten(0, 1).unsqueeze(1)))
                with torch.enable_grad():
                    leaf = raw.detach().requires_grad_()
                    if before is not None and self.end is not None and not hard:
                        before.requires_grad_()  # how much of the text has ended
                    steps.append(Step(leaf, before, *self._relaxed(relax, leaf, before, hard)))
                if hard:
                    ids.append(steps[-1].token.argmax(-1))
        z = torch.stack(ids, 2) if hard else None  # (n, B, T)
        read = None if z is None else z[:, :, :-1].flatten(0, 1)
        y, logits, features = Relaxed.apply(recording, steps, read, *self.policy.parameters())
        if z is not None:
            self._one_hots = (y, z)
        self._remember(y, lambda: (logits, features))
        return y

    def _relaxed(self, relax: Relax, raw: Tensor, before: Tensor | None, hard: bool) -> tuple[Tensor, Tensor]:
        """Logits and the next token (n, B, V), from logits (n B, V) and the token before it."""
        here = in_single(raw).view(-1, self.contexts, self.categories)
        if self.end is None or before is None:
            return here, relax(here)
        if hard:
            here = ended_logits(here, is_end(before.argmax(-1), self.end), self.end)
            return here, relax(here)
        return here, ending_token(relax(here), share_ended(before, self.end), self.end)

    def _rollout_mode(self, hard: bool = True) -> str:
        """How rollouts are differentiated.

        plain     autograd's own graph, step after step
        recorded  the same by hand, for the transformer made here: the quickest on a CPU
        parallel  in parallel over time, hard tokens alone: a GPU would wait for the launch of many small kernels
        """
        road = self.straight_through
        if road == "auto":
            road = "parallel" if self.prompts.is_cuda and hard else "recorded"
        if not hard and road == "parallel":
            return "plain"
        return "plain" if road == "recorded" and self._transformer() is None else road

    def _parallel_rollout(self, relax: Relax, n: int, rng: torch.Generator) -> Tensor:
        """The draws of `rollout`, their graph that of one parallel pass over the tokens.

        The pass reads the tokens' embeddings as constants. That a token depends on the ones before it, `grad` adds.
        """
        start = rng.get_state()
        with torch.no_grad():
            z = self.draw(lambda logits: relax(logits).argmax(-1), n)
        end = rng.get_state()
        rng.set_state(start)
        with torch.no_grad():
            read = self.policy.embed(z[:, :, :-1].flatten(0, 1))  # (n B, T - 1, D)
        read.requires_grad_()
        self.ledger.forward_passes += 1
        texts = torch.cat([self.policy.embed(self._prompts(n)), read], 1)
        logits, features, _ = self.policy(texts, last=self.horizon, **self._padding(n))
        shape = (n, self.contexts, self.horizon, -1)
        logits, features = self._masked(in_single(logits).reshape(shape), z), features.reshape(shape)
        soft = torch.stack([relax(step) for step in logits.unbind(2)], 2)  # with the noise of the draws again
        rng.set_state(end)
        y = straight_through(functional.one_hot(z, self.categories).to(soft.dtype), soft)
        self._one_hots = (y, z)
        self._feedback = (logits, read, self._embedded(self.policy, y, self.horizon - 1))
        self._remember(y, lambda: (logits, features))
        return y

    def reward(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            raw = self.raw_reward(z)
        return raw - self.beta * self.divergence(z).sum(-1) if self.beta else raw

    def soft_reward(self, y: Tensor) -> Tensor:
        raw = self.raw_reward(y)
        return raw - self.beta * self.divergence(y).sum(-1) if self.beta else raw

    def raw_reward(self, tokens: Tensor) -> Tensor:
        """r (n, B), without the penalty, of ids (n, B, T) or of a rollout's relaxed one-hots (n, B, T, V)."""
        n = len(tokens)
        self.ledger.reward_calls += n * self.contexts
        model = self.reward_model
        if self.end is not None and not tokens.is_floating_point():
            tokens = tokens.where(self.alive(tokens), filler(self.end))
        texts = torch.cat([model.embed(self._prompts(n)), self._embedded(model, tokens, self.horizon)], 1)
        parts = [texts, *self._counting(tokens, texts)]
        if self.pads is not None:  # texts begin with what counts, as they do without padding
            length = texts.shape[1]
            places = (torch.arange(length, device=texts.device) + self.pads.repeat(n)[:, None]) % length
            rows = torch.arange(len(texts), device=texts.device)[:, None]
            parts = [part[rows, places] for part in parts]
        (score,) = self._in_pieces(lambda *part: (model(*part),), *parts)
        return in_single(score).view(n, self.contexts)

    def _counting(self, tokens: Tensor, texts: Tensor) -> list[Tensor]:
        """How much each position of the texts (n B, P + T, ...) counts for the reward; nothing where all of them do."""
        if self.end is None and self.pads is None:
            return []
        dtype = texts.dtype if texts.is_floating_point() else torch.float32
        keep = torch.ones(texts.shape[:2], dtype=dtype, device=texts.device)
        if self.pads is not None:
            places = torch.arange(self.prompts.shape[1], device=texts.device)
            keep[:, : len(places)] = (places >= self.pads.repeat(len(tokens))[:, None]).to(dtype)
        if self.end is not None and (self._ids(tokens) is not None or getattr(self.reward_model, "weighs", False)):
            relaxed = tokens.is_floating_point()
            ended = share_ended(tokens, self.end) if relaxed else is_end(tokens, self.end)
            keep = torch.cat([keep[:, : -self.horizon], 1 - ended.flatten(0, 1).to(dtype)], 1)
        return [keep]

    def divergence(self, tokens: Tensor) -> Tensor:
        """KL(p_theta(.|prefix) || p_ref(.|prefix)) in nats, (n, B, T), along hard or relaxed tokens."""
        if self.reference is None:
            return super().divergence(tokens)
        log_p = self._pass(tokens).log_p()
        with torch.set_grad_enabled(torch.is_grad_enabled() and tokens.requires_grad):
            log_q = self._forward(self.reference, tokens)[0].log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        if self.end is None or self._ids(tokens) is not None:  # of one-hots, logits are already masked
            return divergence
        going_on = 1 - share_ended(tokens[:, :, :-1], self.end)
        return divergence * torch.cat([torch.ones_like(going_on[:, :, :1]), going_on], -1)

    @torch.no_grad()
    def reference_log_prob(self, z: Tensor) -> Tensor:
        if self.reference is None:
            return super().reference_log_prob(z)
        log_q = self._forward(self.reference, z)[0].log_softmax(-1)
        return log_q.gather(-1, z.unsqueeze(-1)).squeeze(-1)

    def alive(self, z: Tensor) -> Tensor:
        return super().alive(z) if self.end is None else up_to_end(z, self.end)

    def texts(self, z: Tensor) -> list[list[int]]:
        """Ids of each prompt and what follows in z (B, T), without padding, up to the end but not with it."""
        pads = [0] * self.contexts if self.pads is None else self.pads.tolist()
        goes_on = self.alive(z) if self.end is None else self.alive(z) & ~is_end(z, self.end)
        parts = zip(self.prompts.tolist(), pads, z.tolist(), goes_on.sum(-1).tolist(), strict=True)
        return [prompt[pad:] + row[:count] for prompt, pad, row, count in parts]

    def _ids(self, tokens: Tensor) -> Tensor | None:
        """Of hard tokens, or of the last rollout's one-hots; None for relaxed tokens."""
        if not tokens.is_floating_point():
            return tokens
        return self._one_hots[1] if tokens is self._one_hots[0] else None

    def _masked(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """Logits (n, B, T, V) along hard tokens, those after an end replaced."""
        ids = self._ids(tokens)
        if self.end is None or ids is None:
            return logits
        return ended_logits(logits, ~up_to_end(ids, self.end), self.end)

    def support(self) -> Tensor:
        if "support" not in self.offers:
            return super().support()
        device = self.prompts.device
        values = torch.arange(self.categories, device=device)
        return torch.cartesian_prod(*[values] * self.horizon).view(-1, self.horizon)

    def grad(
        self,
        value: Tensor,
        weights: Tensor | None = None,
        create_graph: bool = False,
        of: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        if self._feedback is not None and of is None:
            return self._grad_with_feedback(value, weights, create_graph)
        answer = super().grad(value, weights, create_graph, of)
        if not create_graph:
            self._memo = self._drawn = None  # its graph has been freed
        return answer

    def _grad_with_feedback(self, value: Tensor, weights: Tensor | None, create_graph: bool) -> tuple[Tensor, ...]:
        """`grad` through a parallel rollout, where a token depends on earlier ones through their embeddings alone.

        The value's derivative by the logits makes one by the embeddings read, the tokens that gave these make of it one
        by earlier logits, and so on: a series in a matrix that is strictly lower triangular in time. It ends after T
        terms and is small long before. Its sum is the adjoint of the embeddings that the tokens give.
        """
        if create_graph:
            raise NotImplementedError("a parallel rollout can't be differentiated twice")
        assert self._feedback is not None
        logits, read, given = self._feedback
        self.ledger.backward_passes += 1
        weights = torch.ones_like(value) if weights is None else weights
        (direct,) = torch.autograd.grad(value, logits, weights, retain_graph=True, materialize_grads=True)
        of_logits, of_given = direct, torch.zeros_like(given)
        for _ in range(self.horizon - 1):
            self.ledger.backward_passes += 1
            (term,) = torch.autograd.grad(logits, read, of_logits, retain_graph=True)
            of_given = of_given + term
            if bool(term.norm() <= self.residual * of_given.norm()):
                break
            (of_logits,) = torch.autograd.grad(given, logits, term, retain_graph=True)
        self.ledger.backward_passes += 1
        self._memo = self._feedback = None  # their graphs are freed
        ends = (
            [(logits, direct), (given, of_given)] if given.requires_grad else [(logits, direct)]
        )  # one token feeds none
        outputs, derivatives = zip(*ends, strict=True)
        return torch.autograd.grad(outputs, self.params, derivatives, allow_unused=True, materialize_grads=True)

    def _prompts(self, n: int) -> Tensor:
        return self.prompts.repeat(n, 1)

    def _padding(self, n: int) -> dict[str, Any]:
        """What a policy is told about the prompts of n draws besides their ids."""
        return {} if self.pads is None else {"pads": self.pads.repeat(n)}

    def _forward(self, policy: Policy, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """One parallel pass: logits (n, B, T, V) and features (n, B, T, D) before each position."""
        self.ledger.forward_passes += 1
        n = len(tokens)
        past = self._embedded(policy, tokens, self.horizon - 1)
        pads = self._padding(n)
        saved = (n - 1) * self.contexts * (self.prompts.shape[1] - 1)
        if saved >= WORTH_A_PASS and self.rows_at_once is None:
            *_, cache = self._read_prompts(policy, n, self.prompts[:, :-1])
            texts = torch.cat([policy.embed(self._prompts(n)[:, -1:]), past], 1)
            logits, features, _ = policy(texts, cache, **pads)
        else:
            texts = torch.cat([policy.embed(self._prompts(n)), past], 1)
            parts = [texts, *pads.values()]
            logits, features = self._in_pieces(lambda part, *pads: policy(part, None, self.horizon, *pads)[:2], *parts)
        shape = (n, self.contexts, self.horizon, -1)
        return self._masked(in_single(logits).reshape(shape), tokens), features.reshape(shape)

    def _read_prompts(self, policy: Policy, n: int, prompts: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Logits and features (n B, 1, ...) after prompts (B, L), and their cache: read once for all of n samples."""
        logits, features, cache = policy(policy.embed(prompts), last=1, **self._padding(1))
        if n == 1:
            return logits, features, cache
        rows = torch.arange(self.contexts, device=prompts.device).repeat(n)
        return logits.index_select(0, rows), features.index_select(0, rows), policy.reordered(cache, rows)

    def _in_pieces(self, model: Callable[..., tuple[Tensor, ...]], *texts: Tensor) -> tuple[Tensor, ...]:
        """Outputs of a model that reads the rows of `texts` each by itself, a checkpoint for every piece of them."""
        if self.rows_at_once is None or not torch.is_grad_enabled():
            return model(*texts)
        pieces = [
            checkpoint(model, *part, use_reentrant=False, preserve_rng_state=False)
            for part in zip(*(x.split(self.rows_at_once) for x in texts), strict=True)
        ]
        return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))

    def _embedded(self, model: Policy | Reward, tokens: Tensor, length: int) -> Tensor:
        """Embeddings (n B, length, D) of the first tokens; those of a rollout's one-hots are looked up."""
        first = tokens[:, :, :length].flatten(0, 1)
        if not length:  # at horizon 1: embedding no tokens can't be differentiated twice
            with torch.no_grad():
                return model.embed(first.new_empty(len(first), 0, dtype=torch.int64))
        if tokens is not self._one_hots[0] or isinstance(model, Replicas):
            return model.embed(first)
        table = model.embed(torch.arange(self.categories, device=tokens.device)[None])[0]
        return _LookUp.apply(first, self._one_hots[1][:, :, :length].flatten(0, 1), table)

    def _pass(self, tokens: Tensor) -> Memo:
        """`_forward` of the policy, shared by log_prob, features and the penalty of one batch of tokens."""
        if self._memo is None or self._memo.tokens is not tokens or self._memo.state != self._state(tokens):
            drawn = self._drawn is not None and self._drawn[0] is tokens and self._drawn[1] == self._versions(tokens)
            passed = self._replayed(tokens) if drawn else self._forward(self.policy, tokens)
            return self._remember(tokens, lambda: passed)
        return self._memo

    def _replayed(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """`_forward` of the policy over drawn tokens: what was computed when they were drawn."""
        assert self._drawn is not None
        self.ledger.forward_passes += 1
        recording = self._drawn[2]
        apart = copy.copy(self)  # not to be referred to by the graph
        apart.ledger, apart._memo, apart._drawn = Ledger(), None, None
        again = functools.partial(apart._forward, self.policy, z)
        logits, features = Replayed.apply(recording, z[:, :, :-1].flatten(0, 1), again, *self.policy.parameters())
        return self._masked(in_single(logits), z), features

    def _remember(self, tokens: Tensor, passed: Callable[[], tuple[Tensor, Tensor]]) -> Memo:
        passed = functools.cache(passed)
        log_p = functools.cache(lambda: passed()[0].log_softmax(-1))
        self._memo = Memo(tokens, self._state(tokens), passed, log_p)
        return self._memo

    def _state(self, tokens: Tensor) -> tuple[int, ...]:
        """Changes when tokens or a parameter were written to, or graphs were switched on or off."""
        return (int(torch.is_grad_enabled()), *self._versions(tokens))

    def _versions(self, tokens: Tensor) -> tuple[int, ...]:
        return (tokens._version, *(p._version for p in self.params))


class Decoding:
    """A rollout by any policy, read token by token without a graph, as by a `Recording` that keeps nothing."""

    def __init__(self, problem: SequenceProblem, n: int):
        self.problem, self.n, self.cache = problem, n, None

    def start(self) -> Tensor:
        """Logits (n B, V) after the prompts."""
        logits, _, self.cache = self.problem._read_prompts(self.problem.policy, self.n, self.problem.prompts)
        return logits[:, -1]

    def read(self, embeddings: Tensor) -> Tensor:
        """Logits (n B, V) after one more token, given its embedding (n B, 1, D)."""
        pads = self.problem._padding(self.n)
        logits, _, self.cache = self.problem.policy(embeddings, self.cache, **pads)
        return logits[:, -1]

    def follow(self, rows: Tensor) -> None:
        """Each sequence goes on from the one that `rows` (n B,) names."""
        self.cache = self.problem.policy.reordered(self.cache, rows)


class _LookUp(torch.autograd.Function):
    """Rows of a table (V, D) named by ids (...), with the gradient of a product for the one-hots (..., V) they are of."""

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
    """At least in single precision: what is drawn, scored and summed, whatever the models compute in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
