import pytest

from gradebench import InputError
from gradebench.core.seeds import parse_seeds


@pytest.mark.parametrize(("text", "seeds"), [("0-2", [0, 1, 2]), ("3", [3]), (" 0, 2 ,5-6", [0, 2, 5, 6])])
def test_seeds_are_read_as_ranges_and_lists(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "3-1", "a-b", "1-", "-1", "1,,2", "1.5", "0-99999", "1,1", "0-3,2"])
def test_other_seeds_are_refused_with_the_text(text):
    with pytest.raises(InputError, match=f"--seeds {text}:"):
        parse_seeds(text)
