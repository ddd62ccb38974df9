"""A tiny Llama in one GGUF file, its matrices in 8 bits, with a byte-level tokenizer."""

import numpy as np
import pytest

WIDTH, HIDDEN, LAYERS, HEADS, VOCABULARY = 32, 64, 2, 2, 260


def byte_tokens():
    """The 256 characters that stand for bytes in GPT-2's tokenizer, in order of bytes."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte if byte in shown else next(hidden)) for byte in range(256)]


def write_gguf(path, architecture="llama", tokenizer=True, seed=0):
    """Returns the weights that the file has, dequantised, by their names in it."""
    gguf = pytest.importorskip("gguf", reason="the package gguf, of the extra of the same name, isn't installed")
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    if tokenizer:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(["<|endoftext|>", "<|im_end|>", *byte_tokens(), "Ġt", "he"])
        writer.add_token_types([3, 3, *[1] * 258])
        writer.add_token_merges(["Ġ t", "h e"])
        writer.add_bos_token_id(0)
        writer.add_eos_token_id(1)
    weights = {}

    def add(name, *shape, plain=False):
        values = (rng.standard_normal(shape) * 0.2 + plain).astype(np.float32)
        if plain:
            writer.add_tensor(name, values)
        else:
            kind = gguf.GGMLQuantizationType.Q8_0
            stored = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, stored, raw_dtype=kind)
            values = gguf.quants.dequantize(stored, kind)
        weights[name] = values

    add("token_embd.weight", VOCABULARY, WIDTH)
    add("output_norm.weight", WIDTH, plain=True)
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}.weight", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_gate.weight", HIDDEN, WIDTH)
        add(f"blk.{layer}.ffn_up.weight", HIDDEN, WIDTH)
        add(f"blk.{layer}.ffn_down.weight", WIDTH, HIDDEN)
        add(f"blk.{layer}.attn_norm.weight", WIDTH, plain=True)
        add(f"blk.{layer}.ffn_norm.weight", WIDTH, plain=True)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights
