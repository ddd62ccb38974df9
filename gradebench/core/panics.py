"""Panics of libraries in Rust: exceptions that no `except Exception` catches, after words of their own on stderr."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from gradebench.core.errors import InputError


class Panicked(InputError):
    """A library in Rust gave up, in one line; its cause is the panic."""


@contextmanager
def panics_raised() -> Iterator[None]:
    """Turns a panic into a `Panicked`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # its class can't be imported
            raise
        said = " ".join(str(error).split())[:200]
        raise Panicked(f"a library gave up (a panic in Rust): {said}; give another tokenizer or file") from error


@contextmanager
def panics_silenced() -> Iterator[None]:
    """`panics_raised`, and what a panic prints itself is not shown; whatever else is printed comes at the end."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        panicked = False
        try:
            with panics_raised():
                yield
        except Panicked:
            panicked = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            if not panicked and (said := held.read()):
                os.write(2, said)
