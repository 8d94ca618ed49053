"""A client that several threads use, through anyio's blocking portal.

An `AnyioUtcpClient` belongs to the event loop that it was opened in. A program without one, or with threads of its own,
keeps an event loop in a thread (a *portal*) and opens the client there: any thread then calls tools like functions.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from utcp_websocket_anyio import AnyioUtcpClient, ToolServer, open_client

server = ToolServer("service")


@server.tool
async def reverse(text: str) -> str:
    """Reverse a text, at leisure."""
    await anyio.sleep(0.1)
    return text[::-1]


@server.tool
async def count(to: int) -> AsyncIterator[int]:
    """Count up."""
    for number in range(to):
        yield number


class Tools:
    """The tools of a configuration, for code that knows nothing of event loops."""

    def __init__(self, portal: BlockingPortal, client: AnyioUtcpClient) -> None:
        self._portal = portal
        self._client = client

    def call(self, name: str, **arguments: Any) -> Any:
        """Call a tool and wait for its result. An error of the tool is raised here."""
        return self._portal.call(self._client.call_tool, name, arguments)

    def stream(self, name: str, **arguments: Any) -> Iterator[Any]:
        """Iterate over what a tool sends. Closing the iterator leaves the stream."""
        stream = self._client.call_tool_streaming(name, arguments)
        try:
            while True:
                try:
                    yield self._portal.call(stream.__anext__)
                except StopAsyncIteration:
                    return
        finally:
            self._portal.call(stream.aclose)


@contextmanager
def open_tools(config: dict[str, Any], backend: str = "asyncio") -> Iterator[Tools]:
    """Open a client in an event loop of its own; leaving the block closes both."""
    with (
        start_blocking_portal(backend) as portal,
        portal.wrap_async_context_manager(open_client(config)) as client,
    ):
        yield Tools(portal, client)


@contextmanager
def running_server() -> Iterator[str]:
    with start_blocking_portal("trio") as portal:
        future, _ = portal.start_task(server.serve, "127.0.0.1", 0)
        yield server.url
        future.cancel()


def main() -> None:
    with running_server() as url:
        for backend in ("asyncio", "trio"):
            manual = {"name": "service", "call_template_type": "websocket", "url": url}
            with open_tools({"manual_call_templates": [manual]}, backend) as tools, ThreadPoolExecutor(8) as threads:
                words = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
                answers = threads.map(lambda word: tools.call("service.reverse", text=word), words)
                print(f"{backend:8}", *answers, "|", *tools.stream("service.count", to=4))


if __name__ == "__main__":
    main()
