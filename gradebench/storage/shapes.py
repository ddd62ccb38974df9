"""The shapes of JSON that readers rely on, those of a run's files, and a check that names the first mismatch."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Fields:
    """An object with these entries, which are optional unless `required`; other entries may be anything."""

    entries: Mapping[str, Any]
    required: tuple[str, ...] = ()


def misfit(value: Any, shape: Any, where: str = "") -> str:
    """What is wrong with the value, as text that begins with the place; "" if it fits.

    A shape is a type, None for null, a tuple of alternative shapes, a list of one shape for all items, a dict of one
    shape for all values, or Fields.
    """
    if isinstance(shape, tuple):
        found = [misfit(value, one, where) for one in shape]
        return "" if "" in found else found[-1]
    if isinstance(shape, list):
        return _kind(value, list, where) or _first(
            (f"{where}[{number}]", one, shape[0]) for number, one in enumerate(value)
        )
    if isinstance(shape, dict):
        return _kind(value, dict, where) or _first((_under(where, key), one, shape[str]) for key, one in value.items())
    if not isinstance(shape, Fields):
        return _kind(value, type(None) if shape is None else shape, where)
    if wrong := _kind(value, dict, where):
        return wrong
    if lacking := [name for name in shape.required if name not in value]:
        return f"{where or 'it'} lacks {lacking[0]}"
    return _first((_under(where, name), value[name], of) for name, of in shape.entries.items() if name in value)


def _under(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _first(entries: Iterable[tuple[str, Any, Any]]) -> str:
    """The message for the first of (place, value, shape) that doesn't fit."""
    return next(filter(None, (misfit(value, shape, where) for where, value, shape in entries)), "")


def _kind(value: Any, kind: type, where: str) -> str:
    fits = isinstance(value, kind) and (type(value) is not bool or kind in (bool, object))
    return "" if fits else f"{where or 'it'} is {_NAMES[type(value)]}, not {_NAMES[kind]}"


_NAMES: dict[type, str] = {
    dict: "an object", list: "a list", str: "text", int: "a whole number", float: "a number", bool: "true or false",
    type(None): "null",
}  # fmt: skip

NUMBER = (int, float)
CONFIG = Fields(
    {
        "request": Fields(
            {
                "estimators": [str],
                "tasks": [str],
                "against": (None, [str]),
                "sweep": (None, [str]),
                "by": (None, str),
                "tuned": (None, str),
            }
        ),
        "cells": [str],
        "seeds": [int],
        "left_out": {str: str},
        "plans": {str: dict},
        "tasks": {str: dict},
        "learning_rates": {str: {str: NUMBER}},
        "rate_sources": {str: {str: str}},
        "tuned_options": {str: {str: {str: str}}},
        "design": {str: Fields({"task": str, "values": {str: str}}, ("task", "values"))},
        "facts": Fields({"tasks": {str: dict}, "estimators": {str: {str: dict}}}),
        "given": Fields(
            {
                "tasks": {str: str},
                "estimators": {str: {str: Fields({"spec": str, "seeds": [int]}, ("spec", "seeds"))}},
            }
        ),
    }
)
ENVIRONMENT = Fields({"packages": {str: (None, str)}})
_SAMPLE = {
    "task": str, "setting": str, "estimator": str, "seed": int, "split": str, "step": int, "number": int, "prompt": str,
    "text": str, "reward": NUMBER,
}  # fmt: skip
SAMPLE = Fields(_SAMPLE, tuple(_SAMPLE))
