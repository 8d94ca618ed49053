"""The engine for asyncio, on its transports. Its twin is `_trio`.

**Reading.** The transport pushes: it reads whenever something arrives, into `get_buffer`, and calls `buffer_updated`.
So an idle connection answers pings and notices its end without a task, and messages wait in the core until they are
received. `_regulate` is where reading stops and goes on. There are three cases:

- Enough messages wait (`_MAX_QUEUED_MESSAGES`, `_MAX_QUEUED_BYTES`): reading pauses until all of them were taken, and
  TCP holds the peer back.
- The core has something left over, because a turn's budget did not suffice: reading pauses, and the core goes on in
  the next turn.
- Otherwise the transport reads.

**Writing.** `send` gives a message to the transport, whole, and waits while the transport's buffer is full. So a
message is never cut off by a cancellation. Answers to pings wait in the core while the buffer is full, where only the
last ones are kept: a peer that sends pings and reads nothing would fill the memory with pongs otherwise.

**The end** of the core, or of the transport, becomes `closed`, once, and wakes all that wait. They wait for one of
four futures (`_arrival`, `_writable`, `_life`, `_gone`); before each wait, and after it, they look at the state.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, cast

import anyio

from .._net.transport import Opened
from ..errors import WebSocketError
from ._buffers import READ_SIZE
from ._engine import SENDS_PER_TURN, EngineWire, open_engine
from ._handshake import REASON_TIME
from ._interface import CLOSING_TIME, Interrupted, Target, Wire

__all__ = ["AsyncioWire", "open_wire"]

_MAX_QUEUED_MESSAGES: Final = 1024
_MAX_QUEUED_BYTES: Final = 2 * READ_SIZE
"""More bytes than one read, so that a consumer that keeps up never pauses reading: a pause costs two system calls."""


async def open_wire(target: Target) -> Wire:
    """As `utcp_websocket_anyio._wire.open_wire`."""
    return await open_engine(AsyncioWire, target)


class AsyncioWire(EngineWire, asyncio.BufferedProtocol):
    """One WebSocket over an asyncio transport."""

    def __init__(self, target: Target, opened: Opened) -> None:
        super().__init__(target, opened)
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._bytes_given = 0  # to the transport
        self._taken = 0  # the core's `delivered` when all messages had been taken
        self._is_paused = False
        self._is_resuming = False
        self._is_closing = False
        self._callback: Callable[[], None] | None = None
        self._is_callback_scheduled = False
        self._arrival: asyncio.Future[None] | None = None  # while a task is in `receive`: done when it should look
        self._writable: asyncio.Future[None] | None = None  # while the transport's buffer is full
        self._life: asyncio.Future[None] | None = None  # while a task is in `ping`: done when a byte has come
        self._gone: asyncio.Future[None] = self._loop.create_future()  # done when the transport is

    async def _start(self) -> None:
        """Hand the socket over to a transport."""
        try:
            await self._loop.create_connection(lambda: self, sock=self._socket)
        except BaseException:
            # uvloop closes the descriptor and not the object, which would later close what has that number then.
            try:
                os.fstat(self._socket.fileno())
            except OSError:
                self._socket.detach()
            raise

    async def handshake(self) -> None:
        core = self._core
        await self._start()
        while not (core.is_open or core.closed or core.awaits_reason):
            await self._wait_for_arrival()
        if core.awaits_reason:
            with anyio.move_on_after(REASON_TIME):
                while core.closed is None:
                    await self._wait_for_arrival()
            self._layer.received_eof()
        if not core.is_open:
            assert core.closed is not None
            raise core.closed
        self.subprotocol = core.subprotocol

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's classes.
        self._transport = cast("asyncio.Transport", transport)
        if self.closed is None:
            self._write_output()
        else:
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._layer.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._bytes_read += nbytes
        self._layer.received(nbytes)
        self._advance()

    def eof_received(self) -> bool:
        self._layer.received_eof()
        self._advance()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._lose(exc)
        self._advance()
        _wake(self._gone)

    def pause_writing(self) -> None:
        if self._writable is None:
            self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        writable, self._writable = self._writable, None
        _wake(writable)
        if not self._gone.done():
            self._write_output()

    # What follows from what has come

    def _advance(self) -> None:
        """Do what the core's new state asks for."""
        core = self._core
        self.bytes_received = core.delivered
        if self._is_closing:
            core.messages.clear()
        if self._arrival is not None:
            _wake(self._arrival)
        elif core.messages and self.closed is None:
            if self._callback is not None:
                self._schedule_callback()
            if core.closed is None:
                self._regulate()
        if self._life is not None:
            _wake(self._life)
        if self._layer.has_output and (self._writable is None or core.closed is not None):
            self._write_output()
        if core.closed is not None:
            self._end(core.closed)
            if self._transport is not None:
                self._transport.close()
        elif len(core.messages) > 1 or core.has_leftover or self._is_paused:
            # One message for which a task waits is never too much.
            self._regulate()

    def _regulate(self) -> None:
        """Read on, go on with what is left over, or wait for the consumer: the three cases above."""
        core = self._core
        is_full = (
            len(core.messages) >= _MAX_QUEUED_MESSAGES or core.delivered - self._taken >= _MAX_QUEUED_BYTES
        ) and bool(core.messages)
        if is_full or core.has_leftover:
            if not self._is_paused and self._transport is not None and not self._transport.is_closing():
                self._is_paused = True
                self._transport.pause_reading()
            if not is_full and not self._is_resuming:
                self._is_resuming = True
                self._loop.call_soon(self._resume)
        elif self._is_paused:
            self._is_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def _resume(self) -> None:
        self._is_resuming = False
        if self._core.has_leftover and self._core.closed is None:
            try:
                self._layer.resume()
                self._advance()
            except BaseException:
                # A transport ends with an exception of what it calls; outside of it, this must be done here.
                self.abort()
                raise

    def _emptied(self) -> None:
        """All messages were taken."""
        self._taken = self._core.delivered
        if self._is_paused and self._core.closed is None:
            self._regulate()

    def _write_output(self) -> None:
        self._write(self._layer.to_send())

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None and not self._transport.is_closing():
            self._bytes_given += len(data)
            self._transport.write(data)

    def _end(self, error: WebSocketError) -> None:
        if self.closed is not None:
            return
        self.closed = error
        for waiting in (self._arrival, self._writable, self._life):
            _wake(waiting)
        if self._callback is not None:
            self._schedule_callback()

    # Wire

    @property
    def progress(self) -> int:
        unsent = 0 if self._transport is None else self._transport.get_write_buffer_size()
        return self._bytes_read + self._bytes_given - unsent

    def has_unsent_data(self) -> bool:
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    async def _send(self, messages: Sequence[str | bytes], fragment: int | None, interrupts: int | None) -> None:
        self._check_open()
        core, layer, transport = self._core, self._layer, self._transport
        assert transport is not None
        for piece in self._pieces(messages, fragment):
            sealed = layer.seal(piece)
            self._bytes_given += len(sealed)
            transport.write(sealed)
        self.bytes_sent = core.sent
        while (writable := self._writable) is not None and interrupts in (None, self._interrupts):
            self._check_open()
            await asyncio.shield(writable)
        self._sends += len(messages)
        if self._sends >= SENDS_PER_TURN:
            self._sends = 0
            await asyncio.sleep(0)

    async def receive(self) -> str | bytes:
        if self._arrival is not None:
            raise anyio.BusyResourceError("receiving")
        core, interrupts = self._core, self._interrupts
        while not core.messages:
            self._check_open()
            if self._interrupts != interrupts:
                raise Interrupted
            # As `_wait_for_arrival`, without a coroutine of its own for each message.
            self._arrival = self._loop.create_future()
            try:
                await self._arrival
            finally:
                self._arrival = None
        message = core.messages.popleft()
        if not core.messages:
            self._emptied()
        return message

    async def _wait_for_arrival(self) -> None:
        self._arrival = self._loop.create_future()
        try:
            await self._arrival
        finally:
            self._arrival = None

    def interrupt(self) -> None:
        self._interrupts += 1
        _wake(self._arrival)
        if self._writable is not None:
            # What is in the transport is on its way, and the next sender waits for room again.
            interrupted, self._writable = self._writable, self._loop.create_future()
            _wake(interrupted)

    def take_nowait(self) -> deque[str | bytes]:
        messages = super().take_nowait()
        self._emptied()
        return messages

    def set_data_callback(self, callback: Callable[[], None] | None) -> bool:
        self._callback = callback
        if callback is not None and (self._core.messages or self.closed is not None):
            self._schedule_callback()
        return True

    def _schedule_callback(self) -> None:
        # Not now: this may be in the middle of what a transport does.
        if not self._is_callback_scheduled:
            self._is_callback_scheduled = True
            self._loop.call_soon(self._run_callback)

    def _run_callback(self) -> None:
        self._is_callback_scheduled = False
        if self._callback is not None and (self._core.messages or self.closed is not None):
            self._callback()

    async def ping(self) -> None:
        self._check_open()
        self._core.ping()
        self._write_output()
        if self._life is None or self._life.done():
            self._life = self._loop.create_future()
        await asyncio.shield(self._life)
        self._check_open()

    async def send_close(self, code: int) -> None:
        self._check_open()
        self._core.close(code, "")
        self._write_output()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self._gone.done():
            return
        try:
            if self.closed is None:
                self._core.close(code, reason)
                self._write_output()
                self._end(self._closed_here(code, reason))
            self._is_closing = True
            self._core.messages.clear()
            self._emptied()
            with anyio.move_on_after(CLOSING_TIME):
                await asyncio.shield(self._gone)
        finally:
            self.abort()

    def abort(self) -> None:
        self._end(self._closed_here())
        self._core.lose()
        if self._transport is not None:
            self._transport.abort()


def _wake(waiting: asyncio.Future[None] | None) -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)
