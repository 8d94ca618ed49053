"""The engine for trio: a `Session` over one of trio's streams.

There is no task of its own: whoever waits for a message reads the stream, and what is to be sent in answer (pongs, the
closing handshake) is sent by whoever reads.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import anyio
import trio

from ..errors import WebSocketClosedError, WebSocketError
from ..security import split_address
from ..tls import default_context
from . import CLOSING_TIME, Readable, Target, Wire
from ._faults import connection_failure
from ._session import Session

__all__ = ["TrioWire", "open_wire"]

_CHUNK = 64 * 1024


async def open_wire(target: Target) -> Wire:
    """As `utcp_websocket_anyio.wire.open_wire`."""
    address = split_address(target.url)
    failure: WebSocketError
    opened: trio.SocketStream | None = None
    try:
        opened = await trio.open_tcp_stream(address.host, address.port)
        stream: trio.abc.Stream = opened
        if address.secure:
            context = target.ssl_context or default_context()
            stream = trio.SSLStream(opened, context, server_hostname=address.host, https_compatible=True)
            await stream.do_handshake()
        wire = TrioWire(stream, Session(target), target, abort=opened.socket.close, fileno=opened.socket.fileno())
        await wire.handshake()
        return wire
    except WebSocketError as error:
        failure = error
    except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
        failure = connection_failure(error, target.endpoint)
    except BaseException:
        if opened is not None:
            opened.socket.close()
        raise
    if opened is not None:
        opened.socket.close()
    raise failure


class TrioWire(Wire):
    """One WebSocket over a trio stream.

    Args:
        abort: Closes the stream's transport, synchronously.
        fileno: The socket's; None where there is no socket.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        session: Session,
        target: Target,
        *,
        abort: Callable[[], None],
        fileno: int | None = None,
    ) -> None:
        self._stream = stream
        self._session = session
        self._endpoint = target.endpoint
        self._abort = abort
        self._readable = None if fileno is None else Readable(fileno)
        self._more = False
        self._reading = False
        self._sending = trio.Lock()
        self._pings: dict[bytes, trio.Event] = {}
        self._ping_payloads = map(str, itertools.count())
        self._gone: trio.Event | None = None

    async def handshake(self) -> None:
        """Have the opening handshake."""
        await self._stream.send_all(self._session.to_send())
        while not self._session.is_open:
            if self._session.closed is not None:
                raise self._session.closed
            await self._digest(await self._stream.receive_some(_CHUNK))

    def pending(self) -> bool:
        if self._session.messages or self.closed is not None or self._more:
            return True
        return self._readable is not None and self._readable()

    async def send(self, data: str | bytes) -> None:
        self._check_open()
        await self._write(self._session.message(data))
        self.bytes_sent += len(data)

    async def receive(self) -> str | bytes:
        if self._reading:
            raise anyio.BusyResourceError("receiving")
        session = self._session
        while not session.messages:
            self._check_open()
            await self._read()
        message = session.messages.popleft()
        self.bytes_received += len(message)
        if session.closed is not None and self.closed is None:
            self._end(session.closed)
        return message

    async def ping(self) -> None:
        self._check_open()
        payload = next(self._ping_payloads).encode()
        answered = self._pings[payload] = trio.Event()
        try:
            await self._write(self._session.ping(payload))
            await answered.wait()
        finally:
            self._pings.pop(payload, None)
        self._check_open()

    async def close(self, code: int = 1000, reason: str = "") -> None:
        if self.closed is not None:
            return
        try:
            with trio.move_on_after(CLOSING_TIME):
                try:
                    await self._write(self._session.close(code, reason))
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
            data = await self._stream.receive_some(_CHUNK)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self._reading = False
            if self._gone is not None:
                self._gone.set()
        self._more = len(data) == _CHUNK
        await self._digest(data)

    async def _digest(self, data: bytes | bytearray) -> None:
        session = self._session
        session.feed(data)
        answer = session.to_send()
        if answer and self.closed is None:
            await self._answer(answer, last=session.closed is not None)
        for payload in session.pongs:
            if payload in self._pings:
                self._pings[payload].set()
        session.pongs.clear()
        if session.closed is not None and not session.messages:
            self._end(session.closed)

    async def _answer(self, data: bytes, *, last: bool) -> None:
        try:
            if last:
                # The last word to a peer that may not listen any more.
                with trio.move_on_after(CLOSING_TIME):
                    await self._write(data)
            else:
                await self._write(data)
        except WebSocketError:
            self._session.lose()

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        lost = False
        try:
            # The lock keeps frames whole; taking it without waiting is the rule.
            self._sending.acquire_nowait()
        except trio.WouldBlock:
            await self._sending.acquire()
        try:
            self._check_open()
            await self._stream.send_all(data)
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
            self._end(WebSocketClosedError("the connection was lost", endpoint=self._endpoint))
            self._check_open()

    def _end(self, error: WebSocketError) -> None:
        if self.closed is not None:
            return
        self.closed = error
        self._session.lose(error)
        self._abort()
        for answered in self._pings.values():
            answered.set()
        if self._gone is not None:
            self._gone.set()
