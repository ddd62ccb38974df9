"""What is to run: the settings that all cells of a run share, and one cell."""

from dataclasses import dataclass, field
from typing import Any

from gradebench.analysis.provenance import Rate
from gradebench.storage import records

FIRST_EVALUATION = 10  # the step of the first evaluation after step 0; each next one is at twice as many


@dataclass(frozen=True)
class Plan:
    """The settings that all cells of a run share."""

    run_id: str
    out: str
    device: str
    steps: int
    batch: int
    learning_rate: float | None = None  # None: the recorded tuned value, else the task's
    clip: float = 1.0  # of the gradient's global norm
    evaluations: int | None = None  # after step 0, evenly spaced; None: at 10, 20, 40, 80, ... and the last step
    checkpoints: int = 3  # of the reference trajectory, its start and end included
    train: bool = True  # False: gradient probes alone
    along: str = "reference"  # whose trajectory has the checkpoints: "reference", shared by all, or "own"
    probe_draws: int = 4  # in pairs that share their prompts
    details: bool = False  # probe parameter groups, costs and several batch sizes too
    warm_up: int = 256  # batches, at most, for the estimator's own state before it is frozen
    reference: str = "rloo"  # an unbiased estimator: its trajectory has the checkpoints, its long run is the reference
    reference_draws: int = 4  # of each seed, each over all train prompts
    checkpoint_every: float = 60.0  # seconds of training, after which what it has come to is written down
    patience: int = 5  # updates refused because the gradient isn't finite, before a cell counts as diverged
    setting: str = ""  # what the task runs on, as `prepare` settled it
    settled: dict[str, Any] | None = field(default=None, hash=False)  # of the task, for workers
    shards: int = 1  # parts of a batch, each with random numbers of its own; several processes share them
    save_policies: bool = False  # keep the trained policy in the cell's folder
    tuned: dict[str, Rate] = field(default_factory=dict, hash=False)  # learning rates found by `gradebench tune`
    reference_key: str = ""  # changes with whatever the reference trajectory depends on

    @property
    def evaluation_steps(self) -> list[int]:
        """The steps of training after which all splits are evaluated, 0 and the last included.

        By default a geometric series that doesn't depend on `steps`, so that a longer run has the points of a shorter.
        """
        if self.evaluations is not None:
            return sorted({round(self.steps * i / self.evaluations) for i in range(self.evaluations + 1)})
        doublings = range(max(0, self.steps // FIRST_EVALUATION).bit_length())
        return sorted({0, self.steps, *(FIRST_EVALUATION * 2**i for i in doublings)})


@dataclass(frozen=True)
class Cell:
    """One estimator on one task with one seed; specs as a worker can resolve them anew."""

    task: str  # label
    task_spec: str
    task_options: dict[str, Any] = field(hash=False)  # as settled by `prepare`
    estimator: str  # label
    estimator_spec: str
    seed: int
    params: str = "{}"  # of the estimator, all of them, as JSON
    source: str = ""  # where the estimator comes from
    digests: tuple[str, ...] = ()  # of the code of task and estimator; empty: whatever it is now
    foreign: tuple[str, ...] = ()  # where the code of task and estimator comes from, "" for our own
    read: dict[str, str | None] = field(default_factory=dict, hash=False)  # by code of the task's plugin, to prepare it
    checkpoint: int | None = None  # the only one to probe; None: all of them
    twin: str = ""  # names other draws than the seed's own, for an A/A control; it is trained and not probed

    @property
    def id(self) -> str:
        name = records.cell_id(self.task, self.estimator, self.seed)
        return name if self.checkpoint is None else f"{name}-c{self.checkpoint}"
