"""The list of facts that results depend on. It makes the key of a cell, decides which runs may be pooled, and gives the
command that repeats a run. Seeds aren't in it, because cells of different seeds are pooled.

A cell's facts are plain data: {"task": {item: value}, "estimator": {item: value}}.
"""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

import gradebench
from gradebench.core.sampler import ON_POLICY
from gradebench.core.task import Task
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry
from gradebench.plugins.source_digest import source_digest
from gradebench.storage import records

Facts = dict[str, dict[str, Any]]
STEPS = "steps"  # the only fact in which a finished training can be extended
# Fields of a plan that aren't facts, with the reason: no result depends on them, or another fact says it better.
NOT_LISTED = {
    "run_id": "a name",
    "out": "a place",
    "device": "its kind is listed",
    "learning_rate": "listed for each estimator",
    "tuned": "listed for each estimator",
    "prepared": "names folders of this machine's cache; what is in them is listed",
    "checkpoint_every": "a resumed training gives the same results",
    "save_policies": "adds a file",
    "reference_key": "a digest of the facts",
}


@dataclass(frozen=True)
class Known:
    """What the facts of a cell are computed from."""

    plan: Plan
    cell: Cell
    task: Task  # loaded, at its initial parameters
    rate: float
    reference: tuple[float, str]  # learning rate and source of the reference estimator


@dataclass(frozen=True)
class Item:
    """One fact that results depend on."""

    name: str
    value: Callable[[Known], Any]  # JSON data
    option: str = ""  # the command-line option that sets it
    default: Any = None  # the value for which the option is left out; None: it is always given
    training: bool = True  # False: only gradient probes depend on it
    typed: Callable[[Any], Any] = lambda value: value  # what the option is given for a value; None: it is left out


def _planned(field: str, name: str = "", option: str = "", default: Any = None) -> Item:
    return Item(name or field.replace("_", " "), lambda known: getattr(known.plan, field), option, default)


def _probed(name: str, value: Callable[[Known], Any], option: str = "") -> Item:
    """A fact that only gradient probes depend on; None without probes."""
    return Item(name, lambda known: value(known) if known.plan.checkpoints else None, option, training=False)


def _sampled(field: str) -> Item:
    """A field of the sampler."""
    name, default = field.replace("_", "-"), getattr(ON_POLICY, field)
    return Item(f"{name} of the sampler", lambda known: getattr(known.plan.sampler, field), f"--{name}", default)


def _of_package(name: str) -> Item:
    return Item(f"version of {name}", lambda known: records.version(name))


def _evaluations(plan: Plan) -> int | str | None:
    """None for the steps at which all runs are evaluated; otherwise their number, or "every 25", or both."""
    also = "" if plan.evaluations is None else f" and {plan.evaluations}"
    return plan.evaluations if plan.evaluate_every is None else f"every {plan.evaluate_every}{also}"


def _interval(evaluations: int | str) -> str | None:
    return evaluations.split()[1] if isinstance(evaluations, str) else None


_HARNESS = os.path.join(os.path.dirname(__file__), "harness.py")


