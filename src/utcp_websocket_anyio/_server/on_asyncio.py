"""Connections on asyncio, over `websockets`.

`websockets` starts a task for each client, outside of every task group. They are tied to the server's own all the same:
each runs in a cancel scope that the server knows, and the server ends after the last of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from socket import socket
from typing import Any

import anyio
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from .transport import (
    BACKLOG,
    CLOSING_TIME,
    HANDSHAKE_TIME,
    Carrier,
    Disconnected,
    Handshake,
)

__all__ = ["loop_caller", "serve_connections"]

_log = logging.getLogger(__name__)
# `websockets` logs requests, which hold the token.
_silent = logging.Logger("utcp_websocket_anyio.server", level=logging.CRITICAL + 1)  # noqa: LOG001 - not in the tree
_silent.disabled = True

_MAX_UNREAD_PONGS = 2**20


async def serve_connections(sockets: Sequence[socket], carrier: Carrier) -> None:
    """See `transport`."""
    clients: set[_Client] = set()
    servers: list[Server] = []

    def create_client(*arguments: Any, **options: Any) -> _Client:
        return _Client(*arguments, clients=clients, **options)

    async def serve_client(client: ServerConnection) -> None:
        assert isinstance(client, _Client)
        with anyio.CancelScope() as client.scope:
            try:
                await carrier.handle(_Connection(client))
            except Exception:  # noqa: BLE001 - the others go on
                _log.exception("a connection failed")

    def process_request(client: ServerConnection, request: Request) -> Response | None:
        assert isinstance(client, _Client)
        client.handshake_seen = handshake = _handshake(request, client)
        refusal = carrier.admit(handshake)
        if refusal is None:
            return None
        response = client.respond(refusal.status, f"{refusal.reason}\n")
        for name, value in refusal.headers:
            response.headers[name] = value
        return response

    try:
        for bound in sockets:
            server = await serve(
                serve_client,
                sock=bound,
                ssl=carrier.ssl_context,
                backlog=BACKLOG,
                process_request=process_request,
                create_connection=create_client,  # type: ignore[arg-type]  # called, nothing else
                max_size=carrier.max_message_size,
                # Frames that wait to be read. More would be more memory for a client to fill.
                max_queue=1,
                open_timeout=HANDSHAKE_TIME,
                close_timeout=CLOSING_TIME,
                # Pings are the session's.
                ping_interval=None,
                # A small message could become a large one.
                compression=None,
                server_header=None,
                logger=_silent,
            )
            servers.append(server)
        carrier.started()
        await anyio.sleep_forever()
    finally:
        with anyio.CancelScope(shield=True):
            await _end(servers, clients)


def loop_caller() -> Callable[[Callable[[], object]], object]:
    """See `transport`."""
    return asyncio.get_running_loop().call_soon_threadsafe


async def _end(servers: list[Server], clients: set[_Client]) -> None:
    """Cancel what runs for each client, and wait for its end; drop those who take too long."""
    for server in servers:
        server.close(close_connections=False)
    for client in list(clients):
        client.end()
    # A session takes one CLOSING_TIME to say goodbye.
    with anyio.move_on_after(CLOSING_TIME + 1) as scope:
        await _wait_closed(servers, clients)
    if scope.cancelled_caught:
        for client in list(clients):
            client.transport.abort()
        for server in servers:
            # Clients in a TLS handshake are known to nobody else.
            getattr(server.server, "abort_clients", bool)()
        with anyio.move_on_after(1):
            await _wait_closed(servers, clients)


async def _wait_closed(servers: list[Server], clients: set[_Client]) -> None:
    for server in servers:
        await server.wait_closed()
    # Until Python 3.12 that does not wait for the connections.
    for client in list(clients):
        await client.wait_closed()


def _handshake(request: Request, client: ServerConnection) -> Handshake:
    hosts = request.headers.get_all("Host")
    return Handshake(
        target=request.path,
        host=hosts[0] if len(hosts) == 1 else "",
        origins=tuple(request.headers.get_all("Origin")),
        authorizations=tuple(request.headers.get_all("Authorization")),
        local_address=client.local_address[0],
    )


class _Client(ServerConnection):
    """A client, from the first byte on.

    Attributes:
        handshake_seen: What it asked for.
        scope: Of what runs for it, once it is connected.
        received: Bytes so far.
        sending: Bytes of the messages that wait to be written.
    """

    handshake_seen: Handshake
    scope: anyio.CancelScope | None = None
    received = 0
    sending = 0

    def __init__(self, *arguments: Any, clients: set[_Client], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._clients = clients

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._clients.add(self)
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._clients.discard(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        super().data_received(data)
        # Messages are held back while the client does not read; the pongs that it asks for are not.
        if self.transport.get_write_buffer_size() > self.sending + _MAX_UNREAD_PONGS:
            self.transport.abort()

    def end(self) -> None:
        """Cancel what runs for the client, or drop it if it is not connected yet."""
        if self.scope is not None:
            self.scope.cancel()
        else:
            self.transport.abort()


class _Connection:
    """A `transport.Connection`."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    @property
    def handshake(self) -> Handshake:
        return self._client.handshake_seen

    @property
    def progress(self) -> object:
        return self._client.received, self._client.transport.get_write_buffer_size()

    async def receive(self) -> str | bytes:
        try:
            return await self._client.recv()
        except ConnectionClosed:
            raise Disconnected from None

    async def send(self, text: str) -> None:
        size = 2 * len(text)  # and more than any frame's header
        self._client.sending += size
        try:
            await self._client.send(text)
        except ConnectionClosed:
            raise Disconnected from None
        finally:
            self._client.sending -= size

    async def ping(self) -> None:
        try:
            await (await self._client.ping())
        except ConnectionClosed:
            raise Disconnected from None

    async def close(self, code: int, reason: str) -> None:
        with anyio.move_on_after(CLOSING_TIME):
            await self._client.close(code, reason)
        if self._client.transport.get_write_buffer_size():
            # It does not read; `websockets` would wait for it.
            self.abort()

    def abort(self) -> None:
        self._client.transport.abort()
