"""Labelled corpora of reviews from a file, a folder or the hub, and splits in which no text or film is in two parts."""

import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gradebench.core.errors import InputError
from gradebench.core.shown import counted
from gradebench.storage.hub import HubUnreachable, hub_refusal, seconds_to_ask, silent_hub
from gradebench.storage.libraries import first_line
from gradebench.tasks.corpus_files import (
    LABEL_COLUMNS,
    LABEL_OF,
    READERS,
    bytes_of,
    column_of,
    read_folder,
    sidecar_films,
    values_of,
)

HUB_DATASET = "stanfordnlp/imdb"
FEWEST_TEXTS = 100
EMBEDDED, FROM_HUB = RESERVED = ("embedded", "imdb-hub")  # names of corpora that aren't read from a path

# The accepted column names; a corpus has one of each.
TEXT_COLUMNS = ("text", "review", "sentence")
FILM_COLUMNS = ("movie", "film")

_SPLIT_OF = {"train": "train", "test": "test"}
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)

# The parts' shares of all rows. The reward model and the gold judge get equally many, so that neither has an advantage;
# prompts need fewer.
_TRAIN_SHARES = {"reward": 0.32, "judge": 0.32, "train": 0.16}
_TEST_SHARES = {"validation": 0.1, "test": 0.1}

_hub_refusal = partial(hub_refusal, f"datasets/{HUB_DATASET}/resolve/main/README.md")  # a function of seconds
_HUB_REFUSAL = f"{HUB_DATASET} can't be had from the hub: {{}}; give corpus=embedded or corpus=PATH"


@dataclass(frozen=True, eq=False)
class Corpus:
    """Labelled texts, cleaned and without duplicates; all fields have one entry per row.

    `labels` is int8, 1 for positive. `groups` has each row's film id, "" if it isn't known; None if no film is known.
    `official` has 'train' or 'test' for each row; None unless the corpus has both. `reading` says in words what was read
    and what was left out; "" for a generated corpus.
    """

    name: str
    texts: list[str]
    labels: np.ndarray  # (rows,)
    groups: list[str] | None = None
    official: np.ndarray | None = None  # (rows,)
    reading: str = ""

    @cached_property
    def digest(self) -> str:
        """The first 16 hex digits of a sha256 of texts and labels, whatever the corpus was read from."""
        sha = hashlib.sha256()
        for text in self.texts:
            encoded = text.encode()
            sha.update(b"%d:%s" % (len(encoded), encoded))  # the length distinguishes ["ab", "c"] from ["a", "bc"]
        sha.update(np.asarray(self.labels, dtype=np.int8).tobytes())
        return sha.hexdigest()[:16]

    @cached_property
    def split_digest(self) -> str:
        """The same of films and official split, on which our splits depend."""
        official = None if self.official is None else self.official.tolist()
        return hashlib.sha256(json.dumps([self.groups, official]).encode()).hexdigest()[:16]


def read_corpus(path: str | Path) -> Corpus:
    """Returns the corpus in a parquet, csv, tsv or jsonl file, or in a folder laid out as the original IMDB data.

    Accepted column names are TEXT_COLUMNS, LABEL_COLUMNS, `split` and FILM_COLUMNS, in any case of letters. Film ids may
    also be in `<stem>_meta.parquet` beside the file, row by row, or in a folder's `urls_pos.txt` and `urls_neg.txt`.

    Raises InputError if the corpus can't be used.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):  # unlike Path.is_dir, it doesn't raise without permission
        return _corpus(_unreserved(path.resolve().name), read_folder(path), str(path))
    suffix = path.suffix.lower()
    if os.path.exists(path) and suffix not in READERS:
        raise InputError(f"{path}: unknown suffix {suffix!r}; give a folder or one of {', '.join(READERS)}")
    data = bytes_of(path)  # first, so that a missing file is reported as missing, whatever its suffix
    frame = READERS[suffix](data, path)
    sidecar = path.with_name(f"{path.stem}_meta.parquet")
    if column_of(frame, FILM_COLUMNS, str(path)) is None and os.path.exists(sidecar):
        frame = frame.assign(movie=sidecar_films(sidecar, len(frame)))
    return _corpus(_unreserved(path.stem), frame, str(path))


def _unreserved(name: str) -> str:
    """The name of a given corpus, changed if it is a reserved one: `embedded.csv` isn't the embedded corpus."""
    return f"{name}-given" if name in RESERVED else name


