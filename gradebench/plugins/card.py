"""The card of an estimator: what its docstring says under fixed headings, and its family.

    With          mean_i (f_i - mean_{j != i} f_j) grad log p(z_i)
                  more of the same
    Requires      n >= 2; black-box reward.

A heading stands at the start of a line, its text COLUMN characters in; what follows it is indented as far.
"""

import inspect
import re

COLUMN = 14
# What a card calls it, and how the docstring does.
HEADINGS = {
    "approximates": ("Approximates",),
    "formula": ("With",),
    "assumptions": ("Requires",),
    "bias": ("Bias",),
    "cost": ("Cost a call", "Cost a batch"),
    "references": ("Source",),
}
_FIELD_OF = {heading: field for field, headings in HEADINGS.items() for heading in headings}


def card(doc: str, family: str = "") -> dict[str, str]:
    """family, then the fields of HEADINGS that the docstring has; formulas keep their lines. Empty without any."""
    parts: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for line in inspect.cleandoc(doc).splitlines():
        heading, text = line[:COLUMN].rstrip(), line[COLUMN:].strip()
        if heading in _FIELD_OF:
            lines = parts.setdefault(_FIELD_OF[heading], [])
            lines.append(text if heading != "Cost a batch" else f"{text} (a batch)")
        elif lines is not None and not heading and text:
            lines.append(text)
        else:
            lines = None
    fields = {name: ("\n" if name == "formula" else " ").join(parts[name]) for name in HEADINGS if name in parts}
    return ({"family": family} if family else {}) | {name: re.sub(r" {2,}", " ", text) for name, text in fields.items()}
