"""Filters say which messages are meant. They are compiled once and are pure.

A filter is a tree of predicates. Those over a *message* look at its text, its bytes or its kind; those over a *value*
look at a part of its JSON, in which an absent value (`MISSING`) is a value too, so that "is there", "is not there" and
"one of these, or nothing" need no rules of their own. Each node of the tree knows three things: if it matches, where
the first difference is (`difference`, for errors; it shows the template's side only), and if it can only match with a
value that is the call's own (`names_the_call`). The last is a proof: where it cannot be given, the answer is no.

A value of the template that has a placeholder is rendered when a message is looked at. What can be wrong with the
call's arguments is found before (`check`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .encoders import ABSENT, json_text
from .json_values import equal_json
from .patterns import PatternTemplate
from .placeholders import CALL, MISSING, Placeholder, RenderContext, Scope, parse
from .received import Message, ResponseError
from .spelling import known_names
from .values import (
    CompiledTemplate,
    Template,
    compile_template,
    is_single_placeholder,
    is_unique,
    placeholders_of,
    render_text,
)

__all__ = ["MISSING", "Filter", "compile_filter", "lookup"]

Path = tuple[str | int, ...]
NamesTheCall = Callable[[frozenset[str]], bool]
TryOut = Callable[[RenderContext], object]

_MAX_SHOWN = 200


def _never(_: frozenset[str]) -> bool:
    return False


@dataclass(frozen=True, slots=True, eq=False)
class _Node:
    """A predicate over a message or over a value.

    Attributes:
        matches: Predicate of the message or value, and the context.
        wanted: Text of what the template has there, for errors.
        difference: Function for the place of a known difference; None: it is here, and from `wanted`.
        names_the_call: True if nothing matches without a value of the call's own, given the captures that are.
    """

    matches: Callable[[Any, RenderContext], bool]
    wanted: str
    difference: Callable[[Any, RenderContext, str], str] | None = None
    names_the_call: NamesTheCall = _never

    def differs(self, found: Any, context: RenderContext, path: str) -> str:
        if self.difference is not None:
            return self.difference(found, context, path)
        return f"{path or 'the message'} is not {self.wanted}"


class Filter(CompiledTemplate):
    """Selects messages.

    Attributes:
        key: The first place at which every message that matches has a value that is the call's own (`{{uuid}}` or
            `{{call_id}}`), with the template of that value; None if there is none.
    """

    __slots__ = ("_node", "_try_out", "key", "matches_node")

    def __init__(
        self,
        source: Any,
        where: str,
        placeholders: Iterable[Placeholder],
        node: _Node,
        *,
        try_out: Iterable[TryOut],
        key: tuple[Path, Template] | None,
    ) -> None:
        super().__init__(source, where, placeholders)
        self._node = node
        self._try_out = tuple(try_out)
        self.matches_node: Callable[[Any, RenderContext], bool] = node.matches
        self.key: tuple[Path, Template] | None = key

    @property
    def takes_arguments(self) -> bool:
        """True if an argument goes into it."""
        return bool(self._try_out)

    def check(self, context: RenderContext) -> None:
        """Find out if the call's arguments can be put into the filter, before any message is there.

        Raises:
            ValueError: A value cannot be put in.
        """
        for try_out in self._try_out:
            try_out(context)

    def matches(self, message: Message, context: RenderContext) -> bool:
        """True if the message is meant. A message of another form than the filter's simply is not.

        Raises:
            ResponseError: A pattern took too long, or a captured value is missing or cannot be put into the filter.
        """
        try:
            return self.matches_node(message, context)
        except ValueError as error:
            reason = str(error)
        raise ResponseError(f"{self.where}: {reason}")

    def difference(self, message: Message, context: RenderContext) -> str:
        """The place where a message that does not match differs, and what the template has there.

        No value of the message or of the call is in it.
        """
        try:
            return self._node.differs(message, context, "")
        except (ValueError, ResponseError):
            return f"it cannot be compared with {self._node.wanted}"

    def names_the_call(self, unique_captures: frozenset[str] = frozenset()) -> bool:
        """True if every way to match needs a value that no other call has, so that a call knows its own answers.

        Args:
            unique_captures: The names of captured values that are the call's own.
        """
        return self._node.names_the_call(unique_captures)


def compile_filter(value: Any, where: str, scope: Scope = CALL) -> Filter:
    """Compile a filter.

    Args:
        where: Its place in the call template, for errors.

    Raises:
        ValueError: Its form is wrong; the text says where and what would be right.
    """
    compiler = _Compiler(scope)
    node = compiler.message_filter(value, where)
    return Filter(
        value, where, compiler.placeholders, node, try_out=compiler.try_out, key=_key(value, where, scope, ())
    )


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

    def __init__(self, scope: Scope) -> None:
        self.placeholders: list[Placeholder] = []
        self.try_out: list[TryOut] = []
        self._scope = scope

    # A whole message

    def message_filter(self, value: Any, where: str) -> _Node:
        if isinstance(value, str):
            return self._text_matching(value, where)
        if isinstance(value, list):
            return _on_json(self.value_filter(value, where))
        if not isinstance(value, dict):
            raise ValueError(f"{where}: must be a pattern (string), an object or a list")
        nodes: list[_Node] = []
        members: dict[str, Any] = {}
        for key, item in value.items():
            if key in _MESSAGE_OPERATORS:
                nodes.append(_MESSAGE_OPERATORS[key](self, value, f"{where}.{key}"))
            elif key == "$json":
                if "$after" not in value:
                    raise ValueError(f"{where}: $json needs $after, the prefix that precedes the JSON")
            else:
                members[key] = item
        if members or not nodes:
            nodes.insert(0, _on_json(self.value_filter(members, where)))
        return _all_of(nodes)

    def _any_message(self, value: Mapping[str, Any], where: str) -> _Node:
        return _any_of(self._alternatives(value["$or"], where, self.message_filter), value["$or"])

    def _every_message(self, value: Mapping[str, Any], where: str) -> _Node:
        return _all_of(self._alternatives(value["$and"], where, self.message_filter))

    def _no_message(self, value: Mapping[str, Any], where: str) -> _Node:
        return _not(self.message_filter(value["$not"], where), value["$not"])

    def _text_matching(self, value: str, where: str) -> _Node:
        pattern = self._pattern(value, where)

        def matches(message: Message, context: RenderContext) -> bool:
            text = message.text_or_none()
            return text is not None and pattern.search(text, context) is not None

        return _Node(matches, f"text matching {_shown(value)}", names_the_call=pattern.names_the_call)

    def _regex_message(self, value: Mapping[str, Any], where: str) -> _Node:
        if not isinstance(value["$regex"], str):
            raise ValueError(f"{where}: must be a pattern (string)")
        return self._text_matching(value["$regex"], where)

    def _on_whole_json(self, value: Mapping[str, Any], where: str) -> _Node:
        operator = where.rpartition(".")[2]
        return _on_json(_VALUE_OPERATORS[operator](self, value[operator], where))

    def _whole_text(self, value: Mapping[str, Any], where: str) -> _Node:
        text, names = self._string(value["$text"], where)
        return _Node(
            lambda message, context: message.text_or_none() == text(context),
            f"the text {_shown(value['$text'])}",
            names_the_call=names,
        )

    def _leading_bytes(self, value: Mapping[str, Any], where: str) -> _Node:
        digits, names = self._string(value["$hex"], where)
        wanted = f"binary, beginning with the bytes {_shown(value['$hex'])}"
        if not placeholders_of(parse(value["$hex"], where, self._scope)):
            static = _from_hex(value["$hex"], where)
            return _Node(
                lambda message, context: isinstance(message.data, bytes) and message.data.startswith(static), wanted
            )

        def prefix(context: RenderContext) -> bytes:
            return _from_hex(digits(context), where)

        self._tries(prefix, value["$hex"], where)
        return _Node(
            lambda message, context: isinstance(message.data, bytes) and message.data.startswith(prefix(context)),
            wanted,
            names_the_call=names,
        )

    def _behind_prefix(self, value: Mapping[str, Any], where: str) -> _Node:
        prefix, names = self._string(value["$after"], where)
        wanted = f"text that begins with {_shown(value['$after'])}"

        def begins(message: Message, context: RenderContext) -> bool:
            text = message.text_or_none()
            return text is not None and text.startswith(prefix(context))

        if "$json" not in value:
            return _Node(begins, wanted, names_the_call=names)
        behind = self.value_filter(value["$json"], where.removesuffix("$after") + "$json")

        def content(message: Message, context: RenderContext) -> Any:
            return Message(message.text()[len(prefix(context)) :]).json()

        def matches(message: Message, context: RenderContext) -> bool:
            if not begins(message, context):
                return False
            try:
                found = content(message, context)
            except ResponseError:
                return False
            return behind.matches(found, context)

        def difference(message: Message, context: RenderContext, path: str) -> str:
            if not begins(message, context):
                return f"the message is not {wanted}"
            try:
                found = content(message, context)
            except ResponseError:
                return f"behind {_shown(value['$after'])} there is no JSON"
            return behind.differs(found, context, path)

        return _Node(matches, wanted, difference, lambda unique: names(unique) or behind.names_the_call(unique))

    def _frame(self, value: Mapping[str, Any], where: str) -> _Node:
        kind = value["$frame"]
        if kind not in ("text", "binary"):
            raise ValueError(f"{where}: must be 'text' or 'binary'")
        return _Node(lambda message, context: message.frame == kind, f"a {kind} message")

    # A value inside a message

    def value_filter(self, value: Any, where: str) -> _Node:
        if isinstance(value, dict):
            return self._object(value, where)
        if isinstance(value, list):
            return _leading_items([self.value_filter(item, f"{where}[{index}]") for index, item in enumerate(value)])
        return self._equal_to(value, where)

    def _equal_to(self, value: Any, where: str) -> _Node:
        template = compile_template(value, where, self._scope)
        found_in = _placeholders_in(value, where, self._scope)
        self.placeholders += found_in
        wanted = _shown(value)
        if template.is_static:
            static = template.render(RenderContext({}, ""))
            if type(static) is str:
                return _Node(lambda found, context: found == static, wanted)
            return _Node(lambda found, context: equal_json(found, static), wanted)
        if template.uses_arguments:
            self.try_out.append(_try_each(found_in, template))

        def matches(found: Any, context: RenderContext) -> bool:
            value = template.render(context)
            # An optional value that is not given asks for nothing.
            return value is ABSENT or (found is not MISSING and equal_json(found, value))

        # An optional value that is absent asks for nothing.
        return _Node(
            matches,
            wanted,
            names_the_call=lambda unique: any(is_unique(one, unique) and not one.is_optional for one in found_in),
        )

    def _object(self, value: Mapping[str, Any], where: str) -> _Node:
        nodes: list[_Node] = []
        members: dict[str, _Node] = {}
        for key, item in value.items():
            if key in _VALUE_OPERATORS:
                nodes.append(_VALUE_OPERATORS[key](self, item, f"{where}.{key}"))
            else:
                members[_member(key, where)] = self.value_filter(item, f"{where}.{key}")
        if members or not nodes:
            nodes.insert(0, _members(members))
        return _all_of(nodes)

    def _present(self, value: Any, where: str) -> _Node:
        _check_true(value, where)
        return _Node(lambda found, context: found is not MISSING, "there")

    def _absent(self, value: Any, where: str) -> _Node:
        _check_true(value, where)
        return _Node(lambda found, context: found is MISSING, "absent")

    def _exactly(self, value: Any, where: str) -> _Node:
        return self._equal_to(value, where)

    def _matching(self, value: Any, where: str) -> _Node:
        if not isinstance(value, str):
            raise ValueError(f"{where}: must be a pattern (string)")
        pattern = self._pattern(value, where)
        return _Node(
            lambda found, context: isinstance(found, str) and pattern.search(found, context) is not None,
            f"text matching {_shown(value)}",
            names_the_call=pattern.names_the_call,
        )

    def _any_value(self, value: Any, where: str) -> _Node:
        return _any_of(self._alternatives(value, where, self.value_filter), value)

    def _every_value(self, value: Any, where: str) -> _Node:
        return _all_of(self._alternatives(value, where, self.value_filter))

    def _no_value(self, value: Any, where: str) -> _Node:
        return _not(self.value_filter(value, where), value)

    def _selected(self, value: Any, where: str) -> _Node:
        from .selection import compile_selection  # with jmespath, which few templates need

        selection = compile_selection(value, where, self._scope)
        found_in = placeholders_of(parse(value, where, self._scope))
        self.placeholders += found_in
        if selection.uses_arguments:
            self.try_out.append(selection.try_out)

        def matches(found: Any, context: RenderContext) -> bool:
            result = selection.search(None if found is MISSING else found, context)
            # Truth as JMESPath has it: 0 is true.
            return not (result is None or result is False or result in ("", [], {}))

        return _Node(matches, f"such that {_shown(value)}", names_the_call=selection.names_the_call)

    # What both are made of

    def _alternatives(self, value: Any, where: str, compile_: Callable[[Any, str], _Node]) -> list[_Node]:
        if not isinstance(value, list) or not value:
            raise ValueError(f"{where}: must be a list with at least one entry")
        return [compile_(item, f"{where}[{index}]") for index, item in enumerate(value)]

    def _string(self, value: Any, where: str) -> tuple[Callable[[RenderContext], str], NamesTheCall]:
        if not isinstance(value, str):
            raise ValueError(f"{where}: must be a string")
        parts = parse(value, where, self._scope)
        found = placeholders_of(parts)
        self.placeholders += found
        if not found:
            return lambda context: value, _never

        def text(context: RenderContext) -> str:
            return render_text(parts, context)

        self._tries(text, value, where)
        return text, lambda unique: any(is_unique(one, unique) and not one.is_optional for one in found)

    def _pattern(self, value: str, where: str) -> PatternTemplate:
        parts = parse(value, where, self._scope)
        self.placeholders += placeholders_of(parts)
        pattern = PatternTemplate(parts, where)
        self._tries(pattern.pattern, value, where)
        return pattern

    def _tries(self, try_out: TryOut, value: str, where: str) -> None:
        """Try the call's arguments, if there are any, before a message arrives."""
        found = placeholders_of(parse(value, where, self._scope))
        if any(one.kind in ("args", "args.", "$") for one in found):
            if any(one.is_late for one in found):
                self.try_out += [one.text for one in found if not one.is_late]
            else:
                self.try_out.append(try_out)


