"""stdout and stderr that take whatever is written, also where they are closed, gone or of another encoding."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator

from gradebench.core import alive


class _Stream(io.TextIOWrapper):
    """What its encoding lacks is an escape; once its reader has gone, as `head -1`, the rest is dropped."""

    def __init__(self, before: io.TextIOWrapper):
        lines = before.line_buffering
        super().__init__(before.buffer, before.encoding, "backslashreplace", line_buffering=lines)
        self.before = before  # which would close the buffer if it went

    def write(self, text: str) -> int:
        alive.hush()
        return self.write_unheard(text)

    def write_unheard(self, text: str) -> int:
        """Signs of life, which aren't to count as one that the command gave."""
        try:
            return super().write(text)
        except BrokenPipeError:
            return self._dropped(text)

    def flush(self) -> None:
        try:
            super().flush()
        except BrokenPipeError:
            self._dropped("")

    def _dropped(self, text: str) -> int:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return len(text)


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
    """What is printed meanwhile, by code of others, goes to stderr: stdout has the command's answer alone."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
