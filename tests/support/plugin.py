"""A communication protocol without a network, as another plugin would bring it, for tests of the client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Literal

import anyio.lowlevel
from pydantic import Field
from utcp.data.call_template import CallTemplate, CallTemplateSerializer
from utcp.data.register_manual_response import RegisterManualResult
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.interfaces.communication_protocol import CommunicationProtocol
from utcp.interfaces.serializer import Serializer
from utcp.plugins.discovery import register_call_template, register_communication_protocol_factory

WEBSOCKET = {"call_template_type": "websocket", "name": "t", "url": "wss://api.example/tools"}


class FakeTemplate(CallTemplate):
    """Its tools are written in it."""

    call_template_type: Literal["fake"] = "fake"
    url: str | None = None
    secret: str | None = None
    number: int = 0
    tools: list[dict[str, Any]] = Field(default_factory=list)


class FakeTemplateSerializer(Serializer[FakeTemplate]):
    """Counts what it builds."""

    built = 0

    def to_dict(self, obj: FakeTemplate) -> dict[str, Any]:
        return obj.model_dump()

    def validate_dict(self, obj: dict[str, Any]) -> FakeTemplate:
        FakeTemplateSerializer.built += 1
        return FakeTemplate.model_validate(obj)


Hook = Callable[[str], Awaitable[None]]


class FakeProtocol(CommunicationProtocol):
    """Notes what is asked of it, and finds the tools of a manual in `found` or in its template.

    `hook` is awaited before each answer, with the kind and name of what was asked.
    """

    def __init__(self, hook: Hook | None = None) -> None:
        self.log: list[str] = []
        self.templates: list[FakeTemplate] = []
        self.found: dict[str, list[dict[str, Any]]] = {}
        self._hook = hook

    async def _note(self, what: str) -> None:
        self.log.append(what)
        await anyio.lowlevel.checkpoint()
        if self._hook is not None:
            await self._hook(what)

    async def register_manual(self, caller: Any, manual_call_template: Any) -> RegisterManualResult:
        await self._note(f"register {manual_call_template.name}")
        tools = [
            Tool.model_validate({"tool_call_template": {"call_template_type": "fake", "name": "t"}, **tool})
            for tool in self.found.get(manual_call_template.name, manual_call_template.tools)
        ]
        return RegisterManualResult(
            manual_call_template=manual_call_template, manual=UtcpManual(tools=tools), success=True, errors=[]
        )

    async def deregister_manual(self, caller: Any, manual_call_template: Any) -> None:
        await self._note(f"deregister {manual_call_template.name}")

    async def call_tool(self, caller: Any, tool_name: str, tool_args: dict[str, Any], tool_call_template: Any) -> Any:
        self.templates.append(tool_call_template)
        await self._note(f"call {tool_name}")
        return {"tool": tool_name, "args": tool_args, "secret": tool_call_template.secret}

    async def call_tool_streaming(  # type: ignore[override]  # core declares a coroutine
        self, caller: Any, tool_name: str, tool_args: dict[str, Any], tool_call_template: Any
    ) -> AsyncGenerator[Any, None]:
        self.templates.append(tool_call_template)
        await self._note(f"stream {tool_name}")
        try:
            for number in range(3):
                yield {"number": number, "secret": tool_call_template.secret}
        finally:
            self.log.append(f"end {tool_name}")

    async def close(self) -> None:
        await self._note("close")


def install(make: Callable[[], CommunicationProtocol] = FakeProtocol, kind: str = "fake") -> None:
    """Register the protocol as a plugin does; the test needs the `registries` fixture."""
    serializer: Any = FakeTemplateSerializer()  # type: ignore[no-untyped-call]  # core declares no types
    register_call_template("fake", serializer, override=True)
    register_communication_protocol_factory(kind, make, override=True)
    CallTemplateSerializer.call_template_serializers[kind] = serializer


def manual(name: str = "m", *tools: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A call template of the protocol above, in JSON form."""
    if not tools:
        tools = ({"name": "tool"},)
    return {"name": name, "call_template_type": "fake", "tools": list(tools), **fields}


def config(*manuals: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"manual_call_templates": list(manuals), **fields}
