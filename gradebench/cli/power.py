"""`gradebench run --power`: how many seeds a comparison needs, from the spread in an earlier run."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gradebench.core.errors import InputError
from gradebench.core.streams import plugins_aside

if TYPE_CHECKING:
    from gradebench.experiment.runner import Request


def print_power(pilot: Path, request: "Request", difference: float) -> None:
    """What it says: nothing is run, and no task is loaded."""
    from gradebench.analysis import pilot_power
    from gradebench.analysis import runs as folders
    from gradebench.core.seeds import parse_seeds
    from gradebench.experiment import runner
    from gradebench.reporting import pair_tables

    if not difference > 0:
        raise InputError(f"--difference {difference:g}: a number above 0 is needed")
    metrics = folders.read_metrics([pilot])
    with plugins_aside():
        wanted = {task.name for task in runner.expand("tasks", request.tasks)[0]}
        labels = {one.label for one in runner.expand("estimators", request.estimators)[0]}
    metrics = metrics[metrics["task"].str.partition(":")[0].isin(wanted)]
    if metrics.empty:
        raise InputError(f"{pilot} has no {' or '.join(sorted(wanted))}; give a run of the same task as the pilot")
    skipped = set(metrics.loc[metrics["status"] == "skipped", "estimator"])
    runner.require_family(request, sorted(labels))
    seeds = len(parse_seeds(request.seeds)) if request.seeds else None
    try:
        against = [name for name in request.against if name not in skipped]
        needed = pilot_power.pilot_power(metrics, labels - skipped, difference, seeds, request.by, against)
    except ValueError as error:
        raise InputError(str(error)) from error
    pair_tables.print_power(needed)
    if unknown := sorted(labels - set(metrics["estimator"])):
        typer.echo(f"{pilot} lacks {', '.join(unknown)}: the pairs are counted, their spread isn't known", err=True)
