"""Ctrl-C, told apart from a KeyboardInterrupt that code of a plugin raises: the one ends the run, the other a cell."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The user's."""


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """A context in which Ctrl-C raises Interrupted, unless somebody else handles it."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    try:
        signal.signal(signal.SIGINT, _interrupt)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted


def is_users(error: BaseException) -> bool:
    """Whether it has to end the run, whatever code it came out of."""
    if not isinstance(error, KeyboardInterrupt):
        return False
    return isinstance(error, Interrupted) or signal.getsignal(signal.SIGINT) is signal.default_int_handler
