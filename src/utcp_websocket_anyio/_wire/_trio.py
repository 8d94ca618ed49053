"""The engine for trio, on a socket and trio's `wait_readable` and `wait_writable`. Its twin is `_asyncio`.

**Reading.** There is no task of its own: a task that waits for a message reads the socket (`_read`). Nothing is read
ahead, so what has arrived and was not received is in the core, in TLS, or in the kernel, and can be seen in all three.
If the core has something left over, because a turn's budget did not suffice, going on with it takes the place of
reading.

**Writing.** A lock keeps the frames of concurrent senders whole; its holder owns `_unsent`, bytes on their way
that the kernel had no room for. A message that was begun has to be finished, so cancelling `send` half-way closes the
wire. What the core itself has to say (pings, pongs, closes) is different: it is moved to `_unsent` between two
messages, and if there is no room, it stays there for the next writer. So cancelling a ping harms nothing, and a
reader never waits for room to write a pong, which a peer that first wants to be read would never give. Encryption
happens with the lock held, too: the order of records is the order in which they were encrypted.

**The end.** Trio reports a closed socket only to tasks that already wait for it. So `closed`, and how often
`interrupt` was called, are state: `_wait` looks at them before each wait and after it.
"""

from __future__ import annotations

import copy
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import anyio
import trio

from .._net.transport import Opened
from ..errors import WebSocketError
from ._buffers import READ_SIZE
from ._engine import SENDS_PER_TURN, EngineWire, open_engine
from ._handshake import REASON_TIME
from ._interface import CLOSING_TIME, Interrupted, Target, Wire

__all__ = ["TrioWire", "open_wire"]

_LOOK_AGAIN: Final = 0.05
"""Seconds between two looks whether there is room for a pong that there was no room for."""


async def open_wire(target: Target) -> Wire:
    """As `utcp_websocket_anyio._wire.open_wire`."""
    return await open_engine(TrioWire, target)


