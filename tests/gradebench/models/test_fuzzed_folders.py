"""Policy folders from elsewhere with wild values in their files: a policy that works, or one line, in seconds and little
memory."""

import json
import resource
import runpy
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from gradebench import InputError
from gradebench.models.pretrained import load_policy

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))
FEW = {"deadline": None, "database": None, "derandomize": True, "phases": [Phase.explicit, Phase.generate]}
EASY = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
FAMILIES = ("gpt2", "llama", "gemma2", "gpt-neox")
ROOM = 4 * 2**30  # bytes of addresses more than the process has

plain = st.one_of(
    st.none(), st.booleans(), st.sampled_from([-1, 0, 1, 2, 3, 7, 10**9, 2**63, 0.0, -0.5, 1e308, float("nan")]),
    st.sampled_from(["", "auto", "gelu", "float16", "../x", "eager", "\ud83d\ude00", "X" * 300]), st.text(max_size=5),
)  # fmt: skip
wild = st.recursive(
    plain, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2))
)
NAMES = [
    "architectures", "model_type", "vocab_size", "n_layer", "num_hidden_layers", "n_head", "num_attention_heads",
    "num_key_value_heads", "hidden_size", "n_embd", "head_dim", "intermediate_size", "max_position_embeddings",
    "n_positions", "hidden_act", "activation_function", "bos_token_id", "eos_token_id", "pad_token_id",
    "tie_word_embeddings", "torch_dtype", "dtype", "rope_theta", "rope_scaling", "rope_parameters", "layer_types",
    "sliding_window", "use_cache", "quantization_config", "auto_map", "is_decoder", "initializer_range", "rms_norm_eps",
    "layer_norm_epsilon", "attn_pdrop", "resid_pdrop", "num_labels", "id2label", "transformers_version",
    "tokenizer_class", "model_max_length", "added_tokens_decoder", "bos_token", "eos_token", "chat_template",
    "add_prefix_space", "clean_up_tokenization_spaces", "extra_special_tokens", "max_length", "temperature",
]  # fmt: skip
FILES = ["config.json", "config.json", "tokenizer_config.json", "generation_config.json"]
TOKENIZER = [
    "model",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "added_tokens",
    "truncation",
    "padding",
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def little_memory():
    """So that a model that is built too large fails here and doesn't take the machine along."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def works_or_is_refused(folder):
    began = time.process_time()
    try:
        policy, vocabulary = load_policy(str(folder))
    except InputError as error:
        assert "\n" not in str(error) and str(error).strip(), error
    else:
        ids = torch.tensor(vocabulary.encode(["A film"]))
        logits = policy(policy.embed(ids))[0]
        assert logits.shape[-1] == len(vocabulary) and bool(logits.isfinite().all())
    assert time.process_time() - began < 20


def changed(file, values, into=None):
    content = json.loads(file.read_text()) if file.is_file() else {}
    (content if into is None else content.setdefault(into, {})).update(values)
    file.write_text(json.dumps(content))


@settings(suppress_health_check=EASY, **FEW)
@given(
    st.sampled_from(FAMILIES),
    st.sampled_from(FILES),
    st.dictionaries(st.sampled_from(NAMES), wild, min_size=1, max_size=2),
)
def test_wild_values_in_a_policys_configuration(folders, tmp_path, family, name, values):
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    folder = Path(shutil.copytree(folders(family), tmp_path / "model"))
    changed(folder / name, values)
    works_or_is_refused(folder)


@settings(suppress_health_check=EASY, **FEW)
@given(
    st.sampled_from(TOKENIZER),
    st.one_of(
        wild,
        st.fixed_dictionaries({"type": st.sampled_from([
            "ByteLevel", "BPE", "WordPiece", "Unigram", "FixedLength", "Split", "Precompiled", "Replace", "Strip",
            "Sequence", "Digits", "TemplateProcessing", "BertProcessing", "Prepend", "Metaspace", "CTC", "Fuse",
        ])}, optional=dict.fromkeys(("length", "pattern", "precompiled_charsmap", "vocab", "merges", "unk_token", "unk_id", "content", "left", "right", "pretokenizers", "normalizers", "single", "special_tokens", "prepend", "replacement", "behavior", "invert", "add_prefix_space", "trim_offsets", "use_regex", "max_length", "strategy", "stride", "direction"), wild)),
    ),
)  # fmt: skip
def test_wild_values_in_a_policys_tokenizer(folders, tmp_path, part, value):
    shutil.rmtree(tmp_path / "model", ignore_errors=True)
    folder = Path(shutil.copytree(folders("gpt2"), tmp_path / "model"))
    changed(folder / "tokenizer.json", {part: value})
    works_or_is_refused(folder)
