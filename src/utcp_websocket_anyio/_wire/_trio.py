"""The engine for trio: a `Session` over one of trio's streams.

There is no task of its own: whoever waits for a message reads the stream, and what is to be sent in answer (pongs, the
closing handshake) is sent by whoever reads.

Whether something has arrived has to be known exactly before a connection is used again. So nothing is kept on the way
where it cannot be seen: a read takes from the kernel only when its task runs (trio's own yields with the data in hand),
and TLS gets one record at a time (trio's stream keeps further ones to itself).
"""

from __future__ import annotations

import copy
import socket
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain

import anyio
import trio

from .._net.security import split_address
from .._net.transport import connection_failure
from ..errors import WebSocketClosedError, WebSocketError
from ._core import Session
from ._interface import CLOSING_TIME, LARGEST_COMPRESSED_READ, Interrupted, Pings, Readable, Target, Wire, size_of

__all__ = ["TrioWire", "open_wire"]

_CHUNK = 128 * 1024
_LARGE_CHUNK = 256 * 1024  # once the other was full
_RECORD_HEADER = 5
_RECORD_TYPES = range(20, 25)
_TLS = 3


async def open_wire(target: Target) -> Wire:
    """As `utcp_websocket_anyio.wire.open_wire`."""
    address = split_address(target.url)
    failure: WebSocketError
    opened: _SocketStream | None = None
    try:
        stream: trio.abc.Stream
        stream = opened = _SocketStream(await trio.open_tcp_stream(address.host, address.port))
        if address.secure:
            opened = records = _RecordStream(opened)
            stream = trio.SSLStream(records, target.network.tls, server_hostname=address.host, https_compatible=True)
            await stream.do_handshake()
        wire = TrioWire(
            stream,
            Session(target),
            target,
            abort=opened.abort,
            interrupt=opened.interrupt,
            arrived=opened.pending,
            send_nowait=None if address.secure else opened.send_nowait,
        )
        await wire.handshake()
        return wire
    except WebSocketError as error:
        failure = error
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        failure = connection_failure(error, target.endpoint)
    except BaseException:
        if opened is not None:
            opened.abort()
        raise
    if opened is not None:
        opened.abort()
    raise failure