def hub_corpus(timeout: float = 10.0) -> Corpus:
    """Returns the hub's IMDB reviews (train and test), from the cached copy if there is one.

    Raises HubUnreachable within `timeout` seconds if there is no cached copy and the hub doesn't answer. The time of a
    download isn't limited.
    """
    deadline = time.monotonic() + timeout
    import datasets  # slow, and only needed here
    import datasets.utils
    from huggingface_hub import constants

    with silent_hub(datasets.utils):
        frame = _cached_hub_frame()
        if frame is None:
            offline = datasets.config.HF_HUB_OFFLINE or constants.HF_HUB_OFFLINE
            seconds = seconds_to_ask(deadline, timeout)
            refusal = "no copy is cached and HF_HUB_OFFLINE is set" if offline else _hub_refusal(seconds)
            if refusal is not None:
                raise HubUnreachable(_HUB_REFUSAL.format(refusal))
            try:
                frame = _joined(datasets.load_dataset(HUB_DATASET, split=["train", "test"]))
            except Exception as error:  # several libraries are involved, each with its own exceptions
                raise HubUnreachable(_HUB_REFUSAL.format(first_line(error))) from error
    return _corpus(FROM_HUB, frame, f"hub {HUB_DATASET}")


def split_corpus(corpus: Corpus, seed: int) -> dict[str, np.ndarray]:
    """Returns five disjoint arrays of row numbers: train, validation and test (prompts), reward, judge.

    Rows with the same film or the same text (in any case of letters) form a group, which stays in one part. With an
    official split, validation and test come from its test rows and the other parts from its train rows; train rows of a
    group with rows in both are dropped. Of the train rows, 40 % go to reward, 40 % to judge and 20 % to prompts; of the
    test rows, half to validation and half to test. Without an official split, 20 % of all rows serve as test rows. Parts
    are shuffled, so that the first rows of a part are a random sample.

    Raises InputError if a part would lack one of the labels.
    """
    generator = np.random.default_rng(seed)
    groups = _linked_groups(corpus)  # (rows,)
    if corpus.official is None:
        parts = _deal(np.arange(len(groups)), groups, _TRAIN_SHARES | _TEST_SHARES, generator)
    else:
        in_test = corpus.official == "test"
        train_rows = np.flatnonzero(~in_test & ~np.isin(groups, groups[in_test]))
        parts = _deal(train_rows, groups, _TRAIN_SHARES, generator)
        parts |= _deal(np.flatnonzero(in_test), groups, _TEST_SHARES, generator)
    for part, rows in parts.items():
        if len(np.unique(corpus.labels[rows])) < 2:
            raise InputError(
                f"corpus {corpus.name}: part {part!r} ({counted(len(rows), 'text')}) lacks a label; give more texts"
            )
    return parts


def _linked_groups(corpus: Corpus) -> np.ndarray:
    """Returns each row's group number, (rows,): rows linked by films or texts, also through other rows, form a group."""
    from scipy.sparse import coo_array  # scipy is slow to import, and `gradebench list` must be fast
    from scipy.sparse.csgraph import connected_components

    count = len(corpus.texts)
    texts, _ = pd.Series([text.casefold() for text in corpus.texts]).factorize()
    # A row of unknown film counts as a film of its own.
    films, _ = pd.Series([film or f"row {row}" for row, film in enumerate(corpus.groups or [""] * count)]).factorize()
    # Nodes are rows, then texts, then films; each row is linked to its text and to its film.
    links = np.tile(np.arange(count), 2), np.concatenate([count + texts, 2 * count + films])
    graph = coo_array((np.ones(2 * count, dtype=np.int8), links), shape=(3 * count, 3 * count))
    return connected_components(graph, directed=False)[1][:count]


