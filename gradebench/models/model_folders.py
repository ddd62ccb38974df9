"""Loads models and tokenizers from a folder in the hub's format. The library's exceptions become an InputError."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gradebench.core.errors import InputError
from gradebench.core.panics import Panicked, panics_raised, panics_silenced
from gradebench.models.adapter_folders import with_adapter, without_adapter
from gradebench.models.declared import hold_against_weights, require_counts
from gradebench.storage.hub import trusts_remote_code
from gradebench.storage.libraries import first_line

_TRIAL_TEXT = "A film, naïve but good!"


def config_of(folder: Path, name_or_path: str) -> Any:
    require_counts(folder, name_or_path)
    return AutoConfig.from_pretrained(folder, trust_remote_code=trusts_remote_code(), local_files_only=True)


def tokenizer_of(folder: Path, name_or_path: str) -> Any:
    """The folder's tokenizer, after a trial, because a broken one may fail only when it is used."""
    require_counts(folder, name_or_path)  # because the library reads the configuration here too
    with panics_silenced():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusts_remote_code(), local_files_only=True)
        tokenizer.batch_decode([tokenizer(_TRIAL_TEXT)["input_ids"]])
    return tokenizer


def model_of(auto: Any, folder: Path, name_or_path: str, kind: str, dtype: torch.dtype) -> Any:
    """The model with the folder's weights. Raises InputError if they don't fit the configuration or are incomplete.

    A LoRA adapter of a language model in the same folder is merged into the weights.
    """
    config = config_of(folder, name_or_path)
    if not getattr(config, "auto_map", None):  # a model with its own code may differ from its configuration
        hold_against_weights(auto, config, folder, name_or_path, kind)
    with without_adapter(folder) as bare:
        model, report = auto.from_pretrained(
            bare,
            trust_remote_code=trusts_remote_code(),
            local_files_only=True,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation="eager",
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(f"{name_or_path}: not {kind}, its weights lack {missing[0]}; give one")
    return with_adapter(model, folder, name_or_path, "CAUSAL_LM" if auto is AutoModelForCausalLM else "SEQ_CLS")


@contextmanager
def refused(name_or_path: str, role: str) -> Iterator[None]:
    """A context that turns any exception of the library into an InputError of one line."""
    try:
        with panics_raised():
            yield
    except Panicked as error:
        raise InputError(f"{name_or_path}: can't serve as {role}: {error}") from error
    except InputError:
        raise
    except Exception as error:  # configurations, tokenizers and weights all raise different exceptions
        if "trust_remote_code" in str(error):
            advice = "read it, and give --trust-remote-code if you trust it"
            raise InputError(f"{name_or_path}: {role} that needs code of its own to be run; {advice}") from error
        raise InputError(f"{name_or_path}: can't serve as {role}: {first_line(error)}; give another model") from error
