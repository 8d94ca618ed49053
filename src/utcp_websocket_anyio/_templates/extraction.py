"""Extractions say which part of a message is meant. They are compiled once and are pure."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .patterns import Pattern, compile_pattern, search
from .received import Message, ResponseError

__all__ = ["Extraction", "compile_extraction"]


class Extraction:
    """Which part of a message is meant.

    Attributes:
        is_text: Whether it always is text; otherwise it is a JSON value.
    """

    __slots__ = ("_extract", "is_text")

    def __init__(self, extract: Callable[[Message], Any], *, is_text: bool) -> None:
        self._extract = extract
        self.is_text = is_text

    def extract(self, message: Message) -> Any:
        """The part of the message.

        Raises:
            ResponseError: It is not there, or a pattern took too long.
        """
        return self._extract(message)


def compile_extraction(value: Any, where: str) -> Extraction:
    """Compile an extraction: ``{"path": …}``, ``{"regex": …}`` or ``{"after": …, "path": …}``.

    Raises:
        ValueError: Its form is wrong.
    """
    keys = set(value) if isinstance(value, dict) else set()
    if not keys or not (keys <= {"after", "path"} or keys == {"regex"}):
        raise ValueError(f"{where}: must be an object with path, with after (and path), or with regex")
    for key in keys:
        if not isinstance(value[key], str):
            raise ValueError(f"{where}.{key}: must be a string")
    if "regex" in keys:
        pattern = compile_pattern(value["regex"], f"{where}.regex")
        if pattern.groups < 1:
            raise ValueError(f"{where}.regex: needs a group, in parentheses, for the part that is meant")
        return Extraction(functools.partial(_extract_group, pattern, where), is_text=True)
    path = [step for step in value.get("path", "").split(".") if step]
    return Extraction(functools.partial(_extract_path, value.get("after", ""), path, where), is_text=False)


def _extract_group(pattern: Pattern, where: str, message: Message) -> Any:
    found = search(pattern, message.text())
    if found is None or found[1] is None:
        raise ResponseError(f"{where}: the pattern is not found in the message")
    return found[1]


def _extract_path(prefix: str, path: list[str], where: str, message: Message) -> Any:
    if prefix:
        text = message.text()
        if not text.startswith(prefix):
            raise ResponseError(f"{where}: the message does not start with {prefix!r}")
        message = Message(text[len(prefix) :])
    value = message.json()
    for step in path:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and step.isdecimal() and int(step) < len(value):
            value = value[int(step)]
        else:
            raise ResponseError(f"{where}: the message has nothing at {'.'.join(path)}")
    return value
