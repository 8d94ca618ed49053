"""The other end of HTTP requests in tests: a server that answers as a test says, or breaks off where it says."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qsl

import anyio
import anyio.abc
import h11
from anyio.streams.tls import TLSListener

from support.peers import reset


class HttpPeer:
    """One connection, its request already read."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self.method = ""
        self.target = ""
        self.headers: dict[str, str] = {}
        self.body = b""
        self._protocol = h11.Connection(h11.SERVER)

    @property
    def form(self) -> dict[str, str]:
        """The request's body as a form's fields."""
        return dict(parse_qsl(self.body.decode(), keep_blank_values=True, strict_parsing=True))

    async def read_request(self) -> None:
        while not isinstance(event := self._protocol.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Request):
                self.method, self.target = event.method.decode(), event.target.decode()
                self.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                self.body += event.data
            else:
                self._protocol.receive_data(await self.stream.receive())

    async def answer(self, content: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send a whole answer: bytes as they are, anything else as JSON."""
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self.begin(status, [("Content-Length", str(len(body))), *headers])
        await self.send_raw(body)

    async def begin(self, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Send the head of an answer."""
        head = h11.Response(status_code=status, headers=[*headers, ("Connection", "close")])
        await self.send_raw(self._protocol.send(head) or b"")

    async def send_raw(self, data: bytes) -> None:
        await self.stream.send(data)

    async def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        reset(self.stream)
        await self.stream.aclose()


class HttpServer:
    """A server on loopback.

    Attributes:
        url: Its root, without the last slash.
        peers: Every request so far.
        connected: Set when a connection is accepted.
        asked: Set when a request was read.
        left: Set when a client has closed its connection, or broken it off.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.peers: list[HttpPeer] = []
        self.connected = anyio.Event()
        self.asked = anyio.Event()
        self.left = anyio.Event()


Handler = Callable[[HttpPeer], Awaitable[None]]


@asynccontextmanager
async def serve_http(handler: Handler, *, ssl_context: ssl.SSLContext | None = None) -> AsyncIterator[HttpServer]:
    """Answer each request by the handler, until the block is left."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as tcp, anyio.create_task_group() as tasks:
        port = tcp.extra(anyio.abc.SocketAttribute.local_port)
        listener = tcp if ssl_context is None else TLSListener(tcp, ssl_context, standard_compatible=False)
        server = HttpServer(f"{'http' if ssl_context is None else 'https'}://127.0.0.1:{port}")

        async def serve(stream: anyio.abc.ByteStream) -> None:
            server.connected.set()
            peer = HttpPeer(stream)
            async with stream:
                try:
                    await peer.read_request()
                    server.peers.append(peer)
                    server.asked.set()
                    await handler(peer)
                    while True:
                        await stream.receive()
                except (anyio.EndOfStream, anyio.BrokenResourceError, h11.RemoteProtocolError):
                    server.left.set()
                except anyio.ClosedResourceError:
                    pass  # by the handler itself

        tasks.start_soon(listener.serve, serve)
        try:
            yield server
        finally:
            tasks.cancel_scope.cancel()


def answering(content: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Handler:
    """A handler that gives each request the same answer, and closes."""

    async def handler(peer: HttpPeer) -> None:
        await peer.answer(content, status, headers)
        await peer.stream.aclose()

    return handler


async def silent(peer: HttpPeer) -> None:
    """A handler that never answers."""
