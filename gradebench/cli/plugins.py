"""Commands about plugins and this machine: list, show, new, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from gradebench.cli import completion
from gradebench.cli.options import Kind
from gradebench.core.errors import InputError


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


def show(
    name: Annotated[
        str, typer.Argument(help="an estimator or a task", show_default=False, autocompletion=completion.names)
    ],
) -> None:
    """Show the card of one estimator or task, with its options."""
    from gradebench.reporting.listing import print_card

    print_card(name)


def new(
    name: Annotated[str, typer.Argument(help="such as my-estimator, for my_estimator.py", show_default=False)],
    task: Annotated[bool, typer.Option("--task", help="write a text task instead")] = False,
    package: Annotated[
        bool, typer.Option("--package", help="write a project to install, with both, a test, README and CI")
    ] = False,
) -> None:
    """Write an estimator, task or package to start from.

    Into this folder; it works unedited, and the commands to type next are printed.
    """
    from gradebench.plugins import scaffold

    if task and package:
        raise InputError("--task and --package: a package has a task; give one of them")
    if package:
        project, registered = scaffold.write_package(name, Path())
        typer.echo(
            f"{project}/ has the estimator and the task {registered}. Next:\n  cd {project}\n"
            f"  pip install -e '.[test]' && pytest\n  gradebench check {registered}\n"
            f"  gradebench run -e rloo -e {registered}:rate-like=rloo -t {registered}"
        )
        return
    file, cls = scaffold.write_page(name, Path(), "task" if task else "estimator")
    spec = f"./{file.name}:{cls}"
    if task:
        typer.echo(
            f"{file.name} has the task {cls}. Next, a look at it:\n  gradebench run -e rloo -t {spec} --seeds 0 --steps 5\n"
            f"Every estimator, at the task's learning rate:\n  gradebench run -e all -t {spec}\n"
            f"At a rate of its own for each, tuned with equal effort:\n  gradebench tune -e rloo -e grpo -t {spec}\n"
            f"With a model of the hub:\n  gradebench run -e rloo -e grpo -t {spec}:policy=gpt2"
        )
        return
    typer.echo(
        f"{file.name} has the estimator {cls}. Next:\n  gradebench check {spec}\n"
        f"At the learning rate of rloo, against rloo:\n  gradebench run -e rloo -e {spec}:rate-like=rloo\n"
        f"With a rate of its own, tuned like the others:\n  gradebench run --tune -e rloo -e {spec}"
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
