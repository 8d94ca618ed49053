"""Filters say which messages are meant. They are compiled once and are pure.

A filter is a tree of predicates over a JSON value in which an absent value (`MISSING`) is a value too, so that "is
there", "is not there" and "one of these, or nothing" need no rules of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from .patterns import Pattern, compile_pattern, escaped, search
from .placeholders import Parts, Placeholder, RenderContext, json_text, parse
from .received import Message, ResponseError
from .values import CompiledTemplate, Template, compile_template, is_single_placeholder, placeholders_of, render_text

__all__ = ["MISSING", "Filter", "compile_filter", "lookup"]

Path = tuple[str | int, ...]
Matches = Callable[[Message, RenderContext], bool]
ValueMatches = Callable[[Any, RenderContext], bool]


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""The value where there is none."""


class Filter(CompiledTemplate):
    """Which messages are meant.

    Attributes:
        key: The first place at which every message that matches has a value that is the call's own (`{{uuid}}` or
            `{{call_id}}`), with the template of that value; None if there is none.
    """

    __slots__ = ("_fill", "_matches", "key")

    def __init__(
        self,
        source: Any,
        where: str,
        holes: Iterable[Placeholder],
        matches: Matches,
        *,
        fill: Iterable[Callable[[RenderContext], object]],
        key: tuple[Path, Template] | None,
    ) -> None:
        super().__init__(source, where, holes)
        self._matches = matches
        self._fill = tuple(fill)
        self.key = key

    @property
    def takes_arguments(self) -> bool:
        return bool(self._fill)

    def check(self, values: RenderContext) -> None:
        """Find out whether the call's arguments can be put into the filter, before any message is there.

        Raises:
            ValueError: One cannot.
        """
        for fill in self._fill:
            fill(values)

    def matches(self, message: Message, values: RenderContext) -> bool:
        """Whether a message is meant. A message of another form than the filter's simply is not.

        Nor is any as long as a value that the filter names was not captured.

        Raises:
            ResponseError: A pattern took too long, or a captured value cannot be put into the filter.
        """
        if self.captures and not self.captures <= values.captured.keys():
            return False
        try:
            return self._matches(message, values)
        except ValueError as error:
            fault = str(error)
        raise ResponseError(fault)


def compile_filter(value: Any, where: str, *, arguments: bool = True) -> Filter:
    """Compile a filter.

    Args:
        where: Its place in the call template, for errors.
        arguments: Whether it may name arguments.

    Raises:
        ValueError: Its form is wrong; the text says where and what would be right.
    """
    compiler = _Compiler(arguments)
    matches = compiler.message_filter(value, where)
    return Filter(value, where, compiler.holes, matches, fill=compiler.fill, key=_key(value, where, ()))


def lookup(value: Any, path: Path) -> Any:
    """The value at a path of keys and indices, or `MISSING`."""
    for step in path:
        if isinstance(step, str):
            value = value.get(step, MISSING) if isinstance(value, dict) else MISSING
        else:
            value = value[step] if isinstance(value, list) and step < len(value) else MISSING
        if value is MISSING:
            break
    return value


