"""Tensors and a text in one safetensors file with a checksum: read back to the bit, or told to be damaged."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from gradebench.core.errors import InputError
from gradebench.storage.files import atomic_path

_KEY = "gradebench"  # of the checksum and the text: one, as safetensors keeps several in no order
_LENGTH = 8  # hex digits


class Damaged(InputError):
    """A file that isn't as it was written."""


def write(path: Path, tensors: Mapping[str, Tensor], text: str = "") -> None:
    """Whole or not at all; the tensors are contiguous, and no two share their memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A file of no tensors can't be told from a damaged one by some readers.
    stored = {name: tensor.cpu() for name, tensor in tensors.items()} or {"0": torch.zeros(())}
    with atomic_path(path) as draft:
        save_file(stored, draft, {_KEY: _checksum(stored, text) + text})


def read(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors, on the CPU, and the text. Raises Damaged, also for a file without a checksum and for none."""
    try:
        with safe_open(path, "pt") as file:
            sealed = (file.metadata() or {})[_KEY]
        tensors, text = load_file(path), sealed[_LENGTH:]
        if sealed[:_LENGTH] == _checksum(tensors, text):
            return tensors, text
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError):
        pass
    raise Damaged(f"{path} is damaged; run again, and it is made again")


def is_whole(path: Path) -> bool:
    """Whether such a file is there, as it was written."""
    try:
        read(path)
        return True
    except Damaged:
        return False


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Over all that is stored. CRC-32 and not a longer digest, as large trainings are stored while they wait."""
    found = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, found)
    return f"{found:0{_LENGTH}x}"
