"""Templates for messages and single values, compiled once and filled per call.

What is sent most is JSON with a few holes. It is compiled into the JSON text around the holes, so that filling it is
one `json.dumps` per hole and one `join`.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from .placeholders import Hole, Parts, Values, json_text, parse, text_of

__all__ = [
    "Compiled",
    "MessageTemplate",
    "Template",
    "Values",
    "compile_message",
    "compile_template",
    "declare_inputs",
    "encode_arguments",
    "filled",
    "holes_of",
    "is_alone",
    "render_number",
]

Render = Callable[[Values], Any]
_OBJECT_BEGINS = re.compile(r'\s*(?:\[\s*)*\{\s*(?:"|\Z)')
_BINARY_KEYS = {"type", "data", "encoding"}


class Compiled:
    """What is known of any compiled template.

    Attributes:
        where: Its place in the call template, for errors.
        arguments: The arguments it cannot do without.
        dollar_names: The names it has as ``${name}``: arguments if there are such, otherwise left as they are.
        captures: The captured values it names.
        uses_call_id: Whether it depends on the number of its message.
        is_static: Whether it is the same for every call.
    """

    __slots__ = ("arguments", "captures", "dollar_names", "is_static", "source", "uses_call_id", "where")

    def __init__(self, source: Any, where: str, holes: Iterable[Hole]) -> None:
        holes = list(holes)
        self.source = source
        self.where = where
        self.arguments = frozenset(hole.name for hole in holes if hole.kind == "args.")
        self.dollar_names = frozenset(hole.name for hole in holes if hole.kind == "$")
        self.captures = frozenset(hole.name for hole in holes if hole.kind == "captured.")
        self.uses_call_id = any(hole.kind == "call_id" for hole in holes)
        self.is_static = not holes

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.where}>"


class Template(Compiled):
    """A JSON value with holes."""

    __slots__ = ("_render",)

    def __init__(self, source: Any, where: str, holes: Iterable[Hole], render: Render) -> None:
        super().__init__(source, where, holes)
        self._render = render

    def render(self, values: Values) -> Any:
        """The value with its holes filled; a placeholder alone in a string keeps the type of what it stands for."""
        return self._render(values)


class MessageTemplate(Compiled):
    """A message with holes."""

    __slots__ = ("_encode",)

    def __init__(self, source: Any, where: str, holes: Iterable[Hole], encode: Callable[[Values], str | bytes]) -> None:
        super().__init__(source, where, holes)
        self._encode = encode

    def encode(self, values: Values) -> str | bytes:
        """The message to send: a str goes as a text frame, bytes as a binary one.

        Raises:
            ValueError: A value cannot be encoded.
        """
        return self._encode(values)


def compile_template(value: Any, where: str, *, arguments: bool = True) -> Template:
    """Compile a JSON value.

    Args:
        where: Its place in the call template, for errors.
        arguments: Whether it may name arguments.

    Raises:
        ValueError: It has a placeholder that cannot be.
    """
    holes: list[Hole] = []
    render = _renderer(value, where, arguments, holes)
    return Template(value, where, holes, render)


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
    holes: list[Hole] = []
    pieces = _merged(_json_pieces(value, where, arguments, holes))
    return MessageTemplate(value, where, holes, _joiner(pieces))


def encode_arguments(arguments: Mapping[str, Any], *, without: Collection[str]) -> str:
    """The arguments as one JSON object, for a request that has no template."""
    if without:
        arguments = {name: value for name, value in arguments.items() if name not in without}
    return json_text(arguments if isinstance(arguments, dict) else dict(arguments))


def render_number(template: Template, values: Values) -> float:
    """A template that has to give a positive number, or a string of one.

    Raises:
        ValueError: It gives something else.
    """
    value = template.render(values)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{template.where}: must come out as a positive number")
    return number


def declare_inputs(value: Any, names: Collection[str]) -> Any:
    """A copy of a JSON value in whose strings ``${name}``, for the given names, is ``{{args.name}}``."""
    if isinstance(value, str):
        return re.sub(
            r"\$\{([a-zA-Z0-9_]+)\}",
            lambda match: f"{{{{args.{match[1]}}}}}" if match[1] in names else match[0],
            value,
        )
    if isinstance(value, dict):
        return {key: declare_inputs(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [declare_inputs(item, names) for item in value]
    return value


def filled(parts: Parts, values: Values) -> str:
    """A string with its holes filled as text."""
    return "".join(part if isinstance(part, str) else part.text(values) for part in parts)


def is_alone(parts: Parts) -> bool:
    """Whether a string is one placeholder that keeps its type."""
    return len(parts) == 1 and isinstance(parts[0], Hole) and parts[0].typed


def holes_of(parts: Iterable[str | Hole]) -> list[Hole]:
    """The placeholders of a string."""
    return [part for part in parts if isinstance(part, Hole)]


def _renderer(value: Any, where: str, arguments: bool, holes: list[Hole]) -> Render:
    if isinstance(value, str):
        parts = parse(value, where, arguments=arguments)
        found = holes_of(parts)
        holes += found
        if not found:
            return lambda values: value
        if is_alone(parts):
            return found[0].value
        return lambda values: filled(parts, values)
    if isinstance(value, dict):
        members = {key: _renderer(item, f"{where}.{key}", arguments, holes) for key, item in value.items()}
        return lambda values: {key: render(values) for key, render in members.items()}
    if isinstance(value, list):
        items = [_renderer(item, f"{where}[{index}]", arguments, holes) for index, item in enumerate(value)]
        return lambda values: [render(values) for render in items]
    return lambda values: value


def _json_pieces(value: Any, where: str, arguments: bool, holes: list[Hole]) -> list[str | Render]:
    """JSON text and, for what has holes, functions that give JSON text."""
    if isinstance(value, dict):
        pieces: list[str | Render] = ["{"]
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
        found: list[Hole] = []
        render = _renderer(value, where, arguments, found)
        holes += found
        if found:
            return [lambda values: json_text(render(values))]
    return [json_text(value)]


def _merged(pieces: Iterable[str | Render]) -> list[str | Render]:
    merged: list[str | Render] = []
    for piece in pieces:
        if isinstance(piece, str) and merged and isinstance(merged[-1], str):
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def _joiner(pieces: list[str | Render]) -> Callable[[Values], str]:
    if len(pieces) == 1 and isinstance(pieces[0], str):
        static = pieces[0]
        return lambda values: static
    return lambda values: "".join([piece if isinstance(piece, str) else piece(values) for piece in pieces])


def _compile_text(text: str, where: str, arguments: bool) -> MessageTemplate:
    parts = parse(text, where, arguments=arguments)
    holes = holes_of(parts)
    start = text.lstrip()[:1]
    begins_with_text = bool(parts) and isinstance(parts[0], str) and bool(parts[0].strip())
    if holes and start in ("{", "[") and begins_with_text:
        pieces = _escaped_pieces(parts)
    else:
        pieces = [_text_piece(part) for part in parts] or [""]
    join = _joiner(pieces)

    def encode(values: Values) -> str:
        return _unicode(join(values), where)

    if not holes:
        _unicode(text, where)
    return MessageTemplate(text, where, holes, encode if holes else join)


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


def _text_piece(part: str | Hole) -> str | Render:
    return part if isinstance(part, str) else part.text


def _escaped_pieces(parts: Parts) -> list[str | Render]:
    """A string that is JSON: an argument stays inside the literal, or is the value, where its placeholder stands."""
    pieces: list[str | Render] = []
    outside: list[tuple[int, Hole]] = []
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
            pieces.append(part.text)
    if _is_json(sample) or _OBJECT_BEGINS.match(str(parts[0])):
        for position, hole in outside:
            pieces[position] = _as_json_value(hole)
    return pieces


def _inside_literal(hole: Hole) -> Render:
    return lambda values: json_text(hole.text(values))[1:-1]


def _as_json_value(hole: Hole) -> Render:
    if hole.encoder == "json":
        return hole.text
    return lambda values: json_text(hole.value(values))


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
    holes: list[Hole] = []
    render = _renderer(value["data"], f"{where}.data", arguments, holes)

    def encode(values: Values) -> bytes:
        text = text_of(render(values))
        try:
            return decode(text)
        except ValueError:
            pass
        raise ValueError(f"{where}.data: is no valid {encoding}")

    if not holes:
        static = encode(Values({}, ""))
        return MessageTemplate(value, where, (), lambda values: static)
    return MessageTemplate(value, where, holes, encode)


_DECODERS: dict[str, Callable[[str], bytes]] = {
    "base64": lambda text: base64.b64decode(text, validate=True),
    "hex": bytes.fromhex,
    "utf-8": str.encode,
}
