"""GRADE as its published code ran it: mistakes, reproduced one by one to measure what each is worth. Never a default.

`-t imdb:as_run=NAME+NAME` turns some of them on, `as_run=all` or `preset=paper-as-run` all; docs/presets.md says what is known
of each. They change what `grade`, `grade-ste`, `ppo` and `reinforce` do, and no other estimator. Probes measure these four as
they run then, against the gradient of the objective as it is written.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from gradebench.core.errors import InputError
from gradebench.core.estimator import Estimate, Estimator
from gradebench.core.mixture import Mixture
from gradebench.core.problem import Problem
from gradebench.core.sampler import truncated
from gradebench.core.sampling import categorical
from gradebench.core.view import View
from gradebench.problems.sequence import SequenceProblem

DEVIATIONS = {
    "no-kl": "1: the loss of grade and grade-ste has no KL penalty",
    "shifted-kl": "2: the KL that grade and grade-ste log (info_shifted_kl) has a reference that has read one token more",
    "batch-gae": "3: ppo's advantages run over the batch, not over time; its reward is in the last column, masked after an end",
    "whitened": "4: reinforce whitens its advantages in the batch, so that its baseline cancels; the score is a mean over tokens",
    "continuation": "5: grade and grade-ste train on the reward of the continuation alone, the others on that of the whole text",
    "off-policy": "6: ppo and reinforce sample from a truncated policy, and weight by log-probabilities of the whole one",
    "truncated-evaluation": "8: evaluations sample from the truncated policy too, 100 prompts of validation and 500 of test",
}
TEMPERATURE, TOP_K, TOP_P = 0.6, 20, 0.9  # the first two from Qwen3-4B's generation config, the last from the code
EVALUATED = {"validation": 100, "test": 500}  # prompts
# By name: results on the task would otherwise count by the sources of all estimators in these modules.
PUBLISHED = ("relaxed.Grade", "relaxed.GradeSte", "actor_critic.Ppo", "score_function.Reinforce")


def named(text: str) -> frozenset[str]:
    """The deviations of an option's value: none, all, or names joined by +."""
    names = {"none": [], "all": list(DEVIATIONS)}.get(text, text.split("+"))
    if unknown := [name for name in names if name not in DEVIATIONS]:
        raise InputError(f"as_run={text}: there is no {unknown[0]!r}; there are none, all, {', '.join(DEVIATIONS)}")
    return frozenset(names)


def adapted(estimator: Estimator, deviations: frozenset[str]) -> Estimator:
    """The estimator as the published code ran it; itself, if it isn't one of the four, or nothing deviates."""
    name = f"{type(estimator).__module__}.{type(estimator).__qualname__}".removeprefix("gradebench.estimators.")
    if not deviations or name not in PUBLISHED:
        return estimator
    if "batch-gae" in deviations and hasattr(estimator, "advantages"):
        estimator.advantages = over_the_batch  # type: ignore[assignment]
    if "whitened" in deviations and hasattr(estimator, "score"):
        estimator.score = whitened_score  # type: ignore[assignment]
    return AsRun(estimator, deviations)


class AsRun(Estimator):
    """One of the four, which sees the problem through `Mistaken`."""

    def __init__(self, inner: Estimator, deviations: frozenset[str]):
        super().__init__()
        self.inner, self.deviations = inner, deviations
        self.n, self.period = inner.n, inner.period
        for name in ("family", "needs", "own_learning_rate"):
            vars(self)[name] = getattr(inner, name)

    def init(self, problem: Problem) -> None:
        self.inner.init(problem)

    def reset(self) -> None:
        self.inner.reset()

    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        seen = Mistaken(problem, self.deviations)
        estimate = self.inner.gradient(seen, rng)  # type: ignore[arg-type]
        return Estimate(estimate.grad, estimate.own_loss, {**estimate.info, **seen.info})


