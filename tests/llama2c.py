"""A llama2.c model (version 0) and its tokenizer, written as a folder in the hub's format."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, processors
from torch import Tensor
from transformers import LlamaConfig, PreTrainedTokenizerFast


def write_folder(weights: Path, tokens: Path, folder: Path) -> Path:
    folder.mkdir()
    write_model(weights, folder)
    write_tokenizer(tokens, folder)
    return folder


def write_model(source: Path, folder: Path) -> None:
    data = source.read_bytes()
    dim, hidden, layers, heads, kv_heads, vocabulary, context = struct.unpack("<7i", data[:28])
    numbers = torch.frombuffer(bytearray(data[28:]), dtype=torch.float32)
    kv_dim = dim // heads * kv_heads
    shapes = {
        "embed_tokens": (vocabulary, dim),
        "input_layernorm": (layers, dim),
        "self_attn.q_proj": (layers, dim, dim),
        "self_attn.k_proj": (layers, kv_dim, dim),
        "self_attn.v_proj": (layers, kv_dim, dim),
        "self_attn.o_proj": (layers, dim, dim),
        "post_attention_layernorm": (layers, dim),
        "mlp.gate_proj": (layers, hidden, dim),
        "mlp.down_proj": (layers, dim, hidden),
        "mlp.up_proj": (layers, hidden, dim),
        "norm": (dim,),
    }
    tensors: dict[str, Tensor] = {}
    start = 0
    for name, shape in shapes.items():
        tensor = numbers[start : start + torch.Size(shape).numel()].view(shape)
        start += tensor.numel()
        if name in ("embed_tokens", "norm"):
            tensors[f"model.{name}.weight"] = tensor.clone()
            continue
        for layer, part in enumerate(tensor):
            if name in ("self_attn.q_proj", "self_attn.k_proj"):
                part = halves_from_pairs(part, dim // heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = part.clone()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    ).save_pretrained(folder)


def halves_from_pairs(weight: Tensor, width: int) -> Tensor:
    """Rows (out, in) of heads of `width` from rotated neighbours (2i, 2i + 1) to rotated halves (i, i + width / 2)."""
    return weight.view(-1, width // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def write_tokenizer(source: Path, folder: Path) -> None:
    """As byte-pair merges, which take the pair with the best score just as llama2.c does."""
    pieces = [(score, raw.decode("utf-8", "replace").replace(" ", "▁")) for score, raw in read_pieces(source)]
    names = ["<unk>", "<s>", "</s>", *(piece for _, piece in pieces[3:])]
    ids = {name: i for i, name in enumerate(names)}
    assert len(ids) == len(names)
    scores = {name: score for name, (score, _) in zip(names, pieces, strict=True)}
    merges = [
        (name[:cut], name[cut:])
        for name in sorted(names[259:], key=lambda name: -scores[name])
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    wrapped.save_pretrained(folder)
    assert json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["byte_fallback"]


def read_pieces(source: Path) -> Iterator[tuple[float, bytes]]:
    data, at = source.read_bytes(), 4  # after the length of the longest one
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        yield score, data[at + 8 : at + 8 + length]
        at += 8 + length
