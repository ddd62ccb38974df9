"""Hyper-parameters: declared in a signature, spelled `NAME:key=value,...`, checked, and written into labels.

    def __init__(self, n: Annotated[int, Range(low=2), "samples per prompt"] = 4): ...

The signature is the only declaration: the help, the checks, the listing and the labels all read it.
"""

import difflib
import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, SimpleNamespace, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from gradebench.core.errors import InputError
from gradebench.core.shown import shown, utf8

RATE_LIKE = "rate-like"  # for any estimator: whose learning rate it runs at
REQUIRED: Any = inspect.Parameter.empty  # the default of an option that has none
FORMS = "NAME[:key=value,...] or FILE.py:OBJECT[:key=value,...]"
_NAMED = re.compile(r"[\w.-]+(:.*)?", re.DOTALL)
_NAMED_WITH_OPTION = re.compile(r"[\w.-]+:\s*\w+\s*=")  # so `imdb:corpus=a.py:b` is a name with a value
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Range:
    """The numbers an option may take; a bound of None is no bound, an open bound is itself left out."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        below = self.high is None or value < self.high or (value == self.high and not self.high_open)
        return above and below

    def __str__(self) -> str:
        """Like `> 0`, `in [0, 1)` or `>= 2`; empty where there is no bound."""
        if self.low is not None and self.high is not None:
            left, right = "(" if self.low_open else "[", ")" if self.high_open else "]"
            return f"in {left}{text_of(self.low)}, {text_of(self.high)}{right}"
        if self.low is not None:
            return f"{'>' if self.low_open else '>='} {text_of(self.low)}"
        if self.high is not None:
            return f"{'<' if self.high_open else '<='} {text_of(self.high)}"
        return ""


@dataclass(frozen=True)
class Option:
    """One hyper-parameter, as its signature declares it."""

    name: str
    base: type  # int, float, bool or str
    optional: bool = False  # None is allowed, written `none`
    default: Any = REQUIRED
    choices: tuple[Any, ...] = ()
    range: Range | None = None
    doc: str = ""

    @property
    def type_name(self) -> str:
        return f"{self.base.__name__} | None" if self.optional else self.base.__name__

    @property
    def required(self) -> bool:
        return self.default is REQUIRED

    def accepts(self) -> str:
        """What may be given, in words: "int >= 2", "one of ema, none", "float | None in [0, 1)"."""
        if self.choices:
            return f"one of {', '.join(map(text_of, self.choices))}{' or none' if self.optional else ''}"
        return f"{self.type_name} {self.range or ''}".rstrip()

    def describe(self) -> str:
        """What may be given, and the default: "int >= 2, default 4"."""
        return f"{self.accepts()}, {'required' if self.required else f'default {text_of(self.default)}'}"

    def as_json(self) -> dict[str, Any]:
        """A dictionary that `json` writes; a default that JSON has no number for (inf) becomes text."""
        infinite = isinstance(self.default, float) and not math.isfinite(self.default)
        default = None if self.required else text_of(self.default) if infinite else self.default
        return {
            "name": self.name,
            "type": self.type_name,
            "required": self.required,
            "default": default,
            "choices": list(self.choices) or None,
            "range": vars(self.range).copy() if self.range else None,
            "doc": self.doc,
        }


@dataclass(frozen=True)
class Spec:
    """What the user wrote: a target (a registered name, or FILE.py:OBJECT) and raw options."""

    target: str
    options: dict[str, str]

    @property
    def file(self) -> tuple[str, str] | None:
        """Path and object name of a FILE.py:OBJECT target; None for a registered name."""
        if ".py:" not in self.target:
            return None
        path, name = self.target.split(".py:", 1)
        return f"{path}.py", name


def parse_spec(text: str) -> Spec:
    """Target and raw options of `NAME[:k=v,...]` or `FILE.py:OBJECT[:k=v,...]`.

    A path ends at its first ".py:"; a value ends at the next comma.
    Raises InputError for any other form.
    """
    text = text.strip()
    if utf8(text) != text:
        raise InputError(f"{shown(text)}: a name has to be UTF-8, for the tables to hold it; rename the file")
    if ".py:" in text and not _NAMED_WITH_OPTION.match(text):
        path, rest = text.split(".py:", 1)
        name, colon, options = rest.partition(":")
        if not name.isidentifier():
            raise InputError(f"{text!r}: {name!r} isn't an object's name; write {path}.py:OBJECT[:key=value,...]")
        target = f"{path}.py:{name}"
    elif _NAMED.fullmatch(text):
        target, colon, options = text.partition(":")
        if target.endswith(".py"):
            raise InputError(f"{text!r} names a file and no object in it; write {target}:OBJECT[:key=value,...]")
    elif text.endswith(".py"):
        raise InputError(f"{text!r} names a file and no object in it; write {text}:OBJECT[:key=value,...]")
    else:
        raise InputError(f"can't read {text!r}; the form is {FORMS}")
    return Spec(target, _raw_options(options, text) if colon else {})


def _raw_options(text: str, whole: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in text.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if not (equals and value and (key.isidentifier() or key == RATE_LIKE)):
            raise InputError(f"{whole!r}: {item.strip()!r} isn't key=value; the form is {FORMS}")
        if key in options:
            raise InputError(f"{whole!r} gives {key} twice; the form is {FORMS}, each key once")
        options[key] = value
    return options


def with_values(text: str, values: Mapping[str, str]) -> str:
    """The spec `text` with more options. One that it gives already is given twice, which `parse_spec` refuses."""
    added = ",".join(f"{name}={value}" for name, value in values.items())
    return f"{text}{',' if parse_spec(text).options else ':'}{added}" if added else text


def option(name: str, annotation: Any, default: Any = REQUIRED) -> Option:
    """The Option that a parameter `name: annotation = default` declares.

    Raises TypeError for a type that can't be spelled on the command line.
    """
    if annotation is REQUIRED:
        annotation = type(default) if type(default) in (bool, int, float) else str
    types, metadata = _flattened(annotation)
    choices = tuple(value for alternative in types for value in _choices(alternative) if value is not None)
    optional = default is None or NoneType in types or any(None in _choices(alternative) for alternative in types)
    bases = {type(value) for value in choices} | {
        alternative for alternative in types if alternative is not NoneType and get_origin(alternative) is not Literal
    }
    base = next(iter(bases)) if len(bases) == 1 else None
    if base not in (bool, int, float, str):
        raise TypeError(f"option {name}: use int, float, bool, str or Literal, alone or `| None`, not {annotation}")
    ranges = [item for item in metadata if isinstance(item, Range)]
    docs = [item for item in metadata if isinstance(item, str)]
    if base is float and type(default) is int:
        default = float(default)
    return Option(name, base, optional, default, choices, next(iter(ranges), None), " ".join(docs))


def _flattened(annotation: Any) -> tuple[list[Any], list[Any]]:
    """The alternatives of a union and the metadata of every Annotated in it."""
    if get_origin(annotation) is Annotated:
        types, metadata = _flattened(annotation.__origin__)
        return types, [*metadata, *annotation.__metadata__]
    if get_origin(annotation) in (Union, UnionType):
        parts = [_flattened(part) for part in get_args(annotation)]
        return [kind for types, _ in parts for kind in types], [item for _, metadata in parts for item in metadata]
    return [NoneType if annotation is None else annotation], []


def _choices(alternative: Any) -> tuple[Any, ...]:
    return get_args(alternative) if get_origin(alternative) is Literal else ()


def options_of(factory: Any) -> dict[str, Option]:
    """Every option that `factory` declares, in the order of its signature.

    A class declares them in `__init__`; a function, with `problem, rng` first, as keyword-only parameters;
    an object that is neither has none. Raises InputError where an annotation can't be read.
    """
    owner = factory.__init__ if inspect.isclass(factory) else factory
    if not callable(owner):
        return {}
    function = inspect.unwrap(owner.func if isinstance(owner, functools.partial) else owner)
    if not hasattr(function, "__globals__"):
        function = type(function).__call__
    parameters = list(inspect.signature(owner).parameters.values())
    if inspect.isclass(factory):
        parameters = [item for item in parameters[1:] if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    else:
        parameters = [item for item in parameters if item.kind is item.KEYWORD_ONLY]
    try:
        return {
            parameter.name: option(parameter.name, _evaluated(parameter.annotation, function), parameter.default)
            for parameter in parameters
        }
    except (TypeError, NameError, SyntaxError) as error:
        raise InputError(f"the options of {getattr(factory, '__name__', factory)} can't be read: {error}") from error


def _evaluated(annotation: Any, function: Callable[..., Any]) -> Any:
    """The annotation with its strings evaluated, alone: `problem: "Problem"` beside it may be for type checkers."""
    if annotation is REQUIRED:
        return annotation
    holder: Any = SimpleNamespace(__annotations__={"it": annotation})
    return get_type_hints(holder, getattr(function, "__globals__", {}), include_extras=True)["it"]


def bind(factory: Any, raw: Mapping[str, str], what: str) -> dict[str, Any]:
    """Values of all options of `factory`: those of `raw` converted and checked, the others by default.

    `what` names the factory in messages. Raises InputError for an unknown key, a value of the wrong type, out of
    range or not among the choices, and for a required option that is missing.
    """
    options = options_of(factory)
    for key in raw:
        if key not in options:
            raise InputError(_unknown_key(key, options, what))
    missing = [item for item in options.values() if item.required and item.name not in raw]
    if missing:
        needs = "; ".join(f"{item.name} ({item.accepts()})" for item in missing)
        raise InputError(f"{what} needs {needs}")
    return {name: convert(item, raw[name], what) if name in raw else item.default for name, item in options.items()}


def _unknown_key(key: str, options: Mapping[str, Option], what: str) -> str:
    near = difflib.get_close_matches(key, options, n=1, cutoff=0.5)
    guess = f" (did you mean {near[0]}?)" if near else ""
    takes = ", ".join(f"{item.name} ({item.describe()})" for item in options.values()) or "no options"
    return f"{what} has no option {key!r}{guess}; it takes {takes}"


def convert(item: Option, text: str, what: str) -> Any:
    """The value that `text` spells for the option. Raises InputError with the key, the value and what is accepted."""
    if item.optional and text.lower() == "none" and "none" not in item.choices:
        return None
    try:
        value = _PARSERS[item.base](text)
    except ValueError:
        accepted = False
    else:
        accepted = value in item.choices if item.choices else item.range is None or value in item.range
    if not accepted:
        raise InputError(f"{what}: {item.name}={text} won't do; {item.name} takes {item.accepts()}")
    return value


def _truth(text: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ValueError(text)
    return _TRUTHS[text.lower()]


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value + 0.0  # -0.0 and 0.0 are one value with two spellings


_PARSERS: dict[type, Callable[[str], Any]] = {bool: _truth, int: int, float: _finite, str: str}


def text_of(value: Any) -> str:
    """A value as the command line spells it; floats in the shortest form that reads back the same."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def label(name: str, values: Mapping[str, Any], factory: Any) -> str:
    """The canonical spelling: `name`, then the options that differ from their defaults, in signature order."""
    options = options_of(factory).values()
    given = [f"{item.name}={text_of(values[item.name])}" for item in options if values[item.name] != item.default]
    return f"{name}:{','.join(given)}" if given else name
