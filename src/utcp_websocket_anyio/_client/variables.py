"""The variables of call templates: which there are, and how their values get in.

Core's substitutor puts text into text, and it sees each template more than once: at the registration of its manual, and
at each call what came out of that. A value with a ``$`` in it is then taken for another variable, one with braces for a
placeholder, and one with a quote breaks JSON text. Here a value stays a value:

- In the template of a WebSocket the names stay in its fields. The values are handed to the template beside them
  (`WebSocketCallTemplate.with_variables`), which puts them in where it puts arguments in.
- The template of another plugin has to have them in its text, as that plugin expects. So that they are not scanned when
  the template is seen again, the values that hold a ``$`` are remembered, and passed over wherever they occur.
- The values in a client's configuration may refer to the environment or a loader, as in core. What refers to nothing
  there is text, unless it is the whole value. Values that come from elsewhere are not looked into at all.
- ``tools`` in a template are a manual, not part of the template: of each tool only its call template can have
  variables. A ``$`` in a description or a schema (``#/$defs/Point``, ``$5``) is text.

What a variable looks like is core's own business: all this is about core's own substitutor. With another one, templates
go through that as they do in core.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.utcp_client_config import UtcpClientConfig
from utcp.exceptions import UtcpSerializerValidationError, UtcpVariableNotFound
from utcp.implementations.default_variable_substitutor import DefaultVariableSubstitutor
from utcp.interfaces.variable_substitutor import VariableSubstitutor

from .._templates.call_template import WebSocketCallTemplate

__all__ = ["Variables", "resolve_configured"]

_VARIABLE = re.compile(r"\$\{([a-zA-Z0-9_]+)\}|\$([a-zA-Z0-9_]+)")

# Core leaves a string with such a reference alone, as a whole.
_REFERENCE = re.compile(r"\$ref(?![a-zA-Z0-9_])")

_MAX_REMEMBERED = 256
"""The number of values with a ``$`` that are remembered; the oldest go first."""

_TOOL_TEMPLATE = "tool_call_template"


class Variables:
    """The variables of one client's call templates."""

    def __init__(self) -> None:
        self._values: dict[str, None] = {}
        self._pattern: re.Pattern[str] = _VARIABLE

    def names(self, template: CallTemplate) -> list[str]:
        """The variables that a call template needs, as they are written in it."""
        values = CallTemplateSerializer().to_dict(template)
        if isinstance(template, WebSocketCallTemplate):
            # Each tool's own are resolved when it is called.
            values.pop("tools", None)
        return list(dict.fromkeys(self._names_in(values)))

    def values(
        self, names: list[str], substitutor: VariableSubstitutor, config: UtcpClientConfig, namespace: str | None
    ) -> dict[str, str]:
        """The current values of the variables.

        Raises:
            UtcpVariableNotFound: A variable has no value.
            ValueError: The namespace cannot be one.
        """
        values = substitutor.substitute([f"${{{name}}}" for name in names], config, namespace)
        return dict(zip(names, values, strict=True))

    def put_in(self, template: CallTemplate, values: Mapping[str, str]) -> CallTemplate:
        """A copy of a call template with the values of its variables.

        Raises:
            UtcpSerializerValidationError: The template is not valid with the values; none of them is shown.
        """
        serializer = CallTemplateSerializer()
        if isinstance(template, WebSocketCallTemplate):
            return template.with_variables(values)
        for value in values.values():
            # A ``$`` at the end can make a variable of what stands behind it.
            if _VARIABLE.search(value) or (value.endswith("$") and value != "$"):
                self._remember(value)
        try:
            return serializer.validate_dict(self._filled(serializer.to_dict(template), values))
        except Exception as error:
            if not values:
                raise
            # Other plugins' texts may quote what was put in.
            reason = type(error).__name__
        raise UtcpSerializerValidationError(
            f"with the values of its variables the call template of type {template.call_template_type!r} is not valid"
            f" ({reason})"
        )

    def _remember(self, value: str) -> None:
        self._values[value] = self._values.pop(value, None)
        while len(self._values) > _MAX_REMEMBERED:
            del self._values[next(iter(self._values))]
        # The longest first, which may hold a shorter one.
        known = "|".join(map(re.escape, sorted(self._values, key=len, reverse=True)))
        self._pattern = re.compile(f"(?:{known})|{_VARIABLE.pattern}")

    def _names_in(self, value: Any) -> Iterator[str]:
        if isinstance(value, str):
            if "$" in value and not _REFERENCE.search(value):
                for match in self._pattern.finditer(value):
                    if match[1] or match[2]:
                        yield match[1] or match[2]
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from self._names_in(_templates_of(item) if key == "tools" else item)
        elif isinstance(value, list):
            for item in value:
                yield from self._names_in(item)

    def _filled(self, value: Any, values: Mapping[str, str]) -> Any:
        if isinstance(value, str):
            if "$" not in value or _REFERENCE.search(value):
                return value
            return self._pattern.sub(lambda match: values.get(match[1] or match[2] or "", match[0]), value)
        if isinstance(value, dict):
            return {
                key: [self._filled_tool(tool, values) for tool in item]
                if key == "tools" and isinstance(item, list)
                else self._filled(item, values)
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [self._filled(item, values) for item in value]
        return value

    def _filled_tool(self, tool: Any, values: Mapping[str, str]) -> Any:
        if not isinstance(tool, dict) or _TOOL_TEMPLATE not in tool:
            return tool
        return {**tool, _TOOL_TEMPLATE: self._filled(tool[_TOOL_TEMPLATE], values)}


def _templates_of(tools: Any) -> Any:
    """The tools in a call template, reduced to what can contain variables."""
    return [tool.get(_TOOL_TEMPLATE) for tool in tools if isinstance(tool, dict)] if isinstance(tools, list) else None


def resolve_configured(config: UtcpClientConfig, substitutor: VariableSubstitutor) -> None:
    """Give the variables of a configuration their values, where they refer to others.

    Raises:
        UtcpVariableNotFound: A value is nothing but a reference, to a variable that has no value.
    """
    if not config.variables:
        return
    # Others are in the environment or come from a loader; the configuration's own do not refer to each other.
    others = config.model_copy(update={"variables": None})
    if type(substitutor) is not DefaultVariableSubstitutor:
        config.variables = substitutor.substitute(config.variables, others)
        return

    def known(match: re.Match[str]) -> str:
        try:
            return str(substitutor.substitute(match[0], others))
        except UtcpVariableNotFound:
            return match[0]

    config.variables = {
        name: substitutor.substitute(value, others) if _VARIABLE.fullmatch(value) else _VARIABLE.sub(known, value)
        for name, value in config.variables.items()
    }
