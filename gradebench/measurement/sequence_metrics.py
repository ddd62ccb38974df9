"""Metrics of texts sampled from a language model."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gradebench.problems.sequence import SequenceProblem


def distinct_bigrams(tokens: Sequence[Sequence[int]]) -> float:
    """Distinct bigrams divided by all bigrams of a set of texts (Li et al. 2016), in [0, 1]."""
    pairs = [pair for text in tokens for pair in pairwise(text)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


@torch.no_grad()
def evaluate_sequences(
    problem: SequenceProblem, rng: torch.Generator, draws: Tensor | None = None
) -> tuple[dict[str, float], Tensor]:
    """Metrics of one hard sample per prompt, and the samples (B, T): reward, kl, entropy, distinct_2, reference_nll.

    kl in nats per sequence; entropy and reference_nll in nats per token. With `draws` (1, B, T), of those.
    """
    z = problem.sample(1, rng) if draws is None else draws  # (1, B, T)
    alive = problem.alive(z)
    log_p = problem.logits(z).log_softmax(-1)
    p = log_p.exp()
    metrics = {
        "reward": float(problem.raw_reward(z).mean()),
        "entropy": float(-(p * log_p).sum(-1)[alive].mean()),
        "distinct_2": distinct_bigrams([row[counts].tolist() for row, counts in zip(z[0], alive[0], strict=True)]),
    }
    if problem.reference is not None:
        log_q = problem.forward(problem.reference, z)[0].log_softmax(-1)
        metrics["kl"] = float((p * (log_p - log_q)).sum(-1).sum(-1).mean())
        metrics["reference_nll"] = float(-log_q.gather(-1, z.unsqueeze(-1)).squeeze(-1)[alive].mean())
    return metrics, z[0]
