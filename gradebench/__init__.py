"""GradeBench: a referee for estimators of the gradient of an expected reward.

What an author of an estimator or a task needs is importable from here. The names load on first use, because
`gradebench --help` and `gradebench list` must not wait for torch.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In the repository's root the folder ./gradebench shadows an installed copy; the sibling folders estimators/ and
# tasks/ are subpackages only through the packaging map, so a checkout adds its root to the search path.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "pyproject.toml").is_file():
    __path__.append(str(_checkout))

_HOMES = {
    "api": ("check", "load", "probe", "run", "tune"),
    "results": ("Results",),
    "core.errors": ("InputError", "Unsupported"),
    "core.estimator": ("Estimate", "Estimator", "score"),
    "core.options": ("Range",),
    "core.problem": ("Ledger", "Problem"),
    "core.sampling": ("exponential", "gumbel", "gumbel_given", "harden", "straight_through", "generator"),
    "problems.sequence": ("SequenceProblem",),
    "core.task": ("Task",),
    "kit.language_model_task": ("LanguageModelTask",),
    "kit.rewards": ("DifferentiableReward",),
}
HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "DifferentiableReward",
    "Estimate",
    "Estimator",
    "InputError",
    "LanguageModelTask",
    "Ledger",
    "Problem",
    "Range",
    "Results",
    "SequenceProblem",
    "Task",
    "Unsupported",
    "check",
    "exponential",
    "generator",
    "gumbel",
    "gumbel_given",
    "harden",
    "load",
    "probe",
    "run",
    "score",
    "straight_through",
    "tune",
]

if TYPE_CHECKING:
    from gradebench.api import check, load, probe, run, tune
    from gradebench.core.errors import InputError, Unsupported
    from gradebench.core.estimator import Estimate, Estimator, score
    from gradebench.core.options import Range
    from gradebench.core.problem import Ledger, Problem
    from gradebench.core.sampling import exponential, generator, gumbel, gumbel_given, harden, straight_through
    from gradebench.core.task import Task
    from gradebench.kit.language_model_task import LanguageModelTask
    from gradebench.kit.rewards import DifferentiableReward
    from gradebench.problems.sequence import SequenceProblem
    from gradebench.results import Results


def __getattr__(name: str) -> Any:
    if name in HOME_OF:
        return getattr(importlib.import_module(f"gradebench.{HOME_OF[name]}"), name)
    raise AttributeError(f"module 'gradebench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
