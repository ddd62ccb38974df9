"""The files of a cell: its checkpoints, and what it writes about itself."""

from pathlib import Path
from typing import Any

from gradebench.analysis import cell_labels
from gradebench.experiment.facts import Facts
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins.source_digest import known_files
from gradebench.storage import followed, records


def checkpoint_steps(plan: Plan) -> list[int]:
    """The steps at which gradients are probed: start, middle and end of a trajectory, or more; fewer if it has fewer steps."""
    return sorted({round(plan.steps * i / max(1, plan.checkpoints - 1)) for i in range(plan.checkpoints)})


def checkpoint_file(plan: Plan, cell: Cell, number: int) -> Path:
    """The file of a probe point, shared by all cells of a task and seed; its name depends on all that the trajectory does.

    All seeds have the same parameters, but each has its own reference gradient, so that seeds are independent and the
    spread between them includes its error.
    """
    name = records.cell_id(cell.task, f"reference-{plan.reference}", number)
    return Path(plan.out) / "cells" / name / f"checkpoint-{plan.reference_key[:12]}-s{cell.seed}.safetensors"


def training_file(plan: Plan, cell: Cell) -> Path:
    """The checkpoint of a cell's training, for one that was interrupted or is extended to more steps."""
    return Path(plan.out) / "cells" / cell.id / records.TRAINING


def warm_file(plan: Plan, cell: Cell, number: int) -> Path:
    """The file of an estimator's warmed-up state at a probe point; seeds share it, because warming up costs more than probing."""
    name = records.cell_id(cell.task, f"warm-{cell.estimator}", number)
    return Path(plan.out) / "cells" / name / "state.safetensors"


def files_to_go_on_from(plan: Plan, cell: Cell) -> list[Path]:
    """The files of earlier commands that a cell may resume from."""
    numbers = range(len(checkpoint_steps(plan)))
    places = (checkpoint_file, warm_file)
    return [training_file(plan, cell), *(place(plan, cell, number) for number in numbers for place in places)]


def about(cell: Cell, known: Facts | None) -> dict[str, Any]:
    """The entries of cell.json that identify a cell to later commands in the same folder, and say when it ended."""
    which = {name: getattr(cell, name) for name in ("task", "estimator", "seed", "commit", *cell_labels.COLUMNS)}
    return which | {"date": records.now(), "facts": known}


def what_was_read(cell: Cell) -> dict[str, str | None]:
    """Files and environment variables that plugin code has read, in this process and while the task was prepared, without
    those listed among the facts."""
    return cell.read | followed.read(known_files()) if any(cell.foreign) else {}
