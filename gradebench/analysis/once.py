"""Tables of one run are made of the same parts: within `made_once`, what is made of a table is kept for the next one."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextvars import ContextVar
from typing import TypeVar

Made = TypeVar("Made")
_kept: ContextVar[dict[tuple[Hashable, ...], tuple[object, object]] | None] = ContextVar("kept", default=None)


@contextlib.contextmanager
def made_once() -> Iterator[None]:
    """Within it `once` makes nothing twice. Tables that it is given must not be changed meanwhile."""
    if _kept.get() is not None:
        yield
        return
    before = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(before)


def once(make: Callable[[], Made], of: object, *named: Hashable) -> Made:
    """What `make` returns, made of the very object `of`; the names tell it from what else is made of that."""
    kept = _kept.get()
    if kept is None:
        return make()
    key = (id(of), *named)  # which stays the object's own, as that is kept too
    if key not in kept:
        kept[key] = of, make()
    made: Made = kept[key][1]  # type: ignore[assignment]
    return made


def keep(made: object, of: object, *named: Hashable) -> None:
    """Something that `once` would make, which is known already."""
    kept = _kept.get()
    if kept is not None:
        kept[id(of), *named] = of, made