# Environment variables that change which kernels the libraries below torch use.
_KERNELS = ("MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "OPENBLAS_CORETYPE")


@functools.cache
def processor(device: str) -> str:
    """What determines the kernels: a GPU's model, or the CPU instructions that torch uses."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device)) if torch.cuda.is_available() else "GPU"
    chosen = [f"{name}={os.environ[name]}" for name in _KERNELS if name in os.environ]
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *chosen])


# Facts that all cells of a task in one table have in common.
TASK = (
    Item("task", lambda known: registry.resolve("tasks", known.cell.task_spec).name),
    _planned("setting"),
    Item("options", lambda known: {name: _by_name(value) for name, value in known.cell.task_options.items()}),
    _planned("steps", option="--steps"),
    _planned("batch", option="--batch"),
    _planned("clip", option="--clip", default=1.0),
    _sampled("stale"),
    _sampled("temperature"),
    _sampled("top_k"),
    _sampled("top_p"),
    _sampled("noise"),
    Item("evaluations", lambda known: _evaluations(known.plan), "--evaluate-every", typed=_interval),
    _planned("shards", option="--micro-batches", default=1),
    _planned("patience"),
    _planned("train", name="training"),
    _probed("checkpoints", lambda known: known.plan.checkpoints, "--checkpoints"),
    _probed("draws of a probe", lambda known: known.plan.probe_draws, "--draws"),
    _probed("trajectory of the probes", lambda known: known.plan.along, "--along"),
    _probed("details of the probes", lambda known: known.plan.details),
    _probed("warm-up of the probes", lambda known: known.plan.warm_up),
    _probed("reference", lambda known: known.plan.reference),
    _probed("draws of the reference", lambda known: known.plan.reference_draws),
    _probed("learning rate of the reference", lambda known: known.reference[0]),
    _probed("source of the reference", lambda known: known.reference[1]),
    Item("version of gradebench", lambda known: gradebench.__version__),
    Item("version of torch", lambda known: str(torch.__version__)),  # its version also says how it was built
    *map(_of_package, ("transformers", "tokenizers", "datasets", "numpy", "scipy", "scikit-learn", "safetensors")),
    Item("device", lambda known: known.plan.device.partition(":")[0], "--device"),
    Item("processor", lambda known: processor(known.plan.device)),
    Item("dtype", lambda known: str(torch.get_default_dtype())),
    Item("source of the task", lambda known: known.cell.digests[0] if known.cell.digests else ""),
    Item("source of the harness", lambda known: source_digest("gradebench.experiment.harness", _HARNESS)),
    Item("data", lambda known: _data(known.task)),
)
# Facts that all cells of an estimator on a task have in common.
ESTIMATOR = (
    Item("learning rate", lambda known: known.rate),
    Item("options", lambda known: json.loads(known.cell.params)),
    Item("source", lambda known: known.cell.digests[1] if known.cell.digests else ""),
)


def facts_of(known: Known) -> Facts:
    """The values of all facts."""
    return {
        "task": {item.name: item.value(known) for item in TASK},
        "estimator": {item.name: item.value(known) for item in ESTIMATOR},
    }


def key_of(facts: Facts, cell: Cell) -> str:
    """The key of a cell: a digest of its facts and of which cell it is."""
    return _digest([facts, [cell.task, cell.estimator, cell.seed, cell.checkpoint, cell.other_draws]])


def training_key_of(facts: Facts, cell: Cell) -> str:
    """The key of a training, which ignores its number of steps and the facts that only probes depend on."""
    probes = {item.name for item in TASK if not item.training}
    trained = {name: value for name, value in facts["task"].items() if name not in probes | {STEPS}}
    return _digest([trained, facts["estimator"], [cell.task, cell.estimator, cell.seed, cell.other_draws]])


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _by_name(value: Any) -> Any:
    """The name of a file or folder without its path, because other facts describe its content; other values unchanged."""
    if not isinstance(value, str) or os.sep not in value:
        return value
    path, colon, _ = value.partition(".py:")
    return value.rpartition(os.sep)[2] if os.path.exists(os.path.expanduser(f"{path}.py" if colon else path)) else value


_known_data: WeakKeyDictionary[Task, dict[str, Any]] = WeakKeyDictionary()  # computed at the initial parameters


def _data(task: Task) -> dict[str, Any]:
    """Digests of the task's own data and of its initial parameters, and the sizes of its splits."""
    if task not in _known_data:
        sizes = {f"{split} prompts": size for split, size in task.sizes.items()}
        _known_data[task] = task.digests() | sizes | {"initial parameters": _digest_of_parameters(task)}
    return _known_data[task]


def _digest_of_parameters(task: Task) -> str:
    """A digest of the shapes, dtypes, and a few thousand evenly spaced numbers of each parameter."""
    sha = hashlib.sha256()
    for p in task.params:
        flat = p.detach().flatten()
        some = flat[:: max(1, len(flat) // 4096)].cpu().contiguous()
        sha.update(f"{tuple(p.shape)} {p.dtype}".encode() + some.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
