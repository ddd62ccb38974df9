"""Commands about plugins and this machine: list, new, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from gradebench.cli.options import Kind


def list_plugins(
    kind: Annotated[Kind | None, typer.Argument(help="estimators or tasks; default: both")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="a JSON document")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="import each plugin, and show its card and options")
    ] = False,
) -> None:
    """List the registered estimators and tasks."""
    from gradebench.reporting.listing import print_listing

    print_listing(kind.value if kind else None, as_json, verbose)


def new(
    name: Annotated[str, typer.Argument(help="such as my-estimator, for my_estimator.py", show_default=False)],
) -> None:
    """Write an estimator to start from into this folder."""
    from gradebench.plugins.scaffold import write_page

    file, cls = write_page(name, Path())
    spec = f"./{file.name}:{cls}"
    typer.echo(
        f"{file.name} has the estimator {cls}. Next:\n  gradebench check {spec}\n"
        f"At the learning rate of rloo, against rloo:\n  gradebench run -e rloo -e {spec}:rate-like=rloo\n"
        f"With a rate of its own, tuned as all others were, against any:\n  gradebench run --tune -e rloo -e {spec}"
    )


def doctor() -> None:
    """Check whether a run would work on this machine.

    Versions, devices, plugins, folders, the hub. The exit status is 1 where a run would fail.
    """
    from gradebench.doctor import findings

    bad = False
    for finding in findings():
        typer.echo(f"{finding.state:4}  {finding.subject:10}  {finding.detail}")
        bad = bad or finding.state == "bad"
    if bad:
        raise SystemExit(1)
