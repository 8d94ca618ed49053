"""Placeholders: what in a template's strings stands for something else, and what for.

A string is scanned once, when it is compiled, into literal text and holes. Filling the holes never scans what is put
in, so that an argument which looks like a placeholder stays what it is.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import escape

import regex

from ..errors import MissingArgumentError

__all__ = ["Placeholder", "Render", "RenderContext", "json_text", "parse", "text_of"]

Parts = tuple["str | Placeholder", ...]
Render = Callable[["RenderContext"], Any]

_PLACEHOLDER = re.compile(
    r"UTCP_ARG_(?P<classic>\S+?)_UTCP_ARG"
    r"|\{\{\s*(?P<name>args|uuid|call_id|now|tool_name|args\.[^\s{}|]+|captured\.[^\s{}|]+)"
    r"\s*(?:\|\s*(?P<encoder>[^\s{}|]*)\s*)?\}\}"
    r"|\$\{(?P<dollar>[a-zA-Z0-9_]+)\}"
)


class RenderContext:
    """What the placeholders of one call, or of one step of a conversation, stand for.

    Attributes:
        args: The call's arguments.
        tool_name: The tool's name without its manual's.
        call_id: The number of this message on its connection.
        captured: What steps have captured on the connection.
    """

    __slots__ = ("_common", "args", "call_id", "captured", "tool_name")

    def __init__(self, args: Mapping[str, Any], tool_name: str) -> None:
        self.args = args
        self.tool_name = tool_name
        self.call_id = 0
        self.captured: MutableMapping[str, Any] = {}
        self._common: dict[str, str] = {}

    @property
    def uuid(self) -> str:
        """One UUID4 per call, made when it is first asked for."""
        known = self._common.get("uuid")
        if known is None:
            known = self._common["uuid"] = str(uuid.uuid4())
        return known

    @property
    def now(self) -> str:
        """The time of the call: UTC, ISO 8601."""
        known = self._common.get("now")
        if known is None:
            now = datetime.now(UTC)
            known = self._common["now"] = now.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return known

    def for_step(self, call_id: int) -> RenderContext:
        """The same call with another message number."""
        values = RenderContext(self.args, self.tool_name)
        values._common = self._common
        values.captured = self.captured
        values.call_id = call_id
        return values

    def dry_run(self) -> RenderContext:
        """The same call before there is a connection, for finding out whether its arguments can be encoded."""
        values = self.for_step(0)
        values.captured = _Anything()
        return values


class _Anything(dict[str, Any]):
    def __missing__(self, key: str) -> str:
        return ""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One placeholder.

    Attributes:
        kind: What it names: an argument (``args.``), a captured value (``captured.``), or one of the others.
        name: Of the argument or captured value.
        typed: Whether it keeps its JSON type where it stands alone.
        source: The placeholder as it was written.
        value: What it stands for, with its JSON type. Raises `MissingArgumentError` where there is no such argument;
            `ValueError` where there is no such captured value yet, or the encoder cannot take the value.
    """

    kind: str
    name: str
    encoder: str | None
    typed: bool
    source: str
    value: Render = field(init=False, compare=False)

    def __post_init__(self) -> None:
        value = _KINDS[self.kind](self)
        object.__setattr__(self, "value", value if self.encoder is None else _encoded(value, _ENCODERS[self.encoder]))

    def text(self, values: RenderContext) -> str:
        """What it stands for, as a part of a longer text."""
        return text_of(self.value(values))


def _argument(hole: Placeholder) -> Render:
    name = hole.name

    def value(values: RenderContext) -> Any:
        try:
            return values.args[name]
        except KeyError:
            pass
        raise MissingArgumentError([name])

    return value


def _argument_if_given(hole: Placeholder) -> Render:
    name, source = hole.name, hole.source
    return lambda values: values.args.get(name, source)


def _captured(hole: Placeholder) -> Render:
    name = hole.name

    def value(values: RenderContext) -> Any:
        try:
            return values.captured[name]
        except KeyError:
            pass
        raise ValueError(f"nothing was captured as {name!r} on this connection")

    return value


def _of_the_call(hole: Placeholder) -> Render:
    return attrgetter(hole.kind)


_KINDS: dict[str, Callable[[Placeholder], Render]] = {
    "args.": _argument,
    "$": _argument_if_given,
    "captured.": _captured,
    "args": lambda hole: lambda values: dict(values.args),
    "call_id": _of_the_call,
    "uuid": _of_the_call,
    "now": _of_the_call,
    "tool_name": _of_the_call,
}


def _encoded(value: Render, encode: Callable[[Any], Any]) -> Render:
    return lambda values: encode(value(values))


def parse(text: str, where: str, *, arguments: bool = True) -> Parts:
    """Split a template string into text and holes.

    Args:
        where: The string's place in the call template, for errors.
        arguments: Whether placeholders for arguments may be used here.

    Raises:
        ValueError: It has a placeholder that cannot be.
    """
    parts: list[str | Placeholder] = []
    position = 0
    for match in _PLACEHOLDER.finditer(text):
        if match.start() > position:
            parts.append(text[position : match.start()])
        hole = _hole(match, where)
        if not arguments and hole.kind in ("args", "args."):
            raise ValueError(f"{where}: {hole.source} is of a call; this belongs to the connection")
        parts.append(hole)
        position = match.end()
    if position < len(text):
        parts.append(text[position:])
    return tuple(parts)


def _hole(match: re.Match[str], where: str) -> Placeholder:
    source = match[0]
    if match["classic"] is not None:
        return Placeholder("args.", match["classic"], None, typed=False, source=source)
    if match["dollar"] is not None:
        return Placeholder("$", match["dollar"], None, typed=True, source=source)
    encoder = match["encoder"]
    if encoder is not None and encoder not in _ENCODERS:
        raise ValueError(f"{where}: {source}: there is no encoder {encoder!r}; there are {', '.join(_ENCODERS)}")
    kind, dot, name = match["name"].partition(".")
    return Placeholder(kind + dot, name, encoder, typed=True, source=source)


# json.dumps makes an encoder for each call that asks for anything but the defaults.
_encode = json.JSONEncoder(allow_nan=False).encode


def json_text(value: Any) -> str:
    """JSON as `json.dumps` writes it by default; NaN and Infinity, which JSON has not, are a `ValueError`."""
    if type(value) is int:
        return int.__repr__(value)  # what the encoder does, without its setting out for more
    try:
        return _encode(value)
    except TypeError as error:
        fault = str(error)
    except RecursionError:
        fault = "it is nested too deeply"
    raise ValueError(f"an argument is no JSON value: {fault}")


def text_of(value: Any) -> str:
    """A value inside a longer text: a string as it is, anything else as its JSON text."""
    return value if isinstance(value, str) else json_text(value)


def _bytes_of(value: Any) -> bytes:
    return text_of(value).encode()


_ENCODERS: dict[str, Callable[[Any], Any]] = {
    "json": json_text,
    "base64": lambda value: base64.b64encode(_bytes_of(value)).decode(),
    "hex": lambda value: _bytes_of(value).hex(),
    "urlencode": lambda value: quote(_bytes_of(value), safe=""),
    "xml": lambda value: escape(text_of(value), {'"': "&quot;", "'": "&apos;"}),
    "regex": lambda value: regex.escape(text_of(value)),
    "bytes": lambda value: len(_bytes_of(value)),
}
