"""What ends a command, or a cell, in one line."""

import os
import traceback
from collections.abc import Collection


class InputError(Exception):
    """What the user gave can't be used; the message says what is wrong and what to do. Exit status 2."""


class Unsupported(Exception):
    """The task does not offer what the estimator needs; the message says what. Its cells are `skipped`."""


def place_of(error: BaseException, own: Collection[str]) -> str:
    """Where a plugin's code raised the error, or called what did, as " (mine.py, line 7)"; "" if none of its code ran.

    `own`: files and names of packages. The innermost frame in one of them counts, since what a library says of the line of
    its own doesn't help who wrote the plugin.
    """
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__", ""))
        if file in own or module.partition(".")[0] in own:
            place = f" ({os.path.basename(file)}, line {line})"
    return place
