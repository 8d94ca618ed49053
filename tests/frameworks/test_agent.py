"""`utcp-agent`, whose model is LangChain's own stand-in for tests. It has no streams of tools."""

from __future__ import annotations

import asyncio
import json

from langchain_core.language_models.fake_chat_models import FakeListChatModel
from utcp.utcp_client import UtcpClient
from utcp_agent import UtcpAgent, UtcpAgentConfig

from frameworks.chain import STEPS, STREAM, configuration, protocol_of


def test_a_chain_of_calls_in_two_event_loops(url: str) -> None:
    client = asyncio.run(UtcpClient.create(config=configuration(url)))
    for _ in range(2):
        said = []
        for name, arguments, _result in STEPS:
            said += [
                # The task, by which it searches for tools, and its decision.
                f"use {name}",
                json.dumps({"action": "call_tool", "tool_name": f"m.{name}", "arguments": arguments}),
            ]
        said += ["say it", json.dumps({"action": "respond", "message": "forty-two"}), "forty-two"]
        agent = UtcpAgent(FakeListChatModel(responses=said), client, UtcpAgentConfig(max_iterations=9))
        assert "forty-two" in asyncio.run(agent.chat("calculate"))
    statistics = protocol_of(client).statistics()
    assert (statistics.calls, statistics.errors) == (2 * len(STEPS), {})

    async def stream() -> None:
        assert [item async for item in client.call_tool_streaming("m.count", STREAM[1])] == STREAM[2]

    asyncio.run(stream())
    asyncio.run(client.close())