_MESSAGE_OPERATORS: dict[str, Callable[[_Compiler, Mapping[str, Any], str], _Node]] = {
    "$or": _Compiler._any_message,
    "$and": _Compiler._every_message,
    "$not": _Compiler._no_message,
    "$text": _Compiler._whole_text,
    "$hex": _Compiler._leading_bytes,
    "$after": _Compiler._behind_prefix,
    "$frame": _Compiler._frame,
    "$regex": _Compiler._regex_message,
    "$in": _Compiler._on_whole_json,
    "$equals": _Compiler._on_whole_json,
    "$select": _Compiler._on_whole_json,
}
_VALUE_OPERATORS: dict[str, Callable[[_Compiler, Any, str], _Node]] = {
    "$any": _Compiler._present,
    "$absent": _Compiler._absent,
    "$in": _Compiler._any_value,
    "$regex": _Compiler._matching,
    "$equals": _Compiler._exactly,
    "$or": _Compiler._any_value,
    "$and": _Compiler._every_value,
    "$not": _Compiler._no_value,
    "$select": _Compiler._selected,
}


def _try_each(found: Iterable[Placeholder], template: Template) -> TryOut:
    if any(one.is_late for one in found):
        known = [one for one in found if not one.is_late]
        return lambda context: [one.text(context) for one in known]

    def try_out(context: RenderContext) -> None:
        value = template.render(context)
        if value is not ABSENT:
            json_text(value)

    return try_out


