"""`langchain-utcp-adapters`, alone and in an agent of LangGraph. The model is LangChain's own stand-in for tests.

The adapters have no streams; a streaming tool gives a list. All results are made text by them.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_utcp_adapters import load_utcp_tools
from langgraph.prebuilt import create_react_agent
from utcp.utcp_client import UtcpClient

from frameworks.chain import STEPS, STREAM, configuration, protocol_of


class Scripted(GenericFakeChatModel):
    def bind_tools(self, tools: Any, **options: Any) -> Scripted:
        return self


def test_a_chain_of_calls_and_a_stream(url: str) -> None:
    async def main() -> None:
        client = await UtcpClient.create(config=configuration(url))
        tools = {tool.name: tool for tool in await load_utcp_tools(client)}
        for name, arguments, expected in STEPS:
            assert await tools[f"m.{name}"].ainvoke(arguments) == str(expected)
        assert json.loads(await tools["m.count"].ainvoke(STREAM[1])) == STREAM[2]
        assert [item async for item in client.call_tool_streaming("m.count", STREAM[1])] == STREAM[2]
        await client.close()

    asyncio.run(main())


def test_an_agent_that_is_run_in_one_event_loop_after_the_other(url: str) -> None:
    client = asyncio.run(UtcpClient.create(config=configuration(url)))
    for _ in range(2):
        asyncio.run(converse(client))
    assert protocol_of(client).statistics().calls == 2 * len(STEPS)
    asyncio.run(client.close())


async def converse(client: UtcpClient) -> None:
    calls = [
        AIMessage("", tool_calls=[{"name": f"m.{name}", "args": arguments, "id": f"{n}"}])
        for n, (name, arguments, _) in enumerate(STEPS)
    ]
    model = Scripted(messages=iter([*calls, AIMessage("done")]))
    agent = create_react_agent(model, await load_utcp_tools(client))
    state = await agent.ainvoke({"messages": [("user", "calculate")]})
    results = [message.content for message in state["messages"] if isinstance(message, ToolMessage)]
    assert results == [str(expected) for _, _, expected in STEPS]
    assert state["messages"][-1].content == "done"
