"""A tool's call template with the client's variables in it, built once and again only when something has changed."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.tool import Tool
from utcp.data.utcp_client_config import UtcpClientConfig
from utcp.implementations.default_variable_substitutor import DefaultVariableSubstitutor
from utcp.interfaces.variable_substitutor import VariableSubstitutor

from .variables import Variables

__all__ = ["ResolvedTemplates"]


@dataclass(slots=True, eq=False)
class _Resolved:
    """One tool's call template.

    Attributes:
        tool: The stored tool that it is of; after a change another object is stored.
        names: The variables in it; None with a substitutor of which it is not known what a variable looks like.
        values: Results of the substitutor for them, or for the whole template, when `template` was built.
        fields: Fields of `template` at that time, in case a protocol or a post-processor writes into it.
    """

    tool: Tool
    substitutor: VariableSubstitutor
    names: list[str] | None
    values: Any
    template: CallTemplate
    fields: dict[str, Any]


class ResolvedTemplates:
    """The resolved call templates of one client's tools.

    Variables are looked up through the client's substitutor at each call, so a changed one counts at once; only
    the template is not built anew while they give the same.

    Several threads may ask at once: an entry is only ever replaced as a whole, and two that build the same one build
    equal ones.
    """

    def __init__(self, variables: Variables) -> None:
        self._variables = variables
        self._by_tool: dict[str, _Resolved] = {}

    def resolve(
        self, tool_name: str, tool: Tool, substitutor: VariableSubstitutor, config: UtcpClientConfig
    ) -> CallTemplate:
        """The tool's call template, ready for the protocol.

        Args:
            tool_name: Name of the tool, with its manual's name, the namespace of its variables, before the first dot.
            tool: The tool as it is stored.
            substitutor: Resolves the variables.
            config: Configuration that has their values.

        Raises:
            UtcpVariableNotFound: A variable has no value.
        """
        known = self._by_tool.get(tool_name)
        if known is not None and known.tool is tool and known.substitutor is substitutor:
            values = known.values if known.names == [] else self._values(known, config, _namespace(tool_name))
            if known.values == values and known.template.__dict__ == known.fields:
                return known.template
        known = self._by_tool[tool_name] = self._resolved(tool_name, tool, substitutor, config)
        return known.template

    def forget(self, manual_name: str) -> None:
        """Drop what is kept of a manual's tools."""
        for tool_name in [name for name in list(self._by_tool) if _namespace(name) == manual_name]:
            self._by_tool.pop(tool_name, None)

    def _values(self, known: _Resolved, config: UtcpClientConfig, namespace: str) -> Any:
        if known.names is None:
            values = CallTemplateSerializer().to_dict(known.tool.tool_call_template)
            return known.substitutor.substitute(values, config, namespace)
        return self._variables.values(known.names, known.substitutor, config, namespace)

    def _resolved(
        self, tool_name: str, tool: Tool, substitutor: VariableSubstitutor, config: UtcpClientConfig
    ) -> _Resolved:
        own = type(substitutor) is DefaultVariableSubstitutor
        names = self._variables.names(tool.tool_call_template) if own else None
        known = _Resolved(tool, substitutor, names, None, tool.tool_call_template, {})
        known.values = self._values(known, config, _namespace(tool_name))
        if names is None:
            known.template = CallTemplateSerializer().validate_dict(known.values)
        else:
            # Also without variables: what is stored is not given away.
            known.template = self._variables.put_in(tool.tool_call_template, known.values)
        known.fields = copy.deepcopy(known.template.__dict__)
        return known


def _namespace(tool_name: str) -> str:
    return tool_name.split(".", 1)[0]
