"""A language model so small that all sequences can be enumerated, so gradients are known exactly."""

from typing import Annotated

import torch

from gradebench import InputError, LanguageModelTask, Range
from gradebench.core.problem import ENUMERABLE
from gradebench.core.task import Log
from gradebench.kit.options import Kl
from gradebench.problems.enumerable import random_sequence_problem

PROMPT = 4  # tokens
CONTEXTS = 128  # in all splits, at most


class EnumerableLm(LanguageModelTask):
    """Align a tiny causal transformer with a random, non-additive reward; all its continuations can be enumerated:
    V^T of T tokens, or with end=true also shorter ones.

    Policy, reference and reward are random transformers (weights of order one) in float64. Evaluations are exact
    expectations over all sequences, so they have no sampling noise.
    """

    default_steps = 200
    default_batch = 16
    default_draws = 500
    learning_rate = 0.01

    def __init__(
        self,
        vocabulary: Annotated[int, Range(2, 64), "V"] = 4,
        horizon: Annotated[int, Range(1, 12), "T, new tokens"] = 4,
        layers: Annotated[int, Range(1, 8), "of the policy"] = 2,
        width: Annotated[int, Range(2, 64), "of the policy; even"] = 8,
        kl: Kl = 0.05,
        instance: Annotated[int, Range(0), "seed of the random weights"] = 0,
        end: Annotated[bool, "the last token of the vocabulary ends a text; else all texts have T tokens"] = False,
    ):
        if vocabulary**horizon > ENUMERABLE:
            raise InputError(
                f"enumerable-lm: {vocabulary}^{horizon} = {vocabulary**horizon:,} sequences are more than {ENUMERABLE:,}; "
                "lower vocabulary or horizon"
            )
        if width % 2:
            raise InputError(f"enumerable-lm: width {width} is odd, its two heads need an even one")
        super().__init__(
            kl, instance=instance, vocabulary=vocabulary, horizon=horizon, layers=layers, width=width, end=end
        )

    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        said = {name: value for name, value in self.options.items() if name != "end"}
        self.setting = " ".join(f"{name}={value:g}" for name, value in said.items())
        self.setting += " end=true" if self.options["end"] else ""

    def load(self, device: torch.device) -> None:
        o = self.options
        contexts = min(CONTEXTS, o["vocabulary"] ** PROMPT)
        shape = o["layers"], o["width"], PROMPT
        whole = random_sequence_problem(
            o["vocabulary"], o["horizon"], contexts, o["kl"], o["instance"], *shape, device, o["end"]
        )
        self.policy, self.reference, self.reward, self.params = (
            whole.policy,
            whole.reference,
            whole.reward_model,
            list(whole.params),
        )
        self.horizon, self.categories, self.end = o["horizon"], o["vocabulary"], whole.end
        parts = whole.prompts.tensor_split([contexts // 2, 3 * contexts // 4])
        self.prompts = dict(zip(self.splits, parts, strict=True))
        self.sizes = {split: len(part) for split, part in self.prompts.items()}

    @torch.no_grad()
    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        """Exact expectations, without `rng`; kl in nats per sequence, entropy in nats per token of a text."""
        problem = self.problem(split, torch.arange(self.sizes[split], device=rng.device))
        z = problem.support().unsqueeze(1).expand(-1, problem.contexts, -1)  # (S, B, T)
        probability = problem.log_prob(z).sum(-1).exp()  # (S, B)
        log_p = problem.logits(z).log_softmax(-1)
        by_token = -(log_p.exp() * log_p).sum(-1)
        entropy = by_token.mean(-1) if self.end is None else by_token.sum(-1) / problem.alive(z).sum(-1)
        values = {"reward": problem.raw_reward(z), "kl": problem.divergence(z).sum(-1), "entropy": entropy}
        return {name: float((probability * value).sum(0).mean()) for name, value in values.items()}
