"""Templates for JSON values, compiled once and rendered per call; and what is known of every template.

A JSON value is compiled into a function that builds it anew around its placeholders. A string that is one placeholder
becomes its value, with its JSON type; any other string stays text. Text that is itself JSON keeps its shape: what a
placeholder inside one of its string literals stands for is escaped (`text_slots`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from .encoders import ABSENT, json_text, text_of
from .placeholders import CALL, Parts, Placeholder, Render, RenderContext, Scope, parse

__all__ = [
    "CompiledTemplate",
    "RenderContext",
    "Slot",
    "Template",
    "compile_number",
    "compile_renderer",
    "compile_template",
    "declare_inputs",
    "encode_arguments",
    "is_each",
    "is_single_placeholder",
    "placeholders_of",
    "render_number",
    "render_text",
    "text_slots",
]

_OBJECT_BEGINS = re.compile(r'\s*(?:\[\s*)*\{\s*(?:"|\Z)')
_UNIQUE = frozenset({"uuid", "call_id", "step_id"})


class CompiledTemplate:
    """Properties of every compiled template.

    Attributes:
        where: Its place in the call template, for errors.
        arguments: The arguments that it needs, as written; one with dots may also be a part of an object.
        argument_names: All arguments that it names, optional ones included.
        dollar_names: The names it has as ``${name}``: arguments if there are such, otherwise left as they are.
        captures: The captured values that it needs, as written.
        capture_names: All captured values that it names, optional ones included.
        kinds: The kinds of its placeholders (`Placeholder.kind`).
        is_static: True if it is the same for every call.
    """

    __slots__ = (
        "argument_names", "arguments", "capture_names", "captures", "dollar_names", "is_static", "kinds", "source",
        "where",
    )  # fmt: skip

    def __init__(self, source: Any, where: str, placeholders: Iterable[Placeholder]) -> None:
        found = list(placeholders)
        self.source: Any = source
        self.where: str = where
        self.arguments: frozenset[str] = _names(found, "args.", needed=True)
        self.argument_names: frozenset[str] = _names(found, "args.", needed=False)
        self.dollar_names: frozenset[str] = _names(found, "$", needed=True)
        self.captures: frozenset[str] = _names(found, "captured.", needed=True)
        self.capture_names: frozenset[str] = _names(found, "captured.", needed=False)
        self.kinds: frozenset[str] = frozenset([placeholder.kind for placeholder in found])
        self.is_static: bool = all(placeholder.is_constant for placeholder in found)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.where}>"

    def absorb(self, parts: Iterable[CompiledTemplate]) -> None:
        """Know of what is made of several templates what is known of each."""
        for part in parts:
            self.arguments |= part.arguments
            self.argument_names |= part.argument_names
            self.dollar_names |= part.dollar_names
            self.captures |= part.captures
            self.capture_names |= part.capture_names
            self.kinds |= part.kinds
            self.is_static = self.is_static and part.is_static

    @property
    def uses_call_id(self) -> bool:
        """True if it depends on the number of its message."""
        return "call_id" in self.kinds

    @property
    def uses_arguments(self) -> bool:
        """True if it names an argument, or all of them."""
        return not self.kinds.isdisjoint(("args", "args.", "$"))


def _names(placeholders: Iterable[Placeholder], kind: str, *, needed: bool) -> frozenset[str]:
    return frozenset(
        [found.name for found in placeholders if found.kind == kind and not (needed and found.is_optional)]
    )


class Template(CompiledTemplate):
    """A JSON value with placeholders."""

    __slots__ = ("render",)

    def __init__(self, source: Any, where: str, placeholders: Iterable[Placeholder], render: Render) -> None:
        super().__init__(source, where, placeholders)
        self.render: Render = render
        """The value for a context; a placeholder alone in a string keeps the type of what it stands for. `ABSENT`
        where the whole is an optional placeholder that stands for nothing."""

    def text(self, context: RenderContext) -> str:
        """The value as text; empty where it is absent."""
        return text_of(self.render(context))


class Slot:
    """A place in a text that is filled per call.

    Attributes:
        fill: Gives its text.
        placeholders: Parts of the text.
        is_late: True if it takes a connection to know the text.
        is_mixed: True if it still contains a value of the call.
    """

    __slots__ = ("fill", "is_late", "is_mixed", "placeholders")

    def __init__(self, fill: Callable[[RenderContext], str], placeholders: Iterable[Placeholder]) -> None:
        self.fill = fill
        self.placeholders = tuple(placeholders)
        late = {placeholder.is_late for placeholder in self.placeholders}
        self.is_late = True in late
        self.is_mixed = len(late) == 2

    def try_out(self, context: RenderContext) -> None:
        """Find out, before there is a connection, if the call's values can be put in.

        Raises:
            ValueError: A value cannot be put in.
        """
        if not self.is_late:
            self.fill(context)
            return
        for placeholder in self.placeholders:
            if not placeholder.is_late:
                placeholder.text(context)


def compile_template(value: Any, where: str, scope: Scope = CALL) -> Template:
    """Compile a JSON value.

    Args:
        where: Its place in the call template, for errors.

    Raises:
        ValueError: The text has a placeholder that does not exist or cannot stand here.
    """
    found: list[Placeholder] = []
    render = compile_renderer(value, where, scope, found)
    return Template(value, where, found, render)


def compile_renderer(value: Any, where: str, scope: Scope, found: list[Placeholder]) -> Render:
    """The function that renders a JSON value; its placeholders are added to `found`."""
    if isinstance(value, str):
        parts = parse(value, where, scope)
        placeholders = placeholders_of(parts)
        found += placeholders
        if not placeholders:
            return lambda context: value
        if is_single_placeholder(parts):
            return placeholders[0].value
        slots = text_slots(parts)
        return lambda context: "".join([slot if isinstance(slot, str) else slot.fill(context) for slot in slots])
    if isinstance(value, dict):
        if "$each" in value:
            return _compile_each(value, where, scope, found)
        members = {key: compile_renderer(item, f"{where}.{key}", scope, found) for key, item in value.items()}
        if _has_optional(value.values()):
            return lambda context: {
                key: item for key, render in members.items() if (item := render(context)) is not ABSENT
            }
        return lambda context: {key: render(context) for key, render in members.items()}
    if isinstance(value, list):
        items = [compile_renderer(item, f"{where}[{index}]", scope, found) for index, item in enumerate(value)]
        if _has_optional(value):
            return lambda context: [item for render in items if (item := render(context)) is not ABSENT]
        return lambda context: [render(context) for render in items]
    return lambda context: value


def is_each(value: Any) -> bool:
    """True for a list that is made of another list: ``{"$each": …, "as": …}``."""
    return isinstance(value, dict) and "$each" in value


def _compile_each(value: Mapping[str, Any], where: str, scope: Scope, found: list[Placeholder]) -> Render:
    if value.keys() != {"$each", "as"}:
        raise ValueError(f"{where}: a list made of a list is written {{'$each': list, 'as': what each item becomes}}")
    items = compile_renderer(value["$each"], f"{where}.$each", scope, found)
    inside: list[Placeholder] = []
    make = compile_renderer(value["as"], f"{where}.as", scope.with_item(), inside)
    # An item is known as soon as the list is.
    found += [placeholder for placeholder in inside if placeholder.kind not in ("item", "item.")]

    def render(context: RenderContext) -> list[Any]:
        given = items(context)
        if given is ABSENT:
            return []
        if not isinstance(given, (list, tuple)):
            raise ValueError(f"{where}.$each: must come out as a list")
        made = [make(context.replace(item=item)) for item in given]
        return [item for item in made if item is not ABSENT]

    return render


def _has_optional(values: Iterable[Any]) -> bool:
    """True if one of these values may be left out."""
    for value in values:
        # `?}` or `?|`, with white space: only what may have an optional placeholder is looked at closely.
        if isinstance(value, str) and "?" in value and "{{" in value:
            parts = parse(value, "", _ANYWHERE)
            if is_single_placeholder(parts) and placeholders_of(parts)[0].is_optional:
                return True
    return False


_ANYWHERE = Scope(message=True, item=True, gap=True)


def encode_arguments(arguments: Mapping[str, Any], *, without: Collection[str]) -> str:
    """The arguments as one JSON object, for a request that has no template."""
    if without:
        arguments = {name: value for name, value in arguments.items() if name not in without}
    return json_text(arguments if isinstance(arguments, dict) else dict(arguments))


def compile_number(value: Any, where: str, scope: Scope = CALL) -> float | Template:
    """A positive number, or a template that gives one.

    Raises:
        ValueError: The value is of another kind.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if 0 < value < math.inf:
            return float(value)
    elif isinstance(value, str):
        template = compile_template(value, where, scope)
        return render_number(template, RenderContext({}, "")) if template.is_static else template
    raise ValueError(f"{where}: must be a positive number, or a template that gives one")


