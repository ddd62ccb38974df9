"""The files that `gradebench tune` writes for `gradebench run --tuned`."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from gradebench.core import schema
from gradebench.core.errors import InputError
from gradebench.storage.digests import require_as_written
from gradebench.storage.files import atomic_path

CURVES = "curves.csv"  # in the folder of a tuning and in those of runs that use it
CURVES_COLUMNS = schema.CURVES.names
CURVES_NUMBERS = ("learning_rate", "objective", "standard_error", "seeds", "steps", "fit", "fit_error")
CURVES_TRUTHS = ("chosen", "tied")


def read_choices(path: Path) -> dict[str, Any]:
    """The content of tuned.json. Raises InputError for any other file."""
    try:
        require_as_written(path)
        choices = json.loads(path.read_text(encoding="utf-8"))
        tasks = {label: dict(task["estimators"]) for label, task in choices["tasks"].items()}
        for one in (one for task in tasks.values() for one in task.values()):
            if not 0 < one["learning_rate"] < math.inf:
                raise ValueError("a learning rate isn't a positive number")
            if not all(isinstance(value, str) for value in one.get("options", {}).values()):
                raise ValueError("the value of an option isn't text")
        for budgets in (task.get("budgets", {}) for task in choices["tasks"].values()):
            for budget, chosen in budgets.items():
                if int(budget) < 1 or not all(0 < one["learning_rate"] < math.inf for one in chosen.values()):
                    raise ValueError(f"the budget {budget} has no rates")
        return {"seeds": list(choices["protocol"]["seeds"]), "tasks": choices["tasks"]}
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} isn't a tuned.json of `gradebench tune` ({error})") from error


def records_of(choices: dict[str, Any], label: str) -> dict[str, dict[str, Any]]:
    """For each estimator the record that `provenance.tuned_rate` reads, from the `choices` for one task."""
    task = choices["tasks"][label]
    facts = {"steps": task["steps"], "setting": task["setting"]}
    facts["trials"] = trials_in_words(len(task.get("rates", [])), len(choices["seeds"]))
    budgets: dict[str, dict[str, float]] = {}
    for budget, chosen in task.get("budgets", {}).items():
        for name, one in chosen.items():
            budgets.setdefault(name, {})[budget] = one["learning_rate"]
    return {
        name: facts | {"learning_rate": one["learning_rate"], "budgets": budgets.get(name, {})}
        for name, one in task["estimators"].items()
    }


def trials_in_words(rates: int, seeds: int) -> str:
    """The effort of a tuning, which must be the same for estimators to be compared."""
    return f"{rates} rates x {seeds} seeds"


def keep_curves(choices: Path, out: Path) -> None:
    """Copies the curves beside a tuned.json, if they exist, into the folder of a run that uses it."""
    curves = choices.with_name(CURVES)
    if curves.is_file() and curves.resolve() != (out / CURVES).resolve():
        with atomic_path(out / CURVES) as draft:
            shutil.copyfile(curves, draft)
