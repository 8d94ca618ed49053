"""Connections on trio, over trio-websocket.

trio-websocket shares nothing with the client's engines, so the two test each other. It reads in a task of its own,
which it expects to outlive everything else: the closing handshake of a server that is being cancelled still needs it.
So each client has two nurseries: an outer one, which is cancelled with the server, and in it, shielded, one for that
reader.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from socket import socket

import trio
from trio_websocket import ConnectionClosed, HandshakeError, WebSocketConnection, WebSocketRequest, wrap_server_stream
from wsproto.utilities import LocalProtocolError

from .transport import (
    CLOSING_TIME,
    HANDSHAKE_TIME,
    MESSAGE_TOO_BIG,
    Carrier,
    Disconnected,
    Handshake,
    Scope,
    Tasks,
    max_parts,
)

__all__ = ["is_cancelled", "loop_caller", "open_scope", "open_tasks", "serve_connections"]

_log = logging.getLogger(__name__)

_READ_SIZE = 65536
_WRITE_SIZE = 65536


async def serve_connections(sockets: Sequence[socket], carrier: Carrier) -> None:
    """See `transport`."""
    listeners: list[trio.abc.Listener[trio.abc.Stream]] = []
    for bound in sockets:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(bound))
        context = carrier.ssl_context
        secure = None if context is None else trio.SSLListener(listener, context, https_compatible=True)
        listeners.append(secure or listener)

    async def serve_client(stream: trio.abc.Stream) -> None:
        await _serve_client(stream, carrier)

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve_client, listeners)
        carrier.started()


def open_tasks() -> AbstractAsyncContextManager[Tasks]:
    """See `transport`."""
    return trio.open_nursery()


def open_scope() -> Scope:
    """See `transport`."""
    return trio.CancelScope()


def is_cancelled() -> bool:
    """See `transport`."""
    return True


def loop_caller() -> Callable[[Callable[[], object]], object]:
    """See `transport`."""
    return trio.lowlevel.current_trio_token().run_sync_soon


async def _serve_client(stream: trio.abc.Stream, carrier: Carrier) -> None:
    """One client from its first byte to its end; whatever it does, the others go on."""
    counted = _CountedStream(stream)
    reader = _ReaderNursery()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.run, nursery.cancel_scope)
            try:
                await _accept(counted, await reader.get(), carrier)
            finally:
                reader.close()
        if counted.is_too_much:
            # A socket that is closed with unread bytes is reset, and the client would not learn why.
            with trio.move_on_after(CLOSING_TIME, shield=True):
                await _drain(stream)
    finally:
        await trio.aclose_forcefully(stream)


class _ReaderNursery:
    """A nursery for trio-websocket's reader, which outlives everything else about a client.

    It is not opened with `start`: while that is being cancelled, it would wait for this.
    """

    def __init__(self) -> None:
        self._scope = trio.CancelScope(shield=True)
        self._opened = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self, client: trio.CancelScope) -> None:
        """Keep it open until it is closed. If the reader fails, so does everything else about the client."""
        try:
            with self._scope:
                async with trio.open_nursery() as self._nursery:
                    self._opened.set()
                    await trio.sleep_forever()
        except Exception as error:  # noqa: BLE001 - some clients make it raise; that ends their connection only
            _log.debug("lost a client: %s", type(error).__name__)
        client.cancel()

    async def get(self) -> trio.Nursery:
        await self._opened.wait()
        assert self._nursery is not None
        return self._nursery

    def close(self) -> None:
        self._scope.cancel()


async def _accept(stream: _CountedStream, reading: trio.Nursery, carrier: Carrier) -> None:
    try:
        with trio.fail_after(HANDSHAKE_TIME) as scope:
            # The reader answers a client whose request is nonsense and leaves, without an event.
            stream.when_closed = scope.cancel
            request = await wrap_server_stream(
                reading,
                stream,
                message_queue_size=1,
                max_message_size=carrier.max_message_size,
            )
            handshake = _handshake(request, stream)
            refusal = carrier.admit(handshake)
            if refusal is not None:
                headers = [(name.encode(), value.encode()) for name, value in refusal.headers]
                text = f"{refusal.reason}\n".encode()
                await request.reject(refusal.status, extra_headers=_plain_text(headers), body=text)
                return
            connection = await request.accept()
            stream.when_closed = None
    except (trio.TooSlowError, HandshakeError, ConnectionClosed, LocalProtocolError, OSError):
        return
    try:
        await carrier.handle(_Connection(connection, stream, handshake, carrier.max_message_size))
    except Exception:  # noqa: BLE001 - the others go on
        _log.exception("a connection failed")


def _handshake(request: WebSocketRequest, stream: _CountedStream) -> Handshake:
    def values(wanted: bytes) -> tuple[str, ...]:
        return tuple(value.decode("latin-1") for name, value in request.headers if name.lower() == wanted)

    return Handshake(
        target=request.path,
        # It keeps Host apart from the other headers, and to itself.
        host=request._event.host,
        origins=values(b"origin"),
        authorizations=values(b"authorization"),
        local_address=stream.local_address,
    )


def _plain_text(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return [*headers, (b"Content-Type", b"text/plain; charset=utf-8"), (b"Connection", b"close")]


async def _drain(stream: trio.abc.Stream) -> None:
    try:
        if isinstance(stream, trio.SocketStream):
            await stream.send_eof()
        while await stream.receive_some(_READ_SIZE):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError):
        pass


class _CountedStream(trio.abc.Stream):
    """A stream that sees what trio-websocket reads and writes.

    Attributes:
        count: Bytes read and written so far.
        is_writing: A write has begun and not come to its end: after a cancellation, half a frame is out.
        is_too_much: The client has sent more than it may.
        when_closed: Callback for the end of what can be read, or when trio-websocket closes the stream.
        check: Callback before each read.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.count = 0
        self.is_writing = False
        self.is_too_much = False
        self.when_closed: Callable[[], None] | None = None
        self.check: Callable[[], None] | None = None

    @property
    def local_address(self) -> str:
        address: str = self._tcp.socket.getsockname()[0]
        return address

    @property
    def _tcp(self) -> trio.SocketStream:
        tcp = self._stream.transport_stream if isinstance(self._stream, trio.SSLStream) else self._stream
        assert isinstance(tcp, trio.SocketStream)
        return tcp

    def abort(self) -> None:
        """Close the socket at once, and wake the task that waits for it."""
        self._tcp.socket.close()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self.check is not None:
            self.check()
        # trio-websocket asks for 4 KiB at a time, which makes a long message many parts.
        data = await self._stream.receive_some(_READ_SIZE)
        self.count += len(data)
        if not data:
            self._say_closed()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self.is_writing = True
        if len(data) <= _WRITE_SIZE:
            await self._stream.send_all(data)
            self.count += len(data)
        else:
            # In parts, so that the progress of a long one can be seen.
            with memoryview(data) as view:
                for start in range(0, len(view), _WRITE_SIZE):
                    part = view[start : start + _WRITE_SIZE]
                    await self._stream.send_all(part)
                    self.count += len(part)
        self.is_writing = False

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        self._say_closed()
        if not self.is_too_much:
            await self._stream.aclose()

    def _say_closed(self) -> None:
        if self.when_closed is not None:
            self.when_closed()


