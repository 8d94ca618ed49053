"""The stock UTCP client on asyncio, with nothing but this package installed: no line here imports it.

Run it: ``python examples/asyncio_plugin.py``. The endpoint is a plain WebSocket server that knows nothing of UTCP; the
manual below says how to talk to it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

from utcp.utcp_client import UtcpClient
from websockets.asyncio.server import ServerConnection, serve


async def endpoint(connection: ServerConnection) -> None:
    """Somebody's WebSocket service: numbered requests, answers in any order, and news in between."""

    async def answer(request: dict[str, Any]) -> None:
        if request["do"] == "translate":
            await asyncio.sleep(0.01 * len(request["text"]))
            await connection.send(json.dumps({"re": request["id"], "data": {"text": request["text"][::-1]}}))
        for step in range(request.get("steps", 0)):
            await connection.send(json.dumps({"re": request["id"], "data": step}))
        if request["do"] == "count":
            await connection.send(json.dumps({"re": request["id"], "done": True}))

    answers = set()
    async for message in connection:
        await connection.send(json.dumps({"news": "a message that nobody asked for"}))
        answers.add(asyncio.create_task(answer(json.loads(message))))


def manual(url: str) -> dict[str, Any]:
    """The service as a UTCP manual: this is all that there is to write."""
    numbered = {
        "call_template_type": "websocket",
        "name": "service",
        "url": url,
        "response_format": "json",
        "result": {"path": "data"},
        # Many calls share one connection; each takes the answers with its own number.
        "multiplex": True,
        "message_filter": {"re": "{{call_id}}", "data": {"$any": True}},
    }
    translate = {
        **numbered,
        "message": {"id": "{{call_id}}", "do": "translate", "text": "${text}"},
        "response_timeout": 5,
    }
    count = {
        **numbered,
        "message": {"id": "{{call_id}}", "do": "count", "steps": "${steps}"},
        "end_filter": {"re": "{{call_id}}", "done": True},
    }
    return {
        "call_template_type": "websocket",
        "name": "service",
        "url": url,
        "tools": [
            {
                "name": "translate",
                "description": "Translate a text into Backwards.",
                "inputs": {"type": "object", "properties": {"text": {"type": "string"}}},
                "tool_call_template": translate,
            },
            {
                "name": "count",
                "description": "Count, one number at a time.",
                "inputs": {"type": "object", "properties": {"steps": {"type": "integer"}}},
                "tool_call_template": count,
            },
        ],
    }


async def main() -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(serve(endpoint, "127.0.0.1", 0))
        port = server.sockets[0].getsockname()[1]

        client = await UtcpClient.create(config={"manual_call_templates": [manual(f"ws://127.0.0.1:{port}/")]})
        stack.push_async_callback(client.close)
        print("tools        ", ", ".join(tool.name for tool in await client.search_tools("translate count")))

        print("one call     ", await client.call_tool("service.translate", {"text": "hello"}))

        texts = ["the longest text of them all", "a longer text", "short"]
        answers = await asyncio.gather(*(client.call_tool("service.translate", {"text": text}) for text in texts))
        print("many at once ", [answer["text"] for answer in answers])

        # UTCP declares the method as a coroutine, which it is not.
        stream: AsyncIterator[int] = client.call_tool_streaming("service.count", {"steps": 5})  # type: ignore[assignment]
        print("a stream     ", [number async for number in stream])


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # UTCP's core has it at INFO
    asyncio.run(main())