class TrioWire(EngineWire):
    """One WebSocket over a socket."""

    def __init__(self, target: Target, opened: Opened) -> None:
        super().__init__(target, opened)
        self._bytes_written = 0
        self._unsent = b""  # what is on its way, and the kernel had no room for
        self._sending = trio.Lock()
        self._turns: set[trio.CancelScope] = set()  # of tasks that wait for `_sending`, and may be interrupted
        self._is_receiving = False
        self._has_read_in_full = False  # True if the last read gave as much as one read can
        self._farewell: WebSocketError | None = None  # why it will be closed, once `close` was called
        self._left: trio.Event | None = None  # set when the task in `receive` leaves it; for `close`
        self._gone: trio.Event | None = None  # set when the socket is closed; for a second `close`
        self._life: trio.Event | None = None  # set when a byte has come; for `ping`

    async def handshake(self) -> None:
        core = self._core
        await self._send_output()
        while not (core.is_open or core.closed or core.awaits_reason):
            await self._read()
        if core.awaits_reason:
            with trio.move_on_after(REASON_TIME):
                while core.closed is None:
                    await self._read()
            self._layer.received_eof()
        if not core.is_open:
            assert core.closed is not None
            raise core.closed
        self.subprotocol = core.subprotocol

    # Reading

    async def _read(self, interrupts: int | None = None) -> None:
        """Take in what has come, or what is left over of it, and do what follows from it; as `_wait`."""
        layer = self._layer
        if layer.has_leftover:
            await trio.lowlevel.checkpoint()
            if layer.has_leftover:
                layer.resume()
                self._advance()
            return
        if self._has_read_in_full and not self._is_held_up:
            # There probably is more: a turn of the loop takes half as long when the socket need not be registered.
            await trio.lowlevel.checkpoint()
        else:
            await self._wait(trio.lowlevel.wait_readable, interrupts)
        if self.closed is not None:
            return
        self._has_read_in_full = False
        try:
            size = self._socket.recv_into(layer.get_buffer())
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
        else:
            self._bytes_read += size
            self._has_read_in_full = size == READ_SIZE
            if size:
                layer.received(size)
            else:
                layer.received_eof()
        self._advance()

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]], interrupts: int | None) -> None:
        """Wait for the socket, once, unless the wire is closed or `interrupt` was called after its count was read."""
        if self.closed is not None or interrupts not in (None, self._interrupts):
            return
        try:
            if self._is_held_up:
                with trio.move_on_after(_LOOK_AGAIN):
                    await wait(self._socket)
                self._send_output_nowait()
            else:
                await wait(self._socket)
        except trio.ClosedResourceError:
            pass  # by `notify_closing`: the caller looks at what has changed

    @property
    def _is_held_up(self) -> bool:
        """True if something should be sent, there was no room for it, and no task is sending."""
        return bool(self._unsent or self._layer.has_output) and not self._sending.locked()

    def _advance(self) -> None:
        """Do what the core's new state asks for."""
        core = self._core
        self.bytes_received = core.delivered
        if self._farewell is not None:
            core.messages.clear()
        if self._life is not None:
            self._life.set()
        if self._layer.has_output:
            self._send_output_nowait()
        if core.closed is not None:
            self._end(self._farewell or core.closed)

    # Writing

    def _send_output_nowait(self) -> None:
        """Send what the core has to say as far as there is room, if no task is sending: that one will do it."""
        if not self._sending.locked():
            self._gather_output()
            self._send_unsent()

    async def _send_output(self) -> None:
        """Send what the core has to say. Cancelling it harms nothing.

        Raises:
            WebSocketError: The wire is closed.
        """
        async with self._sending:
            self._gather_output()
            await self._flush()

    async def _flush(self, interrupts: int | None = None) -> None:
        """Send what is unsent. Cancelling it harms nothing.

        Raises:
            Interrupted: `interrupt` was called.
            WebSocketError: The wire is closed.
        """
        self._send_unsent()
        while self._unsent:
            self._check_open()
            if interrupts not in (None, self._interrupts):
                raise Interrupted
            await self._wait(trio.lowlevel.wait_writable, interrupts)
            self._send_unsent()
        self._check_open()

    async def _write(self, data: bytes, interrupts: int | None) -> None:
        """Send bytes of a message. Left before they are sent, it closes the wire: what was begun cannot be taken back.

        Raises:
            WebSocketError: The wire is closed, or `interrupt` was called.
        """
        sent = self._send_nowait(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        try:
            while rest:
                if interrupts not in (None, self._interrupts):
                    self.abort()
                self._check_open()
                await self._wait(trio.lowlevel.wait_writable, interrupts)
                if self.closed is None:
                    rest = rest[self._send_nowait(rest) :]
        except BaseException:
            self.abort()
            raise

    def _gather_output(self) -> None:
        if self._layer.has_output:
            self._unsent += self._layer.to_send()

    def _send_unsent(self) -> None:
        """Send as much of `_unsent` as there is room for."""
        if self._unsent and self.closed is None:
            self._unsent = self._unsent[self._send_nowait(self._unsent) :]

    def _send_nowait(self, data: bytes | memoryview) -> int:
        """Send as much as there is room for; how many bytes that were."""
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:
            self._lose(error)
            self._advance()
            return 0
        self._bytes_written += sent
        return sent

    def _end(self, error: WebSocketError) -> None:
        if self.closed is not None:
            return
        self.closed = error
        try:
            trio.lowlevel.notify_closing(self._socket)
        finally:
            self._socket.close()
        for event in (self._life, self._left, self._gone):
            if event is not None:
                event.set()

    # Wire

    @property
    def progress(self) -> int:
        return self._bytes_read + self._bytes_written

    def has_unsent_data(self) -> bool:
        return self._sending.locked() or bool(self._unsent) or self._layer.has_output

    async def _send(self, messages: Sequence[str | bytes], fragment: int | None, interrupts: int | None) -> None:
        self._check_open()
        try:
            # Taking a lock that is free without waiting is the rule.
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._acquire(interrupts)
        try:
            self._check_open()
            self._gather_output()
            if self._unsent:
                await self._flush(interrupts)
            # Only now: what was compressed has to be sent, or the peer cannot read what is compressed later.
            for piece in self._pieces(messages, fragment):
                await self._write(self._layer.seal(piece), interrupts)
            self.bytes_sent = self._core.sent
        finally:
            self._sending.release()
            if self._layer.has_output:
                self._send_output_nowait()
        self._sends += len(messages)
        if self._sends >= SENDS_PER_TURN:
            self._sends = 0
            await trio.lowlevel.checkpoint()

    async def _acquire(self, interrupts: int | None) -> None:
        """Wait for one's turn to send.

        Raises:
            Interrupted: `interrupt` was called.
        """
        if interrupts is None:
            await self._sending.acquire()
            return
        with trio.CancelScope() as turn:
            self._turns.add(turn)
            try:
                await self._sending.acquire()
                return
            finally:
                self._turns.discard(turn)
        raise Interrupted

    async def receive(self) -> str | bytes:
        if self._is_receiving:
            raise anyio.BusyResourceError("receiving")
        core = self._core
        if not core.messages:
            if self._farewell is not None:
                raise copy.copy(self._farewell)  # `close` reads now
            interrupts = self._interrupts
            self._is_receiving = True
            try:
                while not core.messages:
                    self._check_open()
                    if self._interrupts != interrupts:
                        raise Interrupted
                    await self._read(interrupts)
            finally:
                self._is_receiving = False
                if self._left is not None:
                    self._left.set()
        return core.messages.popleft()

    def interrupt(self) -> None:
        self._interrupts += 1
        for turn in self._turns:
            turn.cancel()
        if self.closed is None:
            trio.lowlevel.notify_closing(self._socket)

    async def ping(self) -> None:
        self._check_open()
        self._core.ping()
        await self._send_output()
        if self._life is None or self._life.is_set():
            self._life = trio.Event()
        await self._life.wait()
        self._check_open()

    async def send_close(self, code: int) -> None:
        self._check_open()
        self._core.close(code, "")
        await self._send_output()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed is not None:
            return
        if self._farewell is not None:
            if self._gone is None:
                self._gone = trio.Event()
            await self._gone.wait()
            return
        try:
            self._farewell = self._closed_here(code, reason)
            self._core.messages.clear()
            self._core.close(code, reason)
            with trio.move_on_after(CLOSING_TIME):
                await self._send_output()
                while self.closed is None:
                    if self._is_receiving:
                        self._left = trio.Event()
                        await self._left.wait()
                    else:
                        await self._read()
        except WebSocketError:
            pass  # the peer was faster
        finally:
            self._end(self._closed_here(code, reason))

    def abort(self) -> None:
        self._end(self._closed_here())
