"""Curves of finished cells for trackers of experiments: a CSV file, TensorBoard, Weights & Biases, trackio.

Each tracker is a function of a cell, its status and its curve, called in the main process as the cell ends. One that fails
is left out from then on, with a note: no run ends for it.
"""

import csv
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradebench.core.errors import InputError
from gradebench.core.interrupts import is_users
from gradebench.core.schema import TRAINING_PLACE
from gradebench.experiment.plan import Cell
from gradebench.experiment.runner import Progress, Run
from gradebench.storage import records

Curve = Mapping[int, Mapping[str, float]]  # step -> "split/metric" -> value
Tracker = Callable[[Cell, str, Curve], None]
COLUMNS = ("cell_id", "task", "estimator", "seed", "status", "step", "metric", "value")


def to_csv(out: Path) -> Tracker:
    """A row a value in log.csv, as the cells end; rows of earlier commands in the folder stay."""

    def log(cell: Cell, status: str, curve: Curve) -> None:
        path = out / "log.csv"
        begun = path.is_file()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if not begun:
                writer.writerow(COLUMNS)
            named = (cell.id, cell.task, cell.estimator, cell.seed, status)
            values: list[tuple[Any, ...]] = [
                (step, name, value) for step in sorted(curve) for name, value in curve[step].items()
            ]
            writer.writerows([*named, *row] for row in values or [("", "", "")])

    return log


def to_tensorboard(out: Path) -> Tracker:
    """`tensorboard --logdir OUT/tensorboard` shows it."""
    writer_of = importlib.import_module("torch.utils.tensorboard").SummaryWriter

    def log(cell: Cell, status: str, curve: Curve) -> None:
        writer = writer_of(str(out / "tensorboard" / cell.id))
        for step in sorted(curve):
            for name, value in curve[step].items():
                writer.add_scalar(name, value, step)
        writer.add_text("status", status)
        writer.close()

    return log


def to_wandb(out: Path) -> Tracker:
    """Each cell is a run of the project gradebench, in the group of the folder's name."""
    return _by_init("wandb", group=out.name)


def to_trackio(out: Path) -> Tracker:
    """The same, kept on this machine unless trackio is told otherwise."""
    return _by_init("trackio", group=out.name)


def _by_init(package: str, **options: Any) -> Tracker:
    """A tracker whose package has `init`, `log` and `finish`."""
    module = importlib.import_module(package)

    def log(cell: Cell, status: str, curve: Curve) -> None:
        facts = {"task": cell.task, "estimator": cell.estimator, "seed": cell.seed, "status": status}
        module.init(project="gradebench", name=cell.id, config=facts, **options)
        for step in sorted(curve):
            module.log(dict(curve[step]), step=step)
        module.finish()

    return log


TRACKERS = {"csv": to_csv, "tensorboard": to_tensorboard, "wandb": to_wandb, "trackio": to_trackio}


def require(names: Sequence[str]) -> None:
    """Raises InputError where the package of a tracker isn't installed."""
    for name in names:
        if name != "csv" and importlib.util.find_spec(name) is None:
            raise InputError(f"--log {name} needs the package {name}: pip install 'gradebench[{name}]'")


class Tracked(Progress):
    """A run's progress, which also tells trackers of each cell that ends."""

    def __init__(self, inner: Progress, run: Run, names: Sequence[str]):
        self.inner, self.run = inner, run
        self.trackers = {name: TRACKERS[name](run.out) for name in dict.fromkeys(names)}

    def note(self, message: str) -> None:
        self.inner.note(message)

    def start(self, total: int, done: int) -> None:
        self.inner.start(total, done)

    def phase(self, references: int) -> None:
        self.inner.phase(references)

    def advance(self, cell: Cell | None, status: str) -> None:
        self.inner.advance(cell, status)
        if cell is None or not self.trackers:
            return
        curve, steps = curve_of(self.run.folder(cell)), steps_of(self.run.folder(cell))
        for name, log in list(self.trackers.items()):
            try:
                log(cell, status, curve if name == "csv" else united(curve, steps))
            except BaseException as error:  # of a tracker, such as a network that is down
                if is_users(error):
                    raise
                del self.trackers[name]
                self.note(
                    f"--log {name} failed at {cell.id}, and is left out from here on: {type(error).__name__}: {error}"
                )

    def stop(self) -> None:
        self.inner.stop()


def curve_of(folder: Path) -> dict[int, dict[str, float]]:
    """What a cell measured along its training, by step; empty where it has none."""
    try:
        rows = records.read_rows(folder / records.METRICS).to_pylist()
    except (OSError, ValueError):
        return {}
    curve: dict[int, dict[str, float]] = {}
    for row in rows:
        if row["metric"] and row["value"] is not None and not math.isnan(row["value"]):
            curve.setdefault(int(row["step"]), {})[f"{row['split']}/{row['metric']}"] = float(row["value"])
    return curve


def steps_of(folder: Path) -> Curve:
    """What every training step of a cell told; log.csv leaves that to training.parquet."""
    try:
        rows = records.read_rows(folder / records.STEPS).to_pylist()
    except (OSError, ValueError):
        return {}
    told = [name for name in (rows[0] if rows else ()) if name not in TRAINING_PLACE]
    return {
        int(row["step"]): {
            f"training/{name}": row[name] for name in told if row[name] is not None and not math.isnan(row[name])
        }
        for row in rows
    }


def united(curve: Curve, steps: Curve) -> Curve:
    """Both, each step once: some trackers take steps only in order."""
    return {step: {**curve.get(step, {}), **steps.get(step, {})} for step in sorted({*curve, *steps})}
