"""A problem as somebody else is to see it: some of it replaced, or forbidden, and all else the problem's own."""

from typing import Any

from torch import Tensor

from gradebench.core.problem import Problem


class View:
    """Passes everything on to a problem; what a subclass defines stands in its place, for parts of the problem too."""

    def __init__(self, problem: Problem):
        self._problem = problem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def select(self, index: Tensor) -> Any:
        """The same view of a part of the contexts."""
        part = object.__new__(type(self))
        vars(part).update(vars(self), _problem=self._problem.select(index))
        return part


_NEEDED = {
    "soft_reward": "soft_reward",
    "rollout": "soft_reward",
    "support": "support",
    "exact_gradient": "exact",
}


class Guarded(View):
    """A problem as an estimator sees it: what it didn't declare in `needs` raises instead of working by luck."""

    def __init__(self, problem: Problem, needs: frozenset[str]):
        super().__init__(problem)
        self._needs = needs

    def __getattr__(self, name: str) -> Any:
        need = _NEEDED.get(name)
        if need is not None and need not in self._needs:
            raise PermissionError(f'problem.{name} used without declaring it: needs = frozenset({{"{need}"}})')
        return super().__getattr__(name)
