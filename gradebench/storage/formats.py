"""Tables and JSON in files: names and texts are read back exactly as they were written.

The only exception is lone surrogates, which are read back as escapes from every format (`shown.utf8`). A damaged or
foreign file raises InputError: one line with the file and what is wrong with it.
"""

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from gradebench.core.errors import InputError
from gradebench.core.shown import SURROGATE, escape, utf8
from gradebench.storage.files import atomic_path
from gradebench.storage.shapes import misfit

# Twelve digits keep byte counts below 1 TB exact, and hide the last bits, in which machines differ.
_FLOAT_FORMAT = "%.12g"
_QUOTED = re.compile('[",\r\n]')
# A spreadsheet would execute text that begins like a formula, so an apostrophe is put before it. Text that has
# apostrophes before a formula already gets one more, so that reading can remove exactly ours.
_FORMULA = re.compile("'*[=+\\-@\t\r]")
_OURS = re.compile("'+[=+\\-@\t\r]")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


# --- CSV --------------------------------------------------------------------------------------------------------


def write_csv(frame: pd.DataFrame, path: Path) -> None:
    """Writes UTF-8 CSV with 12 significant digits and \\n line ends; replaces the file atomically."""
    columns = [_fields(frame.iloc[:, i]) for i in range(frame.shape[1])]  # four times faster than frame.to_csv
    with atomic_path(path) as part, open(part, "w", encoding="utf-8", newline="") as file:
        file.write(",".join(map(_field, frame.columns)) + "\n")
        file.writelines(f"{','.join(row)}\n" for row in zip(*columns, strict=True))


def read_csv(path: Path, numbers: Collection[str], truths: Collection[str] = ()) -> pd.DataFrame:
    """A table that `write_csv` wrote: columns of `numbers`, NaN where empty, of `truths`, and of text, "" where empty.

    Raises        InputError if the file isn't such a table.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False, skip_blank_lines=False)
        frame = frame.astype(object)
        for name in frame:
            if name in numbers:
                frame[name] = pd.to_numeric(frame[name].mask(frame[name] == "", None))
            elif name in truths:
                frame[name] = frame[name] == "True"
            else:
                frame[name] = [text[1:] if _OURS.match(text) else text for text in frame[name]]
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(path, error) from error
    return frame


def _fields(column: pd.Series) -> Any:
    """The column's fields in a CSV file. Texts repeat, so each distinct one is formatted once."""
    if pd.api.types.is_float_dtype(column) and isinstance(column.dtype, np.dtype):
        return ["" if math.isnan(value) else _FLOAT_FORMAT % value for value in column.tolist()]
    if pd.api.types.infer_dtype(column, skipna=True).startswith("mixed"):  # factorize would merge 1 and True
        return ["" if pd.isna(value) else _field(value) for value in column]
    codes, distinct = pd.factorize(column)
    return np.array([*map(_field, distinct), ""], dtype=object)[codes]  # missing values have the code -1


def _field(value: Any) -> str:
    if not isinstance(value, str):
        return str(value)
    text = utf8(value)
    text = f"'{text}" if _FORMULA.match(text) else text
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


# --- Parquet ----------------------------------------------------------------------------------------------------


def write_parquet(frame: pd.DataFrame, path: Path) -> None:
    """Writes Parquet with full precision; replaces the file atomically."""
    with atomic_path(path) as part:
        frame.to_parquet(part, index=False, engine="pyarrow")


def read_parquet(path: Path) -> pd.DataFrame:
    """Raises InputError if the file isn't Parquet, or if text in it isn't UTF-8."""
    try:
        with path.open("rb") as file:
            table = pq.ParquetFile(file).read()
        table.validate(full=True)
        return table.to_pandas(ignore_metadata=True)
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MemoryError, pa.ArrowException) as error:
        raise unreadable(path, error) from error


# --- JSON -------------------------------------------------------------------------------------------------------


def dumps(content: Any, indent: int | None = None) -> str:
    """JSON; numbers of other libraries become plain ones, and values that JSON can't represent become text."""
    text = json.dumps(content, indent=indent, sort_keys=indent is not None, ensure_ascii=False, default=_plain)
    return text if text.isascii() else SURROGATE.sub(lambda match: f"\\{escape(match)}", text)


def _plain(value: Any) -> Any:
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return str(value)


def loads(text: str) -> Any:
    """Reads what `dumps` wrote. Raises ValueError for anything that isn't JSON."""
    try:
        content = json.loads(text, parse_int=_whole)
        return _without_surrogates(content) if _ESCAPED_SURROGATE.search(text) else content
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _whole(digits: str) -> int:
    if len(digits) > 18:
        raise ValueError(f"the number {digits[:20]}... is too large")
    return int(digits)


def _without_surrogates(content: Any) -> Any:
    if isinstance(content, str):
        return utf8(content)
    if isinstance(content, list):
        return [_without_surrogates(one) for one in content]
    if isinstance(content, dict):
        return {utf8(key): _without_surrogates(one) for key, one in content.items()}
    return content


def write_json(path: Path, content: Any) -> None:
    """Writes JSON atomically."""
    write_text(path, dumps(content, indent=2) + "\n")


def read_json(path: Path, shape: Any = object) -> Any:
    """The content of a JSON file. Raises InputError if it isn't JSON or has another shape (see `shapes`)."""
    try:
        content = loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    if wrong := misfit(content, shape):
        raise InputError(f"{path} can't be used: {wrong}")
    return content


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON, one object per line, atomically."""
    write_text(path, "".join(dumps(row) + "\n" for row in rows))


def read_lines(path: Path, shape: Any = dict) -> list[dict[str, Any]]:
    """The objects of such a file; none if there is no file. Raises InputError for any other file."""
    if not path.is_file():
        return []
    rows = []
    try:
        # Only "\n" ends a line: texts may contain other characters that `splitlines` splits at.
        lines = [line for line in path.read_bytes().split(b"\n") if line]
        for number, line in enumerate(lines, 1):
            rows.append(loads(line.decode()))
            if wrong := misfit(rows[-1], shape):
                raise InputError(f"{path} can't be used: in line {number}, {wrong}")
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return rows


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as draft:
        draft.write_bytes(utf8(text).encode())


def unreadable(path: Path, error: BaseException) -> InputError:
    """The error that a reader raises: the file, and what is wrong with it."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return InputError(f"{path} can't be read: {' '.join(said.split())[:160] or type(error).__name__}")
