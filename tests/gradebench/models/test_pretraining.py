"""Training from scratch on a language whose entropy and labels are known."""

import math

import torch

from gradebench.models import pretraining
from gradebench.models.pretraining import accuracy, pretrain_policy, token_rows, train_classifier
from gradebench.models.transformer import ScratchClassifier, ScratchPolicy

TEXTS = [[i % 2, *([2, 3] if i % 2 else [4, 5]) * 6] for i in range(200)]  # the first token decides the others
LABELS = torch.tensor([i % 2 for i in range(200)])


def test_windows_lie_within_their_text_and_half_are_its_opening():
    rows = token_rows([[10, 11, 12, 13, 14], [20, 21, 22, 23, 24, 25]])
    index = torch.tensor([0, 1]).repeat(500)
    windows = rows.windows(index, 3, torch.Generator().manual_seed(0))
    assert windows.shape == (1000, 3)
    assert torch.equal(windows // 10, (index + 1)[:, None].expand(-1, 3))
    assert torch.equal(windows.diff(dim=1), torch.ones(1000, 2, dtype=torch.int64))
    openings = (windows[:, 0] % 10 == 0).float().mean()  # 1/2 + 1/2 * (1/3 or 1/4) = 0.646 in expectation
    assert abs(float(openings) - 0.646) < 0.06  # four standard errors of 1,000 draws


def test_a_text_of_exactly_the_window_is_its_own_window():
    rows = token_rows([[7, 8, 9]])
    assert rows.windows(torch.tensor([0]), 3, torch.Generator().manual_seed(1)).tolist() == [[7, 8, 9]]


def test_pretraining_approaches_the_entropy_of_the_language():
    torch.manual_seed(0)
    policy = ScratchPolicy(6, 16, 1, 2, 8)
    before = policy.token.detach().clone()
    loss = pretrain_policy(policy, token_rows(TEXTS), 8, 150, 32, 1e-2, seed=0)
    # Only an opening's second token is random given its window (not knowing where a window starts costs nothing after
    # two tokens), so a uniform model's ln 6 is far above what can be reached.
    assert loss < 0.2 < math.log(6)
    assert not torch.equal(policy.token, before)


def test_pretraining_is_deterministic_given_its_seed():
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(pretrain_policy(ScratchPolicy(6, 16, 1, 2, 8), token_rows(TEXTS), 8, 20, 8, 1e-2, seed=3))
    assert losses[0] == losses[1]


def test_the_classifier_learns_a_separable_label():
    torch.manual_seed(0)
    classifier = ScratchClassifier(6, 16, 1, 2, 8)
    windows = torch.tensor([text[:8] for text in TEXTS])
    train_classifier(classifier, token_rows(TEXTS), LABELS, 8, 60, 32, 1e-2, seed=0)
    assert accuracy(classifier, windows, LABELS) == 1.0
    assert accuracy(classifier, windows, 1 - LABELS) == 0.0


def test_a_large_model_is_trained_by_the_fused_update_to_the_same_weights(monkeypatch):
    def trained(fused_from):
        monkeypatch.setattr(pretraining, "FUSED_FROM", fused_from)
        torch.manual_seed(0)
        policy = ScratchPolicy(20, 16, 1, 2, 8)
        rows = token_rows(
            [torch.randint(20, (12,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(9)]
        )
        pretraining.pretrain_policy(policy, rows, 8, 20, 4, 1e-2, 0)
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    plain, fused = trained(10**9), trained(0)
    torch.manual_seed(0)
    moved = plain - torch.cat([p.detach().flatten() for p in ScratchPolicy(20, 16, 1, 2, 8).parameters()])
    # Where a gradient is nothing but rounding, Adam makes a whole step of it: not every weight is the same.
    assert 0 < (plain - fused).norm() < 0.01 * moved.norm()
