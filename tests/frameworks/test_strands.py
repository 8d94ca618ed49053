"""`strands-utcp` in an agent of Strands, which runs each invocation in an event loop of its own, in a thread.

The adapter (0.1.1) builds call templates from its configuration itself, for the types that it knows, and leaves out
``websocket`` with a warning. So the manual is registered with the client that it holds. It has no streams, and its
`stop` drops the client without closing it; this plugin closes the connections all the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator
from typing import Any

from strands import Agent
from strands.models.model import Model
from strands_utcp import UtcpToolAdapter

from frameworks.chain import STEPS, STREAM, protocol_of
from utcp_websocket_anyio import WebSocketCallTemplate


class Scripted(Model):
    """Says what it is told to, in the events of Strands' interface for models."""

    def __init__(self, turns: list[tuple[str, dict[str, Any]] | str]) -> None:
        self.turns = turns

    def update_config(self, **model_config: Any) -> None:
        pass

    def get_config(self) -> Any:
        return {}

    def structured_output(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    async def stream(self, messages: Any, *_: Any, **__: Any) -> AsyncIterator[Any]:
        turn = self.turns.pop(0)
        yield {"messageStart": {"role": "assistant"}}
        if isinstance(turn, str):
            yield {"contentBlockStart": {"start": {}}}
            yield {"contentBlockDelta": {"delta": {"text": turn}}}
        else:
            name, arguments = turn
            use = {"name": name, "toolUseId": f"use{len(self.turns)}"}
            yield {"contentBlockStart": {"start": {"toolUse": use}}}
            yield {"contentBlockDelta": {"delta": {"toolUse": {"input": json.dumps(arguments)}}}}
        yield {"contentBlockStop": {}}
        yield {"messageStop": {"stopReason": "end_turn" if isinstance(turn, str) else "tool_use"}}


def results(agent: Agent) -> list[str]:
    blocks = [block for message in agent.messages for block in message["content"]]
    return [block["toolResult"]["content"][0]["text"] for block in blocks if "toolResult" in block]


def test_a_chain_of_calls_in_several_invocations(url: str) -> None:
    async def start() -> UtcpToolAdapter:
        adapter = await UtcpToolAdapter({"manual_call_templates": []}).start()
        await adapter._utcp_client.register_manual(WebSocketCallTemplate(name="m", url=url))
        await adapter._load_tools()
        return adapter

    adapter = asyncio.run(start())
    protocol = protocol_of(adapter._utcp_client)
    for _ in range(2):
        turns: list[Any] = [(f"m_{name}", arguments) for name, arguments, _ in STEPS]
        agent = Agent(
            model=Scripted([*turns, ("m_count", STREAM[1]), "done"]),
            tools=adapter.to_strands_tools(),
            callback_handler=None,
        )
        agent("calculate")
        assert results(agent) == [*(str(expected) for _, _, expected in STEPS), str(STREAM[2])]
    assert protocol.statistics().calls == 2 * (len(STEPS) + 1)

    async def stream() -> list[Any]:
        return [item async for item in adapter._utcp_client.call_tool_streaming("m.count", STREAM[1])]

    assert asyncio.run(stream()) == STREAM[2]
    asyncio.run(adapter.stop())
    gc.collect()
    statistics = protocol.statistics()
    assert (statistics.idle, statistics.active) == (0, 0)
