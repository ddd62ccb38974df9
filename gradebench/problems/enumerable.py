"""Language models with random weights, so small that all sequences can be enumerated, for exact tests."""

import torch
from torch import Tensor, nn

from gradebench.models.transformer import ScratchClassifier, ScratchPolicy
from gradebench.problems.sequence import SequenceProblem


class RandomReward(ScratchClassifier):
    """A bidirectional classifier as the reward, which is neither additive nor quadratic in the tokens."""

    differentiable = True


def random_sequence_problem(
    vocabulary: int = 3,
    horizon: int = 3,
    contexts: int = 4,
    beta: float = 0.0,
    seed: int = 0,
    layers: int = 1,
    width: int = 4,
    prompt: int = 2,
    device: torch.device | str = "cpu",
    end: bool = False,
) -> SequenceProblem:
    """A SequenceProblem in float64 on a small causal transformer, on `contexts` different prompts.

    With `end`, the last token of the vocabulary ends a text, so that texts have 1 to `horizon` tokens.

    Policy and reference differ. The weights are of order one, because a freshly initialised model is nearly uniform, and
    the bias of an estimator that ignores the prefix would go unnoticed.
    """
    rng = torch.Generator().manual_seed(seed)
    shape = vocabulary, width, layers, 2, prompt + horizon
    policy, reference = ScratchPolicy(*shape).double(), ScratchPolicy(*shape).double()
    reward = RandomReward(*shape).double()
    # Attention of larger weights is so peaked that the derivative of a text's end, which hides positions, can reach 1e18.
    of_reward = 0.5 if end else 1.0
    for module, scale in ((policy, 0.6), (reference, 0.6), (reward, of_reward)):
        _scatter(module, scale, rng)
    for module in (reference, reward):
        module.requires_grad_(False)
    for module in (policy, reference, reward):
        module.to(device)
    every = torch.cartesian_prod(*[torch.arange(vocabulary)] * prompt).view(-1, prompt)
    prompts = every[torch.randperm(len(every), generator=rng)[:contexts]].to(device)
    ends = vocabulary - 1 if end else None
    return SequenceProblem(policy, reward, prompts, horizon, vocabulary, reference, beta, end=ends)


@torch.no_grad()
def _scatter(module: nn.Module, scale: float, rng: torch.Generator) -> None:
    """Draw every weight from a normal distribution; the scales of layer norms around 1."""
    for name, p in module.named_parameters():
        noise: Tensor = torch.randn(p.shape, generator=rng)
        p.copy_(noise * scale + ("norm.weight" in name))
