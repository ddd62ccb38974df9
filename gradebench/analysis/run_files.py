"""The files of a run beside its metrics: texts, probes and training steps. Readers refuse a damaged file, and one of another
shape, with an InputError; `beside` leaves it out."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.core.errors import InputError
from gradebench.core.schema import ALL_PARAMETERS, PROBES_COLUMNS, PROBES_NUMBERS, TRAINING_COLUMNS, TRAINING_PLACE
from gradebench.storage import digests, formats, records, shapes

PROBES = "probes.csv"
_NUMBERS, _TEXTS = ("integer", "floating", "mixed-integer-float", "empty"), ("string", "empty")  # as pandas infers


def read_samples(folder: Path) -> list[dict[str, Any]]:
    """The texts of a run."""
    path = folder / records.SAMPLES
    digests.require_as_written(path)
    return formats.read_lines(path, shapes.SAMPLE)


def read_probes(folder: Path) -> pd.DataFrame:
    """The probes of a run, PROBES_COLUMNS, also of one by an earlier version, which had no `parameters`."""
    path = folder / PROBES
    digests.require_as_written(path)
    frame = formats.read_csv(path, PROBES_NUMBERS)
    if list(frame) == PROBES_COLUMNS[:-1]:
        frame["parameters"] = [group or ALL_PARAMETERS for group in frame["group"]]
    if list(frame) != PROBES_COLUMNS:
        raise InputError(f"{path} is no table of probes; run again there")
    return frame


def read_steps(folder: Path) -> pd.DataFrame:
    """Every training step of a run, TRAINING_COLUMNS and those of `Estimate.info`; none for a run that trained nothing, or of
    an earlier version."""
    path = folder / records.SERIES
    if not path.is_file():
        return pd.DataFrame(columns=TRAINING_COLUMNS)
    digests.require_as_written(path)
    frame = formats.read_parquet(path)
    require_columns(frame, TRAINING_COLUMNS, path, "table of training steps")
    numbers = [name for name in frame.columns if name in ("seed", "step") or name not in TRAINING_PLACE]
    require_kinds(frame, list(frame.columns), numbers, path, "table of training steps")
    return frame


_BESIDE = {records.SAMPLES: read_samples, PROBES: read_probes, records.SERIES: read_steps}


def beside(folder: Path, name: str) -> Any:
    """What a run has beside its metrics in the file `name`; None if it hasn't, or if the file is damaged: it costs itself, and
    not the tables."""
    try:
        return _BESIDE[name](folder) if (folder / name).is_file() else None
    except InputError:
        return None


def left_out(folders: Sequence[Path]) -> list[str]:
    """One line for each damaged file that a merge leaves out."""
    damaged = [
        folder / name
        for folder in folders
        for name in _BESIDE
        if (folder / name).is_file() and beside(folder, name) is None
    ]
    return [f"{path} is damaged and left out; run again there for a new one" for path in damaged]


def require_columns(frame: pd.DataFrame, names: Sequence[str], path: Path, what: str) -> None:
    if lacking := [name for name in names if name not in frame.columns]:
        raise InputError(f"{path} lacks the columns {', '.join(lacking)}: it is no {what}")


def require_kinds(frame: pd.DataFrame, names: Sequence[str], numbers: Collection[str], path: Path, what: str) -> None:
    """Columns are numbers or else texts; seeds and steps, where known, whole numbers that a float holds exactly."""
    for name in names:
        found = pd.api.types.infer_dtype(frame[name], skipna=True)
        if found not in (_NUMBERS if name in numbers else _TEXTS):
            raise InputError(f"{path} has {found} values in its column {name}: it is no {what}")
        if name in ("seed", "step"):
            known = frame[name].dropna().astype(float)
            if not ((known % 1 == 0) & (known.abs() < 2**53)).all():
                raise InputError(f"{path} has a {name} that is no whole number: it is no {what}")
