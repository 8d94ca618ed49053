"""A manual's tools, called in the way that fits the backend the test runs on."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import anyio
import sniffio
from utcp.data.call_template import CallTemplate
from utcp.data.utcp_client_config import UtcpClientConfig
from utcp.implementations.default_variable_substitutor import DefaultVariableSubstitutor
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import WebSocketCallTemplateSerializer, WebSocketCommunicationProtocol

__all__ = ["Tools", "open_tools"]

_MANUALS = Path(__file__).parents[2] / "examples" / "endpoints"


class Tools(Protocol):
    """The tools of one manual."""

    async def call(self, tool: str, /, **arguments: Any) -> Any: ...

    def stream(self, tool: str, /, **arguments: Any) -> AsyncGenerator[Any, None]: ...


@asynccontextmanager
async def open_tools(manual: str, variables: Mapping[str, object]) -> AsyncIterator[Tools]:
    """The tools of ``examples/endpoints/<manual>.json``: of the stock client on asyncio, of the protocol on trio.

    Args:
        variables: The manual's UTCP variables, such as the port.
    """
    template = json.loads((_MANUALS / f"{manual}.json").read_text())
    named = {f"{manual}_{name}": str(value) for name, value in variables.items()}
    if sniffio.current_async_library() == "asyncio":
        client = await UtcpClient.create(config={"variables": named, "manual_call_templates": [template]})
        try:
            yield _OfClient(client, manual)
        finally:
            with anyio.move_on_after(10, shield=True):
                await client.close()
    else:
        config = UtcpClientConfig(variables=named)
        resolved = DefaultVariableSubstitutor().substitute(template, config, manual)
        async with WebSocketCommunicationProtocol() as protocol:
            found = await protocol.register_manual(None, WebSocketCallTemplateSerializer().validate_dict(resolved))
            templates = {tool.name: tool.tool_call_template for tool in found.manual.tools}
            yield _OfProtocol(protocol, manual, templates)


class _OfClient:
    def __init__(self, client: UtcpClient, manual: str) -> None:
        self._client = client
        self._manual = manual

    async def call(self, tool: str, /, **arguments: Any) -> Any:
        return await self._client.call_tool(f"{self._manual}.{tool}", arguments)

    def stream(self, tool: str, /, **arguments: Any) -> AsyncGenerator[Any, None]:
        # UTCP declares the method as a coroutine, which it is not.
        return self._client.call_tool_streaming(f"{self._manual}.{tool}", arguments)  # type: ignore[return-value]  # core declares it as a coroutine


class _OfProtocol:
    def __init__(
        self, protocol: WebSocketCommunicationProtocol, manual: str, templates: Mapping[str, CallTemplate]
    ) -> None:
        self._protocol = protocol
        self._manual = manual
        self._templates = templates

    async def call(self, tool: str, /, **arguments: Any) -> Any:
        return await self._protocol.call_tool(None, f"{self._manual}.{tool}", arguments, self._templates[tool])

    def stream(self, tool: str, /, **arguments: Any) -> AsyncGenerator[Any, None]:
        name = f"{self._manual}.{tool}"
        return self._protocol.call_tool_streaming(None, name, arguments, self._templates[tool])