def render_number(template: Template, context: RenderContext) -> float:
    """A template that has to give a positive number, or a string of one.

    Raises:
        ValueError: It gives something else.
    """
    value = template.render(context)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"{template.where}: must come out as a positive number")
    return number


def declare_inputs(value: Any, names: Collection[str]) -> Any:
    """Copy a JSON value, rewriting ``${name}`` to ``{{args.name}}`` for the given names."""
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


def render_text(parts: Parts, context: RenderContext) -> str:
    """A string with its placeholders filled in as text."""
    return "".join([part if isinstance(part, str) else part.text(context) for part in parts])


def is_single_placeholder(parts: Parts) -> bool:
    """True if a string is one placeholder that keeps its type."""
    return len(parts) == 1 and isinstance(parts[0], Placeholder) and parts[0].is_typed


def is_unique(placeholder: Placeholder, unique_captures: Collection[str] = ()) -> bool:
    """True if no other call has the same value there.

    Args:
        unique_captures: Captured values that are a call's own.
    """
    if "bytes" in placeholder.encoders:  # a length
        return False
    if placeholder.kind == "captured.":
        return placeholder.name in unique_captures or placeholder.root in unique_captures
    return placeholder.kind in _UNIQUE


def placeholders_of(parts: Iterable[str | Placeholder]) -> list[Placeholder]:
    """The placeholders of a string."""
    return [part for part in parts if isinstance(part, Placeholder)]


