"""JSON values: what is one in a call template, copies that share nothing, and when two are equal."""

from __future__ import annotations

import copy
import math
from typing import Any

from utcp.data.auth import Auth
from utcp.data.tool import Tool

__all__ = ["IMMUTABLE", "check_json", "copy_json", "equal_json"]

_MAX_DEPTH = 100
IMMUTABLE = frozenset({str, int, float, bool, type(None)})
"""The types of scalars: a copy may be the same object."""


def check_json(value: Any, where: str, depth: int = 0) -> None:
    """Refuse everything except JSON values, so that what is compared, copied and sent is the same everywhere.

    Args:
        where: Its place in the call template, for errors.

    Raises:
        ValueError: There is something else in it, or it is nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise ValueError(f"{where.partition('.')[0].partition('[')[0]}: is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{where}: the key {key!r} must be a string")
            check_json(item, f"{where}.{key}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]", depth + 1)
    elif not isinstance(value, (str, int, float, type(None))):
        raise ValueError(f"{where}: must be a JSON value, not {type(value).__name__}")
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where}: must be a finite number, as JSON has no others")


def copy_json(value: Any) -> Any:
    """A copy of a JSON value; UTCP's own objects in it stay the same ones."""
    if type(value) in IMMUTABLE:
        return value
    if isinstance(value, dict):
        return {key: copy_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [copy_json(item) for item in value]
    return value if isinstance(value, (Auth, Tool)) else copy.deepcopy(value)


def equal_json(one: Any, other: Any) -> bool:
    """Equality of JSON values: numbers by value, and a boolean is not a number.

    Without recursion: how deep a message is nested is up to a stranger.
    """
    if type(one) in IMMUTABLE or type(other) in IMMUTABLE:
        return _equal_scalars(one, other)
    pending = [(one, other)]
    while pending:
        left, right = pending.pop()
        if isinstance(left, dict) and isinstance(right, dict):
            if left.keys() != right.keys():
                return False
            pending += [(left[key], right[key]) for key in right]
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pending += zip(left, right, strict=True)
        elif isinstance(left, (dict, list)) or isinstance(right, (dict, list)) or not _equal_scalars(left, right):
            return False
    return True


def _equal_scalars(one: Any, other: Any) -> bool:
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    return bool(one == other)
