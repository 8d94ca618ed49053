"""Placeholders: what in a template's strings stands for something else, and what for.

A string is scanned once, when it is compiled, into literal text and placeholders (`parse`). Rendering never scans what
is put in, so an argument, a variable or a captured value that looks like a placeholder stays what it is. A
placeholder is compiled into a function of a `RenderContext`: where its value comes from, then its encoders.

Which placeholders a string may hold depends on its place: its `Scope`. What is written almost like a placeholder is
a mistake of the author, and so an error; other text in braces is text.

Values arrive at different times. Arguments are there before anything is opened; the time of a step, a message number, a
captured value, the message at hand or an item only later (`Placeholder.is_late`). `RenderContext` is immutable: each
step, each filter and each reply gets one of its own, made from another by `replace` (the same instant) or `for_step` (a
later one). What must be the same in several contexts, the call's UUID and the instant, is kept in cells that they
share, filled when first asked for.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from ..errors import MissingArgumentError
from .encoders import ABSENT, compile_encoder, iso_time, text_of
from .received import ResponseError
from .spelling import is_one_edit_away

if TYPE_CHECKING:
    from .received import Message

__all__ = [
    "CALL",
    "DISCOVERY",
    "LATE",
    "MISSING",
    "MissingCaptureError",
    "Parts",
    "Placeholder",
    "Render",
    "RenderContext",
    "Scope",
    "parse",
    "reach",
]

Parts = tuple["str | Placeholder", ...]
Render = Callable[["RenderContext"], Any]


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""The value where there is none."""

_NO_VARIABLES: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Scope:
    """The placeholders that a template may have, by its place in the call template.

    Attributes:
        arguments: Placeholders of a call's arguments; discovery has none.
        message: ``{{message…}}``, the message that is handled.
        item: ``{{item…}}``, one of a list.
        gap: ``{{gap}}``, how long a stream was without a connection.
        variables: The values of ``$name`` and ``${name}``, where the client has resolved them. They are put in like
            arguments: as values, never scanned again.
    """

    arguments: bool = True
    message: bool = False
    item: bool = False
    gap: bool = False
    variables: Mapping[str, str] = field(default_factory=lambda: _NO_VARIABLES)

    def with_message(self) -> Scope:
        """The same place, where there is a message at hand."""
        return Scope(self.arguments, True, self.item, self.gap, self.variables)

    def with_item(self) -> Scope:
        """The same place, for each item of a list."""
        return Scope(self.arguments, self.message, True, self.gap, self.variables)

    def with_gap(self) -> Scope:
        """The same place, where a gap in a stream is spoken of."""
        return Scope(self.arguments, self.message, self.item, True, self.variables)


CALL: Final = Scope()
DISCOVERY: Final = Scope(arguments=False)


