"""Options that tasks on language models share, for the signature of a task of one's own: `kl: Kl = 0.05`."""

from typing import Annotated, Literal

from gradebench.core.options import Range

Kl = Annotated[float, Range(0), "beta of the KL penalty, in reward per nat"]
Policy = Annotated[str, "scratch, or a hub id or folder of any causal language model"]
Reward = Annotated[
    str, "own, or a hub id or folder of a sequence classifier, or a function, FILE.py:NAME or MODULE:NAME"
]
Lora = Annotated[int, Range(0), "rank of adapters, trained in place of a given policy's weights; 0: none"]
Precision = Annotated[Literal["float32", "bfloat16"], "of given models' computations; what is trained stays in float32"]
Instance = Annotated[int, Range(0), "which splits of the prompts and which scratch policy: each has its own"]
