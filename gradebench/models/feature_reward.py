"""A reward that reads a text as a frozen policy does: a two-layer head on the mean of its last features.

Source: GRADE (Nel 2025, arXiv:2601.11574), appendices: hidden -> hidden, tanh, -> 2, trained alone on labelled reviews.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradebench.core import progress

BATCH, LEARNING_RATE, DECAY = 64, 1e-3, 0.01  # of the head's training, by AdamW
_READ_TOGETHER = 64  # texts


class FeatureReward(nn.Module):
    """The probability (N,) that a text is positive, by a head on the policy's features, averaged over the text.

    policy  a frozen policy, which isn't a part of this module: it is neither saved nor moved with it
    last    tokens at the end of each text that are read, the continuation; None: all
    """

    differentiable = True
    weighs = True  # `keep` may lie between 0 and 1

    def __init__(self, policy: Any, last: int | None = None):
        super().__init__()
        self._policy, self.first = [policy], None if last is None else -last
        size = policy.feature_size
        self.hidden, self.output = nn.Linear(size, size), nn.Linear(size, 2)

    def embed(self, tokens: Tensor) -> Tensor:
        """(N, L) ids or (N, L, V) relaxed one-hots to (N, L, D)."""
        return self._policy[0].embed(tokens)

    def mean_features(self, embeddings: Tensor, keep: Tensor | None = None) -> Tensor:
        """(N, D), of texts (N, L, D). Positions count by their `keep` (N, L): 0 behind the end of a text, where the causal
        policy's earlier features don't see them."""
        features = self._policy[0].features_of(embeddings[:, self.first :]).to(self.hidden.weight.dtype)
        if keep is None:
            return features.mean(1)
        keep = keep[:, self.first :, None].to(features.dtype)
        return (features * keep).sum(1) / keep.sum(1).clamp_min(1e-6)  # a continuation may be empty

    def logits(self, features: Tensor) -> Tensor:
        """Negative and positive (N, 2), of mean features (N, D)."""
        return self.output(self.hidden(features).tanh())

    def forward(self, embeddings: Tensor, keep: Tensor | None = None) -> Tensor:
        return self.logits(self.mean_features(embeddings, keep)).softmax(-1)[:, 1]


def train_head(reward: FeatureReward, texts: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    """Train the head on texts (N, L) of token ids with labels (N,), 0 or 1.

    The policy reads each text once. The head learns from standardised features; the scales are then folded into its
    first layer, so that it reads features as they are.
    """
    with torch.no_grad():
        parts = texts.split(_READ_TOGETHER)
        read = progress.track("reading", parts, len(parts))
        features = torch.cat([reward.mean_features(reward.embed(part)) for part in read])
    mean, scale = features.mean(0), features.std(0).clamp_min(1e-6)
    standard, labels = (features - mean) / scale, labels.to(features.device)
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(reward.parameters(), lr=LEARNING_RATE, weight_decay=DECAY)
    for _ in range(epochs):
        for rows in torch.randperm(len(texts), generator=rng).split(BATCH):
            loss = functional.cross_entropy(reward.logits(standard[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        reward.hidden.weight.div_(scale)
        reward.hidden.bias.sub_(reward.hidden.weight @ mean)
