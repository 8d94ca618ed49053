"""``utcp-ws demo``: a guided tour over a real connection, with a server of its own."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import anyio
import click
from anyio.from_thread import start_blocking_portal
from rich.console import Console

from .._client.client import AnyioUtcpClient, open_client
from .._server.server import ToolServer
from .._templates.call_template import WebSocketCallTemplate
from ..errors import WebSocketTimeoutError, WebSocketToolError
from .command import Command
from .options import backend_option
from .output import console
from .running import run

__all__ = ["demo"]

_CALLS = 50


@click.command(cls=Command, examples=("utcp-ws demo", "utcp-ws demo --backend asyncio"))
@backend_option
def demo(*, backend: str) -> None:
    """A tour of what this package does; takes a few seconds and uses only loopback."""
    with _serving(_tools(), backend) as url:
        run(partial(_tour, url, backend), backend=backend)


def _tools() -> ToolServer:
    server = ToolServer("demo")

    @server.tool
    async def add(a: int, b: int) -> int:
        """Add two integers."""
        # The later ones are answered first.
        await anyio.sleep(max(0.0, 0.2 - b / 250))
        return a + b

    @server.tool
    async def countdown(start: int) -> AsyncIterator[int]:
        """Count down to zero."""
        for number in range(start, -1, -1):
            yield number
            await anyio.sleep(0.1)

    @server.tool(timeout=0.3)
    async def ponder(question: str, seconds: float = 0.0) -> str:
        """Think for a while, then answer."""
        await anyio.sleep(seconds)
        return f"{question} 42."

    @server.tool
    def divide(a: float, b: float) -> float:
        """Divide two numbers."""
        return a / b

    return server


@contextmanager
def _serving(server: ToolServer, backend: str) -> Iterator[str]:
    """The server in a thread of its own, as if it were somewhere else."""
    with start_blocking_portal(backend) as portal:
        serving, _ = portal.start_task(server.serve, "127.0.0.1", 0)
        try:
            yield server.url
        finally:
            serving.cancel()


async def _tour(url: str, backend: str) -> None:
    out = console()

    def step(number: int, title: str, command: str) -> None:
        out.print(f"\n{number}. {title}", style="bold")
        out.print(f"   utcp-ws {command}", style="dim")

    out.print(f"A tool server is up at {url}: four Python functions. It runs on {backend}, and so does the client.")
    async with open_client() as client:
        step(1, "Discover", "discover URL")
        found = await client.register_manual(WebSocketCallTemplate(name="demo", url=url))
        for tool in found.manual.tools:
            out.print(f"   {tool.name:16} {tool.description}")

        step(2, "Call", "call URL add a=2 b=40")
        out.print(f"   {await client.call_tool('demo.add', {'a': 2, 'b': 40})}")

        step(3, f"{_CALLS} calls at once, answered in reverse, on one connection", "call URL add …")
        await _many(client, out)

        step(4, "Stream", "stream URL countdown start=9")
        async with aclosing(client.call_tool_streaming("demo.countdown", {"start": 9})) as numbers:
            async for number in numbers:
                out.print(f"   {number}" if number == 9 else f" {number}", end="")
        out.print()

        step(5, "A tool that fails", "call URL divide a=1 b=0")
        try:
            await client.call_tool("demo.divide", {"a": 1, "b": 0})
        except WebSocketToolError as error:
            out.print(f"   {type(error).__name__}: {error.response['error']}")

        step(6, "A response that comes too late is discarded", "call URL ponder 'question=Why?' seconds=0.6")
        try:
            await client.call_tool("demo.ponder", {"question": "Why?", "seconds": 0.6})
        except WebSocketTimeoutError as error:
            out.print(f"   {type(error).__name__}, in phase {error.phase!r}")
        answer = await client.call_tool("demo.ponder", {"question": "And now?"})
        out.print(f"   the next call gets its own: {answer!r}")
    out.print("\nEvery connection is closed. Your own tools: utcp-ws serve FILE.py")


async def _many(client: AnyioUtcpClient, out: Console) -> None:
    answers: dict[int, Any] = {}

    async def one(number: int) -> None:
        answers[number] = await client.call_tool("demo.add", {"a": number, "b": number})

    began = time.perf_counter()
    async with anyio.create_task_group() as task_group:
        for number in range(_CALLS):
            task_group.start_soon(one, number)
    right = sum(answer == 2 * number for number, answer in answers.items())
    first, last = next(iter(answers)), next(reversed(answers))
    milliseconds = 1000 * (time.perf_counter() - began)
    out.print(
        f"   {right} right answers in {milliseconds:.0f} ms; that to call {first} came first, that to call {last} last"
    )