class _Compiler:
    """Compiles one filter, and collects the placeholders in it."""

    def __init__(self, arguments: bool) -> None:
        self.holes: list[Placeholder] = []
        self.fill: list[Callable[[RenderContext], object]] = []
        self._arguments = arguments

    # A whole message

    def message_filter(self, value: Any, where: str) -> Matches:
        if isinstance(value, str):
            found_in = self._pattern(value, where)
            return lambda message, values: isinstance(message.data, str) and found_in(message.data, values)
        if isinstance(value, list):
            return _on_json(self.value_filter(value, where))
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a pattern (string), an object or a list")
        checks: list[Matches] = []
        members: dict[str, Any] = {}
        for key, item in value.items():
            operator = _MESSAGE_OPERATORS.get(key)
            if operator is not None:
                checks.append(operator(self, value, f"{where}.{key}"))
            elif key == "$json":
                if "$after" not in value:
                    raise ValueError(f"{where}: $json is what comes behind $after; give $after, a prefix, as well")
            else:
                members[key] = item
        if members or not checks:
            checks.insert(0, _on_json(self.value_filter(members, where)))
        if len(checks) == 1:
            return checks[0]
        return lambda message, values: all(check(message, values) for check in checks)

    def _any_message(self, value: Mapping[str, Any], where: str) -> Matches:
        filters = self._alternatives(value["$or"], where, self.message_filter)
        return lambda message, values: any(matches(message, values) for matches in filters)

    def _every_message(self, value: Mapping[str, Any], where: str) -> Matches:
        filters = self._alternatives(value["$and"], where, self.message_filter)
        return lambda message, values: all(matches(message, values) for matches in filters)

    def _whole_text(self, value: Mapping[str, Any], where: str) -> Matches:
        text = self._string(value["$text"], where)
        return lambda message, values: isinstance(message.data, str) and message.data == text(values)

    def _leading_bytes(self, value: Mapping[str, Any], where: str) -> Matches:
        digits = self._string(value["$hex"], where)
        if not placeholders_of(parse(value["$hex"], where)):
            static = _from_hex(value["$hex"], where)
            return lambda message, values: isinstance(message.data, bytes) and message.data.startswith(static)

        def prefix(values: RenderContext) -> bytes:
            return _from_hex(digits(values), where)

        self._fills(prefix, value["$hex"], where)
        return lambda message, values: isinstance(message.data, bytes) and message.data.startswith(prefix(values))

    def _behind_prefix(self, value: Mapping[str, Any], where: str) -> Matches:
        prefix = self._string(value["$after"], where)
        if "$json" not in value:
            return lambda message, values: isinstance(message.data, str) and message.data.startswith(prefix(values))
        behind = self.value_filter(value["$json"], where.removesuffix("$after") + "$json")

        def matches(message: Message, values: RenderContext) -> bool:
            start = prefix(values)
            if not isinstance(message.data, str) or not message.data.startswith(start):
                return False
            try:
                content = Message(message.data[len(start) :]).json()
            except ResponseError:
                return False
            return behind(content, values)

        return matches

    def _frame(self, value: Mapping[str, Any], where: str) -> Matches:
        kind = value["$frame"]
        if kind not in ("text", "binary"):
            raise ValueError(f"{where}: must be 'text' or 'binary'")
        return lambda message, values: message.is_text == (kind == "text")

    # A value inside a message

    def value_filter(self, value: Any, where: str) -> ValueMatches:
        if isinstance(value, dict):
            return self._object(value, where)
        if isinstance(value, list):
            items = [self.value_filter(item, f"{where}[{index}]") for index, item in enumerate(value)]
            return lambda found, values: (
                isinstance(found, list)
                and all(
                    matches(found[index] if index < len(found) else MISSING, values)
                    for index, matches in enumerate(items)
                )
            )
        template = compile_template(value, where, arguments=self._arguments)
        if isinstance(value, str):
            self.holes += placeholders_of(parse(value, where))
        if template.is_static:
            return lambda found, values: _equal(found, value)
        self._fills(lambda values: json_text(template.render(values)), value, where)
        return lambda found, values: found is not MISSING and _equal(found, template.render(values))

    def _object(self, value: Mapping[str, Any], where: str) -> ValueMatches:
        checks: list[ValueMatches] = []
        members: dict[str, ValueMatches] = {}
        for key, item in value.items():
            operator = _VALUE_OPERATORS.get(key)
            if operator is not None:
                checks.append(operator(self, item, f"{where}.{key}"))
            else:
                members[_member(key, where)] = self.value_filter(item, f"{where}.{key}")
        if members or not checks:
            checks.insert(0, _members_match(members))
        if len(checks) == 1:
            return checks[0]
        return lambda found, values: all(check(found, values) for check in checks)

    def _present(self, value: Any, where: str) -> ValueMatches:
        _check_true(value, where)
        return lambda found, values: found is not MISSING

    def _absent(self, value: Any, where: str) -> ValueMatches:
        _check_true(value, where)
        return lambda found, values: found is MISSING

    def _one_of(self, value: Any, where: str) -> ValueMatches:
        return self._any_value(value, where)

    def _matching(self, value: Any, where: str) -> ValueMatches:
        if not isinstance(value, str):
            raise ValueError(f"{where}: must be a pattern (string)")
        found_in = self._pattern(value, where)
        return lambda found, values: isinstance(found, str) and found_in(found, values)

    def _any_value(self, value: Any, where: str) -> ValueMatches:
        filters = self._alternatives(value, where, self.value_filter)
        return lambda found, values: any(matches(found, values) for matches in filters)

    def _every_value(self, value: Any, where: str) -> ValueMatches:
        filters = self._alternatives(value, where, self.value_filter)
        return lambda found, values: all(matches(found, values) for matches in filters)

    # What both are made of

    def _alternatives(self, value: Any, where: str, compile_: Callable[[Any, str], Any]) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"{where}: must be a list with at least one entry")
        return [compile_(item, f"{where}[{index}]") for index, item in enumerate(value)]

    def _string(self, value: Any, where: str) -> Callable[[RenderContext], str]:
        if not isinstance(value, str):
            raise ValueError(f"{where}: must be a string")
        parts = self._parse(value, where)
        if not placeholders_of(parts):
            return lambda values: value

        def text(values: RenderContext) -> str:
            return render_text(parts, values)

        self._fills(text, value, where)
        return text

    def _pattern(self, value: str, where: str) -> Callable[[str, RenderContext], bool]:
        parts = self._parse(value, where)
        if not placeholders_of(parts):
            pattern = compile_pattern(value, where)
            return lambda text, values: search(pattern, text) is not None
        compile_pattern("".join(part if isinstance(part, str) else "x" for part in parts), where)

        def pattern_of(values: RenderContext) -> Pattern:
            return compile_pattern("".join(p if isinstance(p, str) else escaped(p, values) for p in parts), where)

        self._fills(pattern_of, value, where)
        return lambda text, values: search(pattern_of(values), text) is not None

    def _fills(self, fill: Callable[[RenderContext], object], value: str, where: str) -> None:
        """Have the call's arguments tried where there are any."""
        if any(hole.kind in ("args", "args.", "$") for hole in placeholders_of(parse(value, where))):
            self.fill.append(fill)

    def _parse(self, value: str, where: str) -> Parts:
        parts = parse(value, where, arguments=self._arguments)
        self.holes += placeholders_of(parts)
        return parts


