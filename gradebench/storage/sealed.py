"""Tensors and a text in one safetensors file with a checksum, which reveals damage."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradebench.core.errors import InputError
from gradebench.storage.files import atomic_path

_KEY = "gradebench"  # one key for checksum and text, because safetensors doesn't keep the order of several
_LENGTH = 8  # hex digits


class Damaged(InputError):
    """The file has changed since it was written, or is missing."""


def write(path: Path, tensors: Mapping[str, Tensor], text: str = "") -> None:
    """Writes atomically; the tensors must be contiguous, and no two may share memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Some readers take a file without tensors for a damaged one.
    stored = {name: tensor.cpu() for name, tensor in tensors.items()} or {"0": torch.zeros(())}
    with atomic_path(path) as draft:
        save_file(stored, draft, {_KEY: _checksum(stored, text) + text})


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, on the CPU, and the text. Raises Damaged, also for a missing file or checksum."""
    try:
        with safe_open(path, "pt") as file:
            sealed = (file.metadata() or {})[_KEY]
        tensors, text = load_file(path), sealed[_LENGTH:]
        if sealed[:_LENGTH] == _checksum(tensors, text):
            return tensors, text
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        pass
    raise Damaged(f"{path} is damaged; run again to rebuild it")


def is_whole(path: Path) -> bool:
    """Whether such a file exists and is undamaged."""
    try:
        read(path)
        return True
    except Damaged:
        return False


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Over everything stored. CRC-32 and not a longer digest, because training waits while it is computed."""
    found = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:0{_LENGTH}x}"