class MissingCaptureError(ValueError):
    """A captured value that was not captured (yet).

    Attributes:
        name: The placeholder's name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{{{{captured.{name}}}}} has no value: nothing was captured as {name!r} on this connection")
        self.name = name


class RenderContext:
    """The values of placeholders in one step, one filter or one message. Immutable.

    Attributes:
        args: The call's arguments.
        tool_name: The tool's name without its manual's.
        call_id: The number of this message on its connection.
        captured: Values that steps have captured or computed.
        message: The message at hand.
        item: One of the items of a list.
        gap: Seconds that a stream was without a connection.
    """

    # Of most contexts; `replace` gives one its own.
    message: Final[Message | None] = None
    item: Final[Any] = MISSING
    gap: Final[float | None] = None

    def __init__(
        self,
        args: Mapping[str, Any],
        tool_name: str,
        *,
        call_id: int = 0,
        captured: Mapping[str, Any] | None = None,
        next_step_id: Callable[[], int] | None = None,
    ) -> None:
        self.args: Final = args
        self.tool_name: Final = tool_name
        self.call_id: Final = call_id
        self.captured: Final[Mapping[str, Any]] = {} if captured is None else captured
        # Cells, each with what is known so far: the call's UUID and memo; the step's instant and number.
        self._call: Final[list[Any]] = [None, None]
        self._step: Final[list[Any]] = [None, next_step_id]

    @property
    def uuid(self) -> str:
        """One UUID4 per call, made when it is first asked for."""
        cell = self._call
        if cell[0] is None:
            cell[0] = str(uuid.uuid4())
        return cell[0]  # type: ignore[no-any-return]  # a cell has several types

    @property
    def memo(self) -> dict[object, Any]:
        """Results computed from this call's values that are needed again, such as compiled patterns, by their owner.

        It ends with the call: no cache of the process may hold what belongs to a call.
        """
        cell = self._call
        if cell[1] is None:
            cell[1] = {}
        return cell[1]  # type: ignore[no-any-return]  # a cell has several types

    @property
    def time(self) -> datetime:
        """The instant of this context, in UTC; taken when it is first asked for."""
        cell = self._step
        if cell[0] is None:
            cell[0] = datetime.now(UTC)
        return cell[0]  # type: ignore[no-any-return]  # a cell has several types

    @property
    def now(self) -> str:
        """The instant of this context as ISO 8601."""
        return iso_time(self.time)

    @property
    def step_id(self) -> int:
        """A number of this step's own, taken from its connection when it is first asked for."""
        cell = self._step
        known = cell[1]
        if not isinstance(known, int):
            known = cell[1] = 0 if known is None else int(known())
        return known

    def replace(
        self,
        *,
        args: Any = MISSING,
        call_id: Any = MISSING,
        captured: Any = MISSING,
        message: Any = MISSING,
        item: Any = MISSING,
        gap: Any = MISSING,
    ) -> RenderContext:
        """The same instant and step, with other values for what is given."""
        context: Any = RenderContext.__new__(RenderContext)
        context.args = self.args if args is MISSING else args
        context.tool_name = self.tool_name
        context.call_id = self.call_id if call_id is MISSING else call_id
        context.captured = self.captured if captured is MISSING else captured
        context.message = self.message if message is MISSING else message
        context.item = self.item if item is MISSING else item
        context.gap = self.gap if gap is MISSING else gap
        context._call = self._call
        context._step = self._step
        return context  # type: ignore[no-any-return]  # Any, so that its slots can be set

    def for_step(
        self, call_id: int, next_step_id: Callable[[], int] | None = None, captured: Any = MISSING
    ) -> RenderContext:
        """The same call in another step: with another message number, an instant and a step number of its own.

        Args:
            next_step_id: Function that is called once, and only if the step uses ``{{step_id}}``.
        """
        # Not by way of `replace`: each call comes here, and that looks at everything that might be replaced.
        context: Any = RenderContext.__new__(RenderContext)
        context.args = self.args
        context.tool_name = self.tool_name
        context.call_id = call_id
        context.captured = self.captured if captured is MISSING else captured
        context.message = self.message
        context.item = self.item
        context.gap = self.gap
        context._call = self._call
        context._step = [None, next_step_id]
        return context  # type: ignore[no-any-return]  # Any, so that its slots can be set

    def for_handshake(self, captured: Mapping[str, Any]) -> RenderContext:
        """The same arguments in the moments of a connection, which have a UUID of their own for each handshake."""
        context: Any = self.for_step(0, captured=captured)
        context._call = [None, None]
        return context  # type: ignore[no-any-return]  # Any, so that its slots can be set


def reach(value: Any, path: Iterable[str | int]) -> Any:
    """The value at a path of keys and indices, or `MISSING`. A string of digits is an index where there is a list."""
    for step in path:
        if isinstance(value, dict):
            value = value.get(step, MISSING)
        elif isinstance(value, list):
            index = step if isinstance(step, int) else _index(step)
            value = value[index] if 0 <= index < len(value) else MISSING
        else:
            return MISSING
        if value is MISSING:
            break
    return value


def _index(digits: str) -> int:
    # Longer ones are out of range anyway; int() refuses those of thousands of digits.
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 19 else -1