_MESSAGE_OPERATORS: dict[str, Callable[[_Compiler, Mapping[str, Any], str], Matches]] = {
    "$or": _Compiler._any_message,
    "$and": _Compiler._every_message,
    "$text": _Compiler._whole_text,
    "$hex": _Compiler._leading_bytes,
    "$after": _Compiler._behind_prefix,
    "$frame": _Compiler._frame,
}
_VALUE_OPERATORS: dict[str, Callable[[_Compiler, Any, str], ValueMatches]] = {
    "$any": _Compiler._present,
    "$absent": _Compiler._absent,
    "$in": _Compiler._one_of,
    "$regex": _Compiler._matching,
    "$or": _Compiler._any_value,
    "$and": _Compiler._every_value,
}


def _on_json(matches: ValueMatches) -> Matches:
    def on_json(message: Message, values: RenderContext) -> bool:
        try:
            content = message.json()
        except ResponseError:
            return False
        return matches(content, values)

    return on_json


def _members_match(members: Mapping[str, ValueMatches]) -> ValueMatches:
    if len(members) == 1:
        ((name, only),) = members.items()
        return lambda found, values: isinstance(found, dict) and only(found.get(name, MISSING), values)
    return lambda found, values: (
        isinstance(found, dict) and all(matches(found.get(name, MISSING), values) for name, matches in members.items())
    )


def _equal(found: Any, wanted: Any) -> bool:
    """Equality of JSON values: numbers by value, and a boolean is no number."""
    if isinstance(found, bool) or isinstance(wanted, bool):
        return found is wanted
    if isinstance(found, dict) and isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(_equal(found[key], wanted[key]) for key in wanted)
    if isinstance(found, list) and isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    return bool(found == wanted)


def _member(key: str, where: str) -> str:
    if key.startswith("$$"):
        return key[1:]
    if key.startswith("$"):
        known = ", ".join(sorted({*_MESSAGE_OPERATORS, *_VALUE_OPERATORS, "$json"}))
        raise ValueError(
            f"{where}: {key} cannot stand here; there are {known}, and '$${key[1:]}' means the key {key!r}"
        )
    return key


def _check_true(value: Any, where: str) -> None:
    if value is not True:
        raise ValueError(f"{where}: must be true")


def _from_hex(text: str, where: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        pass
    raise ValueError(f"{where}: must be bytes in hexadecimal, such as '2002'")


def _key(value: Any, where: str, path: Path) -> tuple[Path, Template] | None:
    """The first placeholder of the call's own that every matching message must have."""
    if isinstance(value, str) and path:
        parts = parse(value, where)
        hole = parts[0] if is_single_placeholder(parts) else None
        if isinstance(hole, Placeholder) and hole.kind in ("uuid", "call_id") and hole.encoder is None:
            return path, compile_template(value, where)
        return None
    members: Iterable[tuple[Path, Any]] = ()
    if isinstance(value, dict):
        members = [
            *(((*path, key), item) for key, item in value.items() if not key.startswith("$")),
            *((path, item) for item in value.get("$and") or () if not isinstance(item, str)),
        ]
    elif isinstance(value, list):
        members = [((*path, index), item) for index, item in enumerate(value)]
    for inner, item in members:
        key = _key(item, where, inner)
        if key is not None:
            return key
    return None