def _all_of(nodes: list[_Node]) -> _Node:
    if len(nodes) == 1:
        return nodes[0]
    checks = [node.matches for node in nodes]

    def difference(found: Any, context: RenderContext, path: str) -> str:
        return next(node for node in nodes if not node.matches(found, context)).differs(found, context, path)

    return _Node(
        lambda found, context: _every(checks, found, context),
        " and ".join([node.wanted for node in nodes]),
        difference,
        lambda unique: any(node.names_the_call(unique) for node in nodes),
    )


def _every(checks: list[Callable[[Any, RenderContext], bool]], found: Any, context: RenderContext) -> bool:
    for check in checks:  # noqa: SIM110 - faster than all() with a generator
        if not check(found, context):
            return False
    return True


def _any_of(nodes: list[_Node], value: Any) -> _Node:
    if len(nodes) == 1:
        return nodes[0]
    checks = [node.matches for node in nodes]
    return _Node(
        lambda found, context: any(check(found, context) for check in checks),
        f"one of {_shown(value)}",
        names_the_call=lambda unique: all(node.names_the_call(unique) for node in nodes),
    )


def _not(node: _Node, value: Any) -> _Node:
    return _Node(lambda found, context: not node.matches(found, context), f"anything except {_shown(value)}")


def _on_json(node: _Node) -> _Node:
    matches_value = node.matches

    def matches(message: Message, context: RenderContext) -> bool:
        try:
            content = message.json()
        except ResponseError:
            return False
        return matches_value(content, context)

    def difference(message: Message, context: RenderContext, path: str) -> str:
        try:
            content = message.json()
        except ResponseError:
            return "the message is not JSON"
        return node.differs(content, context, path)

    return _Node(matches, node.wanted, difference, node.names_the_call)


