"""What ends a command, or a cell, in one line."""


class InputError(Exception):
    """What the user gave can't be used; the message says what is wrong and what to do. Exit status 2."""


class Unsupported(Exception):
    """The task does not offer what the estimator needs; the message says what. Its cells are `skipped`."""
