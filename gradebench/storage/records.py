"""The files of a run: cell folders, config.json, environment.json."""

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from gradebench.core.errors import InputError
from gradebench.core.schema import (
    ALL_PARAMETERS,
    METRIC_UNITS,
    METRICS_COLUMNS,
    PROBES_COLUMNS,
    TRAINING_COLUMNS,
    TRAINING_PLACE,
)
from gradebench.core.shown import utf8
from gradebench.storage import digests
from gradebench.storage.files import atomic_path
from gradebench.storage.followed import stale
from gradebench.storage.formats import dumps, loads, write_json, write_lines

POLICY = "policy"  # a cell's folder with its trained policy, if that was requested
ENDED = "cell.json"  # of a cell that has ended, with any status
FINISHED = ("ok", "skipped")  # statuses of cells that aren't run again
# Rows of a cell, in Arrow's own format: thousands are read at once, several times faster than as parquet.
METRICS, PROBES, STEPS = "metrics.arrow", "probes.arrow", "training.arrow"
TRAINING = "training.safetensors"  # a cell's checkpoint
SAMPLES = "samples.jsonl"  # texts, of each cell and of the whole run
SERIES = "training.parquet"  # every training step of a run
# Files of a run's folder that are read back, and therefore have digests.
READ_AGAIN = ("metrics.parquet", "config.json", "environment.json", "probes.csv", "tuned.json", SAMPLES, SERIES)


@dataclasses.dataclass(frozen=True)
class Identity:
    """The columns that all rows of one cell share."""

    run_id: str
    cell_id: str
    task: str
    setting: str
    estimator: str
    estimator_params: str
    estimator_source: str
    seed: int


