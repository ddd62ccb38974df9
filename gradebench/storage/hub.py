"""The model hub: whether it is reachable, and where a model's files are on this machine."""

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError
from gradebench.storage import gguf
from gradebench.storage.digests import of_file
from gradebench.storage.libraries import first_line

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"  # names the shards of weights in several files
# Configuration, weights and tokenizer; weights are read only as safetensors, because other formats can run code.
_MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_CODE = "*.py"  # code of a model; downloaded and run only if it is trusted
TRUST = "GRADEBENCH_TRUST_REMOTE_CODE"  # in the environment, so that workers inherit it
_HUB_ID = re.compile(r"\w[\w.-]*(/[\w.-]+)?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def trusts_remote_code() -> bool:
    """Whether models may run their own code (`--trust-remote-code`)."""
    return os.environ.get(TRUST) == "1"


def _wanted_files() -> tuple[str, ...]:
    return (*_MODEL_FILES, _CODE) if trusts_remote_code() else _MODEL_FILES


class HubUnreachable(InputError):
    """The hub can't be reached, and no copy is cached."""


@dataclass(frozen=True)
class ModelFiles:
    """A model in the hub's format: its name for tables, and the folder with its files."""

    name: str
    folder: Path
    made_from: Path | None = None  # the GGUF file that the folder was made from

    @cached_property
    def digest(self) -> str:
        """The hub's commit; of a local folder a sha256 over names and contents of its files, in hexadecimal; of a GGUF
        file its sha256."""
        if self.made_from:
            return of_file(self.made_from)
        if self.folder.parent.name == "snapshots" and _COMMIT.fullmatch(self.folder.name):
            return self.folder.name
        sha = hashlib.sha256()
        files = {file for pattern in _wanted_files() for file in self.folder.glob(pattern) if file.is_file()}
        for file in sorted(files, key=lambda file: file.name):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            sha.update(f"{file.name} {content}\n".encode())
        return sha.hexdigest()


def locate_model(name_or_path: str, timeout: float = 10.0) -> ModelFiles:
    """Returns the files of a local folder, of a GGUF file (itself, its folder, or an installed package that carries it),
    or of a hub id, of which a cached copy serves without asking the hub.

    Raises InputError if files are missing or incomplete, and HubUnreachable after `timeout` seconds if the hub doesn't
    answer. The duration of a download isn't limited.
    """
    deadline = time.monotonic() + timeout
    if file := gguf.file_of(name_or_path):
        return ModelFiles(file.stem, gguf.folder_of(file), file)
    path = Path(os.path.expanduser(name_or_path))
    if os.path.isdir(path):  # unlike Path.is_dir, doesn't raise without permission
        lacking = lacking_in(path)
        if lacking:
            raise InputError(
                f"{name_or_path}: incomplete, {lacking}; give a folder written by save_pretrained, or a GGUF file"
            )
        return ModelFiles(path.resolve().name, path)
    if not _HUB_ID.fullmatch(name_or_path):
        raise InputError(f"{name_or_path}: no such folder; give a folder with a model, or a hub id such as gpt2")
    folder = _cached_snapshot(name_or_path) or _downloaded(name_or_path, deadline, timeout)
    return ModelFiles(name_or_path, folder)


def is_here(name_or_path: str) -> bool:
    """Whether it is a folder, a GGUF file, or a whole model of the hub's cache: nothing has to be downloaded for it."""
    if gguf.file_of(name_or_path) or os.path.isdir(os.path.expanduser(name_or_path)):
        return True
    return bool(_HUB_ID.fullmatch(name_or_path)) and _cached_snapshot(name_or_path) is not None


def lacking_in(folder: Path) -> str | None:
    """Returns what a folder lacks to be a complete model, in a few words; None if it is complete."""
    if not (folder / CONFIG).is_file():
        alone = (folder / "adapter_config.json").is_file()
        return f"no {CONFIG}{' (an adapter without the model that it is for: merge them)' if alone else ''}"
    if (folder / INDEX).is_file():
        try:
            shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            return f"{INDEX} isn't an index of weights"
        lost = sorted(name for name in shards if not (folder / name).is_file())
        return f"no weights {lost[0]}" if lost else None
    if (folder / WEIGHTS).is_file():
        return None
    return "no weights model.safetensors (other formats, such as pytorch_model.bin, aren't read)"


def hub_refusal(path: str, seconds: float) -> str | None:
    """Returns why a file of the hub can't be downloaded, or None: one HEAD request without retries.

    `path` follows the endpoint, such as "gpt2/resolve/main/config.json".
    """
    from huggingface_hub import constants, get_hf_file_metadata

    url = f"{constants.ENDPOINT}/{path}"
    answers: list[str | None] = []

    def ask() -> None:
        try:
            # Only a hub returns a commit; a captive portal or a proxy also answers 200.
            answers.append(None if get_hf_file_metadata(url).commit_hash else f"{url} isn't a hub's")
        except Exception as error:  # noqa: BLE001  reported, whatever it is
            answers.append(f"{constants.ENDPOINT}: {first_line(error)}")

    # The client's timeouts don't cover name resolution, hence a daemon thread, which may hang at exit.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else f"{constants.ENDPOINT}: no answer within {seconds:.1f} s"


def seconds_to_ask(deadline: float, timeout: float) -> float:
    """Seconds that the hub has to answer, until half a second before a time of `time.monotonic`.

    It has at least half of `timeout`, even if importing its libraries took long.
    """
    return max(timeout / 2, deadline - time.monotonic() - 0.5)


@contextmanager
def silent_hub(*others: Any) -> Iterator[None]:
    """Silences progress bars and warnings of the hub's library and of `others`, and restores the settings."""
    import huggingface_hub.utils

    libraries: list[Any] = [*others, huggingface_hub.utils]
    before = [(library, library.are_progress_bars_disabled(), library.logging.get_verbosity()) for library in libraries]
    for library in libraries:
        library.disable_progress_bars()
        library.logging.set_verbosity(library.logging.CRITICAL)
    try:
        yield
    finally:
        for library, without_bars, level in before:
            library.logging.set_verbosity(level)
            if not without_bars:
                library.enable_progress_bars()


def _cached_snapshot(hub_id: str) -> Path | None:
    """Returns the folder of the hub's cache with the complete model; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    file = try_to_load_from_cache(hub_id, CONFIG)
    folder = Path(file).parent if isinstance(file, str) else None
    return folder if folder and not lacking_in(folder) else None


def _downloaded(hub_id: str, deadline: float, timeout: float) -> Path:
    """Downloads the model's files and returns their folder in the hub's cache."""
    from huggingface_hub import constants, snapshot_download

    refusal = f"{hub_id} is no folder here and can't be had from the hub: {{}}; give a folder with a model"
    if constants.HF_HUB_OFFLINE:
        raise HubUnreachable(refusal.format("no copy is cached and HF_HUB_OFFLINE is set"))
    with silent_hub():
        reason = hub_refusal(f"{hub_id}/resolve/main/{CONFIG}", seconds_to_ask(deadline, timeout))
        if reason is not None:
            raise HubUnreachable(refusal.format(reason))
        try:
            # Files in subfolders are other formats or checkpoints of the same model.
            folder = Path(snapshot_download(hub_id, allow_patterns=list(_wanted_files()), ignore_patterns=["*/*"]))
        except Exception as error:  # the libraries raise exceptions of their own
            raise HubUnreachable(refusal.format(first_line(error))) from error
    lacking = lacking_in(folder)
    if lacking:
        raise InputError(f"{hub_id}: incomplete on the hub, {lacking}; give another model")
    return folder