def _deal(
    rows: np.ndarray, groups: np.ndarray, shares: dict[str, float], generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Returns `rows` split into shuffled parts of whole groups, with sizes in proportion to `shares`."""
    _, group, sizes = np.unique(groups[rows], return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    middles = np.cumsum(sizes[order]) - sizes[order] / 2  # a group goes to the part in which its middle falls
    cuts = np.cumsum(list(shares.values()))[:-1] / sum(shares.values()) * len(rows)
    part_of_group = np.empty(len(sizes), dtype=np.int64)
    part_of_group[order] = np.searchsorted(cuts, middles, side="right")
    return {name: generator.permutation(rows[part_of_group[group] == part]) for part, name in enumerate(shares)}


def _corpus(name: str, frame: pd.DataFrame, source: str) -> Corpus:
    """Returns the corpus in a frame with any of the accepted column names: checked, cleaned, without duplicates."""
    text, label = column_of(frame, TEXT_COLUMNS, source), column_of(frame, LABEL_COLUMNS, source)
    if len(frame) == 0:
        raise InputError(f"{source}: no rows; give a corpus of at least {FEWEST_TEXTS} labelled texts")
    if text is None or label is None:
        found = ", ".join(f"{str(column)!r:.40}" for column in frame.columns[:10])
        wanted = f"a text ({', '.join(TEXT_COLUMNS)}) and a label ({', '.join(LABEL_COLUMNS)})"
        raise InputError(f"{source}: lacks a column; found {found}; wanted {wanted}")
    film, split = column_of(frame, FILM_COLUMNS, source), column_of(frame, ("split",), source)
    rows = pd.DataFrame({"text": _clean_texts(text, source)}, dtype=object)
    rows["label"] = _recoded(label, LABEL_OF, "0 or 1, neg or pos, negative or positive", source)
    rows["official"] = "" if split is None else _recoded(split, _SPLIT_OF, "train or test, or drop this column", source)
    rows["film"] = "" if film is None else [str(value).strip() for value in values_of(film)]
    kept = _without_repeats(rows)
    if len(kept) < FEWEST_TEXTS:
        raise InputError(
            f"{source}: {counted(len(kept), 'usable text')} (not empty, not repeated); give at least {FEWEST_TEXTS}"
        )
    if kept["label"].nunique() < 2:
        raise InputError(f"{source}: every text has the label {kept['label'].iloc[0]}; give texts of both labels")
    return Corpus(
        name=name,
        texts=kept["text"].tolist(),
        labels=kept["label"].to_numpy(dtype=np.int8),
        groups=kept["film"].tolist() if (kept["film"] != "").any() else None,
        official=kept["official"].to_numpy(dtype=str) if kept["official"].nunique() == 2 else None,
        reading=_reading(rows, kept, source),
    )


def _reading(rows: pd.DataFrame, kept: pd.DataFrame, source: str) -> str:
    """A summary by which a user sees whether the right corpus was read."""
    empty = int((rows["text"] == "").sum())
    repeated = len(rows) - empty - len(kept)
    left_out = [f"{count:,} {what}" for count, what in ((repeated, "repeated"), (empty, "empty")) if count]
    without = f" ({' and '.join(left_out)} left out)" if left_out else ""
    positive = int(kept["label"].sum())
    first = kept["text"].iloc[0]
    return (
        f"{source}: {counted(len(rows), 'row')}, {counted(len(kept), 'text')}{without}, {positive:,} of them positive; "
        f"the first: {first[:60]!r}{'...' if len(first) > 60 else ''}"
    )


def _without_repeats(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows with nonempty texts, each text once: its first test row, or else its first row."""
    rows = rows[rows["text"] != ""]
    in_test = rows["official"] == "test"
    return rows[in_test | ~rows["text"].isin(rows.loc[in_test, "text"])].drop_duplicates("text")


def _clean_texts(column: pd.Series, source: str) -> list[str]:
    texts = []
    for row, value in enumerate(values_of(column), start=1):
        try:
            value.encode()  # JSON can contain lone surrogates, which tokenizers don't accept
        except (AttributeError, UnicodeEncodeError) as error:
            raise InputError(f"{source}: row {row} holds {value!r:.60} for a text; give UTF-8 text") from error
        texts.append(" ".join(_LINE_BREAK.sub(" ", value).split()))
    return texts


def _recoded(column: pd.Series, codes: dict[str, Any], wanted: str, source: str) -> list[Any]:
    """Returns the code of each value, in any case of letters. Raises InputError for a value without one."""
    values = values_of(column)
    recoded = [codes.get(str(value).strip().casefold()) for value in values]
    if None in recoded:
        row = recoded.index(None)
        raise InputError(f"{source}: {column.name} {values[row]!r:.60} in row {row + 1}; give {wanted}")
    return recoded


def _cached_hub_frame() -> pd.DataFrame | None:
    """Returns the hub's reviews from the local cache of `datasets`, without the network; None if they aren't cached."""
    try:
        # What load_dataset itself does, but only after minutes of retries.
        from datasets.packaged_modules.cache.cache import Cache

        builder = Cache(repo_id=HUB_DATASET, dataset_name=HUB_DATASET.split("/")[-1], version="auto", hash="auto")
        return _joined(builder.as_dataset(split=["train", "test"]))
    except Exception:  # noqa: BLE001  any failure, as of an unfinished download, means that no copy is cached
        return None


def _joined(parts: Any) -> pd.DataFrame:
    return pd.concat([part.to_pandas().assign(split=name) for name, part in zip(_SPLIT_OF, parts, strict=True)])
