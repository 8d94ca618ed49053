"""Templates for messages, compiled once and rendered per call.

What is sent most is JSON with a few placeholders. It is compiled into the JSON text around the slots, so that
rendering it is one piece of JSON for each slot (`_SlottedMessage`). Where an element may be left out, or a list is made
of a list, the object or list around it is one slot. A string that is one placeholder is what its value is: bytes go in
a binary frame (`_WholeMessage`). A binary message is made of parts (`_BinaryMessage`).

A message that depends on its connection has the arguments put in before there is one (`bind`), so that what is wrong
with them is known first, and nothing is encoded twice.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .encoders import Digest, is_bytes, json_text, text_of, utf8
from .placeholders import CALL, Placeholder, RenderContext, Scope, parse
from .spelling import unknown_name
from .values import (
    CompiledTemplate,
    Slot,
    compile_renderer,
    encode_arguments,
    is_each,
    is_single_placeholder,
    placeholders_of,
    text_slots,
)

__all__ = ["ArgumentsMessage", "BoundMessage", "MessageTemplate", "compile_message"]

_BINARY_KEYS = {"type", "data", "encoding"}


class MessageTemplate(CompiledTemplate):
    """A message with placeholders.

    Attributes:
        is_late: True if it takes a connection, or a message or item at hand, to know the message.
    """

    __slots__ = ("is_late",)

    def __init__(self, source: Any, where: str, found: Iterable[Placeholder]) -> None:
        found = list(found)
        super().__init__(source, where, found)
        self.is_late: bool = any(placeholder.is_late for placeholder in found)

    def __repr__(self) -> str:
        return f"<MessageTemplate {self.where}>"

    def encode(self, context: RenderContext) -> str | bytes:
        """The message to send: a str goes as a text frame, bytes as a binary one.

        Raises:
            ValueError: A value cannot be encoded.
        """
        raise NotImplementedError

    def bind(self, context: RenderContext) -> BoundMessage | MessageTemplate:
        """The message with everything put in that can be known without a connection.

        Raises:
            ValueError: An argument cannot be encoded.
        """
        self.try_out(context)
        return self

    def try_out(self, context: RenderContext) -> None:
        """Find out, before there is a connection, if the call's values can be put in.

        Raises:
            ValueError: A value cannot be put in.
        """
        if self.is_static:
            return
        if not self.is_late:
            self.encode(context)
            return
        for placeholder in self._placeholders():
            if not placeholder.is_late:
                placeholder.text(context)

    def _placeholders(self) -> Iterable[Placeholder]:
        raise NotImplementedError


class _SlottedMessage(MessageTemplate):
    __slots__ = ("_is_text", "_slots", "_static", "_text")

    def __init__(
        self, source: Any, where: str, found: Iterable[Placeholder], pieces: list[str | Slot], *, is_text: bool
    ) -> None:
        super().__init__(source, where, found)
        self._text = "".join(piece.replace("%", "%%") if isinstance(piece, str) else "%s" for piece in pieces)
        self._slots = [piece for piece in pieces if isinstance(piece, Slot)]
        self._is_text = is_text  # JSON is ASCII
        self._static: str | None = None
        if self.is_static:
            self._static = self.encode(RenderContext({}, ""))

    def encode(self, context: RenderContext) -> str:
        if self._static is not None:
            return self._static
        text = self._text % tuple([slot.fill(context) for slot in self._slots])
        return _checked(text, self.where) if self._is_text else text

    def bind(self, context: RenderContext) -> BoundMessage:
        given: list[str | Slot] = []
        for slot in self._slots:
            if slot.is_mixed:
                slot.try_out(context)
            given.append(slot if slot.is_late else slot.fill(context))
        return BoundMessage(self._text, given, self.where if self._is_text else None)

    def _placeholders(self) -> Iterable[Placeholder]:
        return [placeholder for slot in self._slots for placeholder in slot.placeholders]


class BoundMessage:
    """A message that lacks what only its connection knows."""

    __slots__ = ("_given", "_text", "_where")

    def __init__(self, text: str, given: list[str | Slot], where: str | None) -> None:
        self._text = text
        self._given = given
        self._where = where

    def encode(self, context: RenderContext) -> str | bytes:
        """As `MessageTemplate.encode`, for the arguments that it was bound to, now on a connection."""
        text = self._text % tuple([given if isinstance(given, str) else given.fill(context) for given in self._given])
        return text if self._where is None else _checked(text, self._where)


class _WholeMessage(MessageTemplate):
    """A message that is one placeholder: text, or the bytes of an argument or item."""

    __slots__ = ("_placeholder",)

    def __init__(self, source: str, where: str, placeholder: Placeholder) -> None:
        super().__init__(source, where, [placeholder])
        self._placeholder = placeholder

    def encode(self, context: RenderContext) -> str | bytes:
        value = self._placeholder.value(context)
        if is_bytes(value) and not isinstance(value, Digest):
            return bytes(value)
        return _checked(text_of(value), self.where)

    def _placeholders(self) -> Iterable[Placeholder]:
        return (self._placeholder,)


class ArgumentsMessage(MessageTemplate):
    """The arguments as one JSON object: the request where a template has none.

    Args:
        without: Arguments that go elsewhere.
    """

    __slots__ = ("_without",)

    def __init__(self, where: str, without: frozenset[str]) -> None:
        super().__init__(None, where, ())
        self._without = without
        self.is_static = False

    def encode(self, context: RenderContext) -> str:
        return encode_arguments(context.args, without=self._without)

    def _placeholders(self) -> Iterable[Placeholder]:
        return ()


def compile_message(value: Any, where: str, scope: Scope = CALL) -> MessageTemplate:
    """Compile a message: a string, an object or list that is sent as JSON, or the form of a binary one.

    Raises:
        ValueError: As for `compile_template`, or static binary data is not what its encoding says.
    """
    if isinstance(value, dict) and value.get("type") == "binary" and "data" in value and value.keys() <= _BINARY_KEYS:
        return _compile_binary(value, where, scope)
    if isinstance(value, str):
        parts = parse(value, where, scope)
        if is_single_placeholder(parts):
            return _WholeMessage(value, where, placeholders_of(parts)[0])
        for part in parts:
            if isinstance(part, str):
                _checked(part, where)
        return _SlottedMessage(value, where, placeholders_of(parts), text_slots(parts), is_text=True)
    if not isinstance(value, (dict, list)):
        raise ValueError(f"{where}: must be a string, an object or a list")
    found: list[Placeholder] = []
    return _SlottedMessage(value, where, found, _json_pieces(value, where, scope, found), is_text=False)


def _checked(text: str, where: str) -> str:
    if not text.isascii():
        try:
            utf8(text)
        except ValueError as error:
            reason = str(error)
        else:
            return text
        raise ValueError(f"{where}: {reason}")
    return text


def _json_pieces(value: Any, where: str, scope: Scope, found: list[Placeholder]) -> list[str | Slot]:
    """JSON text and its slots; the placeholders are added to `found`."""
    if isinstance(value, (dict, list)):
        inside: list[Placeholder] = []
        render = compile_renderer(value, where, scope, inside)
        if is_each(value) or _leaves_out(value, where, scope):
            found += inside
            return [Slot(lambda context: json_text(render(context)), inside)]
    if isinstance(value, dict):
        pieces: list[str | Slot] = ["{"]
        for index, (key, item) in enumerate(value.items()):
            pieces.append(f"{', ' if index else ''}{json.dumps(key)}: ")
            pieces += _json_pieces(item, f"{where}.{key}", scope, found)
        return [*pieces, "}"]
    if isinstance(value, list):
        pieces = ["["]
        for index, item in enumerate(value):
            pieces.append(", " if index else "")
            pieces += _json_pieces(item, f"{where}[{index}]", scope, found)
        return [*pieces, "]"]
    if isinstance(value, str):
        own: list[Placeholder] = []
        render_string = compile_renderer(value, where, scope, own)
        found += own
        if own:
            return [Slot(lambda context: json_text(render_string(context)), own)]
    return [json_text(value)]


def _leaves_out(value: dict[str, Any] | list[Any], where: str, scope: Scope) -> bool:
    """True if an element of it may be left out."""
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, str):
            parts = parse(item, where, scope)
            if is_single_placeholder(parts) and placeholders_of(parts)[0].is_optional:
                return True
    return False


# Binary messages


class _BinaryMessage(MessageTemplate):
    __slots__ = ("_found", "_parts")

    def __init__(self, source: Any, where: str, found: list[Placeholder], parts: list[_BinaryPart]) -> None:
        super().__init__(source, where, found)
        self._found = found
        self._parts = parts
        if self.is_static:
            self.encode(RenderContext({}, ""))

    def encode(self, context: RenderContext) -> bytes:
        return b"".join([part(context) for part in self._parts])

    def _placeholders(self) -> Iterable[Placeholder]:
        return self._found


_BinaryPart = Callable[[RenderContext], bytes]


def _compile_binary(value: Mapping[str, Any], where: str, scope: Scope) -> MessageTemplate:
    encoding = value.get("encoding", "base64")
    _decoder(encoding, where)
    found: list[Placeholder] = []
    data = value["data"]
    if not isinstance(data, list):
        parts = [_compile_data(data, f"{where}.data", encoding, scope, found)]
        return _BinaryMessage(value, where, found, parts)
    parts = []
    for index, part in enumerate(data):
        place = f"{where}.data[{index}]"
        if isinstance(part, dict):
            unknown = sorted(part.keys() - {"data", "encoding"})
            if unknown:
                raise ValueError(f"{place}: {unknown_name(unknown[0], ('data', 'encoding'), 'key')}")
            if "data" not in part:
                raise ValueError(f"{place}: a part needs data, and an encoding if it is another one than base64")
            own = part.get("encoding", "base64")
            parts.append(_compile_data(part["data"], f"{place}.data", own, scope, found))
        else:
            parts.append(_compile_data(part, place, encoding, scope, found))
    return _BinaryMessage(value, where, found, parts)


def _decoder(encoding: Any, where: str) -> Callable[[str], bytes]:
    decode = DECODERS.get(encoding) if isinstance(encoding, str) else None
    if decode is None:
        raise ValueError(f"{where}.encoding: must be one of {', '.join(DECODERS)}")
    return decode


def _compile_data(data: Any, where: str, encoding: Any, scope: Scope, found: list[Placeholder]) -> _BinaryPart:
    decode = _decoder(encoding, where.removesuffix(".data"))
    if not isinstance(data, str):
        raise ValueError(f"{where}: must be a string")
    parts = parse(data, where, scope)
    placeholders = placeholders_of(parts)
    found += placeholders
    single = placeholders[0] if len(parts) == 1 and placeholders else None
    slots = text_slots(parts)

    def part(context: RenderContext) -> bytes:
        if single is not None:
            value = single.value(context)
            if is_bytes(value):
                return bytes(value)
            if not isinstance(value, str):
                raise ValueError(f"{where}: must come out as text or bytes, not as a number, null or the like")
            text = value
        else:
            text = "".join([slot if isinstance(slot, str) else slot.fill(context) for slot in slots])
        try:
            return decode(text)
        except ValueError:
            pass
        raise ValueError(f"{where}: is not valid {encoding}")

    if not placeholders:
        static = part(RenderContext({}, ""))
        return lambda context: static
    return part


DECODERS: Mapping[str, Callable[[str], bytes]] = {
    "base64": lambda text: base64.b64decode(text, validate=True),
    "hex": bytes.fromhex,
    "utf-8": utf8,
}
"""Decoders from text to bytes, by the name of the encoding."""
