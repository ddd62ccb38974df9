"""The problem of aligning an autoregressive language model, on any policy and reward that read embeddings."""

import copy
import itertools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from gradebench.core.mixture import Mixture
from gradebench.core.problem import ENUMERABLE, Behaviour, Choose, Ledger, Relax, RolloutHints
from gradebench.core.sampling import categorical
from gradebench.models.end_of_text import Ends, filler, is_end, share_ended
from gradebench.models.replicas import Replicas
from gradebench.problems import rollouts
from gradebench.problems.passes import PassCache
from gradebench.problems.reading import Policy, Reward, TextProblem, in_single


class SequenceProblem(TextProblem):
    """J = mean over prompts of E [ r(x, z) - beta * sum_t KL(p_theta(.|x, z_<t) || p_ref(.|x, z_<t)) ].

    The penalty is the sum of exact per-position divergences along the sampled prefix. Its expectation is the divergence
    between the distributions of sequences, and the definition is the same for hard and relaxed tokens.

    prompts (B, P) int64; T = `horizon` new tokens; `beta` in reward per nat. With `rows_at_once`, parallel passes keep
    the activations of only that many sequences and recompute the others in the backward pass.

    `pads` (B,): the number of padding positions at the beginning of each prompt, which no model reads.

    `end`: the token that ends a text, or several of them. After an end, the first of them follows with probability 1, so
    all texts have T tokens and every estimator's formula holds: log-probability and penalty are 0 after the end, and the
    reward is that of the text before it. Relaxed tokens end gradually: a text that has ended with weight 1 - a continues
    with a relax(logits) + (1 - a) one_hot(end), and its penalty there has weight a.
    """

    straight_through: Literal["auto", "plain", "recorded", "parallel"] = "auto"  # see `rollouts`
    residual: float = 1e-4  # of a parallel rollout: see `rollouts.fed_back`

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
        super().__init__(policy, prompts, horizon, vocabulary, ledger, rows_at_once, end, pads)
        if beta and reference is None:
            raise ValueError("a KL penalty needs a reference policy")
        self.reward_model, self.reference, self.beta = reward_model, reference, beta
        offers = {"soft_reward"} if reward_model.differentiable else set()
        offers |= set() if beta else {"fixed_reward"}
        offers |= {"support", "exact"} if vocabulary**horizon <= ENUMERABLE else set()
        offers |= {"binary"} if vocabulary == 2 else set()
        self.offers = frozenset(offers)
        self.behaviour: Behaviour | None = None  # None: samples are drawn from the policy
        self._feedback: rollouts.Feedback | None = None  # of a parallel rollout that isn't differentiated yet

    def select(self, index: Tensor) -> "SequenceProblem":
        if isinstance(self.policy, Replicas):
            raise NotImplementedError("a part of the contexts would deal them out to other copies")
        part = SequenceProblem(
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
        part.behaviour = self.behaviour
        return part

    def replicated(self, copies: int) -> "SequenceProblem":
        if self.pads is not None:
            raise NotImplementedError("padded prompts aren't read by several copies at once")
        if self.contexts % copies:
            raise ValueError(f"{self.contexts} contexts can't be dealt out evenly to {copies} copies")
        replicated = SequenceProblem(
            Replicas(self.policy, copies),
            self.reward_model,
            self.prompts,
            self.horizon,
            self.categories,
            self.reference,
            self.beta,
            end=self.end,
        )
        replicated.behaviour = self.behaviour
        return replicated

    def sampled_by(self, behaviour: Behaviour | None) -> "SequenceProblem":
        if behaviour is None:
            return self
        sampled = self._apart()
        sampled.behaviour = behaviour
        return sampled

    def _apart(self) -> "SequenceProblem":
        """A copy with a cache of its own, sharing models and ledger."""
        apart = copy.copy(self)
        apart.passes, apart.one_hots, apart._feedback = PassCache(), (None, torch.empty(0)), None
        return apart

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        if self.behaviour is None:
            return self.draw(lambda logits: categorical(logits, rng), n)
        sampler, positions, drawn_by = self.behaviour.sampler, itertools.count(), self
        if self.behaviour.policy is not None:
            drawn_by = self._apart()
            drawn_by.policy = self.behaviour.policy
        return drawn_by.draw(
            lambda logits: categorical(sampler.logits(logits.unsqueeze(-2), next(positions)).squeeze(-2), rng), n
        )

    def behaviour_log_prob(self, z: Tensor) -> Tensor:
        if self.behaviour is None:
            return super().behaviour_log_prob(z)
        own = self.logits(z).detach() if self.behaviour.policy is None else None
        with torch.no_grad():
            logits = self.forward(self.behaviour.policy, z)[0] if own is None else own
            log_mu = self.behaviour.sampler.logits(logits).log_softmax(-1)
            found = log_mu.gather(-1, z.unsqueeze(-1)).squeeze(-1)
            return found if self.end is None else found.where(self.alive(z), 0.0)

    def draw(self, choose: Choose, n: int) -> Tensor:
        return rollouts.draw(self, choose, n)

    @property
    def reads_mixtures(self) -> bool:  # type: ignore[override]
        return not isinstance(self.policy, Replicas)  # which embed with a table for each copy

    def relaxed_draws(self, relax: Relax, n: int, hints: RolloutHints) -> Tensor:
        # Mixtures go the plain road: the parallel one relaxes a second time, on logits with other rounding, which may change
        # the order of the likeliest tokens and with it their noise; the recorded one is for models of small vocabularies.
        mode = "plain" if hints.rng is None or hints.sparse else self.rollout_mode(hints.hard)
        if mode == "parallel":
            assert hints.rng is not None
            rolled = rollouts.parallel(self, relax, n, hints.rng)
            self._feedback = rolled.feedback
        else:
            self.ledger.forward_passes += 1
            self.ledger.tokens_sampled += n * self.contexts * self.horizon
            if mode == "recorded":
                rolled = rollouts.recorded(self, relax, n, hints.hard)
            else:
                rolled = rollouts.plain(self, relax, n, hints.hard, hints.sparse)
        if rolled.ids is not None:
            self.one_hots = (rolled.y, rolled.ids)
        self.remember(rolled.y, rolled.passed)
        return rolled.y

    def rollout_mode(self, hard: bool = True) -> str:
        """The mode in which rollouts are differentiated, see `rollouts`."""
        mode = self.straight_through
        if mode == "auto":
            mode = "parallel" if self.prompts.is_cuda and hard else "recorded"
        if not hard and mode == "parallel":
            return "plain"
        return "plain" if mode == "recorded" and self.transformer() is None else mode

    def reward(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            raw = self.raw_reward(z)
        return raw - self.beta * self.divergence(z).sum(-1) if self.beta else raw

    def soft_reward(self, y: Tensor | Mixture) -> Tensor:
        raw = self.raw_reward(y)
        return raw - self.beta * self.divergence(y).sum(-1) if self.beta else raw

    def raw_reward(self, tokens: Tensor | Mixture) -> Tensor:
        """r (n, B), without the penalty, of ids (n, B, T) or of a rollout's relaxed one-hots (n, B, T, V)."""
        n = len(tokens)
        self.ledger.reward_calls += n * self.contexts
        model = self.reward_model
        if self.end is not None and isinstance(tokens, Tensor) and not tokens.is_floating_point():
            tokens = tokens.where(self.alive(tokens), filler(self.end))
        texts = torch.cat([model.embed(self.repeated_prompts(n)), self.embedded(model, tokens, self.horizon)], 1)
        parts = [texts, *self._counting(tokens, texts)]
        if self.pads is not None:  # padding is moved behind the text, where it doesn't count
            length = texts.shape[1]
            places = (torch.arange(length, device=texts.device) + self.pads.repeat(n)[:, None]) % length
            rows = torch.arange(len(texts), device=texts.device)[:, None]
            parts = [part[rows, places] for part in parts]
        (score,) = self.in_pieces(lambda *part: (model(*part),), *parts)
        found = in_single(score).view(n, self.contexts)
        self.ledger.saw("reward", found, n * self.contexts)
        return found

    def _counting(self, tokens: Tensor | Mixture, texts: Tensor) -> list[Tensor]:
        """The weight of each position of the texts (n B, P + T, ...) for the reward, in a list; an empty one if all are 1."""
        if self.end is None and self.pads is None:
            return []
        dtype = texts.dtype if texts.is_floating_point() else torch.float32
        keep = torch.ones(texts.shape[:2], dtype=dtype, device=texts.device)
        if self.pads is not None:
            places = torch.arange(self.prompts.shape[1], device=texts.device)
            keep[:, : len(places)] = (places >= self.pads.repeat(len(tokens))[:, None]).to(dtype)
        if self.end is not None and (self.ids_of(tokens) is not None or getattr(self.reward_model, "weighs", False)):
            if isinstance(tokens, Mixture) or tokens.is_floating_point():
                ended = share_ended(tokens, self.end)
            else:
                ended = is_end(tokens, self.end)
            keep = torch.cat([keep[:, : -self.horizon], 1 - ended.flatten(0, 1).to(dtype)], 1)
        return [keep]

    def divergence(self, tokens: Tensor | Mixture) -> Tensor:
        """KL(p_theta(.|prefix) || p_ref(.|prefix)) in nats, (n, B, T), along hard or relaxed tokens."""
        if self.reference is None:
            return super().divergence(tokens)  # type: ignore[arg-type]  # refuses
        log_p = self.pass_over(tokens).log_p()
        with torch.set_grad_enabled(torch.is_grad_enabled() and tokens.requires_grad):
            log_q = self.forward(self.reference, tokens)[0].log_softmax(-1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(-1)
        if self.end is not None and self.ids_of(tokens) is None:  # for hard tokens the logits are masked already
            going_on = 1 - share_ended(tokens[:, :, :-1], self.end)
            divergence = divergence * torch.cat([torch.ones_like(going_on[:, :, :1]), going_on], -1)
        self.ledger.saw("kl", divergence, len(tokens) * self.contexts)
        return divergence

    @torch.no_grad()
    def reference_log_prob(self, z: Tensor) -> Tensor:
        if self.reference is None:
            return super().reference_log_prob(z)
        log_q = self.forward(self.reference, z)[0].log_softmax(-1)
        return log_q.gather(-1, z.unsqueeze(-1)).squeeze(-1)

    def grad(
        self,
        value: Tensor,
        weights: Tensor | None = None,
        create_graph: bool = False,
        of: Sequence[Tensor] | None = None,
    ) -> tuple[Tensor, ...]:
        if self._feedback is not None and of is None:
            if create_graph:
                raise NotImplementedError("a parallel rollout can't be differentiated twice")
            feedback, self._feedback, self.passes.last = self._feedback, None, None  # because their graphs are freed
            return rollouts.fed_back(self, feedback, value, weights, self.residual)
        answer = super().grad(value, weights, create_graph, of)
        if not create_graph:
            self.passes.forget()  # because its graph is freed
        return answer
