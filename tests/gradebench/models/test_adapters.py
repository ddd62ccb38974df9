"""Adapters: only they are trained, the model without them is the reference, and merged they are a model as any other."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gradebench import InputError, SequenceProblem
from gradebench.core.sampling import generator
from gradebench.models.pretrained import load_policy, load_reward
from gradebench.plugins import registry

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))

FAMILIES = ("gpt2", "llama")  # two kinds of linear layers


@pytest.fixture(scope="module", autouse=True)
def peft():
    """Imported late: it takes seconds, and every process that runs tests collects this file."""
    return pytest.importorskip("peft", reason="the extra `lora` isn't installed")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


def adapted(folders, family, moved=True, **options):
    """A policy whose adapters, zero at the start, have been moved."""
    policy, vocabulary = load_policy(str(folders(family)), lora=4, **options)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad and moved:
                p.add_(0.2 * torch.randn(p.shape, generator=rng))
    return policy, vocabulary


def logits_of(policy, ids):
    with torch.no_grad():
        return policy(policy.embed(ids))[0]


IDS = torch.tensor([[5, 8, 13, 21]])


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_a_small_part_and_change_nothing_at_first(folders, family):
    policy, _ = adapted(folders, family, moved=False)
    plain, _ = load_policy(str(folders(family)))
    sizes = {trained: sum(p.numel() for p in policy.parameters() if p.requires_grad == trained) for trained in (0, 1)}
    assert 0 < sizes[1] < sizes[0]
    assert all("lora" in name for name, p in policy.named_parameters() if p.requires_grad)
    assert torch.equal(logits_of(policy, IDS), logits_of(plain, IDS))


def test_adapters_start_alike_whatever_was_drawn_before(folders):
    torch.manual_seed(1)
    one, _ = adapted(folders, "llama", moved=False)
    torch.manual_seed(2)
    two, _ = adapted(folders, "llama", moved=False)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_reference_is_the_model_without_them_and_no_second_copy(folders, family):
    policy, _ = adapted(folders, family)
    reference, plain = policy.frozen(), load_policy(str(folders(family)))[0]
    assert torch.equal(logits_of(reference, IDS), logits_of(plain, IDS))
    assert (logits_of(policy, IDS) - logits_of(plain, IDS)).abs().max() > 0.01
    assert not list(reference.parameters())
    assert all(p.requires_grad for name, p in policy.named_parameters() if "lora" in name), "switched on again"


@pytest.mark.parametrize("name", ["grade-ste", "grade", "reinforce", "ppo", "rebar"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_is_that_with_a_copy_as_reference(folders, family, name):
    """The reference is read in the middle of the policy's graph; switching must leave that graph alone."""
    policy, vocabulary = adapted(folders, family)
    reward = load_reward(str(folders(family, "classifier")), vocabulary).requires_grad_(False)
    prompts, found = torch.randint(3, 300, (2, 3), generator=torch.Generator().manual_seed(0)), []
    for reference in (policy.frozen(), load_policy(str(folders(family)))[0].requires_grad_(False)):
        problem = SequenceProblem(policy, reward, prompts, 3, len(vocabulary), reference, 0.1)
        estimator = registry.resolve("estimators", name).create()
        estimator.init(problem)
        found.append(estimator.gradient(problem, generator("cpu", "draws")).grad)
    assert sum(float(g.abs().sum()) for g in found[0]) > 1e-3
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_it_is_a_folder_as_any_other(folders, family, tmp_path):
    from transformers import AutoModelForCausalLM

    policy, _ = adapted(folders, family)
    before = logits_of(policy, IDS)
    policy.merged().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=IDS).logits[..., :320], before, rtol=0, atol=1e-4)
    assert torch.equal(logits_of(policy, IDS), before), "the policy itself goes on"


def test_half_precision_keeps_trained_weights_in_single(folders):
    policy, _ = adapted(folders, "llama", half=True)
    kinds = {trained: {p.dtype for p in policy.parameters() if p.requires_grad == trained} for trained in (False, True)}
    assert kinds == {False: {torch.bfloat16}, True: {torch.float32}}


def test_without_the_library_it_says_what_to_install(folders, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match=r"pip install 'gradebench\[lora\]'"):
        load_policy(str(folders("llama")), lora=4)
