"""The command line. `--help` and `list` never import torch; every command loads what it needs inside."""

import contextlib
import os
import sys

import typer

from gradebench.cli import plugins, reading, running, usage
from gradebench.cli.renamed import current_names
from gradebench.core.errors import InputError
from gradebench.core.interrupts import listening
from gradebench.core.shown import one_line
from gradebench.core.streams import make_ready

app = typer.Typer(
    help="The referee for gradient estimators of language-model rewards.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help: quick, and the same on a terminal and in a file
    pretty_exceptions_enable=False,
)
for command in (
    running.run,
    running.tune,
    running.probe,
    reading.leaderboard,
    reading.frontier,
    reading.merge,
    reading.compare,
    reading.curves,
    reading.claims,
    reading.report,
    reading.status,
    running.check,
    plugins.new,
    plugins.doctor,
):
    app.command()(command)
app.command("list")(plugins.list_plugins)  # `list` would hide Python's own in its module


def main() -> None:
    """Entry point: errors of the user end in one line and exit status 2."""
    make_ready()
    sys.argv[1:] = current_names(sys.argv[1:])
    try:
        with listening(), contextlib.ExitStack() as last:
            last.callback(sys.stdout.flush)  # here, where its failure can be told
            _run_app()
    except InputError as error:
        print(f"gradebench: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as error:  # a disk that is full or gone; cells and tables appear whole or not at all
        where = f"{error.filename}: " if error.filename else ""
        print(f"gradebench: {one_line(f'{where}{error.strerror or error}')}; what is finished is kept", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("gradebench: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _run_app() -> None:
    """The command, in this process or, where torchrun has started several, in the first of them for all."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        usage.run(app)
    from gradebench.core import parallel

    if parallel.launched():
        parallel.run(lambda: usage.run(app))
    else:
        usage.run(app)