class CellRecord:
    """The rows of one cell, gathered in memory and written once."""

    def __init__(self, identity: Identity):
        self.identity = {name: _held(value) for name, value in dataclasses.asdict(identity).items()}
        self.rows: list[dict[str, Any]] = []
        self.probes: list[dict[str, Any]] = []
        self.samples: list[dict[str, Any]] = []
        self.steps: Sequence[Mapping[str, float]] = []  # of the training: a row each, its number and values by name

    def add(self, phase: str, split: str, step: int, metrics: Mapping[str, float]) -> None:
        for metric, value in metrics.items():
            place = {"phase": phase, "split": split, "step": step}
            unit = METRIC_UNITS.get(metric, "")
            self.rows.append(self.identity | place | {"metric": utf8(metric), "value": float(value), "unit": unit})

    def add_probe(self, place: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Metrics with intervals (`value`, `low`, `high`), for probes.csv."""
        for metric, interval in metrics.items():
            ends = {"value": interval.value, "ci_low": interval.low, "ci_high": interval.high}
            self.probes.append(self.identity | dict(place) | {"metric": utf8(metric)} | ends)

    def add_samples(self, split: str, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        named = {name: self.identity[name] for name in ("task", "setting", "estimator", "seed")}
        for number, sample in enumerate(samples):
            self.samples.append(named | {"split": split, "step": step, "number": number} | dict(sample))

    def probe_frame(self) -> pd.DataFrame:
        frame = pd.DataFrame(self.probes, columns=PROBES_COLUMNS)
        units = [METRIC_UNITS.get(metric, "") for metric in frame["metric"]]
        return frame.assign(unit=units, parameters=[group or ALL_PARAMETERS for group in frame["group"]])

    def steps_frame(self, status: str) -> pd.DataFrame:
        """A row for each training step, TRAINING_COLUMNS and those of `Estimate.info`; numbers in single precision."""
        steps = [{utf8(name): value for name, value in row.items()} for row in self.steps]
        rows = pd.DataFrame(steps, columns=None if steps else ["step"])
        more = sorted(set(rows.columns) - set(TRAINING_COLUMNS))
        texts = {name: self.identity.get(name, status) for name in TRAINING_PLACE if name not in ("seed", "step")}
        frame = rows.assign(**texts, seed=self.identity["seed"]).reindex(columns=[*TRAINING_COLUMNS, *more])
        kinds = dict.fromkeys(frame.columns, "float32") | dict.fromkeys(texts, "category")
        return frame.astype(kinds | {"seed": "int64", "step": "int64"})

    def frame(self, status: str) -> pd.DataFrame:
        """The rows with their status; a cell without rows gets one, so that it is never missing from tables."""
        rows = self.rows or [
            self.identity | {"phase": "train", "split": "train", "step": 0, "metric": "", "value": float("nan")}
        ]
        frame = pd.DataFrame(rows, columns=METRICS_COLUMNS)
        return frame.assign(status=status, unit=frame["unit"].fillna(""))


def _held(value: Any) -> Any:
    return utf8(value) if isinstance(value, str) else value


def cell_id(task: str, estimator: str, seed: int) -> str:
    """A folder name for the cell: readable, safe, and unique by a short digest of the full labels."""
    digest = hashlib.sha256(f"{task}|{estimator}|{seed}".encode()).hexdigest()[:6]
    words = [re.sub(r"[^A-Za-z0-9.=-]+", "_", part)[:40].strip("_") for part in (task, estimator)]
    return f"{words[0]}--{words[1]}--s{seed}-{digest}"


def write_cell(
    folder: Path,
    key: str,
    frame: pd.DataFrame,
    status: str,
    reason: str,
    probes: pd.DataFrame | None = None,
    samples: Sequence[Mapping[str, Any]] = (),
    about: Mapping[str, Any] | None = None,
    steps: pd.DataFrame | None = None,
) -> None:
    """Write the cell's rows, then cell.json, which marks the cell as ended and has the digests of the other files and
    `about`."""
    folder.mkdir(parents=True, exist_ok=True)
    written = [METRICS]
    _write_rows(frame, folder / METRICS)
    if samples:
        write_lines(folder / SAMPLES, samples)
        written.append(SAMPLES)
    for name, rows in ((PROBES, probes), (STEPS, steps)):
        if rows is not None and len(rows):
            _write_rows(rows, folder / name)
            written.append(name)
    ended = {"key": key, "status": status, "reason": reason} | dict(about or {})
    ended["files"] = {name: digests.of_file(folder / name) for name in written}
    if (folder / POLICY).is_dir():
        ended["policy"] = _policy_digests(folder)
    ended = loads(dumps(ended))  # as it comes back
    write_json(folder / ENDED, ended | {"digest": digests.of_json(ended)})


def forget_cell(folder: Path) -> None:
    """Remove the files of an earlier attempt, so that they don't remain if a worker dies now."""
    for name in (ENDED, METRICS, PROBES, STEPS, SAMPLES, "error.txt"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / POLICY, ignore_errors=True)


def is_finished(folder: Path, key: str) -> bool:
    """Whether a cell ended `ok` or `skipped` under the same key, and neither its files nor what plugin code read for it
    has changed."""
    ended = read_ended(folder)
    finished = ended.get("key") == key and ended.get("status") in FINISHED and is_whole(folder, ended)
    return finished and not stale(ended.get("read"))


def read_ended(folder: Path) -> dict[str, Any]:
    """The content of the cell's cell.json; empty if that is missing or damaged."""
    try:
        ended = loads((folder / ENDED).read_text(encoding="utf-8"))
        own = ended.pop("digest", None)  # one of an earlier version has none
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return ended if isinstance(ended, dict) and own in (None, digests.of_json(ended)) else {}


def is_whole(folder: Path, ended: Mapping[str, Any]) -> bool:
    """Whether no file of a cell has changed since it was written."""
    return damaged_files(folder, ended) == []


def damaged_files(folder: Path, ended: Mapping[str, Any]) -> list[str]:
    """Names of a cell's files that have changed since they were written; includes METRICS if it has no digest."""
    files = ended.get("files")
    if not isinstance(files, dict) or METRICS not in files:
        return [METRICS]
    return [Path(name).name for name, digest in files.items() if not _is(folder / Path(name).name, digest)]


def has_policy(folder: Path) -> bool:
    """Whether a finished cell's trained policy exists undamaged; true also for a skipped cell, which has none."""
    ended = read_ended(folder)
    if ended.get("status") == "skipped":
        return True
    return (folder / POLICY).is_dir() and ended.get("policy") in (None, _policy_digests(folder))


def _policy_digests(folder: Path) -> dict[str, str]:
    return {path.name: digests.of_file(path) for path in sorted((folder / POLICY).iterdir())}


def _is(path: Path, digest: Any) -> bool:
    try:
        return digests.of_file(path) == digest
    except OSError:
        return False


def _write_rows(frame: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    with atomic_path(path) as draft, pa.OSFile(str(draft), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


def read_rows(path: Path) -> pa.Table:
    """The rows of a cell's file."""
    return pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all()


def merged(parts: Iterable[Path | pd.DataFrame], run_id: str, columns: list[str]) -> pd.DataFrame:
    """The rows of many cells, from files or frames, as one table under this run's name, in the order given."""
    tables = [
        read_rows(part) if isinstance(part, Path) else pa.Table.from_pandas(part, preserve_index=False)
        for part in parts
    ]
    if not tables:
        return pd.DataFrame(columns=columns)
    return pa.concat_tables(tables, promote_options="permissive").to_pandas().assign(run_id=utf8(run_id))


def series(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of training steps in its own order of columns, its texts as plain ones."""
    more = sorted(set(frame.columns) - set(TRAINING_COLUMNS))
    texts = {name: object for name in TRAINING_PLACE if name not in ("seed", "step")}
    return frame[[*TRAINING_COLUMNS, *more]].astype(texts)


def require_writable(folder: Path) -> None:
    """Raises InputError if the folder can't be created or written to; leaves nothing behind."""
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".write.{uuid.uuid4().hex}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"can't write into {folder}: {error.strerror}; choose another folder with --out") from error
    finally:
        for made in missing:
            with contextlib.suppress(OSError):
                made.rmdir()


def environment(device: str) -> dict[str, Any]:
    """When it ran, versions and machine, for environment.json."""
    import torch

    packages = [
        "gradebench",
        "torch",
        "transformers",
        "datasets",
        "tokenizers",
        "numpy",
        "pandas",
        "pyarrow",
        "scipy",
        "scikit-learn",
    ]
    answer: dict[str, Any] = {
        "date": now(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "device": device,
        "packages": {name: version(name) for name in packages},
    }
    if device.startswith("cuda"):
        answer["gpu"] = torch.cuda.get_device_name(torch.device(device))
        answer["cuda"] = torch.version.cuda
    if found := commit():
        answer["commit"] = found
    return answer


def now() -> str:
    """The time in UTC, or what SOURCE_DATE_EPOCH has in its place, as for reproducible builds."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH", "")
    seconds = int(fixed) if fixed.isascii() and fixed.isdecimal() and len(fixed) < 12 else time.time()
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def commit() -> str:
    """The commit of our checkout, "+ changes" where files of it differ; "" for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    try:
        said = [
            subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True, timeout=10).stdout
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no", "--", "*.py"))
        ]
    except (OSError, subprocess.SubprocessError):
        return ""
    return said[0].strip()[:12] + (" + changes" if said[1].strip() else "")


@functools.cache
def version(name: str) -> str | None:
    """The version of a package; None if it isn't installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's model if the system reports it (Linux), else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
