"""An MCP server that exposes the tools of a UTCP client, as UTCP's own bridge does, and an MCP client that calls them.

The stock client serves it, and `AnyioUtcpClient`. MCP has no streams of results; a streaming tool gives a list.
"""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import Any

import anyio
import mcp
import pytest
from mcp import types
from mcp.server.lowlevel import Server
from utcp.utcp_client import UtcpClient

from frameworks.chain import STEPS, STREAM, configuration
from utcp_websocket_anyio import open_client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def bridge(client: Any) -> Server:
    async def list_tools(context: Any, parameters: Any) -> types.ListToolsResult:
        tools = await client.config.tool_repository.get_tools()
        return types.ListToolsResult(
            tools=[
                types.Tool(
                    name=tool.name,
                    description=tool.description,
                    input_schema=tool.inputs.model_dump(by_alias=True, exclude_none=True),
                )
                for tool in tools
            ]
        )

    async def call_tool(context: Any, parameters: Any) -> types.CallToolResult:
        result = await client.call_tool(parameters.name, parameters.arguments or {})
        return types.CallToolResult(content=[types.TextContent(type="text", text=json.dumps(result))])

    return Server("utcp", on_list_tools=list_tools, on_call_tool=call_tool)


@asynccontextmanager
async def stock(url: str) -> Any:
    client = await UtcpClient.create(config=configuration(url))
    try:
        yield client
    finally:
        await client.close()  # noqa: ASYNC102 - what core does to close needs no shield here


@pytest.mark.parametrize("opened", [stock, lambda url: open_client(configuration(url))], ids=["stock", "anyio"])
async def test_a_chain_of_calls_and_a_stream(opened: Any, url: str) -> None:
    with anyio.fail_after(60):
        async with opened(url) as client, mcp.Client(bridge(client)) as session:
            assert {tool.name for tool in (await session.list_tools()).tools} >= {"m.add", "m.count"}
            for name, arguments, expected in STEPS:
                result = await session.call_tool(f"m.{name}", arguments)
                assert json.loads(result.content[0].text) == expected
            result = await session.call_tool("m.count", STREAM[1])
            assert json.loads(result.content[0].text) == STREAM[2]
            assert [item async for item in client.call_tool_streaming("m.count", STREAM[1])] == STREAM[2]
