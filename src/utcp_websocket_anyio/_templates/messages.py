"""Templates for messages, compiled once and filled per call.

What is sent most is JSON with a few holes. It is compiled into the JSON text around the holes, so that filling it is
one piece of JSON per hole. Where a message depends on its connection, too, the arguments are put in before there is
one (`bind`), so that what is wrong with them is known first, and nothing is encoded twice.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .placeholders import Parts, Placeholder, Render, RenderContext, json_text, parse
from .values import CompiledTemplate, compile_renderer, placeholders_of

__all__ = ["BoundMessage", "MessageTemplate", "compile_message"]

Pieces = list["str | Gap"]
Finish = Callable[[str], "str | bytes"]

_OBJECT_BEGINS = re.compile(r'\s*(?:\[\s*)*\{\s*(?:"|\Z)')
_BINARY_KEYS = {"type", "data", "encoding"}


class Gap:
    """A place in a message that every call fills with text of its own.

    Attributes:
        fill: Gives the text.
        is_late: Whether it takes a connection to know the text.
        is_mixed: Whether there is something of the call in it nevertheless.
    """

    __slots__ = ("fill", "is_late", "is_mixed")

    def __init__(self, fill: Callable[[RenderContext], str], holes: Iterable[Placeholder]) -> None:
        late = {hole.kind in ("call_id", "captured.") for hole in holes}
        self.fill = fill
        self.is_late = True in late
        self.is_mixed = len(late) == 2


class MessageTemplate(CompiledTemplate):
    """A message with holes."""

    __slots__ = ("_finish", "_gaps", "_static", "_text")

    def __init__(
        self, source: Any, where: str, holes: Iterable[Placeholder], pieces: Pieces, finish: Finish | None = None
    ) -> None:
        super().__init__(source, where, holes)
        self._text = "".join(piece.replace("%", "%%") if isinstance(piece, str) else "%s" for piece in pieces)
        self._gaps = [piece for piece in pieces if isinstance(piece, Gap)]
        self._finish = finish
        self._static: str | bytes | None = None
        if not self._gaps:
            self._static = self.encode(RenderContext({}, ""))

    def encode(self, values: RenderContext) -> str | bytes:
        """The message to send: a str goes as a text frame, bytes as a binary one.

        Raises:
            ValueError: A value cannot be encoded.
        """
        if self._static is not None:
            return self._static
        text = self._text % tuple([gap.fill(values) for gap in self._gaps])
        return text if self._finish is None else self._finish(text)

    def bind(self, values: RenderContext) -> BoundMessage:
        """The message with everything put in that can be known without a connection.

        Raises:
            ValueError: An argument cannot be encoded.
        """
        if self._finish is not None or any(gap.is_mixed for gap in self._gaps):
            self.encode(values.dry_run())
        given: Pieces = [gap if gap.is_late else gap.fill(values) for gap in self._gaps]
        return BoundMessage(self._text, given, self._finish)


class BoundMessage:
    """A message that lacks what only its connection knows."""

    __slots__ = ("_finish", "_given", "_text")

    def __init__(self, text: str, given: Pieces, finish: Finish | None) -> None:
        self._text = text
        self._given = given
        self._finish = finish

    def encode(self, values: RenderContext) -> str | bytes:
        """As `MessageTemplate.encode`, for the values that it was bound to, now on a connection."""
        text = self._text % tuple([given if isinstance(given, str) else given.fill(values) for given in self._given])
        return text if self._finish is None else self._finish(text)


def compile_message(value: Any, where: str, *, arguments: bool = True) -> MessageTemplate:
    """Compile a message: a string, an object or list that is sent as JSON, or the form of a binary one.

    Raises:
        ValueError: As for `compile_template`, or static binary data is not what its encoding says.
    """
    if isinstance(value, dict) and value.get("type") == "binary" and "data" in value and value.keys() <= _BINARY_KEYS:
        return _compile_binary(value, where, arguments)
    if isinstance(value, str):
        return _compile_text(value, where, arguments)
    if not isinstance(value, (dict, list)):
        raise ValueError(f"{where}: must be a string, an object or a list")
    holes: list[Placeholder] = []
    pieces = _json_pieces(value, where, arguments, holes)
    return MessageTemplate(value, where, holes, pieces)


def _json_pieces(value: Any, where: str, arguments: bool, holes: list[Placeholder]) -> Pieces:
    """JSON text and its gaps."""
    if isinstance(value, dict):
        pieces: Pieces = ["{"]
        for index, (key, item) in enumerate(value.items()):
            pieces.append(f"{', ' if index else ''}{json.dumps(key)}: ")
            pieces += _json_pieces(item, f"{where}.{key}", arguments, holes)
        return [*pieces, "}"]
    if isinstance(value, list):
        pieces = ["["]
        for index, item in enumerate(value):
            pieces.append(", " if index else "")
            pieces += _json_pieces(item, f"{where}[{index}]", arguments, holes)
        return [*pieces, "]"]
    if isinstance(value, str):
        found: list[Placeholder] = []
        render = compile_renderer(value, where, arguments, found)
        holes += found
        if found:
            return [Gap(_as_json(render), found)]
    return [json_text(value)]


def _as_json(render: Render) -> Callable[[RenderContext], str]:
    return lambda values: json_text(render(values))


def _compile_text(text: str, where: str, arguments: bool) -> MessageTemplate:
    parts = parse(text, where, arguments=arguments)
    holes = placeholders_of(parts)

    def finish(text: str) -> str:
        return _unicode(text, where)

    begins_with_text = bool(parts) and isinstance(parts[0], str) and bool(parts[0].strip())
    is_json = bool(holes) and begins_with_text and text.lstrip()[:1] in ("{", "[")
    return MessageTemplate(text, where, holes, _escaped_pieces(parts) if is_json else _text_pieces(parts), finish)


def _unicode(text: str, where: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            pass
        else:
            return text
        raise ValueError(f"{where}: holds a lone surrogate, which UTF-8 has not")
    return text


def _text_pieces(parts: Parts) -> Pieces:
    return [part if isinstance(part, str) else Gap(part.text, [part]) for part in parts]


def _escaped_pieces(parts: Parts) -> Pieces:
    """A string that is JSON: an argument stays inside the literal, or is the value, where its placeholder stands."""
    pieces: Pieces = []
    outside: list[tuple[int, Placeholder]] = []
    sample = ""
    inside = False
    for part in parts:
        if isinstance(part, str):
            inside = _ends_inside_literal(part, inside)
            sample += part
            pieces.append(part)
        elif inside:
            pieces.append(_inside_literal(part))
        else:
            outside.append((len(pieces), part))
            sample += "" if sample[-1].isdigit() else "0"
            pieces.append(Gap(part.text, [part]))
    if _is_json(sample) or _OBJECT_BEGINS.match(str(parts[0])):
        for position, hole in outside:
            pieces[position] = Gap(hole.text if hole.encoder == "json" else _as_json(hole.value), [hole])
    return pieces


def _inside_literal(hole: Placeholder) -> Gap:
    return Gap(lambda values: json_text(hole.text(values))[1:-1], [hole])


def _ends_inside_literal(text: str, inside: bool) -> bool:
    escaped = False
    for character in text:
        if escaped:
            escaped = False
        elif character == "\\" and inside:
            escaped = True
        elif character == '"':
            inside = not inside
    return inside


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _compile_binary(value: Mapping[str, Any], where: str, arguments: bool) -> MessageTemplate:
    encoding = value.get("encoding", "base64")
    decode = _DECODERS.get(encoding) if isinstance(encoding, str) else None
    if decode is None:
        raise ValueError(f"{where}.encoding: must be one of {', '.join(_DECODERS)}")
    if not isinstance(value["data"], str):
        raise ValueError(f"{where}.data: must be a string")

    def finish(text: str) -> bytes:
        try:
            return decode(text)
        except ValueError:
            pass
        raise ValueError(f"{where}.data: is no valid {encoding}")

    parts = parse(value["data"], f"{where}.data", arguments=arguments)
    return MessageTemplate(value, where, placeholders_of(parts), _text_pieces(parts), finish)


_DECODERS: dict[str, Callable[[str], bytes]] = {
    "base64": lambda text: base64.b64decode(text, validate=True),
    "hex": bytes.fromhex,
    "utf-8": str.encode,
}
