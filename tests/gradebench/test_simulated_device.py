"""Every estimator on a simulated device: what would fail on a GPU, or make it wait, fails here without one."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradebench.plugins import registry

pytest.importorskip("torch._subclasses.fake_tensor")
if not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"):
    pytest.skip("this torch has no simulated device", allow_module_level=True)

NAMES = [name for name in registry.entries("estimators") if name != "exact"]  # the true gradient is no estimate
CASES = [
    *(f"plain {name}" for name in NAMES),
    *(f"ends {name}" for name in ("rloo", "ppo", "a2c", "gspo", "reinforce-pp", "grade", "grade-ste")),
    *(f"padded {name}" for name in ("rloo", "grade-ste")),
    *(f"autograd {name}" for name in ("grade", "st")),
    *(f"step {name}" for name in ("rloo", "ppo", "relax")),
    *(f"probe {name}" for name in ("rloo", "grpo")),
]
MISTAKES = {
    "misplaced_noise": "DeviceMismatch",
    "misplaced_baseline": "DeviceMismatch",
    "misplaced_reward": "DeviceMismatch",
    "misplaced_moments": "same device",
    "value_asked_for": "DataDependent",
    "chosen_by_values": "DynamicOutputShape",
    "copied_to_the_host": "Waited",
}


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    """What became of each case, in one process of its own: the simulated device is the whole process's."""
    script = Path(__file__).with_name("simulated_device.py")
    cases = [*CASES, *(f"mistake {name}" for name in MISTAKES)]
    done = subprocess.run([sys.executable, "-W", "ignore", script, *cases], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_on_another_device_and_nothing_waits(answers, case):
    assert answers[case] == "ok"


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found(answers, mistake):
    assert MISTAKES[mistake] in answers[f"mistake {mistake}"]
