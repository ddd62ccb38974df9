"""The one exception that the command line turns into one line and exit status 2."""


class InputError(Exception):
    """What the user gave can't be used; the message says what is wrong and what to do."""
