"""What a reward function answers: any iterable of one number for each text, finite in the type that is trained with."""

import inspect
import math
import numbers
from collections.abc import Iterable, Mapping, Sized
from collections.abc import Set as AbstractSet
from decimal import Decimal
from itertools import islice
from typing import Any

import numpy as np

from gradebench.core.shown import counted

FLOAT32_MAX = float(np.finfo(np.float32).max)


class Refused(Exception):
    """An answer that is no list of rewards; the message says what was given, in words that follow the function's name."""


def numbers_of(answer: Any, texts: list[str]) -> list[float]:
    """The rewards that an answer has for the texts, in their order. Raises Refused, and whatever an iterator raises."""
    items = list(islice(_ordered(answer, len(texts)), len(texts) + 1))
    if len(items) != len(texts):
        many = len(answer) if isinstance(answer, Sized) else len(items)
        more = "at least " if many > len(texts) and not isinstance(answer, Sized) else ""
        raise Refused(f"gave {more}{counted(many, 'number')} for {counted(len(texts), 'text')}")
    return [_finite(item, text) for item, text in zip(items, texts, strict=True)]


def _ordered(answer: Any, count: int) -> Iterable[Any]:
    """Its items. Raises Refused for what isn't a list of any kind, though it may be read like one."""
    if inspect.iscoroutine(answer):
        answer.close()  # or Python complains that nobody awaited it
    if not isinstance(answer, Iterable) or isinstance(answer, str | bytes | bytearray | Mapping | AbstractSet):
        raise Refused(f"gave {_named(answer)}; it has to give one number for each text")
    if hasattr(answer, "tolist") and hasattr(answer, "shape"):  # arrays and tensors, also of one column
        shape = tuple(answer.shape)
        if len(shape) != 1 and shape != (count, 1):
            raise Refused(f"gave {_named(answer)} of the shape {list(shape)}; it has to give one number for each text")
        items = answer.tolist()
        return [item[0] for item in items] if len(shape) == 2 else items
    return answer


def _finite(item: Any, text: str) -> float:
    value = item.item() if getattr(item, "shape", None) in ((), (1,)) else item  # of an array or tensor
    if not isinstance(value, numbers.Real | Decimal):
        raise Refused(
            f"gave {_named(value)} among its numbers, for {text[:80]!r}; it has to give one number for each text"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= FLOAT32_MAX:
        large = " in float32, which is trained with" if math.isfinite(number) else ""
        raise Refused(f"gave {number} for {text[:80]!r}; it has to be a finite number{large}")
    return number


def _named(value: Any) -> str:
    return "None" if value is None else type(value).__name__
