"""Tool servers for tests, each in a thread of its own, so that nothing that a client does there can hold them up."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from anyio.from_thread import start_blocking_portal
from utcp.data.call_template import CallTemplate

from utcp_websocket_anyio import ToolServer, WebSocketCallTemplate, WebSocketCommunicationProtocol

Result = TypeVar("Result")

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Thread:
    """A thread in which servers run, on an event loop of its own.

    Args:
        backend: As the fixture `anyio_backend` has it.
    """

    def __init__(self, backend: tuple[str, dict[str, Any]]) -> None:
        self._portal = ExitStack()
        self._running = self._portal.enter_context(start_blocking_portal(*backend))
        self._serving: list[Future[None]] = []

    async def serve(self, server: ToolServer, host: str = "127.0.0.1") -> str:
        """Start a server; gives its URL."""
        start = partial(self._running.start_task, server.serve, host, 0)
        serving, _ = await anyio.to_thread.run_sync(start)
        self._serving.append(serving)
        return server.url

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function in the event loop of the servers."""
        return self._running.call(function)

    def cancel(self) -> None:
        """Cancel every server; does not wait for their end.

        Not from a thread with an event loop: it blocks, and some versions of anyio then cancel nothing.
        """
        while self._serving:
            self._serving.pop().cancel()

    def join(self) -> None:
        """Cancel every server and wait for their end; doing it again does nothing."""
        self.cancel()
        self._portal.close()


@asynccontextmanager
async def entered(**options: Any) -> AsyncIterator[WebSocketCommunicationProtocol]:
    """A client, for a limited time."""
    with anyio.fail_after(30):
        async with WebSocketCommunicationProtocol(**options) as protocol:
            yield protocol


async def discovered(protocol: WebSocketCommunicationProtocol, url: str, **template: Any) -> dict[str, CallTemplate]:
    """The call templates of a server's tools, by their names."""
    found = await protocol.register_manual(None, WebSocketCallTemplate(name="manual", url=url, **template))
    return {tool.name.removeprefix("manual."): tool.tool_call_template for tool in found.manual.tools}


async def said(protocol: WebSocketCommunicationProtocol, url: str, message: Any) -> Any:
    """The server's answer to one message, as it is on the wire."""
    template = WebSocketCallTemplate(name="manual", url=url, message=message, response_format="raw")
    return json.loads(await protocol.call_tool(None, "manual.raw", {}, template))


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def raw_client(url: str, sent: bytes = b"") -> socket.socket:
    """A client that shakes hands, sends these bytes, and then does nothing of its own accord."""
    client = socket.create_connection(("127.0.0.1", port_of(url)), timeout=30)
    client.sendall(UPGRADE)
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        received = client.recv(1)
        assert received
        answer += received
    assert answer.startswith(b"HTTP/1.1 101 "), answer
    client.sendall(sent)
    return client


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True) -> bytes:
    """A client's frame; its mask changes nothing."""
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | opcode])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 2**16:
        head += bytes([0x80 | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([0x80 | 127]) + size.to_bytes(8, "big")
    return head + bytes(4) + payload
