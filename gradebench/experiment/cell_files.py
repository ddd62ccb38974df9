"""Where the files of a cell lie: those that it goes on from, and what it says of itself."""

from pathlib import Path
from typing import Any

from gradebench.experiment.facts import Facts
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins.source_digest import known_files
from gradebench.storage import followed, records


def checkpoint_steps(plan: Plan) -> list[int]:
    """Start, middle and end (or more) of a trajectory; fewer where it has fewer steps."""
    return sorted({round(plan.steps * i / max(1, plan.checkpoints - 1)) for i in range(plan.checkpoints)})


def checkpoint_file(plan: Plan, cell: Cell, number: int) -> Path:
    """Shared by all cells of a task and seed; its name changes with whatever the trajectory depends on.

    The parameters are those of all seeds. The reference gradient is a seed's own, so that seeds are independent and the
    spread between them holds its error.
    """
    name = records.cell_id(cell.task, f"reference-{plan.reference}", number)
    return Path(plan.out) / "cells" / name / f"checkpoint-{plan.reference_key[:12]}-s{cell.seed}.safetensors"


def training_file(plan: Plan, cell: Cell) -> Path:
    """What the training of a cell goes on from, that was cut off or is to have more steps."""
    return Path(plan.out) / "cells" / cell.id / records.TRAINING


def warm_file(plan: Plan, cell: Cell, number: int) -> Path:
    """An estimator's own state at a checkpoint: one for all seeds, as that costs more than what is probed with it."""
    name = records.cell_id(cell.task, f"warm-{cell.estimator}", number)
    return Path(plan.out) / "cells" / name / "state.safetensors"


def files_to_go_on_from(plan: Plan, cell: Cell) -> list[Path]:
    """What an earlier command may have left for a cell that runs now."""
    numbers = range(len(checkpoint_steps(plan)))
    places = (checkpoint_file, warm_file)
    return [training_file(plan, cell), *(place(plan, cell, number) for number in numbers for place in places)]


def about(cell: Cell, known: Facts | None) -> dict[str, Any]:
    """What cell.json says of a cell, so that another command in its folder can tell what it is."""
    return {"task": cell.task, "estimator": cell.estimator, "seed": cell.seed, "facts": known}


def what_was_read(cell: Cell) -> dict[str, str | None]:
    """Files and variables that code of plugins has read in this process, and where the task was prepared, besides those
    that the facts have."""
    return cell.read | followed.read(known_files()) if any(cell.foreign) else {}