_PLACEHOLDER = re.compile(
    r"UTCP_ARG_(?P<classic>\S+?)_UTCP_ARG"
    # The name ends at a brace or a pipe; an encoder may hold a brace (in a date's format), but not two.
    r"|\{\{(?P<name>[^{}|]*)(?P<pipes>(?:\|(?:(?!\}\}|\{\{|\|).)*)*)\}\}"
    r"|\$(?:\{(?P<braced>[a-zA-Z0-9_]+)\}|(?P<bare>[a-zA-Z0-9_]+))",
    re.DOTALL,
)
_NAME = re.compile(r"(?P<kind>args|captured|message|item)\.(?P<path>[^\s{}|]+)")
_NOW = re.compile(r"now\s*(?P<shift>[+-]\s*\d{1,9}(?:\.\d{1,6})?)?")
_OWN_PATHS = ("args", "captured", "message", "item")
_PATHLESS = ("args", "uuid", "call_id", "step_id", "now", "tool_name", "item", "message", "gap", "dollar")
LATE = frozenset({"captured.", "call_id", "step_id", "now", "message.", "message", "item.", "item", "gap"})
"""The kinds of placeholders whose values are not known before there is a connection, or a message or item at hand; and
the time, which is that of the step."""


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One placeholder.

    Attributes:
        kind: Kind of the value: an argument (``args.``), a captured value (``captured.``), a part of a message
            (``message.``) or item (``item.``), a name that may be an argument or a variable (``$``), a known value
            (``constant``), or one of the others by its name.
        name: Part after the dot.
        encoders: Encoders that it is piped through, as written.
        is_optional: True if it stands for nothing (`ABSENT`) where its value is missing or null.
        is_typed: True if it keeps its JSON type where it stands alone.
        source: The placeholder as it was written.
        value: Function for its value, of its JSON type. Raises `MissingArgumentError` where there is no such argument,
            `MissingCaptureError` where nothing was captured, `ValueError` where an encoder cannot take the value.
    """

    kind: str
    name: str
    encoders: tuple[str, ...]
    is_optional: bool
    is_typed: bool
    source: str
    value: Render = field(compare=False, repr=False)

    @property
    def root(self) -> str:
        """The argument or capture that it needs: the name up to its first dot, which may be the whole."""
        return self.name.partition(".")[0]

    @property
    def is_late(self) -> bool:
        """True if its value is not known before there is a connection, or is the time of its step."""
        return self.kind in LATE

    @property
    def is_constant(self) -> bool:
        """True if its value is known now."""
        return self.kind == "constant"

    def text(self, context: RenderContext) -> str:
        """The value as part of a longer text."""
        return text_of(self.value(context))


def parse(text: str, where: str, scope: Scope = CALL) -> Parts:
    """Split a template string into text and placeholders.

    Args:
        where: The string's place in the call template, for errors.

    Raises:
        ValueError: The text has a placeholder that does not exist or cannot stand here.
    """
    if "{{" not in text and "$" not in text and "UTCP_ARG_" not in text:
        return (text,) if text else ()
    parts: list[str | Placeholder] = []
    written = position = 0
    while (match := _PLACEHOLDER.search(text, position)) is not None:
        placeholder = _placeholder(match, where, scope)
        if placeholder is None:
            # Ordinary text; inside of it there may be a placeholder all the same.
            position = match.start() + 1
            continue
        if match.start() > written:
            parts.append(text[written : match.start()])
        parts.append(placeholder)
        written = position = match.end()
    if written < len(text):
        parts.append(text[written:])
    return tuple(parts)


def _placeholder(match: re.Match[str], where: str, scope: Scope) -> Placeholder | None:
    """The placeholder that was found, or None if it is ordinary text."""
    source = match[0]
    variable = match["braced"] or match["bare"]
    if match["classic"] is not None:
        _check_place("args.", source, where, scope)
        name = match["classic"]
        return Placeholder("args.", name, (), False, False, source, _named("args", name, optional=False))
    if variable is not None:
        if variable in scope.variables:
            text = scope.variables[variable]
            return Placeholder("constant", variable, (), False, True, source, lambda context: text)
        if match["bare"] is not None:
            return None
        return Placeholder("$", variable, (), False, True, source, _argument_if_given(variable, source))
    found = _kind(match["name"].strip(), where, source)
    if found is None:
        return None
    kind, name, is_optional, value = found
    _check_place(kind, source, where, scope)
    encoders = tuple(_stripped(pipe) for pipe in match["pipes"].split("|")[1:])
    for index, encoder in enumerate(encoders):
        try:
            encode = compile_encoder(encoder, of_time=kind == "now" and index == 0)
        except ValueError as error:
            reason = str(error)
        else:
            value = _encoded(value, encode)
            continue
        raise ValueError(f"{where}: {source}: {reason}")
    if kind == "now" and not encoders:
        value = _encoded(value, iso_time)
    return Placeholder(kind, name, encoders, is_optional, True, source, value)


def _stripped(pipe: str) -> str:
    # The white space in a date's format is the format's.
    return pipe.lstrip() if pipe.lstrip().startswith("date:") else pipe.strip()


def _kind(text: str, where: str, source: str) -> tuple[str, str, bool, Render] | None:
    """Parse the part between the braces and before the encoders: kind, name, is it optional, and its value."""
    named = _NAME.fullmatch(text)
    if named is not None:
        kind, path = named["kind"], named["path"]
        is_optional = path.endswith("?") and len(path) > 1
        path = path.removesuffix("?") if is_optional else path
        if kind in ("args", "captured"):
            return f"{kind}.", path, is_optional, _named(kind, path, optional=is_optional)
        return f"{kind}.", path, is_optional, _part_of(kind, path, optional=is_optional)
    now = _NOW.fullmatch(text)
    if now is not None:
        return "now", "", False, _time(now["shift"])
    if text == "dollar":
        return "constant", "", False, lambda context: "$"
    if text in _PATHLESS:
        return text, "", False, _WHOLE.get(text) or attrgetter(text)
    head, dot, _ = text.partition(".")
    near = [name for name in _PATHLESS if is_one_edit_away(text, name)]
    if dot:
        near += [f"{name}.…" for name in _OWN_PATHS if is_one_edit_away(head, name)]
    if near:
        raise ValueError(f"{where}: {source} does not exist; did you mean {{{{{near[0]}}}}}?")
    return None


def _check_place(kind: str, source: str, where: str, scope: Scope) -> None:
    what = kind.rstrip(".")
    if what == "args" and not scope.arguments:
        raise ValueError(f"{where}: {source} cannot be used here: discovery is not a call and has no arguments")
    if what == "message" and not scope.message:
        raise ValueError(f"{where}: {source} cannot be used here, only in on_message (not in match) and on_response")
    if what == "item" and not scope.item:
        raise ValueError(f"{where}: {source} cannot be used here, only in the message of send_each and the as of $each")
    if what == "gap" and not scope.gap:
        raise ValueError(f"{where}: {source} cannot be used here, only in gap_item of resume")


def _encoded(value: Render, encode: Callable[[Any], Any]) -> Render:
    def encoded(context: RenderContext) -> Any:
        plain = value(context)
        return plain if plain is ABSENT else encode(plain)

    return encoded


def _named(kind: str, name: str, *, optional: bool) -> Render:
    """An argument or a captured value: the one of this name, otherwise what its name reaches into."""
    source = attrgetter(kind)
    missing: Callable[[str], ValueError] = _missing_argument if kind == "args" else MissingCaptureError
    root, _, rest = name.partition(".")
    path = rest.split(".") if rest else []

    def value(context: RenderContext) -> Any:
        values = source(context)
        try:
            return values[name]
        except KeyError:
            pass
        found = reach(values[root], path) if path and root in values else MISSING
        if found is not MISSING:
            return found
        raise missing(name)

    def value_if_there(context: RenderContext) -> Any:
        values = source(context)
        found = values.get(name, MISSING)
        if found is MISSING and path and root in values:
            found = reach(values[root], path)
        return ABSENT if found is MISSING or found is None else found

    return value_if_there if optional else value


def _missing_argument(name: str) -> ValueError:
    return MissingArgumentError([name])


def _argument_if_given(name: str, source: str) -> Render:
    return lambda context: context.args.get(name, source)


def _content(context: RenderContext) -> Any:
    if context.message is None:
        raise ValueError("there is no message here")
    return context.message.content()


def _item(context: RenderContext) -> Any:
    if context.item is MISSING:
        raise ValueError("there is no item here")
    return context.item


_WHOLE: Mapping[str, Render] = {
    "args": lambda context: dict(context.args),
    "message": _content,
    "item": _item,
}


def _part_of(kind: str, name: str, *, optional: bool) -> Render:
    path = name.split(".")

    def whole(context: RenderContext) -> Any:
        if kind == "item":
            return _item(context)
        if context.message is None:
            raise ValueError("there is no message here")
        try:
            return context.message.json()
        except ResponseError:
            return MISSING

    def value(context: RenderContext) -> Any:
        found = reach(whole(context), path)
        if optional and (found is MISSING or found is None):
            return ABSENT
        if found is MISSING:
            raise ValueError(f"{{{{{kind}.{name}}}}} has no value: the {kind} has nothing there")
        return found

    return value


def _time(shift: str | None) -> Render:
    if shift is None:
        return attrgetter("time")
    delta = timedelta(seconds=float("".join(shift.split())))

    def shifted(context: RenderContext) -> datetime:
        try:
            return context.time + delta
        except OverflowError:
            pass
        raise ValueError("{{now}} is shifted beyond the calendar")

    return shifted
