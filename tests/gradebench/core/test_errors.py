"""The line of a plugin's own code in the one line that a user reads."""

import json
import runpy

import pytest

from gradebench.core.errors import InputError, place_of
from gradebench.experiment import harness, loaded
from gradebench.experiment.plan import Cell, Plan
from gradebench.plugins import registry

RAISES = """
from gradebench import Estimator
import torch

def twice(x):
    return torch.cat([x, x], 7)

class Mine(Estimator):
    def gradient(self, problem, rng):
        return twice(problem.sample(self.n, rng))
"""


def test_the_place_is_the_innermost_line_of_the_plugin_and_of_no_library(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import json\n\ndef outer():\n    inner()\n\ndef inner():\n    json.loads('{')\n")
    scope = runpy.run_path(str(file))
    with pytest.raises(json.JSONDecodeError) as raised:
        scope["outer"]()
    assert place_of(raised.value, [str(file)]) == " (mine.py, line 7)"
    assert place_of(raised.value, ["json"]).startswith(" (decoder.py, line ")
    assert place_of(raised.value, ["another"]) == place_of(raised.value, []) == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import json\n\nSETTINGS = json.loads('{')\n", r"JSONDecodeError: .* \(mine.py, line 3\)$"),
        ("import nowhere_at_all\n", r"No module named 'nowhere_at_all' \(mine.py, line 1\)$"),
        ("x = 1\ny = (\n", r"SyntaxError: .* \(/.*/mine.py, line 2\)$"),
    ],
)
def test_a_file_that_raises_as_it_is_imported_is_named_with_its_line(tmp_path, text, said):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(InputError, match=said) as raised:
        registry.resolve("estimators", f"{tmp_path}/mine.py:Mine")
    assert "\n" not in str(raised.value)


def test_a_cell_names_the_line_of_the_estimator_that_raises(tmp_path, tiny):
    (tmp_path / "mine.py").write_text(RAISES)
    spec = f"{tmp_path}/mine.py:Mine"
    origin = registry.resolve("estimators", spec).foreign
    plan = Plan("run", str(tmp_path), "cpu", 2, 8, 0.1, checkpoints=0, setting="kl=0")
    cell = Cell("tiny", tiny(), {"kl": 0.0}, "mine", spec, 0, foreign=("", origin))
    loaded.worker.forget()
    status, reason = harness.run_cell(plan, cell, "key")
    assert status == "failed" and reason.startswith("IndexError: ") and reason.endswith(" (mine.py, line 6)")
