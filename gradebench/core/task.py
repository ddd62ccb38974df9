"""What a task supplies: a policy, a reward, an independent judge and disjoint prompts."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradebench.core.estimator import Estimator
from gradebench.core.problem import Ledger, Problem

Log = Callable[[str], None]


class Task(ABC):
    """One problem to learn, with data in disjoint splits; its parameters are the typed arguments of `__init__`.

    `prepare` does the slow part once a run and leaves it in the cache; `load` is then quick in every process. A worker
    prepares again, from the cache, unless `prepare` leaves in `prepared` what `load` reads.
    """

    version: ClassVar[int] = 1  # results of different versions are never mixed
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    default_steps: int = 100
    default_batch: int = 32
    default_draws: int = 100  # of `gradebench probe`, at each checkpoint
    learning_rate: float = 1e-3  # where no tuned value is recorded

    setting: str  # what actually ran, after fallbacks; known after `prepare`
    params: list[Tensor]
    sizes: Mapping[str, int]  # contexts in each split

    options: dict[str, Any]  # as given to `__init__`; `prepare` resolves what was left open, and a worker gets that
    prepared: dict[str, Any] | None = None  # plain data that `prepare` leaves for `load`
    notices: Sequence[str] = ()  # fallbacks taken, said at the start and at the end of a run
    lacks: Mapping[str, str] = {}  # why its problems don't offer a need, said where a cell is skipped for it
    memory_advice: str = ""  # what takes less memory, said where it ran out

    @property
    def beta(self) -> float:
        """The weight of the divergence `kl` in the objective, reward - beta kl, in reward per nat."""
        beta = getattr(self, "options", {}).get("kl")
        return float(beta) if isinstance(beta, int | float) else 0.0

    def requirements(self) -> list[str]:
        """What `prepare` and a run will download and take, in lines, said before either begins."""
        return []

    # The former names of `requirements` and `prepared`, which still work for one version.

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "needs" in vars(cls) and "requirements" not in vars(cls):
            warnings.warn(f"{cls.__name__}.needs is called requirements now", FutureWarning, stacklevel=2)
            cls.requirements = vars(cls)["needs"]  # type: ignore[method-assign]

    def needs(self) -> list[str]:
        return []

    @property
    def settled(self) -> dict[str, Any] | None:
        warnings.warn("Task.settled is called Task.prepared now", FutureWarning, stacklevel=2)
        return self.prepared

    @settled.setter
    def settled(self, value: dict[str, Any] | None) -> None:
        warnings.warn("Task.settled is called Task.prepared now", FutureWarning, stacklevel=2)
        self.prepared = value

    def missing(self) -> list[str]:
        """What `prepare` would download for long; a dry run doesn't."""
        return []

    @abstractmethod
    def prepare(self, device: torch.device, log: Log, strict: bool = False) -> None:
        """Fetch, train and cache what `load` reads; report through `log`.

        Raises InputError where the input can't be used or, if `strict`, where a fallback would be taken.
        """

    @abstractmethod
    def load(self, device: torch.device) -> None:
        """Put the policy, at its initial parameters, and all else on the device."""

    @abstractmethod
    def problem(self, split: str, index: Tensor, ledger: Ledger | None = None) -> Problem:
        """The problem on the contexts `index` (B,) of a split."""

    @abstractmethod
    def evaluate(self, split: str, rng: torch.Generator) -> dict[str, float]:
        """Metrics of the present parameters on a fixed part of a split, always on hard samples."""

    def adapted(self, estimator: Estimator) -> Estimator:
        """An estimator as it runs on this task: itself, but where a task reproduces how others ran it."""
        return estimator

    def samples(self, split: str, rng: torch.Generator) -> list[dict[str, Any]]:
        """The first prompts of a split, each with what the present parameters make of it: prompt, text, reward."""
        return []

    def save_policy(self, folder: Path) -> None:
        """Write the policy at its present parameters into a new folder, in the hub's format where there is one.

        Raises NotImplementedError where the task has no policy to keep.
        """
        raise NotImplementedError(f"task {type(self).__name__} doesn't save policies")

    def tuned(self, estimator: str) -> Mapping[str, Any] | None:
        """Recorded tuned settings of an estimator in this setting, such as {"learning_rate": 1e-3}; None if none.

        Where they are known: the `steps` that it is tuned for, the `setting`, the `trials` in words, the `grid` of rates
        and `seeds` as --seeds takes them, for `run --tune`; and `budgets`, learning rates by other numbers of steps.
        """
        return None

    def digests(self) -> dict[str, str]:
        """Digests of the data that numbers depend on (corpus, splits, models), so that runs on other data are told
        apart. The task's sources, its options and its initial parameters count without that."""
        return {}

    def describe(self) -> dict[str, Any]:
        """Facts for config.json: sizes, accuracies, digests."""
        return {}
