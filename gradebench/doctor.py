"""What a run will find on this machine: versions, devices, folders, plugins and the hub, and what to do about each."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gradebench.core.errors import InputError
from gradebench.plugins.registry import INSTALL_HINT, KINDS, collisions, entries, installed
from gradebench.reporting.listing import imported
from gradebench.storage.cache import cache_root
from gradebench.storage.hub import hub_refusal
from gradebench.storage.records import environment, require_writable

PROBED = "datasets/stanfordnlp/imdb/resolve/main/README.md"  # what the default task asks the hub for
HUB_SECONDS = 8.0
LITTLE_SPACE = 2e9  # bytes
_EXTRAS = (
    ("resvg_py", "plots", "report --plots as PNG"),
    ("svglib", "figures", "report --figures pdf"),
    ("ray", "ray", "run --launcher ray"),
    ("submitit", "slurm", "run --launcher slurm"),
)


@dataclass(frozen=True)
class Finding:
    """`bad` keeps a run from working, `note` makes it work otherwise than one may expect."""

    subject: str
    state: Literal["ok", "note", "bad"]
    detail: str


def findings() -> Iterator[Finding]:
    """One after the other, as they are found: the hub's answer may take seconds."""
    yield from _packages()
    yield _device()
    yield from _plugins()
    yield _folder("cache", cache_root(), "set GRADEBENCH_CACHE to another folder")
    yield _hub_cache()
    yield _folder("results", Path("results"), "work in another folder, or give --out")
    yield _hub()


def _packages() -> Iterator[Finding]:
    facts = environment("cpu")
    versions = {name: version for name, version in facts["packages"].items() if version}
    lacking = sorted(set(facts["packages"]) - set(versions))
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield Finding("versions", "ok", f"python {facts['python']}, {listed}")
    if lacking:
        yield Finding("versions", "bad", f"not installed: {', '.join(lacking)}; pip install gradebench again")
    for package, extra, purpose in _EXTRAS:
        if importlib.util.find_spec(package) is None:
            yield Finding("extras", "note", f"no {package}: `{purpose}` needs pip install 'gradebench[{extra}]'")


def _device() -> Finding:
    import torch

    cores = f"{os.cpu_count()} CPU cores"
    if not torch.cuda.is_available():
        return Finding("device", "note", f"no CUDA device that torch can use: runs go to {cores}")
    devices = (torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count()))
    listed = ", ".join(f"{device.name} ({device.total_memory / 2**30:.0f} GiB)" for device in devices)
    return Finding("device", "ok", f"{listed}; {cores}")


def _plugins() -> Iterator[Finding]:
    if not installed():
        yield Finding("plugins", "bad", INSTALL_HINT)
    for kind in KINDS:
        tried = [imported(entry) for entry in entries(kind).values()]
        broken = [entry for entry in tried if entry.problem]
        others = sorted({entry.source for entry in tried if not entry.builtin})
        yield Finding(
            kind, "ok", f"{len(tried) - len(broken)} work" + (f", of {', '.join(others)} too" if others else "")
        )
        yield from (Finding(kind, "bad", f"{entry.name} of {entry.source}: {entry.problem}") for entry in broken)
        yield from (Finding(kind, "note", line) for line in collisions(kind))


def _folder(subject: str, folder: Path, remedy: str) -> Finding:
    try:
        require_writable(folder)
    except InputError:
        return Finding(subject, "bad", f"{folder} can't be written; {remedy}")
    existing = next(parent for parent in (folder.resolve(), *folder.resolve().parents) if parent.exists())
    free, used = shutil.disk_usage(existing).free, _size(folder)
    detail = f"{folder} holds {used / 1e6:,.0f} MB, {free / 1e9:,.1f} GB are free"
    return Finding(subject, "note" if free < LITTLE_SPACE else "ok", detail)


def _hub_cache() -> Finding:
    """Where models and data sets from the hub are kept; a run makes it when it needs it."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE)
    return Finding("hub cache", "ok", f"{folder} holds {_size(folder) / 1e6:,.0f} MB")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())


def _hub() -> Finding:
    refusal = hub_refusal(PROBED, HUB_SECONDS)
    if refusal is None:
        return Finding("hub", "ok", "the model hub answers")
    return Finding("hub", "note", f"{refusal}: `--task imdb` runs on the embedded corpus; local folders work")
