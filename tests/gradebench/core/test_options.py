"""Hyper-parameters: what a signature declares, how the command line spells it, and what labels say."""

import functools
import json
import math
from typing import Annotated, Literal, Optional

import pytest

from gradebench.core.errors import InputError
from gradebench.core.options import Range, Spec, bind, label, options_of, parse_spec


class Sampler:
    def __init__(
        self,
        n: Annotated[int, Range(low=2), "samples per prompt"] = 4,
        tau: Annotated[float, Range(0, low_open=True), "temperature"] = 1,
        baseline: Annotated[Literal["ema", "none"], "what is subtracted"] = "ema",
        whiten: bool = True,
        limit: Annotated[int | None, Range(high=9)] = None,
        corpus: str = "auto",
    ):
        self.n = n


def surrogate(problem: "Unimportable", rng: "Unimportable", *, n: "Annotated[int, Range(1)]" = 2):  # noqa: F821
    return problem, rng, n


class TestRange:
    @pytest.mark.parametrize(
        ("allowed", "text"),
        [
            (Range(low=0, low_open=True), "> 0"),
            (Range(low=2), ">= 2"),
            (Range(high=1), "<= 1"),
            (Range(high=0.5, high_open=True), "< 0.5"),
            (Range(0, 1, high_open=True), "in [0, 1)"),
            (Range(-1, 1, low_open=True), "in (-1, 1]"),
            (Range(), ""),
        ],
    )
    def test_a_range_reads_as_mathematics(self, allowed, text):
        assert str(allowed) == text

    def test_an_open_bound_is_left_out_and_a_closed_one_is_in(self):
        half_open = Range(0, 1, high_open=True)
        assert [value in half_open for value in (-0.1, 0, 0.5, 1, 1.1)] == [False, True, True, False, False]
        assert 0 not in Range(low=0, low_open=True) and 1 in Range(high=1)


class TestParsing:
    @pytest.mark.parametrize(
        ("text", "spec"),
        [
            ("rloo", Spec("rloo", {})),
            (" rloo:n=8 , tau = 0.5 ", Spec("rloo", {"n": "8", "tau": "0.5"})),
            ("imdb:corpus=../data/imdb.parquet", Spec("imdb", {"corpus": "../data/imdb.parquet"})),
            ("imdb:corpus=a.py:b,n=1", Spec("imdb", {"corpus": "a.py:b", "n": "1"})),
            ("imdb:corpus=C:\\data=1", Spec("imdb", {"corpus": "C:\\data=1"})),
            ("./mine.py:Mine", Spec("./mine.py:Mine", {})),
            ("mine.py:Mine:n=8", Spec("mine.py:Mine", {"n": "8"})),
            ("/a:b/c=d,e.py:Mine:n=8", Spec("/a:b/c=d,e.py:Mine", {"n": "8"})),
        ],
    )
    def test_a_spec_is_a_target_and_raw_options(self, text, spec):
        assert parse_spec(text) == spec

    def test_a_file_target_splits_into_path_and_object(self):
        assert parse_spec("../my.dir/mine.py:Mine:n=8").file == ("../my.dir/mine.py", "Mine")
        assert parse_spec("imdb:corpus=a.py:b").file is None

    @pytest.mark.parametrize(
        ("text", "part"),
        [
            ("", "can't read ''"),
            ("rloo:", "''"),
            ("rloo:n", "'n' isn't key=value"),
            ("rloo:n=", "'n=' isn't key=value"),
            ("rloo:n=8,", "'' isn't key=value"),
            ("rloo:n=8,n=9", "n twice"),
            ("rl oo", "can't read 'rl oo'"),
            ("mine.py", "mine.py:OBJECT"),
            ("./mine.py", "./mine.py:OBJECT"),
            ("mine.py:n=3", "mine.py:OBJECT"),
            ("mine.py:", "mine.py:OBJECT"),
            ("mine.py:a-b", "'a-b' isn't an object's name"),
        ],
    )
    def test_a_bad_form_is_refused_in_one_line_with_the_right_form(self, text, part):
        with pytest.raises(InputError) as caught:
            parse_spec(text)
        message = str(caught.value)
        assert part in message and "\n" not in message and ("NAME" in message or "OBJECT" in message)


