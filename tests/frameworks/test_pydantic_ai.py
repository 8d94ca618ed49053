"""`pydantic-ai-utcp`, which asks for a pydantic of its own, older than others do; this package works with it.

What it makes of a tool is a function with a model of its arguments. It does not depend on `pydantic-ai` itself, whose
releases need a newer pydantic than the one it pins, and has no streams; a streaming tool gives a list.
"""

from __future__ import annotations

import asyncio
import json

from pydantic_utcp_adapters import load_utcp_tools_for_pydantic_ai
from utcp.utcp_client import UtcpClient

from frameworks.chain import STEPS, STREAM, configuration


def test_a_chain_of_calls_and_a_stream(url: str) -> None:
    client = asyncio.run(UtcpClient.create(config=configuration(url)))

    async def main() -> None:
        tools = {tool.name: tool for tool in await load_utcp_tools_for_pydantic_ai(client)}
        for name, arguments, expected in STEPS:
            assert str(await tools[f"m.{name}"](**arguments)) == str(expected)
        listed = await tools["m.count"](**STREAM[1])
        assert (json.loads(listed) if isinstance(listed, str) else listed) == STREAM[2]
        assert [item async for item in client.call_tool_streaming("m.count", STREAM[1])] == STREAM[2]

    asyncio.run(main())
    asyncio.run(main())
    asyncio.run(client.close())
