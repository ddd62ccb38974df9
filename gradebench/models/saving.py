"""Saves trained policies in folders of the hub's format, which `policy=` reads."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gradebench.core.errors import InputError
from gradebench.core.panics import panics_silenced
from gradebench.core.shown import counted
from gradebench.models.declared import require_layers, shapes_in
from gradebench.models.transformer import ScratchPolicy
from gradebench.models.vocabulary import Vocabulary, load_vocabulary
from gradebench.storage.hub import CONFIG, WEIGHTS
from gradebench.storage.libraries import first_line, quiet

_SCRATCH = "gradebench-scratch"  # the model type of policies made here, which other libraries don't know
TOKENIZER = "tokenizer.json"


def save_policy(policy: Any, vocabulary: Any, folder: Path) -> None:
    """Write weights (safetensors), configuration and tokenizer into an existing folder.

    Adapters are merged into the weights, so that the folder is complete.
    """
    if isinstance(policy, ScratchPolicy):
        heads = policy.blocks[0].heads
        shape = [*policy.token.shape, len(policy.blocks), heads, policy.length]
        config = {"model_type": _SCRATCH, "architectures": ["ScratchPolicy"], "shape": shape}
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file({name: p.detach().contiguous() for name, p in policy.state_dict().items()}, folder / WEIGHTS)
        if isinstance(vocabulary, Vocabulary):
            vocabulary.save(folder / TOKENIZER)
        return
    model = policy.merged() if hasattr(policy, "merged") else policy.model

    with quiet():
        model.save_pretrained(folder)
        vocabulary.tokenizer.save_pretrained(folder)


def is_scratch(name_or_path: str) -> bool:
    """Whether a folder holds a policy that gradebench made."""
    try:
        config = json.loads((Path(os.path.expanduser(name_or_path)) / CONFIG).read_text(encoding="utf-8"))
        return bool(config["model_type"] == _SCRATCH)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_scratch(name_or_path: str, length: int) -> ScratchPolicy:
    """The policy in such a folder. Raises InputError if its context is shorter than `length` tokens, or if it is damaged."""
    folder = Path(os.path.expanduser(name_or_path))
    try:
        shape = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["shape"]
        shapes = shapes_in(folder)
        require_layers(name_or_path, shape[2], shapes)
        with torch.device("meta"):  # only its shapes, which take no memory
            declared = {name: tuple(p.shape) for name, p in ScratchPolicy(*shape).state_dict().items()}
        if declared != shapes:
            raise ValueError("weights of other shapes than its configuration's")
        policy = ScratchPolicy(*shape)
        policy.load_state_dict(load_file(folder / WEIGHTS))
    except InputError:
        raise
    except Exception as error:  # an edited configuration, or edited weights
        raise InputError(f"{name_or_path}: a damaged policy ({type(error).__name__}); save it again") from error
    if policy.length < length:
        raise InputError(
            f"{name_or_path}: its context of {counted(policy.length, 'token')} is shorter than prompt and horizon together "
            f"({length}); give a smaller size"
        )
    return policy.eval()


def load_saved_vocabulary(name_or_path: str) -> Vocabulary:
    """The vocabulary in such a folder. Raises InputError if there is none."""
    file = Path(os.path.expanduser(name_or_path)) / TOKENIZER
    if not file.is_file():
        raise InputError(f"{name_or_path}: no {TOKENIZER}; give a policy of the same task")
    try:
        with panics_silenced():
            return load_vocabulary(file)
    except Exception as error:  # the library has its own exceptions, and panics
        raise InputError(
            f"{name_or_path}: a damaged {TOKENIZER} ({first_line(error)}); save the policy again"
        ) from error