# Text that is JSON


def text_slots(parts: Parts) -> list[str | Slot]:
    """The text of a string and its slots.

    Where the text is JSON (it starts with ``{`` or ``[``), a value stays inside the string literal in which its
    placeholder stands, or is the JSON value that stands there: it can never add or change a field.
    """
    begins = parts[0].lstrip()[:1] if parts and isinstance(parts[0], str) else ""
    if begins in ("{", "[") and begins and placeholders_of(parts):
        return _json_slots(parts)
    return [part if isinstance(part, str) else Slot(part.text, [part]) for part in parts]


def _json_slots(parts: Parts) -> list[str | Slot]:
    slots: list[str | Slot] = []
    outside: list[tuple[int, Placeholder]] = []
    sample = ""
    inside = False
    for part in parts:
        if isinstance(part, str):
            inside = _ends_inside_literal(part, inside)
            sample += part
            slots.append(part)
        elif inside:
            slots.append(_inside_literal(part))
        else:
            outside.append((len(slots), part))
            sample += "" if sample[-1].isdigit() else "0"
            slots.append(Slot(part.text, [part]))
    if _is_json(sample) or _OBJECT_BEGINS.match(str(parts[0])):
        for position, placeholder in outside:
            fill = placeholder.text if placeholder.encoders[-1:] == ("json",) else _as_json(placeholder.value)
            slots[position] = Slot(fill, [placeholder])
    return slots


def _as_json(render: Render) -> Callable[[RenderContext], str]:
    def fill(context: RenderContext) -> str:
        value = render(context)
        return "null" if value is ABSENT else json_text(value)

    return fill


def _inside_literal(placeholder: Placeholder) -> Slot:
    return Slot(lambda context: json_text(placeholder.text(context))[1:-1], [placeholder])


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