class TestDeclaration:
    def test_the_signature_gives_type_default_range_choices_and_doc(self):
        options = options_of(Sampler)
        assert list(options) == ["n", "tau", "baseline", "whiten", "limit", "corpus"]
        assert options["n"].as_json() == {
            "name": "n",
            "type": "int",
            "required": False,
            "default": 4,
            "choices": None,
            "range": {"low": 2, "high": None, "low_open": False, "high_open": False},
            "doc": "samples per prompt",
        }
        assert type(options["tau"].default) is float
        assert options["baseline"].choices == ("ema", "none")
        assert options["limit"].type_name == "int | None" and options["limit"].range == Range(high=9)

    def test_a_description_reads_as_words(self):
        described = [option.describe() for option in options_of(Sampler).values()]
        assert described == [
            "int >= 2, default 4",
            "float > 0, default 1",
            "one of ema, none, default ema",
            "bool, default true",
            "int | None <= 9, default none",
            "str, default auto",
        ]

    def test_a_function_declares_options_as_keyword_only_parameters(self):
        assert list(options_of(surrogate)) == ["n"]
        assert options_of(surrogate)["n"].range == Range(1)
        assert options_of(functools.partial(surrogate, n=7))["n"].default == 7

    def test_an_inherited_constructor_counts_and_its_absence_means_no_options(self):
        assert list(options_of(type("Child", (Sampler,), {}))) == list(options_of(Sampler))
        assert options_of(type("Plain", (), {})) == {}
        assert options_of(object()) == {}

    def test_the_types_of_unannotated_parameters_come_from_their_defaults(self):
        def function(problem, rng, *, n=3, tau=0.5, fast=False, name="x", path=None, must):
            return problem, rng, n, tau, fast, name, path, must

        options = options_of(function)
        types = [option.type_name for option in options.values()]
        assert types == ["int", "float", "bool", "str", "str | None", "str"]
        assert [option.name for option in options.values() if option.required] == ["must"]

    def test_every_spelling_of_optional_is_understood(self):
        def function(
            problem,
            rng,
            *,
            a: Annotated[int, Range(1)] | None = 2,
            b: Annotated[Optional[int], Range(1)] = 2,  # noqa: UP045
            c: "int | None" = 2,
            d: Literal[1, 2] | None = 2,
        ):
            return a, b, c, d

        options = options_of(function)
        assert [option.type_name for option in options.values()] == ["int | None"] * 4
        assert options["a"].range == options["b"].range == Range(1)
        assert options["d"].choices == (1, 2)

    @pytest.mark.parametrize("annotation", [list[int], int | str, "Missing", "int |", Literal[1, "a"], dict])
    def test_a_type_that_no_text_can_spell_is_an_input_error(self, annotation):
        def function(problem, rng, *, n=1):
            return n

        function.__annotations__["n"] = annotation
        with pytest.raises(InputError, match="function"):
            options_of(function)

    def test_a_default_that_json_has_no_number_for_is_text(self):
        def function(problem, rng, *, limit: float = math.inf):
            return limit

        assert json.loads(json.dumps(options_of(function)["limit"].as_json(), allow_nan=False))["default"] == "inf"


class TestBinding:
    def test_values_are_converted_and_completed_with_defaults(self):
        raw = {"n": "08", "tau": "5e-1", "whiten": "No", "limit": "-3", "baseline": "none"}
        values = bind(Sampler, raw, "sampler")
        assert values == {"n": 8, "tau": 0.5, "baseline": "none", "whiten": False, "limit": -3, "corpus": "auto"}
        assert list(values) == list(options_of(Sampler))

    def test_none_is_a_value_of_optional_types_only(self):
        assert bind(Sampler, {"limit": "None"}, "sampler")["limit"] is None
        assert bind(Sampler, {"baseline": "none"}, "sampler")["baseline"] == "none"

        def function(problem, rng, *, mode: Literal["none", "ema"] | None = "ema"):
            return mode

        assert bind(function, {"mode": "none"}, "function") == {"mode": "none"}  # the choice, and not None
        with pytest.raises(InputError, match="n=none"):
            bind(Sampler, {"n": "none"}, "sampler")

    @pytest.mark.parametrize(
        ("key", "value", "accepted"),
        [
            ("n", "1", "int >= 2"),
            ("n", "4.0", "int >= 2"),
            ("n", "four", "int >= 2"),
            ("tau", "0", "float > 0"),
            ("tau", "nan", "float > 0"),
            ("tau", "inf", "float > 0"),
            ("tau", "1e999", "float > 0"),
            ("baseline", "mean", "one of ema, none"),
            ("whiten", "perhaps", "bool"),
            ("limit", "10", "int | None <= 9"),
        ],
    )
    def test_a_refusal_names_the_key_the_value_and_what_is_accepted(self, key, value, accepted):
        with pytest.raises(InputError) as caught:
            bind(Sampler, {key: value}, "estimator sampler")
        assert str(caught.value) == f"estimator sampler: {key}={value} won't do; {key} takes {accepted}"

    def test_an_unknown_key_names_the_nearest_and_all_with_types_and_defaults(self):
        with pytest.raises(InputError) as caught:
            bind(Sampler, {"base_line": "ema"}, "estimator sampler")
        message = str(caught.value)
        assert "'base_line'" in message and "did you mean baseline" in message
        assert "n (int >= 2, default 4)" in message and "corpus (str, default auto)" in message

    def test_an_option_without_default_must_be_given(self):
        def function(problem, rng, *, scale: Annotated[float, Range(0)]):
            return scale

        assert bind(function, {"scale": "2"}, "function") == {"scale": 2.0}
        with pytest.raises(InputError, match=r"function needs scale \(float >= 0\)"):
            bind(function, {}, "function")

    def test_a_factory_without_options_says_so(self):
        with pytest.raises(InputError, match="it takes no options"):
            bind(object(), {"n": "1"}, "thing")


class TestLabel:
    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("sampler", "sampler"),
            ("sampler:n=4,tau=1.0,whiten=yes,limit=none", "sampler"),
            ("sampler:n=08", "sampler:n=8"),
            ("sampler:tau=5e-1,n=8", "sampler:n=8,tau=0.5"),
            ("sampler:tau=2.000", "sampler:tau=2"),
            ("sampler:tau=0.00001", "sampler:tau=1e-05"),
            ("sampler:tau=0.1", "sampler:tau=0.1"),
            ("sampler:whiten=off,corpus=a/b.csv", "sampler:whiten=false,corpus=a/b.csv"),
        ],
    )
    def test_spellings_of_the_same_thing_share_one_label(self, spec, expected):
        parsed = parse_spec(spec)
        assert label("sampler", bind(Sampler, parsed.options, "sampler"), Sampler) == expected

    def test_a_label_reads_back_as_the_same_values(self):
        values = bind(Sampler, {"tau": str(1 / 3), "limit": "7", "whiten": "0"}, "sampler")
        written = parse_spec(label("sampler", values, Sampler))
        assert bind(Sampler, written.options, "sampler") == values

    def test_minus_zero_is_zero(self):
        def function(problem, rng, *, shift: float = 1.0):
            return shift

        assert label("f", bind(function, {"shift": "-0.0"}, "f"), function) == "f:shift=0"