class _SocketStream(trio.abc.Stream):
    """A TCP stream that takes nothing from the kernel before it can be handed on.

    Args:
        opened: Becomes part of this one.
    """

    def __init__(self, opened: trio.SocketStream) -> None:
        self._socket = socket.socket(fileno=opened.socket.detach())
        self._stream = trio.SocketStream(trio.socket.from_stdlib_socket(self._socket))
        self._readable = Readable(self._socket.fileno())

    def pending(self) -> bool:
        """Whether there is something to receive."""
        return self._readable()

    def abort(self) -> None:
        self._stream.socket.close()

    def interrupt(self) -> None:
        """Have who waits for the socket leave: a reader `Interrupted`, a writer as if it had been closed."""
        trio.lowlevel.notify_closing(self._socket)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while True:
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except trio.ClosedResourceError:
                if self._socket.fileno() < 0:
                    raise
                raise Interrupted from None
            try:
                return self._socket.recv(max_bytes or _CHUNK)
            except BlockingIOError:
                continue
            except OSError:
                raise trio.BrokenResourceError from None

    def send_nowait(self, data: bytes) -> int:
        """Send as much as there is room for; how many bytes that were."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            raise trio.BrokenResourceError from None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


class _RecordStream(_SocketStream):
    """A TCP stream that gives out one TLS record (RFC 8446, section 5.1) at a time."""

    def __init__(self, opened: _SocketStream) -> None:
        self._socket = opened._socket
        self._stream = opened._stream
        self._readable = opened._readable
        self._received = bytearray()

    def pending(self) -> bool:
        return bool(self._received) or super().pending()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        while (end := self._record_end()) > len(self._received):
            data = await super().receive_some()
            if not data:
                end = len(self._received)
                break
            self._received += data
        record = bytes(self._received[:end])
        del self._received[:end]
        return record

    def _record_end(self) -> int:
        """How long the first record is; what is no TLS goes on as it is, to be refused there."""
        received = self._received
        if len(received) < _RECORD_HEADER:
            return _RECORD_HEADER
        if received[0] not in _RECORD_TYPES or received[1] != _TLS:
            return len(received)
        return _RECORD_HEADER + int.from_bytes(received[3:5], "big")


class TrioWire(Wire):
    """One WebSocket over a trio stream.

    Args:
        abort: Closes the stream's transport, synchronously.
        interrupt: Has a read that waits on the transport raise `Interrupted`.
        arrived: Whether the transport has something to be read.
        send_nowait: Sends what the transport has room for, and says how much; None where it cannot.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        session: Session,
        target: Target,
        *,
        abort: Callable[[], None],
        interrupt: Callable[[], None],
        arrived: Callable[[], bool] = lambda: False,
        send_nowait: Callable[[bytes], int] | None = None,
    ) -> None:
        self._stream = stream
        self._session = session
        self._endpoint = target.endpoint
        self._chunks = (LARGEST_COMPRESSED_READ,) * 2 if target.compression else (_CHUNK, _LARGE_CHUNK)
        self._chunk = self._chunks[0]
        self._abort = abort
        self._interrupt = interrupt
        self._arrived = arrived
        self._send_nowait = send_nowait
        self._reading = False
        self._sending = trio.Lock()
        self._begun = b""  # what is left of a frame that there was no room for
        self._pings = Pings()
        self._life: trio.Event | None = None
        self._bytes_read = 0
        self._bytes_written = 0
        self._gone: trio.Event | None = None
        self._closing: trio.Event | None = None

    async def handshake(self) -> None:
        """Have the opening handshake."""
        await self._stream.send_all(self._session.to_send())
        while not self._session.is_open:
            if self._session.closed is not None:
                raise self._session.closed
            await self._digest(await self._stream.receive_some(self._chunk))
        self.subprotocol = self._session.subprotocol

    def current_time(self) -> float:
        return trio.current_time()

    @property
    def progress(self) -> int:
        return self._bytes_read + self._bytes_written

    def has_unread_data(self) -> bool:
        return self.pending()

    def pending(self) -> bool:
        return self.closed is not None or self._session.is_amid_message or self._arrived()

    async def send(self, data: str | bytes, fragment: int | None = None) -> None:
        self._check_open()
        await self._write(self._session.message(data, fragment))
        self.bytes_sent += size_of(data)

    async def receive(self) -> str | bytes:
        if self._reading:
            raise anyio.BusyResourceError("receiving")
        session = self._session
        while not session.messages:
            self._check_open()
            if self._closing is None:
                await self._read()
            else:
                # Who closes reads now.
                await self._closing.wait()
        message = session.messages.popleft()
        self.bytes_received += size_of(message)
        if session.closed is not None and self.closed is None:
            self._end(session.closed)
        return message

    def interrupt(self) -> None:
        if self.closed is None and (self._reading or self._sending.locked()):
            self._interrupt()

    def take_nowait(self) -> deque[str | bytes]:
        session = self._session
        messages, session.messages = session.messages, deque()
        self.bytes_received += sum(map(size_of, messages))
        if session.closed is not None and self.closed is None:
            self._end(session.closed)
        return messages

    def ping_nowait(self, answered: Callable[[], None]) -> bool:
        self._check_open()
        if self._send_nowait is None or self._begun or self._sending.locked():
            return False
        frame = self._session.ping(self._pings.next(answered))
        sent: int | None = None
        with suppress(trio.BrokenResourceError):
            sent = self._send_nowait(frame)
        if sent is None:
            raise self._lost()
        self._begun = frame[sent:] if sent else b""
        return sent == len(frame)

    async def ping(self, answered: Callable[[], None] | None = None) -> None:
        if answered is None and self.ping_nowait(lambda: None):
            await self._sign_of_life()
            return
        self._check_open()
        await self._write([self._session.ping(self._pings.next(answered or (lambda: None)))])
        if answered is None:
            await self._sign_of_life()

    async def _sign_of_life(self) -> None:
        if self._life is None or self._life.is_set():
            self._life = trio.Event()
        await self._life.wait()
        self._check_open()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed is not None:
            return
        if self._closing is None:
            self._closing = trio.Event()
        try:
            with trio.move_on_after(CLOSING_TIME):
                try:
                    if frame := self._session.close(code, reason):
                        await self._write([frame])
                    while not self._session.close_received and self.closed is None:
                        if self._reading:
                            self._gone = trio.Event()
                            await self._gone.wait()
                        else:
                            self._session.messages.clear()
                            await self._read()
                except WebSocketError:
                    pass
        finally:
            self._end(WebSocketClosedError("closed by this side", code=code, reason=reason, endpoint=self._endpoint))

    def abort(self) -> None:
        self._end(WebSocketClosedError("closed by this side", endpoint=self._endpoint))

    def _check_open(self) -> None:
        if self.closed is not None:
            raise copy.copy(self.closed)

    async def _read(self) -> None:
        """Read what has come, answer what has to be answered, and end what has ended."""
        self._reading = True
        try:
            data = await self._stream.receive_some(self._chunk)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self._reading = False
            if self._gone is not None:
                self._gone.set()
        self._chunk = self._chunks[len(data) >= self._chunks[0]]
        await self._digest(data)

    async def _digest(self, data: bytes | bytearray) -> None:
        session = self._session
        session.feed(data)
        self._bytes_read += len(data)
        if self._life is not None:
            self._life.set()
        answer = session.to_send()
        if answer and self.closed is None:
            await self._answer(answer, last=session.closed is not None)
        for payload in session.pongs:
            self._pings.ponged(payload)
        session.pongs.clear()
        if session.closed is not None and not session.messages:
            self._end(session.closed)

    async def _answer(self, data: bytes, *, last: bool) -> None:
        try:
            if last:
                # The last word to a peer that may not listen any more.
                with trio.move_on_after(CLOSING_TIME):
                    await self._write([data])
            else:
                await self._write([data])
        except WebSocketError:
            self._session.lose()

    async def _write(self, frame: Iterable[bytes]) -> None:
        lost = False
        try:
            # The lock keeps frames whole; taking it without waiting is the rule.
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            self._check_open()
            if self._begun:
                frame, self._begun = chain([self._begun], frame), b""
            for piece in frame:
                # trio's own send is a checkpoint even where there is room; what follows a message is one anyway.
                sent = 0 if self._send_nowait is None else self._send_nowait(piece)
                if sent < len(piece):
                    await self._stream.send_all(memoryview(piece)[sent:])
                self._bytes_written += len(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            lost = True
        except WebSocketError:
            raise
        except BaseException:
            # A frame that was begun cannot be taken back.
            self.abort()
            raise
        finally:
            self._sending.release()
        if lost:
            raise self._lost()

    def _lost(self) -> WebSocketError:
        self._end(WebSocketClosedError("the connection was lost", endpoint=self._endpoint))
        assert self.closed is not None
        return copy.copy(self.closed)

    def _end(self, error: WebSocketError) -> None:
        if self.closed is not None:
            return
        self.closed = error
        self._session.lose(error)
        self._abort()
        for event in (self._gone, self._closing, self._life):
            if event is not None:
                event.set()
