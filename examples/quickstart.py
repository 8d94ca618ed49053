"""A tour in one file: publish Python functions as UTCP tools, then call them from trio and from asyncio.

Run it: ``python examples/quickstart.py``. It needs no network but loopback.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing
from typing import Any

import anyio
import trio
from utcp.data.call_template import CallTemplate
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import (
    ToolServer,
    WebSocketCallTemplate,
    WebSocketCommunicationProtocol,
    WebSocketTimeoutError,
)

server = ToolServer("quickstart")

Call = Callable[[str, dict[str, Any]], Awaitable[Any]]


@server.tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@server.tool(timeout=0.3)
async def ponder(question: str, seconds: float) -> str:
    """Think for a while, then answer."""
    await anyio.sleep(seconds)
    return f"{question} 42."


@server.tool
async def countdown(start: int) -> AsyncIterator[int]:
    """Count down to zero."""
    for number in range(start, -1, -1):
        yield number
        await anyio.sleep(0.02)


def say(text: str) -> None:
    print(f"   {text}")


async def fifty_at_once(gathered: Callable[[Call], Awaitable[list[int]]], call: Call) -> None:
    """Whatever order the answers come in, each call gets its own."""
    began = time.perf_counter()
    sums = await gathered(call)
    right = sum(result == n + n for n, result in enumerate(sums))
    say(f"50 calls at once       -> {right} right answers in {1000 * (time.perf_counter() - began):.0f} ms")


async def late_answer(call: Call) -> None:
    """A call that is too late fails; its answer, when it comes, is discarded."""
    try:
        await call("ponder", {"question": "The question?", "seconds": 0.6})
    except WebSocketTimeoutError as error:
        say(f"too slow an answer     -> {type(error).__name__}, phase {error.phase!r}")
    answer = await call("ponder", {"question": "And now?", "seconds": 0.1})
    say(f"the next call          -> {answer!r}")


async def on_trio(url: str) -> None:
    """The protocol object itself, entered: its connections live in this block."""
    manual = WebSocketCallTemplate(name="tools", url=url)
    async with WebSocketCommunicationProtocol() as protocol:
        found = await protocol.register_manual(None, manual)
        templates: dict[str, CallTemplate] = {tool.name: tool.tool_call_template for tool in found.manual.tools}
        say(f"discovered             -> {', '.join(templates)}")

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return await protocol.call_tool(None, f"tools.{tool}", arguments, templates[tool])

        say(f"add(a=2, b=40)         -> {await call('add', {'a': 2, 'b': 40})}")

        async def fifty(call: Call) -> list[int]:
            sums = [0] * 50

            async def one(n: int) -> None:
                sums[n] = await call("add", {"a": n, "b": n})

            async with trio.open_nursery() as nursery:
                for n in range(50):
                    nursery.start_soon(one, n)
            return sums

        await fifty_at_once(fifty, call)

        stream = protocol.call_tool_streaming(None, "tools.countdown", {"start": 5}, templates["countdown"])
        async with aclosing(stream):
            say(f"countdown(start=5)     -> {' '.join([str(n) async for n in stream])}")

        await late_answer(call)


async def on_asyncio(url: str) -> None:
    """The stock UTCP client: it finds this package by its entry point."""
    async with AsyncExitStack() as stack:
        client = await UtcpClient.create(
            config={"manual_call_templates": [{"name": "tools", "call_template_type": "websocket", "url": url}]}
        )
        stack.push_async_callback(client.close)
        names = [tool.name for tool in await client.search_tools("add numbers, count, think", limit=10)]
        say(f"discovered             -> {', '.join(sorted(names))}")

        async def call(tool: str, arguments: dict[str, Any]) -> Any:
            return await client.call_tool(f"tools.{tool}", arguments)

        say(f"add(a=2, b=40)         -> {await call('add', {'a': 2, 'b': 40})}")

        async def fifty(call: Call) -> list[int]:
            return await asyncio.gather(*(call("add", {"a": n, "b": n}) for n in range(50)))

        await fifty_at_once(fifty, call)

        # UTCP declares the method as a coroutine, which it is not.
        stream: AsyncIterator[int] = client.call_tool_streaming("tools.countdown", {"start": 5})  # type: ignore[assignment]
        say(f"countdown(start=5)     -> {' '.join([str(n) async for n in stream])}")

        await late_answer(call)


async def tour(title: str, use: Callable[[str], Awaitable[None]]) -> None:
    """The server and its client, for as long as that takes, on the event loop that runs this."""
    async with anyio.create_task_group() as task_group:
        await task_group.start(server.serve, "127.0.0.1", 0)
        print(f"{title}, and a tool server at {server.url}: three Python functions, no other code")
        await use(server.url)
        task_group.cancel_scope.cancel()


if __name__ == "__main__":
    logging.getLogger().setLevel(logging.WARNING)  # UTCP's core has it at INFO
    trio.run(tour, "1. trio, with the protocol object", on_trio)
    print()
    asyncio.run(tour("2. asyncio, with the stock UtcpClient", on_asyncio))
    print("\nThe same answers twice. Every connection and task is gone when its block is left.")
