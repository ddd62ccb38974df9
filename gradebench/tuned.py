"""What `gradebench tune` leaves for `gradebench run --tuned`."""

import json
import math
from pathlib import Path
from typing import Any

from gradebench.errors import InputError


def read_choices(path: Path) -> dict[str, Any]:
    """tuned.json. Raises InputError for what isn't one."""
    try:
        choices = json.loads(path.read_text(encoding="utf-8"))
        tasks = {label: dict(task["estimators"]) for label, task in choices["tasks"].items()}
        if not all(0 < one["learning_rate"] < math.inf for task in tasks.values() for one in task.values()):
            raise ValueError("a learning rate is no number above 0")
        return {"seeds": list(choices["protocol"]["seeds"]), "tasks": choices["tasks"]}
    except OSError as error:
        raise InputError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no tuned.json of `gradebench tune` ({error})") from error
