"""Estimators that change what other cells use, or end as nobody should: `-e slips.py:Slip:name=NAME`."""

import time

import torch
from torch.nn.modules.module import register_module_forward_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gradebench.core.sampling
import gradebench.estimators.score_function
from gradebench import Estimate, Estimator, score


@torch.no_grad()
def scale_reward(problem):
    problem.reward_model.token.mul_(2)


def exchange_reward(problem):
    data = problem.reward_model.token.data
    data[:] = data.roll(1, 0)


@torch.no_grad()
def move_reference(problem):
    problem.reference.position.add_(0.1)


def hook_parameter(problem):
    problem.policy.token.register_hook(lambda gradient: gradient * 2)


def replace_method(problem):
    problem.reward_model.forward = lambda *given, **named: torch.zeros(given[0].shape[0])


def patch_ours(problem):
    gradebench.estimators.score_function.Rloo.gradient = None


def patch_module_of_ours(problem):
    gradebench.core.sampling.categorical = lambda logits, rng: logits.argmax(-1)


def patch_option_of_ours(problem):
    gradebench.estimators.score_function.Rloo.own_learning_rate = 7.0


def patch_function(problem):
    torch.nn.functional.one_hot = lambda *given: 1 / 0


def patch_method(problem):
    torch.Tensor.log_softmax = torch.Tensor.softmax


def patch_clock(problem):
    time.perf_counter = lambda: 0.0


def end(error):
    raise error


# By name: what is done, and a word that the row has to say.
SLIPS = {
    "scale_reward": (scale_reward, "TinyTask.reward.token"),
    "exchange_reward": (exchange_reward, "TinyTask.reward.token"),
    "move_reference": (move_reference, "TinyTask.reference.position"),
    "train_reward": (lambda problem: problem.reward_model.requires_grad_(True), "requires_grad of TinyTask.reward"),
    "freeze_policy": (lambda problem: problem.policy.token.requires_grad_(False), "requires_grad of TinyTask.policy.token"),
    "mode": (lambda problem: problem.policy.eval(), "TinyTask.policy.training"),
    "hook_parameter": (hook_parameter, "hooks of TinyTask.policy.token"),
    "hook_module": (lambda problem: problem.policy.register_forward_hook(lambda *_: None), "hooks of TinyTask.policy"),
    "hook_all_modules": (lambda problem: register_module_forward_hook(lambda *_: None), "_global_forward_hooks"),
    "hook_optimizers": (lambda problem: register_optimizer_step_pre_hook(lambda *_: None), "_global_optimizer_pre_hooks"),
    "replace_method": (replace_method, "methods of TinyTask.reward"),
    "patch_ours": (patch_ours, "Rloo.gradient"),
    "patch_module_of_ours": (patch_module_of_ours, "gradebench.core.sampling.categorical"),
    "patch_option_of_ours": (patch_option_of_ours, "Rloo.own_learning_rate"),
    "patch_function": (patch_function, "torch.nn.functional.one_hot"),
    "patch_method": (patch_method, "torch.Tensor.log_softmax"),
    "patch_clock": (patch_clock, "time.perf_counter"),
    "interrupt": (lambda problem: end(KeyboardInterrupt()), "KeyboardInterrupt"),
    "leave": (lambda problem: end(SystemExit("leaving")), "SystemExit: leaving"),
    "close": (lambda problem: end(GeneratorExit()), "GeneratorExit"),
}  # fmt: skip


class Slip(Estimator):
    """REINFORCE, with a slip after every gradient in training."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        estimate = Estimate(problem.grad(score(problem, z, reward, reward)))
        if self.training:
            SLIPS[self.name][0](problem)
        return estimate
