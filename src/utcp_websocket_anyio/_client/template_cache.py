"""A tool's call template with the client's variables in it, built once and again only when something has changed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.tool import Tool
from utcp.data.utcp_client_config import UtcpClientConfig
from utcp.implementations.default_variable_substitutor import DefaultVariableSubstitutor
from utcp.interfaces.variable_substitutor import VariableSubstitutor

__all__ = ["ResolvedTemplates"]


@dataclass(slots=True, eq=False)
class _Resolved:
    """One tool's call template.

    Attributes:
        tool: The stored tool that it is of; after a change another object is stored.
        variable: The part of its JSON form that variables can change; None: no part.
        resolved: What the substitutor made of that part when `template` was built.
        fields: What was in `template` then, in case a protocol or a post-processor writes into it.
    """

    tool: Tool
    substitutor: VariableSubstitutor
    variable: Any
    resolved: Any
    template: CallTemplate
    fields: dict[str, Any]


class ResolvedTemplates:
    """The resolved call templates of one client's tools.

    Variables are looked up through the client's substitutor at each call, so a changed one counts at once; only
    the template is not built anew while they give the same.
    """

    def __init__(self) -> None:
        self._by_tool: dict[str, _Resolved] = {}

    def resolve(
        self, tool_name: str, tool: Tool, substitutor: VariableSubstitutor, config: UtcpClientConfig
    ) -> CallTemplate:
        """The tool's call template, ready for the protocol.

        Args:
            tool_name: With its manual's name, the namespace of its variables, before the first dot.
            tool: As it is stored.
            substitutor: Resolves the variables.
            config: Where their values come from.

        Raises:
            UtcpVariableNotFound: A variable has no value.
        """
        known = self._by_tool.get(tool_name)
        if known is not None and known.tool is tool and known.substitutor is substitutor:
            unchanged = known.variable is None or known.resolved == substitutor.substitute(
                known.variable, config, _namespace(tool_name)
            )
            if unchanged and known.template.__dict__ == known.fields:
                return known.template
        known = self._by_tool[tool_name] = _resolved(tool_name, tool, substitutor, config)
        return known.template

    def forget(self, manual_name: str) -> None:
        """Drop what is kept of a manual's tools."""
        for tool_name in [name for name in self._by_tool if _namespace(name) == manual_name]:
            del self._by_tool[tool_name]


def _resolved(tool_name: str, tool: Tool, substitutor: VariableSubstitutor, config: UtcpClientConfig) -> _Resolved:
    serializer = CallTemplateSerializer()
    namespace = _namespace(tool_name)
    values = serializer.to_dict(tool.tool_call_template)
    # The whole goes first: with a variable missing, or a bad namespace, it fails as it does in core.
    template = serializer.validate_dict(substitutor.substitute(values, config, namespace))
    # Only of core's own substitutor is it known what a variable looks like.
    variable = list(_with_variables(values)) or None if type(substitutor) is DefaultVariableSubstitutor else values
    return _Resolved(
        tool=tool,
        substitutor=substitutor,
        variable=variable,
        resolved=None if variable is None else substitutor.substitute(variable, config, namespace),
        template=template,
        fields=copy.deepcopy(template.__dict__),
    )


def _namespace(tool_name: str) -> str:
    return tool_name.split(".", 1)[0]


def _with_variables(value: Any) -> Iterator[str]:
    """The strings in which core's substitutor looks for variables, in the order in which it does."""
    if isinstance(value, str):
        if "$" in value:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _with_variables(item)
    elif isinstance(value, list):
        for item in value:
            yield from _with_variables(item)
