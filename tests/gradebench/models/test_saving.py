"""Saved policies are read again as they were, whoever made them."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gradebench import InputError
from gradebench.models.pretrained import load_policy
from gradebench.models.saving import is_scratch, load_saved_vocabulary, load_scratch, save_policy
from gradebench.models.transformer import ScratchPolicy
from gradebench.models.vocabulary import train_vocabulary
from gradebench.storage.hub import locate_model

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))
IDS = torch.tensor([[5, 7, 9, 11]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


def moved(policy):
    """The policy after a step of training."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in policy.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=rng))
    return policy


@torch.no_grad()
def logits_of(policy):
    return policy(policy.embed(IDS))[0]


@pytest.mark.parametrize(
    ("family", "options"), [("gpt2", {}), ("llama", {"tie_word_embeddings": True}), ("gemma2", {})]
)
def test_a_given_policy_is_read_again(folders, tmp_path, family, options):
    policy, vocabulary = load_policy(str(folders(family, template="<s> $A", **options)))
    before = logits_of(policy)
    save_policy(moved(policy), vocabulary, tmp_path)
    assert (tmp_path / "model.safetensors").is_file() and not list(tmp_path.glob("*.bin"))
    again, same = load_policy(str(tmp_path))
    assert torch.allclose(logits_of(again), logits_of(policy), atol=1e-5)
    assert not torch.allclose(logits_of(again), before, atol=1e-2)
    assert same.encode(["a good film"]) == vocabulary.encode(["a good film"]) and same.end == vocabulary.end


def test_adapters_are_saved_within_the_weights(folders, tmp_path):
    pytest.importorskip("peft", reason="the extra `lora` isn't installed")
    policy, vocabulary = load_policy(str(folders("gpt2")), lora=2)
    save_policy(moved(policy), vocabulary, tmp_path)
    again, _ = load_policy(str(tmp_path))
    assert torch.allclose(logits_of(again), logits_of(policy), atol=1e-4)


def scratch():
    torch.manual_seed(0)
    return ScratchPolicy(20, 8, 2, 2, 6).eval()


def test_a_policy_made_here_is_read_again(tmp_path):
    vocabulary = train_vocabulary(["good bad film", "a film"], 20)
    policy = moved(scratch())
    save_policy(policy, vocabulary, tmp_path)
    assert is_scratch(str(tmp_path)) and locate_model(str(tmp_path)).digest
    assert torch.equal(logits_of(load_scratch(str(tmp_path), 6)), logits_of(policy))
    assert load_saved_vocabulary(str(tmp_path)).encode(["a film"]) == vocabulary.encode(["a film"])


def test_what_cant_be_read_again_is_refused_in_one_line(folders, tmp_path):
    save_policy(scratch(), None, tmp_path)
    with pytest.raises(InputError, match=r"context of 6 tokens is shorter than prompt and horizon together \(7\)"):
        load_scratch(str(tmp_path), 7)
    with pytest.raises(InputError, match=r"no tokenizer\.json; give a policy of the same task"):
        load_saved_vocabulary(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"shape": [20, 8, 1, 2, 6]}))
    with pytest.raises(InputError, match="a damaged policy"):
        load_scratch(str(tmp_path), 6)
    assert not is_scratch(str(folders("gpt2"))) and not is_scratch("no/folder")