class _Connection:
    """A `transport.Connection`."""

    def __init__(
        self, connection: WebSocketConnection, stream: _CountedStream, handshake: Handshake, max_message_size: int
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._max_message_size = max_message_size
        self._handshake = handshake
        stream.check = self._check_parts

    @property
    def handshake(self) -> Handshake:
        return self._handshake

    @property
    def progress(self) -> object:
        return self._stream.count

    async def receive(self) -> str | bytes:
        try:
            message: str | bytes = await self._connection.get_message()
        except ConnectionClosed as closed:
            if closed.reason is not None and closed.reason.code == MESSAGE_TOO_BIG:
                self._stream.is_too_much = True
            raise Disconnected from None
        # trio-websocket counts characters.
        if isinstance(message, str) and not message.isascii() and len(message.encode()) > self._max_message_size:
            self._stream.is_too_much = True
            await self.close(MESSAGE_TOO_BIG, f"a message may have {self._max_message_size} bytes")
            raise Disconnected
        return message

    async def send(self, text: str) -> None:
        try:
            await self._connection.send_message(text)
        except (ConnectionClosed, LocalProtocolError):
            raise Disconnected from None

    async def ping(self) -> None:
        try:
            await self._connection.ping()
        except (ConnectionClosed, LocalProtocolError):
            raise Disconnected from None

    async def close(self, code: int, reason: str) -> None:
        if self._stream.is_writing:
            self.abort()
        with trio.move_on_after(CLOSING_TIME):
            with suppress(ConnectionClosed, LocalProtocolError):
                await self._connection.aclose(code, reason)

    def abort(self) -> None:
        self._stream.abort()

    def _check_parts(self) -> None:
        if len(self._connection._message_parts) > max_parts(self._max_message_size):
            self.abort()