class Mistaken(View):
    """The problem as the published training saw it."""

    def __init__(self, problem: Problem, deviations: frozenset[str]):
        super().__init__(problem)
        self.deviations = deviations
        self.info: dict[str, Tensor] = {}

    def sample(self, n: int, rng: torch.Generator) -> Tensor:
        if "off-policy" not in self.deviations:
            return self._problem.sample(n, rng)
        return truncated_draws(self._problem, n, rng)

    def soft_reward(self, y: Tensor | Mixture) -> Tensor:
        whole = itself(self._problem)
        problem = without_prompts(whole) if "continuation" in self.deviations else whole
        reward = problem.raw_reward(y)
        if whole.beta and "no-kl" not in self.deviations:
            reward = reward - whole.beta * whole.divergence(y).sum(-1)
        if "shifted-kl" in self.deviations and whole.reference is not None:
            self.info["shifted_kl"] = shifted_kl(whole, y)
        return reward


def itself(problem: Any) -> SequenceProblem:
    """The problem behind all views of it."""
    while isinstance(problem, View):
        problem = problem._problem
    assert isinstance(problem, SequenceProblem)
    return problem


class Continuations(SequenceProblem):
    """A problem whose texts are the continuations alone, for its reward. One that ends at once is its end token."""

    def _counting(self, tokens: Tensor | Mixture, texts: Tensor) -> list[Tensor]:
        return [torch.cat([torch.ones_like(keep[:, :1]), keep[:, 1:]], 1) for keep in super()._counting(tokens, texts)]


def without_prompts(problem: SequenceProblem) -> SequenceProblem:
    alone = copy.copy(problem)
    alone.__class__ = Continuations
    alone.prompts, alone.pads = problem.prompts[:, :0], None
    return alone


@torch.no_grad()
def shifted_kl(problem: SequenceProblem, y: Tensor | Mixture) -> Tensor:
    """KL(p(.|z_<t) || p_ref(.|z_<=t)) in nats, a mean over tokens: at equal models it isn't 0."""
    log_p = problem.forward(problem.policy, y)[0].log_softmax(-1)[:, :, :-1]
    log_q = problem.forward(problem.reference, y)[0].log_softmax(-1)[:, :, 1:]  # type: ignore[arg-type]
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


def truncated_draws(problem: Problem, n: int, rng: torch.Generator) -> Tensor:
    """Draws (n, B, T) by temperature, then top-k, then top-p."""
    return problem.draw(lambda logits: categorical(truncated(logits, TEMPERATURE, TOP_K, TOP_P), rng), n)


def over_the_batch(
    reward: Tensor, value: Tensor, lam: float, alive: Tensor | None = None, charge: Tensor | None = None
) -> Tensor:
    """As `generalised_advantage`, with the next text of the batch for the next token; shapes as there.

    The reward is in the last column and masked with it: a text that ends before has no reward at all.
    """
    alive = torch.ones_like(value, dtype=torch.bool) if alive is None else alive
    rewards = torch.zeros_like(value)
    rewards[..., -1] = reward
    rewards = (rewards if charge is None else rewards - charge).flatten(0, 1)  # (n B, T)
    values = value.flatten(0, 1)
    advantage, tail, following = torch.empty_like(values), torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for i in reversed(range(len(values))):
        tail = rewards[i] + following - values[i] + lam * tail
        advantage[i], following = tail, values[i]
    return advantage.view_as(value) * alive


def whitened_score(problem: Problem, z: Tensor, reward: Tensor, advantage: Tensor) -> Tensor:
    """As `score`, with advantages to mean 0 and standard deviation 1 in the batch: +-0.707 of two, no number of one.

    They weight the mean of log p over the tokens of each text; grad f is left out.
    """
    advantage = advantage.detach()
    whitened = (advantage - advantage.mean()) / advantage.std()
    return (whitened * problem.log_prob(z).sum(-1) / problem.alive(z).sum(-1)).mean()
