"""Prompts of a task: lines of a file or texts, in disjoint splits, as ids of one length."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradebench.core.errors import InputError
from gradebench.core.shown import counted
from gradebench.models.end_of_text import Ends
from gradebench.storage.digests import of_json

HELD_OUT = 5  # one prompt in five is for validation, and one for the test
FEWEST = 2 * HELD_OUT  # so that each split has two

Texts = str | Path | Sequence[str]  # a file with a text a line, or the texts


@dataclass(frozen=True)
class Prompts:
    """Texts by split, and where they are from: `file`, of prompts in one; `name`, for messages."""

    splits: Mapping[str, Sequence[str]]
    name: str
    file: str = ""

    @property
    def digest(self) -> str:
        return of_json({split: list(texts) for split, texts in self.splits.items()})


def read_texts(given: Texts, what: str) -> list[str]:
    """The texts, or the lines of a file (UTF-8) that aren't empty, without the spaces around them.

    Raises        InputError, which calls them `what`, where the file can't be read, or a text is empty or there is none.
    """
    if isinstance(given, str | Path):
        try:
            lines = Path(given).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            raise InputError(f"can't read {what} {given}: {error.strerror}; give a file with a text a line") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{given} isn't UTF-8 (byte {error.start}); save it as UTF-8") from error
        texts, what = [line.strip() for line in lines if line.strip()], f"{what} {given}"
    else:
        texts = list(given)
    wrong = next((text for text in texts if not isinstance(text, str) or not text.strip()), None)
    if wrong is not None:
        raise InputError(f"{what}: {wrong!r} is among the texts; each has to be a string that isn't empty")
    if not texts:
        raise InputError(f"{what}: no text in it; give one a line")
    return texts


def read_prompts(given: Texts | Mapping[str, Texts], splits: Sequence[str], seed: int) -> Prompts:
    """Prompts by split: those of a mapping as they are, those of one list shuffled by the seed and dealt out.

    Raises        InputError where they can't be read, are too few, or are the same twice.
    """
    if isinstance(given, Mapping):
        if set(given) != set(splits):
            raise InputError(f"prompts for {', '.join(map(str, given)) or 'nothing'}; give {', '.join(splits)}")
        prompts = Prompts({split: read_texts(given[split], f"{split} prompts") for split in splits}, "the prompts")
    else:
        texts = read_texts(given, "the prompts")
        file = Path(given).name if isinstance(given, str | Path) else ""
        prompts = Prompts(_dealt_out(texts, splits, seed), f"the prompts {given}" if file else "the prompts", file)
    seen: set[str] = set()
    for text in (text for texts in prompts.splits.values() for text in texts):
        if text in seen:
            raise InputError(f"{prompts.name}: {text[:80]!r} is there twice; leave one out, or it may be in two splits")
        seen.add(text)
    if not isinstance(given, Mapping) and len(seen) < FEWEST:
        raise InputError(f"{prompts.name}: {len(seen)} are too few for {', '.join(splits)}; give {FEWEST} or more")
    return prompts


def _dealt_out(texts: list[str], splits: Sequence[str], seed: int) -> dict[str, list[str]]:
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(seed)).tolist()
    held_out = len(texts) // HELD_OUT
    counts = [len(texts) - held_out * (len(splits) - 1), *[held_out] * (len(splits) - 1)]
    parts = torch.tensor(order).split(counts)
    return {split: [texts[i] for i in part.tolist()] for split, part in zip(splits, parts, strict=True)}


def encoded(prompts: Prompts, vocabulary: Any, longest: int) -> dict[str, list[list[int]]]:
    """Ids of every prompt, by split.

    Raises        InputError for one of more than `longest` tokens, or of none, and for two of the same tokens.
    """
    rows = {split: vocabulary.encode(texts) for split, texts in prompts.splits.items()}
    seen: dict[tuple[int, ...], str] = {}
    for text, row in (
        (text, row) for split in rows for text, row in zip(prompts.splits[split], rows[split], strict=True)
    ):
        if not 0 < len(row) <= longest:
            mend = f"where {longest} are the most: shorten it, or raise longest_prompt" if row else "give another"
            raise InputError(f"{prompts.name}: {text[:80]!r} has {counted(len(row), 'token')}, {mend}")
        if (other := seen.setdefault(tuple(row), text)) != text:
            raise InputError(f"{prompts.name}: {text[:80]!r} and {other[:80]!r} have the same tokens; leave one out")
    return rows


def padded(rows: Mapping[str, Sequence[Sequence[int]]], filler: int, device: torch.device) -> tuple[dict, dict]:
    """Of each split the prompts (prompts, P) behind their padding, and how much of each is padding (prompts,), where any."""
    width = max(len(row) for part in rows.values() for row in part)
    ids, pads = dict[str, Tensor](), dict[str, Tensor]()
    for split, part in rows.items():
        if any(len(row) < width for row in part):
            pads[split] = torch.tensor([width - len(row) for row in part], device=device)
        ids[split] = torch.tensor([[filler] * (width - len(row)) + list(row) for row in part], device=device)
    return ids, pads


def filler_of(vocabulary: Any) -> int:
    """An id that ends no text, for padding: nobody reads it."""
    end: Ends | None = vocabulary.end
    ends = end if isinstance(end, tuple) else (end,)
    return next(i for i in range(len(vocabulary)) if i not in ends)
