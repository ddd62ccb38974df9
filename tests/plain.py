"""The language-model problem as its definition says it, slowly: one text at a time, every prefix read anew.

No batch, no cache, no padding, no memo; texts that have ended are cut, not masked.
"""

import copy

import torch
from torch import Tensor

from gradebench import Problem


class PlainProblem(Problem):
    """As SequenceProblem, for policies and for rewards that score a text of embeddings (1, L, D)."""

    def __init__(self, problem, decoder=False):
        super().__init__([p for p in problem.policy.parameters() if p.requires_grad])
        self.of = problem
        self.beta = problem.beta
        self.contexts, self.horizon, self.categories = problem.contexts, problem.horizon, problem.categories
        self.feature_size, self.offers = problem.feature_size, problem.offers
        end = problem.end
        self.ends = list(end) if isinstance(end, tuple) else [] if end is None else [end]  # the first fills up
        pads = [0] * self.contexts if problem.pads is None else problem.pads.tolist()
        self.prompts = [prompt[pad:] for prompt, pad in zip(problem.prompts, pads, strict=True)]
        self.decoder = decoder  # whether the reward model is one: it can be read at every prefix
        self.hard = False  # whether the last rollout had one-hots

    def select(self, index):
        part = copy.copy(self)
        part.prompts = [self.prompts[i] for i in index.tolist()]
        part.contexts = len(part.prompts)
        return part

    def next(self, policy, context: int, tokens) -> tuple[Tensor, Tensor]:
        """Logits (V,) and features (D,) after a prompt and tokens, ids () or one-hots (V,)."""
        parts = [policy.embed(self.prompts[context][None]), *(policy.embed(token[None, None]) for token in tokens)]
        logits, features, _ = policy(torch.cat(parts, 1))
        return logits[0, -1], features[0, -1]

    def over(self, answers, n):
        """Stacks answers(i, b) of every draw and context."""
        return torch.stack([torch.stack([answers(i, b) for b in range(self.contexts)]) for i in range(n)])

    def certain(self, scale=1000.0):
        logits = torch.full((self.categories,), -scale, dtype=self.params[0].dtype)
        logits[self.ends[0]] = 0
        return logits

    def has_ended(self, tokens) -> bool:
        ids = [int(token if token.dim() == 0 else token.argmax()) for token in tokens]
        return any(end in ids for end in self.ends)

    def step(self, policy, b, tokens):
        return self.certain() if self.has_ended(tokens) else self.next(policy, b, tokens)[0]

    def sample(self, n, rng):
        from gradebench.core.sampling import categorical

        return self.draw(lambda logits: categorical(logits, rng), n)

    @torch.no_grad()
    def draw(self, choose, n):
        z = torch.zeros(n, self.contexts, 0, dtype=torch.int64)
        for _ in range(self.horizon):
            here = self.over(lambda i, b: self.step(self.of.policy, b, z[i, b]), n)  # noqa: B023 - called at once
            z = torch.cat([z, choose(here).unsqueeze(-1)], -1)
        return z

    def along(self, policy, z):
        """Logits (n, B, T, V) along hard tokens."""
        times = range(self.horizon)
        return self.over(lambda i, b: torch.stack([self.step(policy, b, z[i, b, :t]) for t in times]), len(z))

    def logits(self, z):
        return self.along(self.of.policy, z)

    def features(self, z):
        times = range(self.horizon)
        found = self.over(
            lambda i, b: torch.stack([self.next(self.of.policy, b, z[i, b, :t])[1] for t in times]), len(z)
        )
        return found.detach()

    def alive(self, z):
        rows = [[not self.has_ended(row[:t]) for t in range(self.horizon)] for row in z.flatten(0, 1)]
        return torch.tensor(rows).view(z.shape)

    def score(self, b, tokens) -> Tensor:
        """The reward model's score () of a prompt and tokens."""
        model = self.of.reward_model
        parts = [model.embed(self.prompts[b][None]), *(model.embed(token[None, None]) for token in tokens)]
        return model(torch.cat(parts, 1))[0]

    def hard_score(self, b, z) -> Tensor:
        ids = z.tolist()
        return self.score(b, z[: next((t for t, token in enumerate(ids) if token in self.ends), len(ids))])

    def expected_score(self, b, y) -> Tensor:
        """The mean over where the text ends, y[t, end] being the probability that it has ended by t."""
        if not self.ends:
            return self.score(b, y)
        total, ended = torch.zeros(()), torch.zeros(())
        for t in range(self.horizon):
            total = total + (y[t, self.ends].sum() - ended) * self.score(b, y[:t])
            ended = y[t, self.ends].sum()
        return total + (1 - ended) * self.score(b, y)

    def raw_reward(self, z):
        return self.over(lambda i, b: self.hard_score(b, z[i, b]), len(z)).detach()

    def reward(self, z):
        return self.raw_reward(z) - self.beta * self.divergence(z).sum(-1)

    def divergence(self, z):
        return self.between(self.logits(z), self.along(self.of.reference, z))

    def reference_log_prob(self, z):
        return self.along(self.of.reference, z).log_softmax(-1).gather(-1, z.unsqueeze(-1)).squeeze(-1).detach()

    @staticmethod
    def between(policy, reference):
        """KL (n, B, T) in nats, of logits (n, B, T, V)."""
        log_p, log_q = policy.log_softmax(-1), reference.log_softmax(-1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def soft_score(self, b, y) -> Tensor:
        """By positions that count less where the text is likely to have ended, or not at all told of ends."""
        model = self.of.reward_model
        prompt = model.embed(self.prompts[b][None])
        keep = torch.cat([torch.ones(prompt.shape[1]).to(y), 1 - y[:, self.ends].sum(-1)])
        return model(torch.cat([prompt, model.embed(y[None])], 1), keep[None])[0]

    def soft_step(self, policy, b, tokens):
        """Logits after relaxed tokens; of one-hots, constants after the end."""
        return self.step(policy, b, tokens) if self.hard else self.next(policy, b, tokens)[0]

    def soft_reward(self, y):
        raw = self.over(lambda i, b: (self.expected_score if self.decoder else self.soft_score)(b, y[i, b]), len(y))
        times = range(self.horizon)

        def along(policy):
            return self.over(lambda i, b: torch.stack([self.soft_step(policy, b, y[i, b, :t]) for t in times]), len(y))

        divergence = self.between(along(self.of.policy), along(self.of.reference))
        if self.ends and not self.hard:
            going_on = 1 - y[:, :, :-1, self.ends].sum(-1)
            divergence = divergence * torch.cat([torch.ones_like(y[:, :, :1, 0]), going_on], -1)
        return raw - self.of.beta * divergence.sum(-1)

    def relaxed_draws(self, relax, n, hints):
        self.hard = hints.hard
        y = torch.zeros(n, self.contexts, 0, self.categories, dtype=self.params[0].dtype)
        for t in range(self.horizon):
            token = relax(self.over(lambda i, b: self.soft_step(self.of.policy, b, y[i, b]), n))  # noqa: B023
            if t and self.ends and not self.hard:
                ended = y[:, :, -1, self.ends].sum(-1, keepdim=True)
                token = (1 - ended) * token + ended * self.certain(0.0).index_fill(0, torch.tensor(self.ends[:1]), 1.0)
            y = torch.cat([y, token.unsqueeze(2)], 2)
        return y
