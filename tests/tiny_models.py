"""Tiny random models in the hub's format, each in a local folder with a tokenizer trained on grammar reviews."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from gradebench.tasks.grammar import generate_reviews

ROWS_BEYOND = 3  # embeddings beyond the tokenizer's ids, as padded tables have them
CONTEXT = 48

_SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": CONTEXT}
_GROUPED = {**_SHAPE, "intermediate_size": 32, "num_key_value_heads": 1, "head_dim": 8}
# Prefix of the classes, and the shape in the configuration's words.
_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_positions": CONTEXT, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "llama": ("Llama", _GROUPED),
    "qwen": ("Qwen3", _GROUPED),  # norms of queries and keys
    "gpt-neox": ("GPTNeoX", {**_SHAPE, "intermediate_size": 32, "rotary_pct": 0.5}),  # attention beside feed-forward
    "gemma2": ("Gemma2", {**_GROUPED, "sliding_window": 4}),  # scales embeddings, forgets, soft-caps logits
    "opt": ("OPT", {**_SHAPE, "ffn_dim": 32, "word_embed_proj_dim": 8}),  # embeddings narrower than the layers
    "bert": ("Bert", {**_SHAPE, "intermediate_size": 32}),  # bidirectional
}
_LANGUAGE_MODELS = {"gpt2": "GPT2LMHeadModel", "bert": "BertLMHeadModel"}  # the others are ...ForCausalLM


@cache
def texts() -> list[str]:
    return [review.text for review in generate_reviews(600, seed=1)]


class Folders:
    """folders("llama", "causal", ...) writes a random model below `root`, once for the same arguments.

    `kind` is "causal" or "classifier", `trained` the number of texts that the tokenizer learns from, `template` what it
    puts around a text, such as "<s> $A"; the rest goes to the model's configuration.
    """

    def __init__(self, root: Path):
        self.root, self.made = root, dict[str, Path]()

    def __call__(self, family: str, kind: str = "causal", trained: int = 600, template: str = "", **options) -> Path:
        key = json.dumps([family, kind, trained, template, options])
        if key not in self.made:
            folder = self.root / f"{family}-{kind}-{len(self.made)}"
            write_model(folder, family, kind, write_tokenizer(folder, trained, template), **options)
            self.made[key] = folder
        return self.made[key]


def write_tokenizer(folder: Path, trained: int, template: str) -> int:
    """Writes a byte-level BPE with the ids 0 <pad>, 1 <s>, 2 </s>; returns its number of ids."""
    tokenizer = Tokenizer.from_str(_learned(trained))
    if template:
        special = [("<s>", 1), ("</s>", 2)]
        tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(folder)
    return tokenizer.get_vocab_size()


@cache
def _learned(number: int) -> str:
    """The tokenizer that so many texts give, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts()[:number], trainer)
    return tokenizer.to_str()


def write_model(folder: Path, family: str, kind: str, tokens: int, **options: Any) -> None:
    """Writes random weights, large enough for gradients far above rounding."""
    prefix, shape = _FAMILIES[family]
    shape = shape | {"vocab_size": tokens + ROWS_BEYOND, "init_std" if family == "opt" else "initializer_range": 0.4}
    special = {"pad_token_id": None, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{prefix}Config")(**{**shape, **special, **options})
    causal = _LANGUAGE_MODELS.get(family, f"{prefix}ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, causal if kind == "causal" else f"{prefix}ForSequenceClassification")(config)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
