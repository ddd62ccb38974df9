"""Model folders that also hold a LoRA adapter: the adapter is merged into the weights when the model is loaded."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


@contextmanager
def without_adapter(folder: Path) -> Iterator[Path]:
    """The folder, or if it has an adapter, a temporary folder that links to all other files.

    The library would otherwise find the adapter and load it in its own way.
    """
    if not (folder / CONFIG).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gradebench-") as bare:
        for file in folder.iterdir():
            if not file.name.startswith("adapter_"):
                (Path(bare) / file.name).symlink_to(file.resolve())
        yield Path(bare)


def with_adapter(model: Any, folder: Path, name_or_path: str, task_type: str) -> Any:
    """The model with the folder's adapter, if there is one, merged into its weights.

    Raises InputError for adapters other than plain LoRA for `task_type` without further weights, and if peft is missing.
    """
    if not (folder / CONFIG).is_file():
        return model
    declared = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    odd = _odd(declared, task_type)
    if not (folder / WEIGHTS).is_file():
        odd = f"it has no {WEIGHTS}"
    if odd:
        raise InputError(
            f"{name_or_path}: beside its weights is an adapter that can't be added to them: {odd}; merge it and save "
            f"the whole, or move {CONFIG} away"
        )
    try:
        from peft import PeftModel, get_peft_model_state_dict
    except ImportError as error:
        raise InputError(
            f"{name_or_path}: beside its weights is an adapter, which needs its library; pip install 'gradebench[lora]'"
        ) from error
    from safetensors import safe_open

    adapted = PeftModel.from_pretrained(model, folder)
    with safe_open(folder / WEIGHTS, "pt") as stored:
        named = set(stored.keys())
    apart = sorted(named ^ set(get_peft_model_state_dict(adapted)))
    if apart:
        raise InputError(f"{name_or_path}: its adapter isn't one of its model: {apart[0]} is in one of them alone")
    return adapted.merge_and_unload().requires_grad_(True)  # peft froze the weights


def _odd(declared: Any, task_type: str) -> str | None:
    """Why the adapter can't be merged, in a few words."""
    if not isinstance(declared, dict):
        return f"{CONFIG} is no object"
    if declared.get("peft_type") != "LORA":
        return f"it is a {declared.get('peft_type')}, not a LORA"
    if declared.get("task_type") not in (None, task_type):
        return f"it is for {declared['task_type']}, not {task_type}"
    own = [name for name in ("modules_to_save", "trainable_token_indices", "target_parameters") if declared.get(name)]
    return f"it has {own[0]}, weights beyond a LORA's" if own else None
