"""The public names with their signatures: what changes there is seen, and is meant.

`python tests/gradebench/test_public_surface.py` writes public_surface.txt anew; the difference is part of the change. A line that is
lost or changed breaks code of others: keep the old name or argument for a version, and say so in CHANGELOG.md.
"""

import inspect
import re
from pathlib import Path

import gradebench
from gradebench import api
from gradebench.kit import making, options

PINNED = Path(__file__).with_name("public_surface.txt")
KIT = {"gradebench.kit.making": ("Pretraining",), "gradebench.kit.options": ("Instance", "Kl", "Policy")}


def surface():
    """A line for each public name, and for each public method of a class of ours."""
    lines = []
    for name in sorted(gradebench.__all__):
        lines += lines_of(f"gradebench.{name}", getattr(gradebench, name))
    for module in (making, options):
        for name in KIT[module.__name__]:
            lines += lines_of(f"{module.__name__}.{name}", getattr(module, name))
    options_of_runs = sorted({*api.Budget.__annotations__, *api.Training.__annotations__})
    return lines + [f"gradebench.run option {name}" for name in options_of_runs]


def lines_of(name, what):
    if not inspect.isclass(what):
        return [name + said(what) if callable(what) else name]
    ours = [one for one in what.__mro__ if one.__module__.startswith("gradebench.")]
    members = {key: value for one in reversed(ours) for key, value in vars(one).items() if not key.startswith("_")}
    return [name + said(what)] + [f"{name}.{key}{said(members[key])}" for key in sorted(members)]


def said(what):
    """The arguments by name, with their defaults; without annotations, which may be spelled in several ways."""
    what = what.__func__ if isinstance(what, staticmethod | classmethod) else what
    if not callable(what):
        return ""
    try:
        found = inspect.signature(what)
    except (TypeError, ValueError):
        return ""
    plain = [one.replace(annotation=inspect.Parameter.empty) for one in found.parameters.values()]
    shown = str(found.replace(parameters=plain, return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", shown)


def test_the_public_surface_is_the_pinned_one():
    pinned, found = PINNED.read_text(encoding="utf-8").splitlines(), surface()
    lost, new = [one for one in pinned if one not in found], [one for one in found if one not in pinned]
    assert not lost, f"others may rely on these: {lost}"
    assert not new, f"write {PINNED.name} anew by `python {Path(__file__).name}`, if they are meant to be public: {new}"


if __name__ == "__main__":
    PINNED.write_text("\n".join(surface()) + "\n", encoding="utf-8")
