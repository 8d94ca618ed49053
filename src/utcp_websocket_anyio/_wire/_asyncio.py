"""The engines for asyncio: what they share, and the one on `Session`.

On asyncio the transport pushes. A wire keeps what was pushed in a queue and has the transport pause when that is full,
so memory is bounded, and nothing is lost between a call that was cancelled and the next.
"""

from __future__ import annotations

import asyncio
import copy
import ssl
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import cast

import anyio

from .._net.security import split_address
from .._net.transport import connection_failure
from ..errors import WebSocketClosedError, WebSocketError
from ._core import Session
from ._happy_eyeballs import open_socket
from ._interface import CLOSING_TIME, LARGEST_COMPRESSED_READ, Interrupted, Pings, Readable, Target, Wire, size_of

__all__ = ["PushedWire", "StreamWire", "open_wire"]

_QUEUED_MESSAGES = 1024
_QUEUED_BYTES = 256 * 1024


class PushedWire(Wire):
    """A wire whose messages are pushed into a queue."""

    def __init__(self, target: Target) -> None:
        self._endpoint = target.endpoint
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._tls: ssl.SSLObject | None = None
        self._readable: Readable | None = None
        self._queue: deque[str | bytes] = deque()
        self._queued = 0
        self._paused = False
        self._waits_for_room = True
        self._turns = 0
        self._arrival: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._life: asyncio.Future[None] | None = None
        self._bytes_read = 0
        self._bytes_given = 0
        self._told: Callable[[], None] | None = None
        self._is_telling = False
        self._pings = Pings()
        self._owed_pong: bytes | None = None
        self._gone: asyncio.Future[None] = self._loop.create_future()

    # What an engine adds

    @abstractmethod
    def _send_message(self, data: str | bytes, fragment: int | None) -> None:
        """Give a message to the transport, whole."""

    @abstractmethod
    def _send_ping(self, payload: bytes) -> None:
        """Give a ping to the transport."""

    @abstractmethod
    def _send_pong(self, answer: bytes) -> None:
        """Give to the transport what `_pinged` was called with."""

    @abstractmethod
    def _send_close(self, code: int, reason: str) -> None:
        """Give a close frame to the transport."""

    @abstractmethod
    def _is_amid_message(self) -> bool:
        """Whether a part of a message was received, as far as the engine can tell."""

    # What an engine calls

    def _connected(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._tls = transport.get_extra_info("ssl_object")
        self._readable = Readable(transport.get_extra_info("socket").fileno())

    def _have_read(self, size: int) -> None:
        self._bytes_read += size
        self._wake(self._life)

    def _pushed(self, message: str | bytes, size: int) -> None:
        self._queue.append(message)
        self._queued += size
        self.bytes_received += size
        if not self._paused and (len(self._queue) >= _QUEUED_MESSAGES or self._queued >= _QUEUED_BYTES):
            self._paused = True
            if self._tls is None:
                self._pause()
            else:
                # Paused while it hands on what it has decrypted, TLS may keep the rest until more arrives.
                self._loop.call_soon(self._pause)
        if self._arrival is not None:
            self._wake(self._arrival)
        elif self._told is not None:
            self._tell_soon()

    def _pinged(self, answer: bytes) -> None:
        """Answer a ping; while nothing can be written, only the last one (RFC 6455, section 5.5.3).

        A peer that sends pings and reads nothing would fill the memory with pongs otherwise.
        """
        if self._writable is None:
            self._send_pong(answer)
        else:
            self._owed_pong = answer

    def _ended(self, error: WebSocketError) -> None:
        """There will be no further message. What is queued is still to be had."""
        if self.closed is not None:
            return
        self.closed = error
        self._wake(self._arrival)
        self._wake(self._writable)
        self._wake(self._life)
        if self._told is not None:
            self._tell_soon()

    def _tell_soon(self) -> None:
        # Not now: this may be in the middle of what a transport does.
        if not self._is_telling:
            self._is_telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._is_telling = False
        if self._told is not None and (self._queue or self.closed is not None):
            self._told()

    def _disconnected(self) -> None:
        self._ended(WebSocketClosedError("the connection was lost", endpoint=self._endpoint))
        self._wake(self._gone)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        self._wake(self._writable)
        self._writable = None
        owed, self._owed_pong = self._owed_pong, None
        if owed is not None and self.closed is None:
            self._send_pong(owed)

    # Wire

    def current_time(self) -> float:
        return self._loop.time()

    @property
    def progress(self) -> int:
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._bytes_read + self._bytes_given - unsent

    def has_unread_data(self) -> bool:
        return self.pending()

    def pending(self) -> bool:
        if self._queue or self.closed is not None or self._turns or self._is_amid_message():
            return True
        return self._readable is not None and self._readable()

    async def send(self, data: str | bytes, fragment: int | None = None) -> None:
        self._check_open()
        self._send_message(data, fragment)
        size = size_of(data)
        self.bytes_sent += size
        self._bytes_given += size
        while self._writable is not None and self.closed is None and self._waits_for_room:
            await asyncio.shield(self._writable)

    async def receive(self) -> str | bytes:
        if self._arrival is not None:
            raise anyio.BusyResourceError("receiving")
        while not self._queue:
            self._check_open()
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        message = self._queue.popleft()
        if not self._queue:
            self._emptied()
        return message

    def interrupt(self) -> None:
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_exception(Interrupted())
        # What is in the transport is on its way, and what is still to be said is short.
        self._waits_for_room = False
        self._wake(self._writable)

    def notify(self, arrived: Callable[[], None] | None) -> bool:
        self._told = arrived
        if arrived is not None and (self._queue or self.closed is not None):
            self._tell_soon()
        return True

    def take_nowait(self) -> deque[str | bytes]:
        messages, self._queue = self._queue, deque()
        self._emptied()
        return messages

    def _emptied(self) -> None:
        self._queued = 0
        if self._paused:
            self._resume()

    def _resume(self) -> None:
        self._paused = False
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
            if self._tls is not None:
                self._expect_more()

    def _pause(self) -> None:
        if self._paused and self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def _expect_more(self) -> None:
        """A TLS transport hands on what it kept back in one of the next turns of the loop; until then it is pending."""
        if not self._turns:
            self._loop.call_soon(self._turn)
        self._turns = 2

    def _turn(self) -> None:
        self._turns -= 1
        if self._turns:
            self._loop.call_soon(self._turn)

    def ping_nowait(self, answered: Callable[[], None]) -> bool:
        self._check_open()
        self._send_ping(self._pings.next(answered))
        return True

    async def ping(self, answered: Callable[[], None] | None = None) -> None:
        if answered is not None:
            self.ping_nowait(answered)
            return
        self.ping_nowait(lambda: None)
        if self._life is None or self._life.done():
            self._life = self._loop.create_future()
        await asyncio.shield(self._life)
        self._check_open()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self._gone.done():
            return
        try:
            if self.closed is None:
                self._send_close(code, reason)
                self._ended(
                    WebSocketClosedError("closed by this side", code=code, reason=reason, endpoint=self._endpoint)
                )
            self._queue.clear()
            if self._paused:
                self._resume()
            with anyio.move_on_after(CLOSING_TIME):
                await asyncio.shield(self._gone)
        finally:
            self.abort()

    def abort(self) -> None:
        self._ended(WebSocketClosedError("closed by this side", endpoint=self._endpoint))
        if self._transport is not None:
            self._transport.abort()

    def _check_open(self) -> None:
        if self.closed is not None:
            raise copy.copy(self.closed)

    @staticmethod
    def _wake(waiting: asyncio.Future[None] | None) -> None:
        if waiting is not None and not waiting.done():
            waiting.set_result(None)


class StreamWire(PushedWire, asyncio.BufferedProtocol):
    """One WebSocket on `Session` over an asyncio transport."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._session = Session(target)
        self._buffer = memoryview(bytearray(LARGEST_COMPRESSED_READ))  # asyncio's TLS fills slices of it
        self.opened: asyncio.Future[None] = self._loop.create_future()

    @property
    def is_open(self) -> bool:
        """Whether the opening handshake was good, whatever came since."""
        return self._session.is_open

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._connected(cast("asyncio.Transport", transport))
        self._write(self._session.to_send())

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._have_read(nbytes)
        self._fed(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        self._fed(b"")
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._session.closed is None:
            self._fed(b"")
        self._disconnected()

    def _fed(self, data: bytes) -> None:
        session = self._session
        session.feed(data)
        while session.messages:
            message = session.messages.popleft()
            self._pushed(message, size_of(message))
        for payload in session.pongs:
            self._pings.ponged(payload)
        session.pongs.clear()
        answers = session.to_send()
        if answers and session.closed is None and session.is_open:
            self._pinged(answers)
        else:
            self._write(answers)
        self.subprotocol = session.subprotocol
        if not self.opened.done() and (session.is_open or session.closed is not None):
            self.opened.set_result(None)
        if session.closed is not None:
            self._ended(session.closed)
        if session.closed is not None or (self.closed is not None and session.close_received):
            assert self._transport is not None
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _is_amid_message(self) -> bool:
        # What the buffer has no room for stays with TLS.
        return self._session.is_amid_message or (self._tls is not None and self._tls.pending() > 0)

    def _send_message(self, data: str | bytes, fragment: int | None) -> None:
        assert self._transport is not None
        for piece in self._session.message(data, fragment):
            self._transport.write(piece)

    def _send_ping(self, payload: bytes) -> None:
        assert self._transport is not None
        self._transport.write(self._session.ping(payload))

    def _send_pong(self, answer: bytes) -> None:
        self._write(answer)

    def _send_close(self, code: int, reason: str) -> None:
        assert self._transport is not None
        self._transport.write(self._session.close(code, reason))


async def open_wire(target: Target) -> Wire:
    """As `utcp_websocket_anyio.wire.open_wire`."""
    address = split_address(target.url)
    wire = StreamWire(target)
    failure: WebSocketError
    try:
        await asyncio.get_running_loop().create_connection(
            lambda: wire,
            sock=await open_socket(address.host, address.port),
            ssl=target.network.tls if address.secure else None,
            server_hostname=address.host if address.secure else None,
        )
        await wire.opened
        if wire.is_open:
            return wire
        assert wire.closed is not None
        failure = wire.closed
    except OSError as error:
        failure = connection_failure(error, target.endpoint)
    except BaseException:
        wire.abort()
        raise
    wire.abort()
    raise failure
