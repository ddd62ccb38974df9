"""How estimators look in all figures: one colour and one shape for each family, which those see who can't see colours."""

import functools
from collections import Counter
from collections.abc import Sequence

from gradebench.core.errors import InputError
from gradebench.core.options import parse_spec
from gradebench.plugins.registry import entries

OTHER = "other"  # of files, of packages that aren't installed here, and of families that have no colour
# The shapes are paths about 0, of equal area to the eye.
SHAPES = {
    "score function": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",
    "relaxed path": "M-3.6 -3.6h7.2v7.2h-7.2z",
    "control variate": "M0 -4.8L4.6 3.4H-4.6z",
    "group relative": "M0 -5.2L5.2 0L0 5.2L-5.2 0z",
    "actor-critic": "M0 4.8L4.6 -3.4H-4.6z",
    "zeroth order": "M-1.5 -4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "oracle": "M0 -5.6L1.4 -1.9L5.3 -1.7L2.2 0.7L3.3 4.5L0 2.3L-3.3 4.5L-2.2 0.7L-5.3 -1.7L-1.4 -1.9z",
    OTHER: "M-4.4 0L-2.2 -3.9H2.2L4.4 0L2.2 3.9H-2.2z",
}
FAMILIES = tuple(SHAPES)
LIGHT = dict(
    zip(
        FAMILIES,
        ("#0a3fc4", "#a84300", "#155132", "#96379e", "#ae8e26", "#338deb", "#1b1f24", "#7a7a7a"),
        strict=True,
    )
)
DARK = dict(
    zip(
        FAMILIES,
        ("#6f66ff", "#f0501e", "#36a863", "#a45cc0", "#e6c217", "#a7ceff", "#f0f0f0", "#8b949e"),
        strict=True,
    )
)
_DASHES = 6  # classes d0, d1, ... of lines


def target_of(label: str) -> str:
    """The name, or FILE.py:OBJECT, of a label with options; the whole label where it is none of a plugin."""
    try:
        return parse_spec(label).target
    except InputError:
        return label


def family_of(label: str) -> str:
    """One of FAMILIES."""
    return _registered().get(target_of(label), OTHER)


@functools.cache
def _registered() -> dict[str, str]:
    """The family of each registered estimator, read without importing it."""
    cards = {name: entry.card.get("family", OTHER) for name, entry in entries("estimators").items()}
    return {name: family if family in SHAPES else OTHER for name, family in cards.items()}


def class_of(label: str) -> str:
    """The CSS class that gives an estimator its colour: f0, f1, ..."""
    return f"f{FAMILIES.index(family_of(label))}"


def dashes(labels: Sequence[str]) -> dict[str, str]:
    """A CSS class for the line of each estimator: those of one family, whose colour is the same, have other dashes."""
    seen: Counter[str] = Counter()
    found = {}
    for label in labels:
        family = family_of(label)
        found[label] = f"d{seen[family] % _DASHES}"
        seen[family] += 1
    return found
