"""`AnyioToolRepository`: tools in memory, on any event loop.

Nothing here waits, so nothing needs a lock: a change is made between two checkpoints, and everyone sees it whole.
"""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, PrivateAttr
from utcp.data.call_template import CallTemplate
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.implementations.in_mem_tool_repository import InMemToolRepository
from utcp.interfaces.concurrent_tool_repository import ConcurrentToolRepository
from utcp.interfaces.serializer import Serializer
from utcp.plugins.discovery import register_tool_repository

__all__ = ["AnyioToolRepository", "register_repository"]

_TYPE = "anyio_in_memory"

_Stored = TypeVar("_Stored", bound=BaseModel)


class AnyioToolRepository(ConcurrentToolRepository):
    """Manuals and their tools, in memory.

    It is of type ``anyio_in_memory`` in a client's configuration, the stock `UtcpClient`'s too, and what `open_client`
    puts in the place of an ``in_memory`` one.

    It stores copies and hands out copies, so nothing that a caller holds can alter what is stored. No method waits or
    raises anything; none is a checkpoint.
    """

    tool_repository_type: str = _TYPE

    _tools: dict[str, Tool] = PrivateAttr(default_factory=dict)
    _manuals: dict[str, UtcpManual] = PrivateAttr(default_factory=dict)
    _call_templates: dict[str, CallTemplate] = PrivateAttr(default_factory=dict)

    @classmethod
    def sharing(cls, repository: InMemToolRepository) -> AnyioToolRepository:
        """A repository on the contents of one of core's: what is stored through either is seen through both."""
        shared = cls()
        shared._tools = repository._tools_by_name
        shared._manuals = repository._manuals
        shared._call_templates = repository._manual_call_templates
        return shared

    def __repr__(self) -> str:
        return f"<AnyioToolRepository {len(self._manuals)} manuals, {len(self._tools)} tools>"

    def stored_tool(self, tool_name: str) -> Tool | None:
        """The tool itself, not a copy: to be read only. Another object is stored when the tool changes."""
        return self._tools.get(tool_name)

    def stored_call_template(self, manual_name: str) -> CallTemplate | None:
        """The manual's call template itself, not a copy: to be read only."""
        return self._call_templates.get(manual_name)

    async def save_manual(self, manual_call_template: CallTemplate, manual: UtcpManual) -> None:
        """Store a manual and its tools, in the place of one of the same name."""
        name = manual_call_template.name
        manual = manual.model_copy(deep=True)
        self._forget_tools(name)
        self._call_templates[name] = manual_call_template.model_copy(deep=True)
        self._manuals[name] = manual
        self._tools.update((tool.name, tool) for tool in manual.tools)

    async def remove_manual(self, manual_name: str) -> bool:
        """Remove a manual and its tools; False if there is no such manual."""
        if manual_name not in self._manuals:
            return False
        self._forget_tools(manual_name)
        del self._manuals[manual_name]
        self._call_templates.pop(manual_name, None)
        return True

    async def remove_tool(self, tool_name: str) -> bool:
        """Remove a tool, from its manual too; False if there is no such tool."""
        tool = self._tools.pop(tool_name, None)
        if tool is None:
            return False
        for manual in self._manuals.values():
            manual.tools = [kept for kept in manual.tools if kept is not tool]
        return True

    async def get_tool(self, tool_name: str) -> Tool | None:
        return _copy(self._tools.get(tool_name))

    async def get_tools(self) -> list[Tool]:
        return [tool.model_copy(deep=True) for tool in self._tools.values()]

    async def get_tools_by_manual(self, manual_name: str) -> list[Tool] | None:
        manual = self._manuals.get(manual_name)
        return None if manual is None else [tool.model_copy(deep=True) for tool in manual.tools]

    async def get_manual(self, manual_name: str) -> UtcpManual | None:
        return _copy(self._manuals.get(manual_name))

    async def get_manuals(self) -> list[UtcpManual]:
        return [manual.model_copy(deep=True) for manual in self._manuals.values()]

    async def get_manual_call_template(self, manual_call_template_name: str) -> CallTemplate | None:
        return _copy(self._call_templates.get(manual_call_template_name))

    async def get_manual_call_templates(self) -> list[CallTemplate]:
        return [template.model_copy(deep=True) for template in self._call_templates.values()]

    def _forget_tools(self, manual_name: str) -> None:
        manual = self._manuals.get(manual_name)
        if manual is not None:
            for tool in manual.tools:
                if self._tools.get(tool.name) is tool:
                    del self._tools[tool.name]


class AnyioToolRepositorySerializer(Serializer[AnyioToolRepository]):
    """Between an `AnyioToolRepository` and its entry in a client's configuration, which says nothing but its type."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # core declares no types

    def to_dict(self, obj: AnyioToolRepository) -> dict[str, Any]:
        return {"tool_repository_type": obj.tool_repository_type}

    def validate_dict(self, obj: dict[str, Any]) -> AnyioToolRepository:
        """A new, empty repository."""
        return AnyioToolRepository()


def register_repository() -> None:
    """Make ``anyio_in_memory`` a type of repository that a client's configuration can name."""
    serializer: Any = AnyioToolRepositorySerializer()
    register_tool_repository(_TYPE, serializer, override=True)


def _copy(stored: _Stored | None) -> _Stored | None:
    return None if stored is None else stored.model_copy(deep=True)
