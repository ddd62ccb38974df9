"""What cells go on from, damaged: the numbers are those of a run in peace, and a line says what was made again."""

import random
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gradebench.storage import sealed

TIMES = ["seconds", "seconds_per_step", "seconds_per_step_ci_low", "seconds_per_step_ci_high", "peak_memory_bytes"]


def flipped(path):
    content = bytearray(path.read_bytes())
    bit = random.Random(path.name).randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def last_tensor_flipped(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1 << 6  # of an exponent
    path.write_bytes(content)


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path):
    path.write_bytes(b"")


@pytest.fixture
def go_on(command, tiny, in_process, no_report, tmp_path):
    """A run whose cells find the trainings, references and warm states of an earlier one; its tables and stderr."""

    def call(out):
        for ended in out.glob("cells/*/cell.json"):
            ended.unlink()
        estimators = ["-e", "rloo", "-e", tiny("Remembers")]
        status, _, err = command("run", "-t", tiny(), *estimators, "--seeds", 0, "--steps", 2, "--out", out)
        assert status == 0, err
        return [numbers(out, name) for name in ("metrics", "probes")], err

    return call


def numbers(out, name):
    table = pd.read_csv(out / f"{name}.csv")
    return table[~table["metric"].isin(TIMES)].to_csv(index=False)


DAMAGES = [flipped, last_tensor_flipped, truncated, emptied, Path.unlink]


@pytest.mark.parametrize("first", [0])  # all five of DAMAGES give every file every damage
def test_damaged_states_are_made_again_and_change_no_number(go_on, tmp_path, first):
    out = tmp_path / "run"
    peace, _ = go_on(out)
    states = sorted(out.glob("cells/*/*.safetensors"))
    assert {path.name.split("-")[0] for path in states} == {"training.safetensors", "checkpoint", "state.safetensors"}
    kept, err = go_on(out)
    assert kept == peace and "damaged" not in err
    dealt = [DAMAGES[(first + i) % len(DAMAGES)] for i in range(len(states))]
    for damage, path in zip(dealt, states, strict=True):
        damage(path)
    again, err = go_on(out)
    assert again == peace
    assert f"{sum(damage is not Path.unlink for damage in dealt)} files of unfinished cells are damaged" in err
    assert sorted(out.glob("cells/*/*.safetensors")) == states and all(map(sealed.is_whole, states))


def test_every_bit_counts(tmp_path):
    """But for those that no reader reads: blanks that fill up the header."""
    path = tmp_path / "state"
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.zeros(0), "d": torch.tensor(True)}
    tensors |= {"e": torch.randn(2).bfloat16()}
    sealed.write(path, tensors, '{"step": 3, "é": [1.5, "x"]}')
    whole = path.read_bytes()

    @settings(deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, 8 * len(whole) - 1))
    def check(bit):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        if sealed.is_whole(path):
            back, text = sealed.read(path)
            assert text == '{"step": 3, "é": [1.5, "x"]}' and set(back) == set(tensors)
            assert all(torch.equal(back[name], tensors[name]) for name in tensors)
            assert whole[bit // 8] in b' \n{}"'

    check()


def test_what_has_no_checksum_is_not_trusted(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "old")
    for path in (tmp_path / "old", tmp_path / "none", tmp_path):
        with pytest.raises(sealed.Damaged, match="run again"):
            sealed.read(path)
