"""The command line. `--help` and `list` never import torch; every command loads what it needs inside."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

import gradebench
from gradebench.cli import completion, enumerating, plugins, reading, running, usage
from gradebench.cli.renamed import current_names
from gradebench.core.alive import watched
from gradebench.core.errors import InputError
from gradebench.core.interrupts import listening
from gradebench.core.shown import one_line
from gradebench.core.streams import make_ready

app = typer.Typer(
    help="The referee for gradient estimators of language-model rewards.",
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: quick, and the same on a terminal and in a file
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "run": running.run,
    "tune": running.tune,
    "probe": running.probe,
    "enumerate": enumerating.enumerate_samples,
    "leaderboard": reading.leaderboard,
    "frontier": reading.frontier,
    "merge": reading.merge,
    "compare": reading.compare,
    "curves": reading.curves,
    "claims": reading.claims,
    "report": reading.report,
    "status": reading.status,
    "cite": reading.cite,
    "check": running.check,
    "new": plugins.new,
    "doctor": plugins.doctor,
    "list": plugins.list_plugins,
    "show": plugins.show,
}
for name, command in COMMANDS.items():  # a short help of its own isn't cut in narrow terminals
    app.command(name, short_help=(command.__doc__ or "").partition("\n")[0])(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"gradebench {gradebench.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """What stands before the command."""


def main() -> None:
    """Entry point: errors of the user end in one line and exit status 2."""
    make_ready()
    sys.argv[1:] = current_names(sys.argv[1:])
    try:
        with listening(), _signs_of_life(), contextlib.ExitStack() as last:
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


def _signs_of_life() -> contextlib.AbstractContextManager[None]:
    """Signs of life on stderr: from the first of several processes only, and not while the shell asks for completions."""
    if completion.VARIABLE in os.environ or os.environ.get("RANK", "0") != "0":
        return contextlib.nullcontext()
    return watched(next((word for word in sys.argv[1:] if not word.startswith("-")), ""))


def _run_app() -> None:
    """The command, in this process or, where torchrun has started several, in the first of them for all."""
    if os.environ.get(completion.VARIABLE) == "complete_bash":
        completion.in_bash(lambda: app(prog_name="gradebench"))
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        usage.run(app)
    from gradebench.core import parallel

    if parallel.launched():
        parallel.run(lambda: usage.run(app))
    else:
        usage.run(app)
