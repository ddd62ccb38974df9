"""Docstrings here are aligned by hand: what follows their first paragraph is shown as it stands."""

from typing import Any

import griffe


class AsTheyStand(griffe.Extension):
    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring and "\n" in obj.docstring.value.strip():
            head, _space, rest = obj.docstring.value.strip().partition("\n\n")
            if any("  " in line.strip() for line in rest.split("\n")):
                obj.docstring.value = f"{head}\n\n```text\n{rest}\n```"
