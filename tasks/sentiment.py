"""The trained rewards of task `imdb`: how likely a text is that of a positive review."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from gradebench.core.shown import counted
from gradebench.core.task import Log
from gradebench.models.classifier_head import Head
from gradebench.models.feature_reward import FeatureReward, train_head
from gradebench.models.pretraining import TokenRows, train_classifier
from gradebench.models.transformer import ScratchClassifier

HEAD_EPOCHS = 20
LABELLED, JUDGED = 2000, 1000  # reviews, at most, that such a head learns from, and that measure its accuracy


class ScratchReward(ScratchClassifier):
    """The trained classifier's probability of a positive text, as a reward in [0, 1]."""

    differentiable = True


def build_reward(
    folder: Path,
    reward: ScratchReward | FeatureReward,
    text: TokenRows,
    labels: Tensor,
    window: int,
    steps: int,
    log: Log,
    seed: int,
) -> None:
    """Train the reward model on texts with labels (rows,), and save it."""
    which = counted(len(labels), "labelled review")
    if isinstance(reward, FeatureReward):
        log(f"training the reward's head on the policy's features of {which}")
        windows = text.windows(torch.arange(len(labels)), window, torch.Generator().manual_seed(seed))
        train_head(reward, windows.to(reward.output.weight.device), labels, HEAD_EPOCHS, seed)
    else:
        log(f"training the reward model: {counted(steps, 'step')} on {which}")
        train_classifier(reward, text, labels, window, steps, 64, 1e-3, seed)
    save_file(reward.state_dict(), folder / "reward.safetensors")


def is_probability(reward: Any) -> bool:
    """Whether a reward is a probability, and not a function's value or a raw output."""
    if isinstance(reward, ScratchReward | FeatureReward):
        return True
    head = getattr(reward, "head", None) or getattr(getattr(reward, "score", None), "head", None)
    return isinstance(head, Head) and head.activation != "none"
