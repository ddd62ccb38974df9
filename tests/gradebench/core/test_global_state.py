"""What code of a plugin changes for the whole process is put back and named."""

import os
import random
import signal

import numpy as np
import pytest
import torch

from gradebench.core import global_state
from gradebench.core.global_state import ALL, QUICK, put_back
from gradebench.plugins import registry
from gradebench.rewards.text_reward import load_function

# For each setting, a line of code that changes it.
CHANGES = {
    "torch.set_grad_enabled": "torch.set_grad_enabled(False)",
    "torch.set_default_dtype": "torch.set_default_dtype(torch.float64)",
    "torch.set_num_threads": "torch._C.set_num_threads(torch.get_num_threads() + 1)",  # the other is stopped in tests
    "torch.use_deterministic_algorithms": "torch.use_deterministic_algorithms(True)",
    "torch.autograd.set_detect_anomaly": "torch.autograd.set_detect_anomaly(True)",
    "torch.manual_seed": "torch.manual_seed(7)",
    "random.seed": "random.seed(7)",
    "numpy.random.seed": "np.random.seed(7)",
    "torch.set_default_device": "torch.set_default_device('meta')",
    "torch.set_float32_matmul_precision": "torch.set_float32_matmul_precision('medium')",
    "torch.set_flush_denormal": "torch.set_flush_denormal(True)",
    "os.environ": "os.environ['OMP_NUM_THREADS'] = '7'",
    "os.chdir": "os.chdir('/')",
    "signal.signal": "signal.signal(signal.SIGTERM, lambda *_: None)",
}
IMPORTS = "import os, random, signal, torch\nimport numpy as np\n"
PLUGIN = """
from gradebench import Estimate, Estimator, score
class Mine(Estimator):
    def gradient(self, problem, rng):
        z = problem.sample(self.n, rng)
        reward = problem.reward(z)
        answer = Estimate(problem.grad(score(problem, z, reward, reward)))
        {change}
        return answer
def reward(texts):
    {change}
    return [0.5 for _ in texts]
"""


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(global_state, "_said", set())


def settings_now(settings=ALL):
    return [setting.read() for setting in settings]


def test_every_setting_has_a_line_that_changes_it():
    assert [setting.name for setting in ALL] == list(CHANGES)


@pytest.mark.parametrize("name", CHANGES)
def test_an_import_leaves_the_process_as_it_was_and_says_what_it_changes(name, tmp_path, capsys):
    before = settings_now()
    for number, load in enumerate(
        (lambda file: registry.load_file(file, "Mine"), lambda file: load_function(f"{file}:reward"))
    ):
        file = tmp_path / f"mine{number}.py"
        file.write_text(IMPORTS + CHANGES[name] + PLUGIN.format(change="pass"))
        load(str(file))
        assert settings_now() == before
        said = capsys.readouterr().err
        assert name in said and str(file) in said and said.count("\n") == 1


@pytest.mark.parametrize("name", [setting.name for setting in QUICK])
def test_a_call_leaves_the_process_as_it_was_and_says_so_once(name, tmp_path, capsys, tiny):
    from gradebench.core.sampling import generator
    from gradebench.measurement.probes import one_estimate

    (tmp_path / "mine.py").write_text(IMPORTS + PLUGIN.format(change=CHANGES[name]))
    before = settings_now(QUICK)
    task = registry.resolve("tasks", tiny()).create()
    task.prepare(torch.device("cpu"), log=print)
    task.load(torch.device("cpu"))
    problem = task.problem("train", torch.arange(4))
    estimator = registry.resolve("estimators", f"{tmp_path / 'mine.py'}:Mine").create()
    function = load_function(f"{tmp_path / 'mine.py'}:reward")
    capsys.readouterr()
    for _ in range(3):
        one_estimate(estimator, problem, generator("cpu", 0))
        assert function(["a"], ["b"]) == [0.5]
        assert settings_now(QUICK) == before
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and all(name in line for line in said)
    assert "Mine" in said[0] and "reward" in said[1]


def test_it_is_put_back_where_the_code_raises(capsys):
    before = settings_now()
    with pytest.raises(ZeroDivisionError), put_back("mine", ALL):
        torch.set_grad_enabled(False)
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        os.chdir("/")
        signal.signal(signal.SIGTERM, lambda *_: None)
        1 / 0  # noqa: B018
    assert settings_now() == before
    assert "torch.set_grad_enabled, random.seed, numpy.random.seed, os.chdir, signal.signal" in capsys.readouterr().err


def test_what_changes_nothing_is_silent(capsys):
    with put_back("mine", ALL):
        torch.zeros(2) + 1
    assert capsys.readouterr().err == ""
