"""Reads files and folders of labelled reviews as tables of text. Ambiguous files are refused."""

import csv
import io
import json
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from gradebench.core.errors import InputError
from gradebench.core.shown import counted
from gradebench.storage.libraries import first_line

LABEL_COLUMNS = ("label", "sentiment")

_NEGATIVE, _POSITIVE = ("0", "0.0", "false", "neg", "negative"), ("1", "1.0", "true", "pos", "positive")
LABEL_OF = dict.fromkeys(_NEGATIVE, 0) | dict.fromkeys(_POSITIVE, 1)
_SENTIMENTS = ("neg", "pos")
_FILM_ID = re.compile(r"tt\d+")


def column_of(frame: pd.DataFrame, names: tuple[str, ...], source: str) -> pd.Series | None:
    """Returns the column with one of `names`, in any case of letters, or None. Raises InputError if there are several."""
    found = [position for position, column in enumerate(frame.columns) if str(column).strip().casefold() in names]
    if len(found) > 1:
        listed = " and ".join(f"{str(frame.columns[position])!r:.40}" for position in found)
        raise InputError(f"{source}: {listed} have the same meaning; keep one of these columns, or rename the others")
    return frame.iloc[:, found[0]] if found else None


def values_of(column: pd.Series) -> list[Any]:
    """Returns the values as Python objects, with "" for missing ones."""
    return column.astype(object).where(column.notna(), "").tolist()


def _read_parquet(data: bytes, path: Path) -> pd.DataFrame:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(io.BytesIO(data))
        table.validate(full=True)  # otherwise invalid UTF-8 is noticed only much later
        return table.to_pandas(ignore_metadata=True)  # an index that pandas stored becomes a column
    except (ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path}: no readable parquet of UTF-8 text ({first_line(error)}); write it again") from error


def _read_csv(data: bytes, path: Path, separator: str = ",") -> pd.DataFrame:
    """Reads all values as text, because "NA" may be a review. Raises InputError for ambiguous files."""
    text = _decoded(data, path)
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header: list[str] = []
    rows = []
    try:
        for cells in filter(None, lines):  # skips blank lines
            header = header or cells
            if len(cells) != len(header):
                wanted = f"{len(cells)} fields in line {lines.line_num}, {len(header)} in the header"
                raise InputError(f'{path}: {wanted}; quote the texts, as in "a text"')
            if any(_holds_a_row(cell, header, separator) for cell in cells):
                where = f"the quoted text that ends in line {lines.line_num} holds what looks like further rows"
                raise InputError(f"{path}: {where}; close its quotes, and double those within texts")
            rows.append(cells)
    except csv.Error as error:
        where = f"line {lines.line_num} is malformed ({error})"
        raise InputError(f"{path}: {where}; quote the texts, and double the quotes within") from error
    return pd.DataFrame(rows[1:], columns=header, dtype=object)


def _holds_a_row(cell: str, header: list[str], separator: str) -> bool:
    """Whether a line inside of a cell has a label where rows have theirs: after an unclosed quote, a cell swallows the
    following rows."""
    if "\n" not in cell:
        return False
    first, last = (name.strip().casefold() in LABEL_COLUMNS for name in (header[0], header[-1]))
    pieces = cell.split("\n")
    ends = [piece.rpartition(separator)[2] for piece in pieces[:-1] if last and separator in piece]
    begins = [piece.partition(separator)[0] for piece in pieces[1:] if first and separator in piece]
    return any(end.strip().casefold() in LABEL_OF for end in ends + begins)


def _read_jsonl(data: bytes, path: Path) -> pd.DataFrame:
    records = []
    lines = _decoded(data, path).split("\n")
    for number, line in ((number, line) for number, line in enumerate(lines, start=1) if line.strip()):
        try:
            records.append(dict(json.loads(line, object_pairs_hook=_object).items()))
        except (ValueError, AttributeError, RecursionError) as error:  # AttributeError: JSON that isn't an object
            raise InputError(f"{path}: line {number} isn't a JSON object ({first_line(error)}); mend it") from error
    return pd.DataFrame(records, dtype=object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]!r:.40} comes twice")
    return dict(pairs)


READERS: dict[str, Callable[[bytes, Path], pd.DataFrame]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, separator="\t"),
    ".jsonl": _read_jsonl,
}


def sidecar_films(sidecar: Path, rows: int) -> list[Any]:
    film = column_of(_read_parquet(bytes_of(sidecar), sidecar), ("movie",), str(sidecar))
    if film is None:
        raise InputError(f"{sidecar}: no column 'movie'; mend or remove this file of film ids")
    if len(film) != rows:
        raise InputError(
            f"{sidecar}: {counted(len(film), 'row')} for the corpus's {rows}; mend or remove this file of film ids"
        )
    return values_of(film)


def read_folder(root: Path) -> pd.DataFrame:
    """Returns the reviews in pos/ and neg/ under root/train and root/test, or under root itself."""
    sides = {side: root / side for side in ("train", "test") if os.path.isdir(root / side)} or {"": root}
    for folder in (side / sentiment for side in sides.values() for sentiment in _SENTIMENTS):
        if not os.path.isdir(folder):
            lacking = folder.relative_to(root)
            raise InputError(f"{root}: no folder {lacking}; give one with pos/ and neg/, or train/ and test/ of those")
    rows = [row for split, side in sides.items() for name in _SENTIMENTS for row in _folder_rows(side, name, split)]
    frame = pd.DataFrame(rows, columns=["text", "label", "movie", "split"])
    return frame.drop(columns="split") if "" in sides else frame


def _folder_rows(side: Path, sentiment: str, split: str) -> list[tuple[str, str, str, str]]:
    films = _films_by_id(side / f"urls_{sentiment}.txt")
    try:
        names = [name for name in os.listdir(side / sentiment) if name.endswith(".txt")]
    except OSError as error:
        raise InputError(f"{side / sentiment}: can't be listed ({error.strerror}); check its permissions") from error
    rows = []
    for name in sorted(names, key=lambda name: (name.find("_"), name)):  # by number: shorter ids first
        file, review = side / sentiment / name, name.removesuffix(".txt").partition("_")[0]
        if films and review not in films:
            raise InputError(f"{file}: urls_{sentiment}.txt has no line for this review; mend or remove that file")
        rows.append((_decoded(bytes_of(file), file), sentiment, films.get(review, ""), split))
    return rows


def _films_by_id(urls: Path) -> dict[str, str]:
    """Returns the film ids by line number, "" for lines without one; empty if the file doesn't exist."""
    lines = _decoded(bytes_of(urls), urls).splitlines() if os.path.exists(urls) else []
    return {str(number): "".join(_FILM_ID.findall(line)[:1]) for number, line in enumerate(lines)}


def bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the path and its permissions") from error


def _decoded(data: bytes, path: Path) -> str:
    try:
        return data.decode("utf-8").removeprefix("\ufeff")  # the byte-order mark that some programs write
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} isn't UTF-8; save the file as UTF-8") from error
