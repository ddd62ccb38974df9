"""Compares what a model's configuration declares with the tensors in its files, before the model is built."""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from gradebench.core.errors import InputError
from gradebench.storage.hub import CONFIG, INDEX, WEIGHTS

Shapes = dict[str, tuple[int, ...]]
_LAYERS = {"num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers"}


def shapes_in(folder: Path) -> Shapes:
    """The shape of every tensor in a folder's weight files, by name. Reads only the files' headers."""
    index = folder / INDEX
    named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else [WEIGHTS]
    found: Shapes = {}
    for file in sorted(set(named)):
        with safe_open(folder / file, "pt") as stored:
            found |= {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118
    return found


def require_layers(name_or_path: str, layers: int, shapes: Shapes) -> None:
    """Raises InputError if more layers are declared than there are tensors, as building them could take all memory."""
    if layers > len(shapes):
        raise InputError(
            f"{name_or_path}: its configuration declares {layers:,} layers and its weights hold {len(shapes):,} "
            "tensors; give a folder whose parts belong together"
        )


def require_counts(folder: Path, name_or_path: str) -> None:
    """Raises InputError if the configuration file declares more layers or labels than the weights can hold.

    To be called before the library reads the file, because it allocates a list of that length at once.
    """
    shapes = shapes_in(folder)
    widest = max((max(shape, default=1) for shape in shapes.values()), default=1)
    for name, value in _numbers(json.loads((folder / CONFIG).read_text(encoding="utf-8"))):
        if name in _LAYERS:
            require_layers(name_or_path, value, shapes)
        if name == "num_labels" and value > widest:
            raise InputError(f"{name_or_path}: its configuration declares {value:,} labels, more than its weights have")


def _numbers(tree: Any) -> Iterator[tuple[str, int]]:
    """All integers in a JSON object, with their names."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        if isinstance(value, dict):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value


def hold_against_weights(auto: Any, config: Any, folder: Path, name_or_path: str, kind: str) -> None:
    """Raises InputError if the configuration declares other shapes than the weights in the folder have.

    Memory: that of the tensors' names. The library may rename tensors when it loads them; therefore a missing name is an
    error only if no tensor with another name is large enough for it.
    """
    shapes = shapes_in(folder)
    with torch.device("meta"):
        model = auto.from_config(config, attn_implementation="eager")
    prefix = f"{model.base_model_prefix}."
    declared: dict[int, tuple[nn.Parameter, list[str]]] = {}  # tied weights have several names
    for name, p in model.named_parameters(remove_duplicate=False):
        declared.setdefault(id(p), (p, []))[1].append(name)
    others, lacking = dict(shapes), dict[str, int]()
    for p, names in declared.values():
        held = [name for known in names for name in _spellings(known, prefix) if name in shapes]
        for name in held:
            others.pop(name, None)
            if shapes[name] != tuple(p.shape):
                raise InputError(
                    f"{name_or_path}: {name} has the shape {list(shapes[name])} in its weights and {list(p.shape)} by "
                    "its configuration; give a folder whose parts belong together"
                )
        if not held:
            lacking[names[0]] = p.numel()
    if sum(lacking.values()) > sum(map(math.prod, others.values())):
        raise InputError(f"{name_or_path}: not {kind}, its weights lack {min(lacking)}; give one")
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()
    _refuse_further_layers(name_or_path, others, [name for _, names in declared.values() for name in names], ignored)


def _spellings(name: str, prefix: str) -> list[str]:
    """A parameter's name, with and without the prefix that only some models of a family have."""
    return [name, name[len(prefix) :] if name.startswith(prefix) else prefix + name]


def _refuse_further_layers(name_or_path: str, others: Iterable[str], known: list[str], ignored: Iterable[str]) -> None:
    """Raises InputError if the weights have more layers than declared, which the library would silently ignore."""
    alike = {_unnumbered(name) for name in known}
    for name in sorted(others):
        spelt = _unnumbered(name)
        if any(re.search(pattern, name) for pattern in ignored) or spelt == name:
            continue
        if any(spelt == one or one.endswith(f".{spelt}") or spelt.endswith(f".{one}") for one in alike):
            raise InputError(
                f"{name_or_path}: its weights hold {name}, which its configuration leaves out; give a folder whose "
                "parts belong together"
            )


def _unnumbered(name: str) -> str:
    return re.sub(r"\.\d+\.", ".#.", name)
