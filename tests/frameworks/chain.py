"""Five calls that build on each other, and a stream, against a server of this package that runs in a thread."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal

from utcp_websocket_anyio import ToolServer, WebSocketCommunicationProtocol

STEPS: list[tuple[str, dict[str, Any], Any]] = [
    ("add", {"a": 2, "b": 3}, 5),
    ("multiply", {"a": 5, "b": 4}, 20),
    ("repeat", {"text": "ab", "times": 20}, "ab" * 20),
    ("length", {"text": "ab" * 20}, 40),
    ("add", {"a": 40, "b": 2}, 42),
]
"""Tool, arguments and result."""

STREAM = ("count", {"n": 5}, [0, 1, 2, 3, 4])

SEEN: list[str] = []
"""What became of the streams of `forever`, as the server sees it."""


def _server() -> ToolServer:
    server = ToolServer("tools")

    @server.tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @server.tool
    def multiply(a: int, b: int) -> int:
        """Multiply two numbers."""
        return a * b

    @server.tool
    def repeat(text: str, times: int) -> str:
        """Repeat a text."""
        return text * times

    @server.tool
    def length(text: str) -> int:
        """The number of characters of a text."""
        return len(text)

    @server.tool
    async def count(n: int) -> AsyncIterator[int]:
        """Count from zero."""
        for i in range(n):
            yield i

    @server.tool
    async def forever() -> AsyncIterator[int]:
        """Count until nobody listens."""
        SEEN.append("begun")
        try:
            i = 0
            while True:
                yield i
                i += 1
                await anyio.sleep(0.01)
        finally:
            SEEN.append("ended")

    return server


@contextmanager
def running_server() -> Iterator[str]:
    """The URL of the server, for the length of a block."""
    server = _server()
    with start_blocking_portal("trio") as portal:
        future, _ = portal.start_task(server.serve, "127.0.0.1", 0)
        yield server.url
        future.cancel()


def configuration(url: str) -> dict[str, Any]:
    return {"manual_call_templates": [{"name": "m", "call_template_type": "websocket", "url": url}]}


def protocol_of(client: Any) -> WebSocketCommunicationProtocol:
    """The protocol object of a stock client; that it is ours shows that the plugin was found."""
    found: Any = client._own_comm_protocols_by_type["websocket"]
    assert isinstance(found, WebSocketCommunicationProtocol)
    return found