def _members(members: Mapping[str, _Node]) -> _Node:
    checks = [(name, node.matches) for name, node in members.items()]

    def matches(found: Any, context: RenderContext) -> bool:
        if not isinstance(found, dict):
            return False
        for name, check in checks:  # noqa: SIM110 - faster than all() with a generator
            if not check(found.get(name, MISSING), context):
                return False
        return True

    def difference(found: Any, context: RenderContext, path: str) -> str:
        if not isinstance(found, dict):
            return f"{path or 'the message'} is not an object"
        for name, node in members.items():
            value = found.get(name, MISSING)
            if not node.matches(value, context):
                inner = f"{path}.{name}" if path else name
                if value is MISSING and node.wanted != "there":
                    return f"{inner} is missing; the template has {node.wanted}"
                return node.differs(value, context, inner)
        return "it does not differ"

    return _Node(
        matches,
        "an object",
        difference,
        lambda unique: any(node.names_the_call(unique) for node in members.values()),
    )


def _leading_items(nodes: list[_Node]) -> _Node:
    checks = list(enumerate([node.matches for node in nodes]))

    def matches(found: Any, context: RenderContext) -> bool:
        if not isinstance(found, list):
            return False
        return all(check(found[index] if index < len(found) else MISSING, context) for index, check in checks)

    def difference(found: Any, context: RenderContext, path: str) -> str:
        if not isinstance(found, list):
            return f"{path or 'the message'} is not a list"
        for index, node in enumerate(nodes):
            value = found[index] if index < len(found) else MISSING
            if not node.matches(value, context):
                inner = f"{path}[{index}]"
                if value is MISSING:
                    return f"{inner} is missing; the template has {node.wanted}"
                return node.differs(value, context, inner)
        return "it does not differ"

    return _Node(matches, "a list", difference, lambda unique: any(node.names_the_call(unique) for node in nodes))


