"""Cards: what the docstring of an estimator says under fixed headings."""

import inspect
import re

import pytest

from gradebench.plugins.card import HEADINGS, card
from gradebench.plugins.registry import entries, load

BUILT_IN = [name for name, entry in entries("estimators").items() if entry.builtin]

DOC = """A summary.

    Approximates  grad E[f]
    With          one line,  c = 0
                  another
    Requires      nothing.
    Bias          yes,
                  a lot.
    Cost a batch  B calls.
    Source        Somebody 1999, eq. 1.  Deviates: nowhere.

    A paragraph           that no heading owns.
    """


def test_a_card_has_the_family_and_every_field_of_the_docstring():
    assert card(DOC, "score function") == {
        "family": "score function",
        "approximates": "grad E[f]",
        "formula": "one line, c = 0\nanother",
        "assumptions": "nothing.",
        "bias": "yes, a lot.",
        "cost": "B calls. (a batch)",
        "references": "Somebody 1999, eq. 1. Deviates: nowhere.",
    }


def test_a_docstring_without_headings_has_no_card():
    assert card("With care, this draws.\n\nIt is biased.") == {}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_estimator_has_a_whole_card(name):
    found = entries("estimators")[name].card
    assert list(found) == ["family", *HEADINGS]
    assert all(found.values())
    assert re.search(r"\d{4}|the definition", found["references"]), "a paper and its year"


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_docstring_and_the_class_agree_on_the_bias(name):
    """`unbiased` is what `check` holds it to; "none" is what the reader is told."""
    cls = load("estimators", name).factory
    bias = card(inspect.getdoc(cls) or "")["bias"]
    assert bias.startswith("none") == cls.unbiased
