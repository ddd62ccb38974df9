"""The plan, the settings that all cells of a task share, and the cell."""

from dataclasses import dataclass, field
from typing import Any

from gradebench.analysis.provenance import Rate
from gradebench.core.sampler import ON_POLICY, Sampler
from gradebench.storage import records

FIRST_EVALUATION = 10  # the step of the first evaluation after step 0; the step doubles from one to the next


@dataclass(frozen=True)
class Plan:
    """The settings that all cells of a task share."""

    run_id: str
    out: str
    device: str
    steps: int
    batch: int
    learning_rate: float | None = None  # None: the recorded tuned value, else the task's
    clip: float = 1.0  # maximum of the gradient's global norm
    sampler: Sampler = ON_POLICY  # of the samples that estimators get; not of evaluations and reference gradients
    evaluations: int | None = None  # after step 0, evenly spaced; None: at 10, 20, 40, 80, ... and the last step
    evaluate_every: int | None = None  # evaluate at each multiple of it too
    checkpoints: int = 3  # number of probe points on the trajectory, with its start and end
    train: bool = True  # False: only gradient probes
    along: str = "reference"  # the trajectory of the probe points: "reference", shared by all estimators, or "own"
    probe_draws: int = 4  # gradients in each probe; two of a pair have the same prompts
    details: bool = False  # also probe parameter groups, costs and several batch sizes
    warm_up: int = 256  # maximum number of batches to warm up the estimator's own state before a probe
    reference: str = "rloo"  # an unbiased estimator, for the shared trajectory and for reference gradients
    reference_draws: int = 4  # gradients, each over all train prompts, in a seed's reference gradient
    checkpoint_every: float = 60.0  # seconds of training between checkpoints
    patience: int = 5  # skipped updates, because gradients weren't finite, before a cell counts as diverged
    setting: str = ""  # what the task runs on, as `prepare` resolved it
    prepared: dict[str, Any] | None = field(default=None, hash=False)  # what `Task.prepare` left for `load`
    shards: int = 1  # parts of a batch, each with its own random numbers, spread over processes
    save_policies: bool = False  # save the trained policy in the cell's folder
    tuned: dict[str, Rate] = field(default_factory=dict, hash=False)  # learning rates found by `gradebench tune`
    reference_key: str = ""  # digest of everything that the reference trajectory depends on

    @property
    def evaluation_steps(self) -> list[int]:
        """The training steps at which splits are evaluated, including 0 and the last.

        By default a geometric series that doesn't depend on `steps`, so that a longer run includes the steps of a shorter
        one.
        """
        also = range(0, self.steps, self.evaluate_every) if self.evaluate_every else ()
        if self.evaluations is not None:
            return sorted({round(self.steps * i / self.evaluations) for i in range(self.evaluations + 1)} | set(also))
        doublings = range(max(0, self.steps // FIRST_EVALUATION).bit_length())
        return sorted({0, self.steps, *(FIRST_EVALUATION * 2**i for i in doublings), *also})


@dataclass(frozen=True)
class Cell:
    """One estimator on one task with one seed. Workers resolve its specs again."""

    task: str  # label
    task_spec: str
    task_options: dict[str, Any] = field(hash=False)  # as resolved by `prepare`
    estimator: str  # label
    estimator_spec: str
    seed: int
    params: str = "{}"  # all options of the estimator, as JSON
    source: str = ""  # where the estimator comes from
    digests: tuple[str, ...] = ()  # of the source code of task and estimator; empty: not checked
    foreign: tuple[str, ...] = ()  # origins of the code of task and estimator, "" for built-in code
    read: dict[str, str | None] = field(default_factory=dict, hash=False)  # by the task's plugin while it was prepared
    checkpoint: int | None = None  # the only probe point to probe; None: all
    other_draws: str = ""  # for an A/A control: makes its random numbers differ from the seed's; it isn't probed
    control_of: str = ""  # label of the estimator that this is the A/A control of
    trial_of: str = ""  # label of the estimator that this is a trial of, in a tuning
    trial_options: str = ""  # options of the estimator that the trial changes, "name=value,name=value"
    commit: str = ""  # of our checkout; no number depends on it, because the source does

    @property
    def id(self) -> str:
        name = records.cell_id(self.task, self.estimator, self.seed)
        return name if self.checkpoint is None else f"{name}-c{self.checkpoint}"
