"""Extractions say which part of a message is meant. They are compiled once and are pure.

An extraction is a row of operations, each applied to what the one before gave. Within one object they stand in a fixed
order: behind a prefix (`after`), a part (`path`, `select` or `regex`), a `slice` of it, `as` text, read as `json`;
last, a `default` in place of what is not there. A list is a row of such objects. Where an operation needs JSON and has
text or bytes, it reads them as it would a message.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .encoders import ABSENT, is_bytes, text_of
from .patterns import PatternTemplate
from .placeholders import CALL, MISSING, Parts, Placeholder, RenderContext, Scope, parse, reach
from .received import Message, ResponseError
from .spelling import shown_name, unknown_name
from .values import CompiledTemplate, Template, compile_template, placeholders_of, render_text

__all__ = ["Extraction", "compile_extraction"]

Operation = Callable[[Any, RenderContext], Any]

_KEYS = ("path", "select", "regex", "after", "slice", "as", "json", "default")
_PARTS = ("path", "select", "regex")
_MAX_KEYS = 12
_SLICE_LENGTH = 2


class _NothingThereError(ResponseError):
    """The message does not contain the requested part."""


@dataclass(frozen=True, slots=True)
class _Link:
    """One object of an extraction: its operations, and what stands for a part that is not there."""

    operations: tuple[Operation, ...]
    default: Template | None


class Extraction(CompiledTemplate):
    """Selects a part of a message.

    Attributes:
        is_text: True if it gives what a regular expression found, which is text; otherwise a value with its own type.
    """

    __slots__ = ("_is_simple", "_links", "is_text")

    def __init__(
        self, source: Any, where: str, placeholders: list[Placeholder], links: list[_Link], *, is_text: bool
    ) -> None:
        super().__init__(source, where, placeholders)
        self._links = links
        self._is_simple = len(links) == 1 and links[0].default is None
        self.is_text: bool = is_text

    def extract(self, message: Message, context: RenderContext) -> Any:
        """The part of the message.

        Raises:
            ResponseError: The part is not there, or a pattern took too long; or a value that the extraction names is
                missing.
        """
        try:
            if self._is_simple:
                value: Any = message
                for operation in self._links[0].operations:
                    value = operation(value, context)
                return value
            return self._follow(message, context)
        except ValueError as error:
            reason = str(error)
        raise ResponseError(f"{self.where}: {reason}")

    def _follow(self, value: Any, context: RenderContext) -> Any:
        # What is not there stays not there, until a default is.
        missing: str | None = None
        for link in self._links:
            if missing is None:
                try:
                    for operation in link.operations:
                        value = operation(value, context)
                except _NothingThereError as error:
                    missing = str(error)
            if link.default is not None and (missing is not None or value is None):
                value, missing = link.default.render(context), None
                value = None if value is ABSENT else value
        if missing is not None:
            raise _NothingThereError(missing)
        return value


def compile_extraction(value: Any, where: str, scope: Scope = CALL) -> Extraction:
    """Compile an extraction: an object, or a list of objects.

    Raises:
        ValueError: Its form is wrong.
    """
    found: list[Placeholder] = []
    if not isinstance(value, list):
        link, is_text = _compile_object(value, where, scope, found)
        return Extraction(value, where, found, [link], is_text=is_text)
    if not value:
        raise ValueError(f"{where}: must not be an empty list")
    links = []
    is_text = False
    for index, item in enumerate(value):
        link, is_text = _compile_object(item, f"{where}[{index}]", scope, found)
        links.append(link)
    return Extraction(value, where, found, links, is_text=is_text)


def _compile_object(value: Any, where: str, scope: Scope, found: list[Placeholder]) -> tuple[_Link, bool]:
    if not isinstance(value, dict) or not value.keys() - {"default"}:
        raise ValueError(f"{where}: must be an object with one of {', '.join(_KEYS[:-1])}, or a list of such objects")
    unknown = sorted(value.keys() - set(_KEYS))
    if unknown:
        raise ValueError(f"{where}: {unknown_name(unknown[0], _KEYS, 'key')}")
    parts = [name for name in _PARTS if name in value]
    if len(parts) > 1:
        raise ValueError(f"{where}: {' and '.join(parts)} exclude each other; write a list, one after the other")
    operations: list[Operation] = []
    if "after" in value:
        operations.append(_after(value["after"], where, scope, found))
    if "path" in value or ("after" in value and not parts):
        operations.append(_path(value.get("path", ""), where, scope, found))
    elif "select" in value:
        from .selection import compile_selection  # with jmespath, which few templates need

        selection = compile_selection(value["select"], f"{where}.select", scope)
        found += placeholders_of(parse(value["select"], where, scope))
        operations.append(_select(selection.search, f"{where}.select"))
    elif "regex" in value:
        operations.append(_regex(value["regex"], where, scope, found))
    if "slice" in value:
        operations.append(_slice(value["slice"], f"{where}.slice"))
    if "as" in value:
        operations.append(_as(value["as"], f"{where}.as"))
    if "json" in value:
        if value["json"] is not True:
            raise ValueError(f"{where}.json: must be true")
        operations.append(_read_json)
    default = None
    if "default" in value:
        default = compile_template(value["default"], f"{where}.default", scope)
        found += _all_placeholders(value["default"], where, scope)
    return _Link(tuple(operations), default), "regex" in parts and not value.keys() & {"slice", "as", "json", "default"}


# What an operation is applied to: a message, or what came out of one


def _json_of(value: Any) -> Any:
    if isinstance(value, str) or is_bytes(value):
        value = Message(value if isinstance(value, str) else bytes(value))
    if not isinstance(value, Message):
        return value
    try:
        return value.json()
    except ResponseError as error:
        reason = str(error)
    raise _NothingThereError(reason)


def _text_of(value: Any) -> str:
    if is_bytes(value):
        value = Message(bytes(value))
    if not isinstance(value, Message):
        return text_of(value)
    try:
        return value.text()
    except ResponseError as error:
        reason = str(error)
    raise _NothingThereError(reason)


def _data_of(value: Any) -> Any:
    return value.data if isinstance(value, Message) else value


# Operations


def _after(value: Any, where: str, scope: Scope, found: list[Placeholder]) -> Operation:
    if not isinstance(value, str):
        raise ValueError(f"{where}.after: must be a string")
    parts = parse(value, f"{where}.after", scope)
    found += placeholders_of(parts)
    value_shown = repr(value)  # placeholders not put in

    def operation(value: Any, context: RenderContext) -> Any:
        prefix = render_text(parts, context)
        text = _text_of(value)
        if not text.startswith(prefix):
            raise _NothingThereError(f"{where}: the message does not start with {value_shown}")
        return text[len(prefix) :]

    return operation


def _path(value: Any, where: str, scope: Scope, found: list[Placeholder]) -> Operation:
    steps: list[int | Parts] = []
    if isinstance(value, str):
        # Split first, so that no value can add a step.
        parts = parse(value, f"{where}.path", scope)
        step: list[str | Placeholder] = []
        for part in parts:
            if isinstance(part, Placeholder):
                step.append(part)
                continue
            first, *others = part.split(".")
            step += [first] if first else []
            for other in others:
                steps += [tuple(step)] if step else []
                step = [other] if other else []
        steps += [tuple(step)] if step else []
    elif isinstance(value, list) and value:
        for index, one in enumerate(value):
            if isinstance(one, str):
                steps.append(parse(one, f"{where}.path[{index}]", scope))
            elif isinstance(one, int) and not isinstance(one, bool):
                steps.append(one)
            else:
                raise ValueError(f"{where}.path[{index}]: must be a key (string) or an index (integer)")
    else:
        raise ValueError(f"{where}.path: must be a path such as 'items.0.name', or a list of keys and indices")
    found += [one for step in steps if not isinstance(step, int) for one in placeholders_of(step)]
    is_static = all(isinstance(step, int) or not placeholders_of(step) for step in steps)
    static = [step if isinstance(step, int) else "".join(map(str, step)) for step in steps] if is_static else []

    def operation(value: Any, context: RenderContext) -> Any:
        path = static if is_static else [one if isinstance(one, int) else render_text(one, context) for one in steps]
        whole = _json_of(value)
        part = _reach(whole, path)
        if part is MISSING:
            raise _NothingThereError(f"{where}: {_what_is_there(whole, path)}")
        return part

    return operation


def _reach(value: Any, path: list[str | int]) -> Any:
    for step in path:
        if isinstance(step, int) and isinstance(value, list):
            # From the end, too, as in JMESPath.
            value = value[step] if -len(value) <= step < len(value) else MISSING
        else:
            value = reach(value, (step,)) if not isinstance(step, int) else reach(value, (str(step),))
        if value is MISSING:
            break
    return value


def _what_is_there(value: Any, path: list[str | int]) -> str:
    """The path that is not there, and the keys where it ends. No values."""
    for place, step in enumerate(path):
        inner = _reach(value, [step])
        if inner is MISSING:
            at = ".".join(map(str, path[:place]))
            if isinstance(value, dict):
                keys = [shown_name(key) for key in list(value)[:_MAX_KEYS]]
                more = ", …" if len(value) > _MAX_KEYS else ""
                there = f"there are the keys {', '.join(keys)}{more}" if keys else "there is an empty object"
            elif isinstance(value, list):
                there = f"there is a list of {len(value)}"
            else:
                there = f"there is {_kind(value)}"
            return f"the message has nothing at {'.'.join(map(str, path))}; {f'at {at} ' if at else ''}{there}"
        value = inner
    return f"the message has nothing at {'.'.join(map(str, path))}"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    return "text" if isinstance(value, str) else "a number"


def _select(search: Operation, where: str) -> Operation:
    def operation(value: Any, context: RenderContext) -> Any:
        found = search(_json_of(value), context)
        if found is None:
            raise _NothingThereError(f"{where}: the expression gives nothing for the message")
        return found

    return operation


def _regex(value: Any, where: str, scope: Scope, found: list[Placeholder]) -> Operation:
    if not isinstance(value, str):
        raise ValueError(f"{where}.regex: must be a string")
    parts = parse(value, f"{where}.regex", scope)
    found += placeholders_of(parts)
    pattern = PatternTemplate(parts, f"{where}.regex")
    if pattern.groups < 1:
        raise ValueError(f"{where}.regex: needs a group, in parentheses, for the part that is meant")

    def operation(value: Any, context: RenderContext) -> Any:
        match = pattern.search(_text_of(value), context)
        if match is None or match[1] is None:
            raise _NothingThereError(f"{where}: the pattern is not found in the message")
        return match[1]

    return operation


def _slice(value: Any, where: str) -> Operation:
    if (
        not isinstance(value, list)
        or len(value) != _SLICE_LENGTH
        or any(not (one is None or (isinstance(one, int) and not isinstance(one, bool))) for one in value)
    ):
        raise ValueError(f"{where}: must be a list of two positions, the first and the one behind the last, or null")
    try:
        part = slice(*value)
        b""[part]
    except OverflowError:
        pass
    else:

        def operation(value: Any, _: RenderContext) -> Any:
            data = _data_of(value)
            if not (isinstance(data, str) or is_bytes(data)):
                raise _NothingThereError(f"{where}: there is neither text nor bytes")
            return data[part]

        return operation
    raise ValueError(f"{where}: a position is too large")


def _as(value: Any, where: str) -> Operation:
    if value not in ("hex", "base64", "utf-8"):
        raise ValueError(f"{where}: must be one of hex, base64, utf-8")

    def operation(data: Any, _: RenderContext) -> Any:
        data = _data_of(data)
        if not (isinstance(data, str) or is_bytes(data)):
            raise _NothingThereError(f"{where}: there is neither text nor bytes")
        if value == "utf-8":
            return _text_of(data)
        raw = data.encode(errors="surrogatepass") if isinstance(data, str) else bytes(data)
        return raw.hex() if value == "hex" else base64.b64encode(raw).decode()

    return operation


def _read_json(value: Any, _: RenderContext) -> Any:
    return _json_of(value)


def _all_placeholders(value: Any, where: str, scope: Scope) -> list[Placeholder]:
    if isinstance(value, str):
        return placeholders_of(parse(value, where, scope))
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return [found for item in items for found in _all_placeholders(item, where, scope)]
