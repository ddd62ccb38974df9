"""Folders from elsewhere whose parts don't belong together: one line, before memory is taken, and nothing left out."""

import json
import runpy
import shutil
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from gradebench import InputError
from gradebench.core.panics import Panicked, panics_silenced
from gradebench.models.pretrained import load_policy, load_reward
from gradebench.models.saving import load_saved_vocabulary, load_scratch, save_policy
from gradebench.models.transformer import ScratchPolicy
from gradebench.models.vocabulary import train_vocabulary
from gradebench.rewards.text_reward import load_function, load_text_classifier
from gradebench.storage.hub import locate_model

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture
def copied(folders, tmp_path):
    def copy(family, kind="causal", **options):
        return Path(shutil.copytree(folders(family, kind, **options), tmp_path / "model"))

    return copy


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refusal_of(call, *arguments, **options):
    with pytest.raises(InputError) as refusal:
        call(*arguments, **options)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


# --- tokenizers whose library panics ------------------------------------------------------------------------------

UNKNOWN_TOKEN = [{"SpecialToken": {"id": "X", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
PANICS = {
    "when loaded": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "when used": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "at special tokens": {
        "post_processor": {"type": "TemplateProcessing", "single": UNKNOWN_TOKEN, "pair": [], "special_tokens": {}}
    },
}


@pytest.mark.parametrize("panic", PANICS)
@pytest.mark.parametrize("role", ["policy", "reward", "text"])
def test_a_panic_is_one_line(copied, folders, capfd, panic, role):
    folder = copied("gpt2", "causal" if role == "policy" else "classifier")
    change(folder / "tokenizer.json", **PANICS[panic])
    call = {
        "policy": lambda path: load_policy(path),
        "reward": lambda path: load_reward(path, load_policy(str(folders("gpt2")))[1]),
        "text": lambda path: load_text_classifier(path),
    }[role]
    said = refusal_of(call, str(folder))
    assert said.startswith(f"{folder}: can't serve as") and "a panic in Rust" in said
    assert capfd.readouterr() == ("", "")


def test_a_panic_of_a_saved_vocabulary_is_one_line(tmp_path, capfd):
    save_policy(ScratchPolicy(40, 8, 1, 2, 6), train_vocabulary(tiny_models.texts()[:5], 300), tmp_path)
    change(tmp_path / "tokenizer.json", **PANICS["when loaded"])
    assert "a damaged tokenizer.json" in refusal_of(load_saved_vocabulary, str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_a_panic_that_comes_later_is_one_line_too(folders, tmp_path, monkeypatch):
    _, vocabulary = load_policy(str(folders("gpt2")))
    broken = json.loads(vocabulary.tokenizer.backend_tokenizer.to_str()) | PANICS["when used"]
    vocabulary.tokenizer.backend_tokenizer.pre_tokenizer = (
        type(vocabulary.tokenizer.backend_tokenizer).from_str(json.dumps(broken)).pre_tokenizer
    )
    assert "a panic in Rust" in refusal_of(vocabulary.encode, ["a film"])
    code = f"from tokenizers import Tokenizer\ndef score(texts):\n    return Tokenizer.from_str({json.dumps(broken)!r}).encode('a').ids\n"
    (tmp_path / "mine.py").write_text(code)
    said = refusal_of(load_function(f"{tmp_path / 'mine.py'}:score"), ["a"], ["b"])
    assert "raised PanicException" in said and "(mine.py, line 3)" in said


def test_what_else_is_printed_while_panics_are_silenced_is_shown(capfd):
    with panics_silenced():
        print("seen", file=sys.stderr)
    assert capfd.readouterr().err == "seen\n"
    with pytest.raises(KeyboardInterrupt), panics_silenced():
        raise KeyboardInterrupt
    assert not issubclass(KeyboardInterrupt, Panicked)


# --- configurations of another shape than the weights ---------------------------------------------------------------

# What the families call layers, the width, and the number of tokens.
NAMES = {
    "gpt2": ("n_layer", "n_embd", "vocab_size"),
    "llama": ("num_hidden_layers", "hidden_size", "vocab_size"),
    "gemma2": ("num_hidden_layers", "hidden_size", "vocab_size"),
    "gpt-neox": ("num_hidden_layers", "hidden_size", "vocab_size"),
    "bert": ("num_hidden_layers", "hidden_size", "vocab_size"),
}
CHANGES = {
    "endless layers": (0, 10**9, "1,000,000,000 layers"),
    "one layer more": (0, 3, "its weights lack"),
    "one layer less": (0, 1, "which its configuration leaves out"),
    "wide": (1, 2**20, "by its configuration"),
    "endless labels": ("num_labels", 10**9, "1,000,000,000 labels"),
    "many tokens": (2, 10**9, "by its configuration"),
}


@pytest.mark.parametrize("change_of", CHANGES)
@pytest.mark.parametrize("family", NAMES)
def test_a_configuration_is_held_against_the_weights_before_anything_is_built(copied, family, change_of):
    place, value, fact = CHANGES[change_of]
    folder = copied(family, "classifier" if family == "bert" else "causal", trained=600)
    values = {NAMES[family][place] if isinstance(place, int) else place: value}
    if family == "gemma2" and place == 0:  # it lists the kind of each
        values["layer_types"] = None
    change(folder / "config.json", **values)
    started = time.monotonic()
    said = refusal_of(load_text_classifier if family == "bert" else load_policy, str(folder))
    assert said.startswith(str(folder)) and fact in said
    assert time.monotonic() - started < 20


def test_weights_in_several_files_are_held_together(copied):
    folder = copied("llama")
    whole = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {"a.safetensors": sorted(whole)[::2], "b.safetensors": sorted(whole)[1::2]}
    for file, names in parts.items():
        save_file({name: whole[name] for name in names}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load_policy(str(folder))
    change(folder / "config.json", num_hidden_layers=10**9)
    assert "layers" in refusal_of(load_policy, str(folder))


@pytest.mark.parametrize(
    "shape", [[40, 8, 10**9, 2, 6], [40, 2**20, 1, 2, 6], [10**9, 8, 1, 2, 6], [40, 8, 2, 2, 6], "x"]
)
def test_a_policy_made_here_is_held_against_its_weights_too(tmp_path, monkeypatch, shape):
    save_policy(ScratchPolicy(40, 8, 1, 2, 6), None, tmp_path)
    load_scratch(str(tmp_path), 6)
    change(tmp_path / "config.json", shape=shape)
    read = []
    monkeypatch.setattr("gradebench.models.saving.load_file", read.append)
    refusal_of(load_scratch, str(tmp_path), 6)
    assert not read, "it was built before it was refused"


# --- adapters beside the weights -----------------------------------------------------------------------------------


@pytest.fixture
def adapted(copied):
    """A folder with weights and a LoRA adapter of them, and the merged model's logits of some ids."""
    from peft import LoraConfig, get_peft_model

    folder = copied("llama")
    policy, _ = load_policy(str(folder))
    config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(policy.model, config)
    model.save_pretrained(folder)
    ids = torch.arange(3, 9)[None]
    with torch.no_grad():
        return folder, ids, model.merge_and_unload()(input_ids=ids).logits


def test_a_plain_adapter_beside_the_weights_is_added_to_them(adapted):
    folder, ids, expected = adapted
    with_adapter = locate_model(str(folder)).digest
    policy, _ = load_policy(str(folder))
    with torch.no_grad():
        found = policy(policy.embed(ids))[0]
    torch.testing.assert_close(found, expected[..., : policy.categories], rtol=0, atol=1e-4)
    assert all(p.requires_grad for p in policy.parameters())
    (folder / "adapter_config.json").unlink()
    bare, _ = load_policy(str(folder))
    with torch.no_grad():
        assert (bare(bare.embed(ids))[0] - found).abs().max() > 0.1
    assert locate_model(str(folder)).digest != with_adapter


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"peft_type": "IA3"}, "it is a IA3, not a LORA"),
        ({"task_type": "SEQ_CLS"}, "it is for SEQ_CLS, not CAUSAL_LM"),
        ({"modules_to_save": ["lm_head"]}, "it has modules_to_save"),
        ({"r": 3}, "can't serve as a policy"),
        ({"target_modules": ["q_proj"]}, "isn't one of its model"),
    ],
)
def test_an_adapter_that_isnt_plain_is_refused(adapted, values, said):
    folder, _, _ = adapted
    change(folder / "adapter_config.json", **values)
    assert said in refusal_of(load_policy, str(folder))


def test_an_adapter_without_its_library_its_weights_or_its_model_is_refused(adapted, monkeypatch, tmp_path):
    folder, _, _ = adapted
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "peft", None)
        assert "pip install 'gradebench[lora]'" in refusal_of(load_policy, str(folder))
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / "adapter_config.json", alone)
    shutil.copy(folder / "adapter_model.safetensors", alone)
    assert "an adapter without the model that it is for" in refusal_of(load_policy, str(alone))
    (folder / "adapter_model.safetensors").unlink()
    assert "it has no adapter_model.safetensors" in refusal_of(load_policy, str(folder))
