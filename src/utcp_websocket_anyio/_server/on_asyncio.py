"""Connections on asyncio, over `websockets`.

`websockets` has a server of its own, which starts a task for each client, outside of every task group, and cannot end
before the slowest TLS handshake does. So only its connections are used: clients are accepted here, each is served by a
task of the server's task group, and cancelling that group ends the server.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from socket import socket
from typing import Any

import anyio
import anyio.abc
from websockets.asyncio.connection import Connection
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.frames import DATA_OPCODES, Frame
from websockets.http11 import Request, Response
from websockets.protocol import Event, State
from websockets.server import ServerProtocol

from .transport import CLOSING_TIME, HANDSHAKE_TIME, Carrier, Disconnected, Handshake, Scope, Tasks, max_parts

__all__ = ["is_cancelled", "loop_caller", "open_scope", "open_tasks", "serve_connections"]

_log = logging.getLogger(__name__)
# `websockets` logs requests, which hold the token.
_silent = logging.Logger("utcp_websocket_anyio.server", level=logging.CRITICAL + 1)  # noqa: LOG001 - not in the tree
_silent.disabled = True

_MAX_UNREAD_PONGS = 2**20
# The machine or the process has no room for another connection now.
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_TIME_TO_MAKE_ROOM = 0.1


async def serve_connections(sockets: Sequence[socket], carrier: Carrier) -> None:
    """See `transport`."""
    async with anyio.create_task_group() as tasks:
        for listening in sockets:
            tasks.start_soon(_accept, listening, carrier, tasks)
        carrier.started()


def open_tasks() -> AbstractAsyncContextManager[Tasks]:
    """See `transport`."""
    return anyio.create_task_group()


def open_scope() -> Scope:
    """See `transport`."""
    return anyio.CancelScope()


def is_cancelled() -> bool:
    """See `transport`."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def loop_caller() -> Callable[[Callable[[], object]], object]:
    """See `transport`."""
    return asyncio.get_running_loop().call_soon_threadsafe


async def _accept(listening: socket, carrier: Carrier, tasks: anyio.abc.TaskGroup) -> None:
    while True:
        # Not `loop.sock_accept`: cancelled at the wrong moment, that accepts a client and forgets it.
        await anyio.wait_readable(listening)
        try:
            accepted, _ = listening.accept()
        except OSError as error:
            # Anything else: the client has gone already.
            if error.errno in _NO_ROOM:
                _log.warning("cannot accept a client: %s", error.strerror)
                await anyio.sleep(_TIME_TO_MAKE_ROOM)
        else:
            tasks.start_soon(_serve_client, accepted, carrier)


async def _serve_client(accepted: socket, carrier: Carrier) -> None:
    """One client from its first byte to its end; whatever it does, the others go on."""
    client = _Client(carrier.max_message_size)
    accepted.setblocking(False)
    try:
        with anyio.move_on_after(HANDSHAKE_TIME) as scope:
            if not await _connect(client, accepted, carrier):
                return
        if scope.cancelled_caught:
            return
        await carrier.handle(_Connection(client))
    except Exception:  # noqa: BLE001 - the others go on
        _log.exception("a connection failed")
    finally:
        client.abort()
        accepted.close()


async def _connect(client: _Client, accepted: socket, carrier: Carrier) -> bool:
    """Complete TLS and the handshake; false if there is no connection then."""

    def process_request(_: ServerConnection, request: Request) -> Response | None:
        client.handshake_seen = handshake = _handshake(request, client)
        refusal = carrier.admit(handshake)
        if refusal is None:
            return None
        response = client.respond(refusal.status, f"{refusal.reason}\n")
        for name, value in refusal.headers:
            response.headers[name] = value
        return response

    options: dict[str, Any] = {}
    if carrier.ssl_context is not None:
        options = {"ssl": carrier.ssl_context, "ssl_handshake_timeout": HANDSHAKE_TIME}
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: client, accepted, **options)
        await client.handshake(process_request, None, None)
    except (OSError, ConnectionClosed, EOFError):
        return False
    return client.state is State.OPEN


def _handshake(request: Request, client: ServerConnection) -> Handshake:
    hosts = request.headers.get_all("Host")
    return Handshake(
        target=request.path,
        host=hosts[0] if len(hosts) == 1 else "",
        origins=tuple(request.headers.get_all("Origin")),
        authorizations=tuple(request.headers.get_all("Authorization")),
        local_address=client.local_address[0],
    )


class _NoServer:
    """Stand-in for the server that a `ServerConnection` usually belongs to."""

    @staticmethod
    def is_serving() -> bool:
        return True


class _Client(ServerConnection):
    """A client, from the first byte on.

    Attributes:
        handshake_seen: The client's opening request.
        received: Bytes so far.
        sending: Bytes of the messages that wait to be written.
    """

    handshake_seen: Handshake

    def __init__(self, max_message_size: int) -> None:
        super().__init__(
            # Without compression: a small message could become a large one.
            ServerProtocol(max_size=max_message_size, logger=_silent),
            _NoServer(),  # type: ignore[arg-type]  # has all that is used of one
            # Pings are the session's.
            ping_interval=None,
            close_timeout=CLOSING_TIME,
            # Frames that wait to be read. More would be more memory for a client to fill.
            max_queue=1,
        )
        self.received = 0
        self.sending = 0
        self._parts = 0
        self._max_parts = max_parts(max_message_size)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not that of ServerConnection, which starts a task.
        Connection.connection_made(self, transport)

    def data_received(self, data: bytes) -> None:
        self.received += len(data)
        super().data_received(data)
        # Messages are held back while the client does not read; the pongs that it asks for are not.
        if self.transport.get_write_buffer_size() > self.sending + _MAX_UNREAD_PONGS:
            self.transport.abort()

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode in DATA_OPCODES:
            self._parts = 0 if event.fin else self._parts + 1
            if self._parts > self._max_parts:
                self.abort()
        super().process_event(event)

    def abort(self) -> None:
        """Drop the client, connected or not."""
        transport = getattr(self, "transport", None)
        if transport is not None:
            transport.abort()


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
        # `recv` gives what is there without letting anybody else run. A call that can be answered at once should be,
        # and its answer count, before the next one is begun.
        await asyncio.sleep(0)
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
        self._client.abort()
