"""A small policy made here: a vocabulary and a transformer, pretrained on a corpus."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from gradebench.core.errors import InputError
from gradebench.core.shown import counted
from gradebench.core.task import Log
from gradebench.models.pretraining import TokenRows, pretrain_policy, token_rows
from gradebench.models.saving import save_policy
from gradebench.models.transformer import ScratchPolicy
from gradebench.models.vocabulary import train_vocabulary
from gradebench.storage.cache import REPORT


@dataclass(frozen=True)
class Pretraining:
    """Shape and training of a policy made here. On two CPU cores the defaults take about a minute."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    vocabulary: int = 1000  # tokens, at most
    steps: int = 700
    batch: int = 64
    learning_rate: float = 3e-3


def make_policy(
    folder: Path,
    corpus: Sequence[str],
    prompts: Sequence[str],
    horizon: int,
    longest_prompt: int,
    shape: Pretraining,
    seed: int,
    device: torch.device,
    log: Log,
) -> None:
    """Learn a vocabulary of corpus and prompts, pretrain a policy on the corpus, and leave both in the folder.

    The policy learns windows of as many tokens as the longest prompt and the horizon have. No token ends a text.

    Raises        InputError where the corpus is shorter than such a window.
    """
    log(f"training a vocabulary on {counted(len(corpus), 'text')}")
    vocabulary = train_vocabulary([*corpus, *prompts], shape.vocabulary)
    window = max(map(len, vocabulary.encode(prompts))) + horizon
    rows = windowed(vocabulary.encode(corpus), window)
    torch.manual_seed(seed)  # initial weights, the one thing that reads the global generator
    length = max(window, longest_prompt + horizon)
    policy = ScratchPolicy(len(vocabulary), shape.width, shape.layers, shape.heads, length).to(device)
    facts = pretrained(policy, token_rows(rows), window, shape.steps, seed, log, shape.batch, shape.learning_rate)
    save_policy(policy, vocabulary, folder)
    write_report(folder, {"vocabulary": len(vocabulary), "texts": len(corpus)} | facts)


def windowed(texts: Iterable[Sequence[int]], window: int) -> list[list[int]]:
    """Rows of at least `window` tokens: each text with those that follow it, as many as it takes.

    Raises        InputError where all of them together are shorter.
    """
    rows: list[list[int]] = []
    waiting: list[int] = []
    for text in texts:
        waiting = [*waiting, *text]
        if len(waiting) >= window:
            rows.append(waiting)
            waiting = []
    if not rows:
        raise InputError(
            f"the corpus has {counted(len(waiting), 'token')}, prompt and horizon {window}; give a longer one"
        )
    return rows


def pretrained(
    policy: ScratchPolicy,
    text: TokenRows,
    window: int,
    steps: int,
    seed: int,
    log: Log,
    batch: int = 64,
    learning_rate: float = 3e-3,
) -> dict[str, Any]:
    """Pretrain a policy; returns facts for the report."""
    log(f"pretraining the policy: {counted(steps, 'step')}, {counted(parameters_of(policy), 'parameter')}")
    loss = pretrain_policy(policy, text, window, steps, batch, learning_rate, seed)
    return {"policy_parameters": parameters_of(policy), "policy_loss_nats_per_token": loss}


def write_report(folder: Path, facts: dict[str, Any]) -> None:
    """What a build tells of itself: part of config.json, and nothing that numbers depend on."""
    (folder / REPORT).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def parameters_of(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def with_weights(module: nn.Module, path: Path) -> Any:
    """The module with the weights of a file."""
    weights: dict[str, Tensor] = load_file(path)
    module.load_state_dict(weights)
    return module.eval()
