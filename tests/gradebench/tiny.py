"""A task that a whole run finishes in seconds, and estimators that misbehave: `-t tiny.py:TinyTask -e tiny.py:Broken`."""

import copy
import ctypes
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import torch

from gradebench import Estimate, Estimator, Range, SequenceProblem, Task, score
from gradebench.measurement.sequence_metrics import evaluate_sequences
from gradebench.models.transformer import ScratchClassifier, ScratchPolicy

CATEGORIES, PROMPT, HORIZON = 4, 3, 3


class TinyReward(ScratchClassifier):
    differentiable = True


class TinyTask(Task):
    """All 64 prompts of three tokens, in three splits, and a random reward that can be learned."""

    default_steps = 3
    default_batch = 8
    learning_rate = 0.02

    def __init__(self, kl: Annotated[float, Range(0), "reward per nat"] = 0.0):
        self.options = {"kl": kl}

    def prepare(self, device, log, strict=False):
        self.setting = f"kl={self.options['kl']:g}"

    def load(self, device):
        torch.manual_seed(0)
        shape = (CATEGORIES, 8, 1, 2, PROMPT + HORIZON)
        self.policy = ScratchPolicy(*shape).to(device)
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)
        self.reward = TinyReward(*shape).to(device).requires_grad_(False)
        for p in self.reward.parameters():
            p.mul_(5)
        prompts = torch.cartesian_prod(*[torch.arange(CATEGORIES)] * PROMPT)[torch.randperm(64)].to(device)
        self.prompts = dict(zip(self.splits, prompts.split([32, 16, 16]), strict=True))
        self.params = list(self.policy.parameters())
        self.sizes = {split: len(rows) for split, rows in self.prompts.items()}

    def problem(self, split, index, ledger=None):
        parts = (self.policy, self.reward, self.prompts[split][index], HORIZON, CATEGORIES)
        return SequenceProblem(*parts, self.reference, self.options.get("kl", 0.0), ledger)

    def evaluate(self, split, rng):
        metrics, z = evaluate_sequences(self.problem(split, torch.arange(self.sizes[split])), rng)
        return metrics | {"gold_reward": float((z == 0).double().mean())}

    def samples(self, split, rng):
        z = self.problem(split, torch.arange(2)).sample(1, rng)[0].tolist()
        prompts = self.prompts[split][:2].tolist()
        return [{"prompt": str(p), "text": str(p + t), "reward": 0.5} for p, t in zip(prompts, z, strict=True)]


class Scaled(TinyTask):
    """Rewards of another size."""

    def __init__(self, scale: float = 1.0):
        super().__init__()
        self.options = {"scale": scale}

    def prepare(self, device, log, strict=False):
        self.setting = f"scale={self.options['scale']:g}"

    def load(self, device):
        super().load(device)
        whole, scale = self.reward.forward, self.options["scale"]
        self.reward.forward = lambda *texts: scale * whole(*texts)


class Careless(TinyTask):
    """A task whose own code fails."""

    def prepare(self, device, log, strict=False):
        raise RuntimeError("the disk of the task is full")


class Plain(Estimator):
    """REINFORCE without a baseline; the others are variations of it."""

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        return Estimate(problem.grad(score(problem, z, reward, reward)))


class Remembers(Plain):
    """Has a running state, so that the probes warm it up."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))


class Nan(Plain):
    def gradient(self, problem, rng):
        return Estimate([torch.full_like(p, float("nan")) for p in problem.params])


class Doubled(Plain):
    """Takes a list of tensors for a tensor."""

    def gradient(self, problem, rng):
        return Estimate(2 * [torch.zeros_like(p) for p in problem.params])


class Flat(Plain):
    def gradient(self, problem, rng):
        return Estimate([torch.zeros(3, 1) for p in problem.params])


class NanOnce(Plain):
    """Its first gradient isn't finite, nor is the first of its own parameter."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.calls = 0

    def gradient(self, problem, rng):
        self.calls += 1
        estimate = super().gradient(problem, rng)
        bad = float("nan") if self.calls == 1 else 1.0
        return Estimate([g * bad for g in estimate.grad], own_loss=self.scale * bad)


class Raises(Plain):
    def gradient(self, problem, rng):
        raise ArithmeticError("the third law\nof the estimator")


class Greedy(Plain):
    """Asks for more memory than there is, as a GPU's allocator says it."""

    def gradient(self, problem, rng):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


class Leaves(Plain):
    def gradient(self, problem, rng):
        sys.exit("leaving")


class Dies(Plain):
    """Ends its process without a word, with the status that it is told."""

    def __init__(self, status: int = 3):
        super().__init__()
        self.status = status

    def gradient(self, problem, rng):
        os._exit(self.status)


class Forks(Plain):
    """In training each call forks a child that goes on as if it were the worker, and leaves another process behind."""

    def __init__(self, pids: str = ""):
        super().__init__()
        self.pids = pids

    def gradient(self, problem, rng):
        if self.training:
            left = subprocess.Popen(["sleep", "600"], start_new_session=True)
            with open(self.pids, "a") as file:
                file.write(f"{left.pid}\n")
            os.fork()
        return super().gradient(problem, rng)


class Crashes(Plain):
    """A segmentation fault."""

    def gradient(self, problem, rng):
        ctypes.string_at(0)


class Sleeps(Plain):
    def gradient(self, problem, rng):
        time.sleep(600)


class Loops(Plain):
    """For ever, and deaf to a polite request to end."""

    def gradient(self, problem, rng):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(0.01)


class Allocates(Plain):
    """Without end, in the gigabyte that `ulimit -v` would leave it."""

    def gradient(self, problem, rng):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
        try:
            held = []
            while True:
                held.append(torch.zeros(2**24))
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)


class Chatty(Plain):
    """Prints to stdout, which belongs to the tables."""

    def gradient(self, problem, rng):
        print("chatter")
        return super().gradient(problem, rng)


class FailsToBuild(Plain):
    def __init__(self):
        super().__init__()
        self.size = 1 // 0


class FailsToInit(Plain):
    def init(self, problem):
        raise RuntimeError("no room for the value head")


class NeedsBinary(Plain):
    """Needs what no language model offers, and would fail in `init` without it."""

    needs = frozenset({"binary"})

    def init(self, problem):
        raise AssertionError("init was called on a problem that can't serve")
