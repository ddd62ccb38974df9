"""stdout and stderr that take whatever is written, also where they are closed, gone or of another encoding."""

import atexit
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from gradebench.core import alive


class _Stream(io.TextIOWrapper):
    """Characters that its encoding lacks are written as escapes. Once its reader has gone, as `head -1` does, the rest is
    dropped. A full disk raises once; what follows is dropped, because the flush at exit could not report it."""

    def __init__(self, before: io.TextIOWrapper):
        lines = before.line_buffering
        super().__init__(before.buffer, before.encoding, "backslashreplace", line_buffering=lines)
        self.before = before  # which would close the buffer if it went

    def write(self, text: str) -> int:
        alive.hush()
        return self.write_unheard(text)

    def write_unheard(self, text: str) -> int:
        """For signs of life, which must not reset the clock that they are shown by."""
        with self._dropping():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            super().flush()

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            if not isinstance(error, BrokenPipeError):
                raise


def make_ready() -> None:
    """To be called before anything is opened or written: what a process finds closed, files would take the place of."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for as long as the process
            setattr(sys, f"__{name}__", stream)
        if type(stream) is io.TextIOWrapper:  # and no other program's, as a notebook's
            setattr(sys, name, _Stream(stream))


@contextlib.contextmanager
def plugins_aside() -> Iterator[None]:
    """Sends to stderr what plugins and the programs that they start print meanwhile, and what they print when the process
    exits: stdout has only the command's answer."""
    with _descriptor_aside(sys.stdout), contextlib.redirect_stdout(sys.stderr):
        yield
    atexit.unregister(_aside_for_good)
    atexit.register(_aside_for_good)  # runs before what was registered until now


@contextlib.contextmanager
def _descriptor_aside(out: TextIO) -> Iterator[None]:
    try:
        number, other = out.fileno(), sys.stderr.fileno()
    except (AttributeError, ValueError, OSError):  # no files, as a notebook's
        yield
        return
    out.flush()
    kept = os.dup(number)
    os.dup2(other, number)
    try:
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)


def _aside_for_good() -> None:
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sys.stdout.flush()
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
