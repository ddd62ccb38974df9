"""Which output of a sequence classifier is the reward, according to its configuration or the options."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from gradebench.core.errors import InputError

Activation = Literal["auto", "softmax", "sigmoid", "none"]
AUTO: Literal["auto"] = "auto"  # the default of `label` and of `activation`
POSITIVE = ("positive", "pos")  # labels that are rewarded by default, in any case of letters
UNNAMED = ("LABEL_0", "LABEL_1")  # names that the library gives to two unnamed labels; 1 is the positive one


@dataclass(frozen=True)
class Head:
    """The rewarded output, after an activation over all outputs: "softmax", "sigmoid" or "none"."""

    index: int
    activation: str

    def __call__(self, logits: Tensor) -> Tensor:
        """(..., labels) to (...)."""
        if self.activation == "softmax":
            return logits.softmax(-1)[..., self.index]
        value = logits[..., self.index]
        return value.sigmoid() if self.activation == "sigmoid" else value


def head_of(config: Any, name_or_path: str, label: str = AUTO, activation: str = AUTO) -> Head:
    """The head that a classifier's configuration declares (`id2label`, `problem_type`), or that the options ask for.

    label       a label's name, in any case of letters, or its index; "auto": the only label, or the one called positive
    activation  "auto": none for one output and for regression, sigmoid for multi-label, else softmax

    Raises InputError, which lists the labels, if it isn't clear which one is rewarded.
    """
    labels = _labels(config, name_or_path)
    index = _rewarded(labels, name_or_path) if label == AUTO else _named(labels, label, name_or_path)
    if activation == AUTO:
        activation = _activation(len(labels), getattr(config, "problem_type", None))
    if activation == "softmax" and len(labels) == 1:
        raise InputError(f"{name_or_path}: softmax of its one output is always 1; give activation=sigmoid or none")
    return Head(index, activation)


def _activation(outputs: int, problem_type: str | None) -> str:
    """The activation that the library's pipeline applies, but none for a single output without a problem type, because
    such models are trained as regressions."""
    if problem_type == "regression" or (outputs == 1 and problem_type is None):
        return "none"
    return "sigmoid" if problem_type == "multi_label_classification" or outputs == 1 else "softmax"


def _labels(config: Any, name_or_path: str) -> list[str]:
    """The labels' names by index. Raises InputError if they aren't numbered from 0."""
    named: Mapping[int, Any] = config.id2label or {}
    if not named or sorted(named) != list(range(len(named))):
        raise InputError(f"{name_or_path}: its labels (id2label) are numbered {sorted(named)}; mend its config.json")
    return [str(named[index]) for index in range(len(named))]


def _rewarded(labels: list[str], name_or_path: str) -> int:
    if len(labels) == 1:
        return 0
    wanted = UNNAMED[1:] if tuple(labels) == UNNAMED else POSITIVE
    found = [index for index, name in enumerate(labels) if name.casefold() in {one.casefold() for one in wanted}]
    if len(found) != 1:
        raise InputError(
            f"{name_or_path}: which of its labels is rewarded? They are {_listed(labels)}; give label= with one's name "
            "or number"
        )
    return found[0]


def _named(labels: list[str], label: str, name_or_path: str) -> int:
    exact = [index for index, name in enumerate(labels) if name == label]
    alike = [index for index, name in enumerate(labels) if name.casefold() == label.casefold()]
    found = exact or alike
    if not found and label.isdecimal() and int(label) < len(labels):
        found = [int(label)]
    if len(found) != 1:
        fact = "several labels have that name" if found else "no label has that name or number"
        raise InputError(f"{name_or_path}: label={label!r}: {fact}; they are {_listed(labels)}")
    return found[0]


def _listed(labels: list[str]) -> str:
    shown = [f"{index}: {' '.join(name.split())}" for index, name in enumerate(labels[:20])]
    return ", ".join(shown) + (f", and {len(labels) - 20} more" if len(labels) > 20 else "")
