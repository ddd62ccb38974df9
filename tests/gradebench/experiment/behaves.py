"""An estimator that does what it is told, such as no author should: `-e behaves.py:Behaves:does=WORDS`, of DOES, with a
slash between them."""

import os
import random

import torch

from gradebench import Estimate, Estimator, Unsupported, score


class Panic(BaseException):
    """As a library in Rust raises it."""


def raising(error):
    def act(*_):
        raise error

    return act


def left(values):
    """What goes on after the first item."""
    return values[1:]


# How its gradients are given,
GRADS = {
    "plain": list, "tuple": tuple, "generator": lambda g: (one for one in g), "few": left, "many": lambda g: [*g, g[0]],
    "none": lambda g: None, "nones": lambda g: [None for _ in g], "text": lambda g: "gradient", "numbers": lambda g: [1.0 for _ in g],
    "dictionary": lambda g: dict(enumerate(g)), "doubles": lambda g: [one.double() for one in g],
    "halves": lambda g: [one.half() for one in g], "whole": lambda g: [one.long() for one in g],
    "flat": lambda g: [one.flatten() for one in g], "turned": lambda g: [one.T for one in g] if all(one.dim() < 3 for one in g) else g,
    "scalars": lambda g: [one.sum() for one in g], "nan": lambda g: [one * float("nan") for one in g],
    "inf": lambda g: [one + float("inf") for one in g], "huge": lambda g: [one * 1e38 for one in g],
    "tiny": lambda g: [one * 1e-38 for one in g], "zero": lambda g: [one * 0 for one in g],
    "graph": lambda g: [one.clone().requires_grad_() for one in g], "sparse": lambda g: [one.to_sparse() for one in g],
    "empty": lambda g: [], "complex": lambda g: [one.to(torch.complex64) for one in g], "shared": lambda g: [g[0]] * len(g),
    "parameters": lambda g: g,
}  # fmt: skip
# what stands beside them,
INFOS = {
    "no info": {}, "info": {"loss": 0.5}, "text info": {"loss": "low"}, "nan info": {"loss": float("nan")}, "none info": {"x": None},
    "tensor info": {"x": torch.ones(())}, "vector info": {"x": torch.ones(3)}, "number info": {3: 1.0}, "odd info": {"a\nb,[red]\ud800": 1.0},
    "info is none": None, "info is a list": [1.0], "huge info": {"x": 10**400},
}  # fmt: skip
LOSSES = {
    "no loss": lambda self: None, "loss": lambda self: self.scale**2, "vector loss": lambda self: self.scale * torch.ones(2),
    "loss without a graph": lambda self: torch.ones(()), "number loss": lambda self: 0.5, "nan loss": lambda self: self.scale * float("nan"),
    "text loss": lambda self: "low",
}  # fmt: skip
# and what else it does.
ACTS = {
    "nothing": lambda self: None, "prints": lambda self: print("\U0001f600 chatter"), "grad off": lambda self: torch.set_grad_enabled(False),
    "double": lambda self: torch.set_default_dtype(torch.float64), "seeds": lambda self: torch.manual_seed(1), "random": lambda self: random.seed(1),
    "environment": lambda self: os.environ.update(BEHAVED="badly"), "folder": lambda self: os.chdir("/"), "mode": lambda self: self.train(not self.training),
    "hook": lambda self: self.seen.register_hook(lambda g: g * 2), "learns": lambda self: self.seen.data.add_(1), "state": lambda self: vars(self).update(kept=object()),
    "raises": raising(ValueError("[red]a\nb\ud800")), "raises nothing": raising(Exception()), "stops": raising(StopIteration()),
    "leaves": raising(SystemExit(3)), "closes": raising(GeneratorExit()), "panics": raising(Panic("in Rust")), "recurses": lambda self: ACTS["recurses"](self),
    "unsupported": raising(Unsupported("not here")), "memory": raising(MemoryError()), "asserts": raising(AssertionError("\x1b[31m")), "group": raising(ExceptionGroup("two", [ValueError(1), KeyError(2)])),
}  # fmt: skip
DOES = [GRADS, INFOS, LOSSES, ACTS]


class Behaves(Estimator):
    def __init__(self, does: str = "plain/no info/no loss/nothing", when: str = "gradient"):
        super().__init__()
        self.words, self.when = does.split("/"), when
        self.scale = torch.nn.Parameter(torch.ones(()))

    def init(self, problem):
        object.__setattr__(self, "seen", problem.params[0])  # no part of its own
        self._act("init")

    def reset(self):
        self._act("reset")

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        found = problem.grad(score(problem, z, reward, reward))
        self._act("gradient")
        grad, info, loss = (table[word] for table, word in zip(DOES[:3], self.words[:3], strict=True))
        return Estimate(grad(found), own_loss=loss(self), info=info)

    def _act(self, when):
        if when == self.when:
            ACTS[self.words[-1]](self)
