"""Training the scratch policy and the scratch reward model on windows of a tokenised corpus."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradebench.core import progress
from gradebench.models.transformer import ScratchClassifier, ScratchPolicy

FUSED_FROM = (
    1_000_000  # parameters; smaller models aren't fused, so that they stay bit-identical to those of earlier versions
)


@dataclass(frozen=True)
class TokenRows:
    """Texts as ids: row i is flat[start[i] : start[i] + length[i]]."""

    flat: Tensor  # (tokens,) int64
    start: Tensor  # (rows,)
    length: Tensor  # (rows,)

    def windows(self, rows: Tensor, size: int, rng: torch.Generator) -> Tensor:
        """Windows (len(rows), size) of the texts: half of them from the beginning of a text, the others from a random position."""
        room = self.length[rows] - size
        offset = (torch.rand(len(rows), generator=rng) * (room + 1)).long()
        offset = torch.where(torch.rand(len(rows), generator=rng) < 0.5, 0, offset)
        return self.flat[(self.start[rows] + offset)[:, None] + torch.arange(size)]


def token_rows(texts: Sequence[Sequence[int]]) -> TokenRows:
    length = torch.tensor([len(ids) for ids in texts])
    flat = torch.tensor([i for ids in texts for i in ids])
    return TokenRows(flat, length.cumsum(0) - length, length)


def pretrain_policy(
    policy: ScratchPolicy, texts: TokenRows, window: int, steps: int, batch: int, learning_rate: float, seed: int
) -> float:
    """Next-token prediction; returns the mean loss (nats a token) over the last tenth of the steps."""

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        ids = texts.windows(rows, window, rng).to(policy.token.device)
        logits, _, _ = policy(policy.embed(ids[:, :-1]))
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    return _descend(policy, loss, len(texts.start), steps, batch, learning_rate, seed)


def train_classifier(
    classifier: ScratchClassifier,
    texts: TokenRows,
    labels: Tensor,
    window: int,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Binary cross-entropy of a text's label given a window of it; returns the mean loss (nats) over the last tenth of the
    steps."""

    def loss(rows: Tensor, rng: torch.Generator) -> Tensor:
        ids = texts.windows(rows, window, rng).to(classifier.token.device)
        target = labels[rows].to(ids.device, classifier.token.dtype)
        return functional.binary_cross_entropy_with_logits(classifier.logit(classifier.embed(ids)), target)

    return _descend(classifier, loss, len(texts.start), steps, batch, learning_rate, seed)


@torch.no_grad()
def accuracy(classifier: nn.Module, ids: Tensor, labels: Tensor) -> float:
    """The share of windows (N, L) that are classified as their label (N,) says."""
    probability = torch.cat([classifier(classifier.embed(part)) for part in ids.split(512)])  # type: ignore[operator]
    return float(((probability > 0.5) == labels.to(probability.device).bool()).float().mean())


def _descend(model: nn.Module, loss, rows: int, steps: int, batch: int, learning_rate: float, seed: int) -> float:
    """AdamW with a linear warm-up over the first twentieth and a linear decay to zero."""
    rng = torch.Generator().manual_seed(seed)
    # With a pretrained vocabulary there are millions of embeddings, and an unfused update makes eight copies of them.
    large = sum(p.numel() for p in model.parameters()) > FUSED_FROM
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01, fused=large or None)
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warm, (steps - step) / max(1, steps - warm))
    )
    late: list[Tensor] = []
    model.train()
    for step in progress.track("step", range(steps), steps):
        value = loss(torch.randint(rows, (batch,), generator=rng), rng)
        optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step >= steps - max(1, steps // 10):
            late.append(value.detach())
    model.eval()
    return float(torch.stack(late).mean())
