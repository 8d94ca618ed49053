"""Templates for single values, compiled once and filled per call; and what all templates have in common."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from .placeholders import Parts, Placeholder, Render, RenderContext, json_text, parse

__all__ = [
    "CompiledTemplate",
    "RenderContext",
    "Template",
    "compile_renderer",
    "compile_template",
    "declare_inputs",
    "encode_arguments",
    "is_single_placeholder",
    "placeholders_of",
    "render_number",
    "render_text",
]


class CompiledTemplate:
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

    def __init__(self, source: Any, where: str, holes: Iterable[Placeholder]) -> None:
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


class Template(CompiledTemplate):
    """A JSON value with holes."""

    __slots__ = ("_render",)

    def __init__(self, source: Any, where: str, holes: Iterable[Placeholder], render: Render) -> None:
        super().__init__(source, where, holes)
        self._render = render

    def render(self, values: RenderContext) -> Any:
        """The value with its holes filled; a placeholder alone in a string keeps the type of what it stands for."""
        return self._render(values)


def compile_template(value: Any, where: str, *, arguments: bool = True) -> Template:
    """Compile a JSON value.

    Args:
        where: Its place in the call template, for errors.
        arguments: Whether it may name arguments.

    Raises:
        ValueError: It has a placeholder that cannot be.
    """
    holes: list[Placeholder] = []
    render = compile_renderer(value, where, arguments, holes)
    return Template(value, where, holes, render)


def encode_arguments(arguments: Mapping[str, Any], *, without: Collection[str]) -> str:
    """The arguments as one JSON object, for a request that has no template."""
    if without:
        arguments = {name: value for name, value in arguments.items() if name not in without}
    return json_text(arguments if isinstance(arguments, dict) else dict(arguments))


def render_number(template: Template, values: RenderContext) -> float:
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


def render_text(parts: Parts, values: RenderContext) -> str:
    """A string with its holes filled as text."""
    return "".join(part if isinstance(part, str) else part.text(values) for part in parts)


def is_single_placeholder(parts: Parts) -> bool:
    """Whether a string is one placeholder that keeps its type."""
    return len(parts) == 1 and isinstance(parts[0], Placeholder) and parts[0].typed


def placeholders_of(parts: Iterable[str | Placeholder]) -> list[Placeholder]:
    """The placeholders of a string."""
    return [part for part in parts if isinstance(part, Placeholder)]


def compile_renderer(value: Any, where: str, arguments: bool, holes: list[Placeholder]) -> Render:
    """What fills the holes of a JSON value; they are added to `holes`."""
    if isinstance(value, str):
        parts = parse(value, where, arguments=arguments)
        found = placeholders_of(parts)
        holes += found
        if not found:
            return lambda values: value
        if is_single_placeholder(parts):
            return found[0].value
        return lambda values: render_text(parts, values)
    if isinstance(value, dict):
        members = {key: compile_renderer(item, f"{where}.{key}", arguments, holes) for key, item in value.items()}
        return lambda values: {key: render(values) for key, render in members.items()}
    if isinstance(value, list):
        items = [compile_renderer(item, f"{where}[{index}]", arguments, holes) for index, item in enumerate(value)]
        return lambda values: [render(values) for render in items]
    return lambda values: value
