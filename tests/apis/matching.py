"""Compares a value with what a case expects.

An expectation is JSON. Objects and lists must match exactly, and these stand for values of a kind: ``{"$any":
true}``, ``{"$type": name}``, ``{"$match": pattern}``, ``{"$has": {…}}`` (an object with at least these members),
``{"$len": n}``, ``{"$min": n}``, ``{"$oneof": […]}``, ``{"$unordered": […]}`` and ``{"$bytes": …}`` (bytes, or their
base64).
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Mapping
from typing import Any

from .building import build

__all__ = ["difference", "pick", "short"]

KINDS: Mapping[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def difference(expected: Any, actual: Any, path: str = "$") -> str | None:
    """None if a value is as expected, or a sentence why not."""
    if isinstance(expected, dict) and len(expected) == 1:
        ((key, wanted),) = expected.items()
        if key.startswith("$"):
            return _operator(key, wanted, actual, path)
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or set(expected) != set(actual):
            return f"{path}: {short(actual)} has not exactly the members {sorted(expected)}"
        return _first(difference(item, actual[name], f"{path}.{name}") for name, item in expected.items())
    if isinstance(expected, list):
        if not isinstance(actual, list | tuple) or len(expected) != len(actual):
            return f"{path}: {short(actual)} has not {len(expected)} elements"
        return _first(
            difference(item, found, f"{path}[{i}]")
            for i, (item, found) in enumerate(zip(expected, actual, strict=True))
        )
    same = expected is actual if isinstance(expected, bool) or isinstance(actual, bool) else expected == actual
    return None if same else f"{path}: {short(actual)} is not {short(expected)}"


def _operator(key: str, wanted: Any, actual: Any, path: str) -> str | None:
    match key:
        case "$any":
            return None
        case "$type":
            right = isinstance(actual, KINDS[wanted]) and (wanted == "boolean" or not isinstance(actual, bool))
        case "$match":
            right = isinstance(actual, str) and re.search(wanted, actual) is not None
        case "$has":
            if not isinstance(actual, dict) or not wanted.keys() <= actual.keys():
                return f"{path}: {short(actual)} is not an object with {sorted(wanted)}"
            return _first(difference(item, actual[name], f"{path}.{name}") for name, item in wanted.items())
        case "$len":
            right = hasattr(actual, "__len__") and len(actual) == wanted
        case "$min":
            right = isinstance(actual, int | float) and actual >= wanted
        case "$oneof":
            right = any(difference(item, actual) is None for item in wanted)
        case "$unordered":
            right = isinstance(actual, list) and len(actual) == len(wanted)
            left = list(actual) if right else []
            for item in wanted:
                place = next((i for i, found in enumerate(left) if difference(item, found) is None), None)
                if place is None:
                    return f"{path}: nothing like {short(item)} in {short(actual)}"
                del left[place]
        case "$bytes":
            if isinstance(actual, str):
                with contextlib.suppress(ValueError):
                    actual = base64.b64decode(actual, validate=True)
            right = actual == build({key: wanted})
        case _:
            raise ValueError(f"{key} is not an operator of a case")
    return None if right else f"{path}: {short(actual)} is not {short({key: wanted})}"


def _first(reasons: Any) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def pick(value: Any, path: str) -> Any:
    """What is at a path with dots; ``$`` is the value itself."""
    for part in path.split(".") if path != "$" else []:
        value = value[int(part)] if isinstance(value, list) else value[part]
    return value


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else text[:160] + "…"