def _member(key: str, where: str) -> str:
    if key.startswith("$$"):
        return key[1:]
    if key.startswith("$"):
        known = sorted({*_MESSAGE_OPERATORS, *_VALUE_OPERATORS, "$json"})
        there = "it is about a whole message" if key in known else known_names(key, known)
        raise ValueError(f"{where}: {key} cannot stand here; {there}; '$${key[1:]}' means the key {key!r}")
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


def _shown(value: Any) -> str:
    """The template's value as JSON, shortened, with its placeholders unfilled."""
    text = json.dumps(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def _placeholders_in(value: Any, where: str, scope: Scope) -> list[Placeholder]:
    """The placeholders in the strings of a value."""
    if isinstance(value, str):
        return placeholders_of(parse(value, where, scope))
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for item in items for found in _placeholders_in(item, where, scope)]


def _key(value: Any, where: str, scope: Scope, path: Path) -> tuple[Path, Template] | None:
    """The first placeholder of the call's own that every matching message must have."""
    if isinstance(value, str) and path:
        parts = parse(value, where, scope)
        one = parts[0] if is_single_placeholder(parts) else None
        if isinstance(one, Placeholder) and one.kind in ("uuid", "call_id") and not one.encoders:
            return path, compile_template(value, where, scope)
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
        key = _key(item, where, scope, inner)
        if key is not None:
            return key
    return None
