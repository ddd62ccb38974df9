"""What a cell is besides a training of its estimator: the estimator's A/A control, or a trial of its tuning.

Tables hold this in COLUMNS. The label in the column `estimator` is made of it, for readers, and to tell cells apart.
"""

import re
from collections.abc import Mapping

import pandas as pd

# Of metrics, except of older versions: the estimator that a control is of, or a trial; and the options of the trial.
COLUMNS = ["control_of", "trial_of", "trial_options"]
CONTROL = " (control)"
_TRIAL = re.compile(r"(?P<of>.*) @ (?P<rate>[^ ]*) ?(?P<options>.*)", re.DOTALL)


def control_label(estimator: str) -> str:
    return estimator + CONTROL


def trial_label(estimator: str, learning_rate: float, trial_options: str) -> str:
    return f"{estimator} @ {learning_rate:g} {trial_options}".rstrip()


def parsed(label: str) -> dict[str, str]:
    """COLUMNS of a label that an older version wrote, which has nothing else; "" for what the cell isn't."""
    control = label.removesuffix(CONTROL) if label.endswith(CONTROL) else ""
    trial = _TRIAL.fullmatch(label)
    of, options = (trial["of"], trial["options"]) if trial else ("", "")
    return dict(zip(COLUMNS, (control, of, options), strict=True))


def control_of(known: Mapping[str, object], label: str) -> str:
    """The estimator that a cell is the control of, by what a file says of it; by its label in a file without that."""
    return str(known.get("control_of", parsed(label)["control_of"]))


def with_columns(metrics: pd.DataFrame) -> pd.DataFrame:
    """The metrics with COLUMNS; where an older version wrote them, from their labels."""
    if set(COLUMNS) <= set(metrics.columns):
        return metrics
    known = metrics["estimator"].astype(object)
    labels = known.where(known.notna(), "").astype(str)  # a damaged row has none, which its readers refuse
    found = {label: parsed(label) for label in labels.unique()}
    return metrics.assign(**{name: labels.map({label: one[name] for label, one in found.items()}) for name in COLUMNS})


def with_trial_rates(metrics: pd.DataFrame) -> pd.DataFrame:
    """The metrics of trials with their learning_rate; where an older version wrote none, from their labels."""
    by_label = metrics["estimator"].str.extract(_TRIAL)["rate"].astype(float)
    known = metrics["learning_rate"].fillna(by_label) if "learning_rate" in metrics.columns else by_label
    return metrics.assign(learning_rate=known)
