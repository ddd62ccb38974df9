"""A command line that can't be read is refused like any other bad input: in one line, with exit code 2."""

from typing import Any, NoReturn

import typer

from gradebench.core.errors import InputError

_UsageError: Any = typer.BadParameter.__base__  # typer gives it no name of its own
_WHOLE_HELP = "NoArgsIsHelpError"  # its message is the help of all commands


def run(app: typer.Typer) -> NoReturn:
    """The app on the arguments of this process. Raises InputError where they can't be read, else SystemExit."""
    try:
        status = app(standalone_mode=False)
    except _UsageError as error:
        if type(error).__name__ == _WHOLE_HELP:
            error.show()
            raise SystemExit(2) from None
        raise InputError(in_one_line(error)) from error
    raise SystemExit(status or 0)


def in_one_line(error: Any) -> str:
    """A usage error's own words with the nearest options or commands, and the help that lists all."""
    command = error.ctx.command_path if error.ctx else "gradebench"
    message = " ".join(error.format_message().split()).replace("Value error, ", "")
    name, near = getattr(error, "option_name", ""), getattr(error, "possibilities", None)
    if name and near is not None:
        message = f"no such option: {name}" + (f"; did you mean {', '.join(near)}" if near else "")
    message = message.rstrip(".?").replace(". Did you mean", "; did you mean")
    return f"{message[:1].lower()}{message[1:]} ({command} --help lists what there is)"
