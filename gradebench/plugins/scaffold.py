"""`gradebench new`: an estimator of one's own to start from, one page with three holes to fill."""

import ast
import builtins
import importlib.util
import keyword
import re
from pathlib import Path

from gradebench.core.errors import InputError

_PAGE = '''"""{cls}: an estimator for GradeBench. Three holes to fill: what it promises, its options, its gradient."""

from typing import Annotated

import torch

from gradebench import Estimate, Estimator, Problem, Range, score


class {cls}(Estimator):
    """{cls}: in one line, what it does.

    Approximates  grad E_{{z~p}}[f(z)]
    With          (f(z) - b) grad log p(z), b the mean reward of the prompt's other samples
    Requires      black-box reward.
    Bias          none.
    Cost a call   nB reward calls, nBT sampled tokens, 1 backward pass.
    Source        the paper and its equation.
    """

    # 1. What it promises. `unbiased` is tested by `gradebench check`; where it is False, the bias is printed. In
    #    `needs` stands what it can't do without, such as frozenset({{"soft_reward"}}): elsewhere it is skipped.
    family = "score function"
    unbiased = True

    # 2. Its options, for -e {file}:{cls}:n=8; rate-like=rloo, which all take, is for the rate of rloo.
    def __init__(self, n: Annotated[int, Range(2), "samples per prompt"] = 4):
        super().__init__()
        self.n = n

    # 3. Its gradient: uphill, aligned with problem.params. All randomness comes from rng.
    def gradient(self, problem: Problem, rng: torch.Generator) -> Estimate:
        z = problem.sample(self.n, rng)  # (n, B, T) token ids
        reward = problem.reward(z)  # (n, B)
        baseline = (reward.sum(0) - reward) / (self.n - 1)  # (n, B), blind to the sample that it is for
        return Estimate(problem.grad(score(problem, z, reward, reward - baseline)))
'''


def _taken(module: str, cls: str) -> str:
    """What else has one of the names, in words; "" where nothing has."""
    if keyword.iskeyword(module) or keyword.iskeyword(cls):
        return f"{module if keyword.iskeyword(module) else cls} is a word of Python's own"
    page = ast.parse(_PAGE.format(cls="It", file="it.py"))
    if hasattr(builtins, cls) or cls in {node.id for node in ast.walk(page) if isinstance(node, ast.Name)}:
        return f"the page needs another {cls}"
    if importlib.util.find_spec(module) and not Path(f"{module}.py").exists():
        return f"{module}.py would stand in the way of the module {module}"
    return ""


def write_page(name: str, folder: Path) -> tuple[Path, str]:
    """Writes NAME.py into the folder; returns the file and the name of its class.

    Raises        InputError for a name that makes no class, or that something else has which the page or what it
                  imports needs, and where the file is there or can't be written.
    """
    words = re.findall(r"[A-Za-z0-9]+", name)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name) or not words:
        raise InputError(f"{name!r} makes no name of a class; give letters, digits and hyphens, such as my-estimator")
    module, cls = "_".join(words).lower(), "".join(word[0].upper() + word[1:] for word in words)
    if taken := _taken(module, cls):
        raise InputError(f"{name!r} won't do: {taken}; give another name, such as my-{name}")
    file = folder / f"{module}.py"
    try:
        with file.open("x", encoding="utf-8") as page:
            page.write(_PAGE.format(cls=cls, file=file.name))
    except FileExistsError:
        raise InputError(f"{file} is there already; give another name") from None
    except OSError as error:
        raise InputError(f"can't write {file}: {error.strerror}") from error
    return file, cls
