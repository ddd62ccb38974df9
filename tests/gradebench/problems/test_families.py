"""Every estimator of the mission on four families of language models: the gradient of the plain definition.

With prompts of two lengths, texts of which some end, a KL penalty and a decoder's reward, in float64.
"""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from double_precision import in_float64

from gradebench import SequenceProblem
from gradebench.core.sampling import generator
from gradebench.measurement.moments import flatten
from gradebench.models.pretrained import load_policy, load_reward
from gradebench.plugins import registry

# The tests' folders are no packages to import from.
plain, tiny_models = (
    SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / f"{name}.py")))
    for name in ("plain", "tiny_models")
)

FAMILIES = ("gpt2", "llama", "qwen", "gpt-neox")
MISSION = ("grade-ste", "grade", "reinforce", "ppo", "rebar")
HORIZON = 3


@pytest.fixture(scope="module", params=[f"{family} {tied}" for family in FAMILIES for tied in ("tied", "untied")])
def problem(request, tmp_path_factory):
    """Four prompts, two of them padded; the token that ends a text is one that they often continue with."""
    family, tied = request.param.split()
    folders = tiny_models.Folders(tmp_path_factory.mktemp("models"))
    folder = str(folders(family, tie_word_embeddings=tied == "tied"))
    (policy, vocabulary), (reference, _) = load_policy(folder), load_policy(folder)
    reward = load_reward(str(folders(family, "classifier")), vocabulary)
    for model in (policy.double(), reference.double(), reward.double()):
        model.requires_grad_(model is policy)
    with torch.no_grad():
        for p in reference.parameters():
            p.mul_(0.9)
    prompts = torch.randint(3, len(vocabulary), (4, 4), generator=torch.Generator().manual_seed(1))
    whole = SequenceProblem(
        policy, reward, prompts, HORIZON, len(vocabulary), reference, 0.1, pads=torch.tensor([0, 2, 0, 1])
    )
    drawn = whole.sample(4, generator("cpu", "draws"))
    whole.end = int(drawn[:, 1, 0].mode().values)
    return whole


def gradient(problem, name):
    torch.manual_seed(0)
    estimator = registry.resolve("estimators", name).create().double()
    estimator.init(problem)
    rng = generator("cpu", "draws")
    with in_float64():
        return flatten(estimator.gradient(problem, rng).grad)


@pytest.mark.parametrize("name", MISSION)
def test_gradient_is_that_of_the_plain_definition(problem, name):
    found, exact = gradient(problem, name), gradient(plain.PlainProblem(problem, decoder=True), name)
    assert exact.norm() > 1e-3
    torch.testing.assert_close(found, exact, rtol=1e-7, atol=1e-8)


def test_texts_end_here(problem):
    alive = problem.alive(problem.sample(4, generator("cpu", "draws")))
    assert not alive.all()
