"""Files of models: found in a folder or the hub's cache, named by their content, refused in time where there are none."""

import json
import runpy
import shutil
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from gradebench import InputError
from gradebench.models.pretrained import load_policy
from gradebench.storage.hub import HubUnreachable, locate_model

# The tests' folders are no packages to import from.
tiny_models = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "tiny_models.py")))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny_models.Folders(tmp_path_factory.mktemp("models"))


def refusal_of(call, *arguments) -> str:
    with pytest.raises(InputError) as refusal:
        call(*arguments)
    message = str(refusal.value)
    assert "\n" not in message
    return message


def test_missing_shard_is_refused(folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders("gpt2"), folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    assert "no weights model-00002-of-00002.safetensors" in refusal_of(locate_model, str(folder))


@pytest.fixture
def empty_hub_cache(tmp_path, monkeypatch):
    """An empty cache of the hub's library, online, with no hub at the endpoint."""
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


def test_cached_hub_model_serves_without_a_hub_under_its_commit(folders, empty_hub_cache):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = empty_hub_cache / "models--some--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    shutil.copytree(folders("gpt2"), repository / "snapshots" / commit)
    found = locate_model("some/model")
    assert (found.name, found.digest) == ("some/model", commit)
    load_policy("some/model")
    (repository / "snapshots" / commit / "model.safetensors").unlink()
    with pytest.raises(HubUnreachable, match="some/model is no folder here and can't be had from the hub"):
        locate_model("some/model")


def test_hub_out_of_reach_or_offline_is_refused_in_time(empty_hub_cache, monkeypatch):
    start = time.monotonic()
    assert "http://127.0.0.1:9: " in refusal_of(locate_model, "some/model", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts; nobody reads
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "no answer within" in refusal_of(locate_model, "some/model", 2.0)
    assert time.monotonic() - start < 5
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in refusal_of(locate_model, "some/model")


def test_download_from_a_hub_that_answers(folders, empty_hub_cache, monkeypatch):
    asked = {}

    def snapshot_download(hub_id, allow_patterns, ignore_patterns):
        asked.update(hub_id=hub_id, ignored=ignore_patterns)
        return str(folders("gpt2"))

    monkeypatch.setattr("gradebench.storage.hub.hub_refusal", lambda path, seconds: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert locate_model("some/model").folder == folders("gpt2")
    assert asked == {"hub_id": "some/model", "ignored": ["*/*"]}

    def broken(*arguments, **keywords):
        raise ConnectionError("cut off\nwith details")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    assert "hub: cut off; give" in refusal_of(locate_model, "some/model")


def test_digest_follows_what_is_read_and_not_where_it_lies(folders, tmp_path):
    original = locate_model(str(folders("gpt2"))).digest
    for number, (name, follows) in enumerate(
        [("README.md", False), ("config.json", True), ("model.safetensors", True), ("tokenizer.json", True)]
    ):
        folder = tmp_path / str(number)
        shutil.copytree(folders("gpt2"), folder)
        assert locate_model(str(folder)).digest == original
        with (folder / name).open("ab") as stream:
            stream.write(b" ")
        assert (locate_model(str(folder)).digest != original) == follows
