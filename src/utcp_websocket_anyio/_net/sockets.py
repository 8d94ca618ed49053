"""Sockets on whichever event loop runs: from a host to a connected one, and streams of bytes over it.

A socket is opened here for every purpose, and what has to be said before the purpose begins (to a proxy) is said over
a `SocketStream` or, if the proxy is asked for over TLS, a `TLSStream`. Both keep nothing to themselves: afterwards the
socket is handed to an engine of the wire, with the TLS session if there is one. HTTP requests use the streams
themselves.

anyio waits for a socket on either event loop, so nothing here knows which one runs; and closing is one system call,
which needs no event loop at all.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import anyio

from .resolver import Address, resolve

__all__ = ["ByteStream", "SocketStream", "TLSSession", "TLSStream", "open_tcp", "open_unix"]

_HEAD_START: Final = 0.25
"""Seconds that an address has to itself before the next one is tried, too."""

_CHUNK = 64 * 1024
_RECORD_HEADER = 5


async def open_tcp(host: str, port: int) -> socket.socket:
    """Open a connected, non-blocking TCP socket: of the first address that answers.

    Each address is tried a moment after the one before (RFC 8305). Cancelling it leaves nothing open.

    Raises:
        OSError: No address answers; it is the error of the first one.
    """
    addresses = await resolve(host, port)
    if len(addresses) == 1:
        return await _connect(addresses[0])
    failures: list[OSError] = []
    winner: socket.socket | None = None

    async def attempt(address: Address, failed: anyio.Event) -> None:
        nonlocal winner
        try:
            connected = await _connect(address)
        except OSError as error:
            failures.append(error)
            failed.set()
            return
        if winner is None:
            winner = connected
            task_group.cancel_scope.cancel()
        else:
            connected.close()

    try:
        async with anyio.create_task_group() as task_group:
            for address in addresses:
                failed = anyio.Event()
                task_group.start_soon(attempt, address, failed)
                with anyio.move_on_after(_HEAD_START):
                    await failed.wait()
    except BaseException:
        if winner is not None:
            winner.close()
        raise
    if winner is None:
        raise failures[0]
    return winner


async def open_unix(path: str) -> socket.socket:
    """Open a connected, non-blocking Unix socket.

    Raises:
        OSError: Nobody listens there, or the platform has none.
    """
    family = getattr(socket, "AF_UNIX", None)
    if family is None:
        raise OSError("this platform has no Unix sockets")
    return await _connect((family, path))


async def _connect(address: Address) -> socket.socket:
    family, where = address
    connecting = socket.socket(family, socket.SOCK_STREAM)
    try:
        connecting.setblocking(False)
        if family in (socket.AF_INET, socket.AF_INET6):
            connecting.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError, InterruptedError):
            connecting.connect(where)
            return connecting
        with suppress(OSError):
            # On this machine it is connected by now, and waiting for that takes a turn of the loop.
            connecting.getpeername()
            return connecting
        await anyio.wait_writable(connecting)
        if code := connecting.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))
    except BaseException:
        connecting.close()
        raise
    return connecting


class ByteStream(Protocol):
    """Bytes in both directions."""

    async def send(self, data: bytes, /) -> None:
        """Send all of it.

        Raises:
            OSError: The connection is lost.
        """

    async def receive(self, max_bytes: int = _CHUNK, /) -> bytes:
        """Receive what has arrived; empty at the end.

        Raises:
            OSError: The connection is lost.
        """


class SocketStream:
    """A stream over a connected, non-blocking socket, which is not closed with it."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    async def send(self, data: bytes) -> None:
        """As `ByteStream.send`."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except (BlockingIOError, InterruptedError):
                await anyio.wait_writable(self._socket)

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        """As `ByteStream.receive`."""
        while True:
            try:
                return self._socket.recv(max_bytes)
            except (BlockingIOError, InterruptedError):
                await anyio.wait_readable(self._socket)


@dataclass(slots=True)
class TLSSession:
    """TLS on the client's side, as plain state that can change hands.

    Attributes:
        incoming: Data that was received and not decrypted.
        outgoing: Data that was encrypted and not sent.
        object: The TLS state between them.
    """

    context: ssl.SSLContext
    server_name: str
    incoming: ssl.MemoryBIO = field(default_factory=ssl.MemoryBIO)
    outgoing: ssl.MemoryBIO = field(default_factory=ssl.MemoryBIO)
    object: ssl.SSLObject = field(init=False)

    def __post_init__(self) -> None:
        self.object = self.context.wrap_bio(self.incoming, self.outgoing, server_hostname=self.server_name)


class TLSStream:
    """A stream through TLS.

    It reads one TLS record at a time, and so never a part of one: the next owner of the session finds it between two.
    """

    def __init__(self, stream: ByteStream, session: TLSSession) -> None:
        self._stream = stream
        self.session = session

    async def handshake(self) -> None:
        """Agree with the other end, and verify it.

        Raises:
            ssl.SSLError: The server is not trusted, or does not speak TLS.
            OSError: The connection is lost.
        """
        await self._until_done(self.session.object.do_handshake)

    async def send(self, data: bytes) -> None:
        """As `ByteStream.send`."""
        rest = memoryview(data)
        while rest:
            rest = rest[await self._until_done(self.session.object.write, rest) :]

    async def receive(self, max_bytes: int = _CHUNK) -> bytes:
        """As `ByteStream.receive`. A connection closed without a TLS close_notify counts as ended, too."""
        try:
            data: bytes = await self._until_done(self.session.object.read, max_bytes)
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return b""
        return data

    async def _until_done(self, do: Any, *arguments: Any) -> Any:
        session = self.session
        while True:
            try:
                result = do(*arguments)
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._read_record():
                    session.incoming.write_eof()
            except ssl.SSLError:
                # The alert that reports the failure.
                await self._flush()  # noqa: ASYNC120 - cancelled, it is cancelled
                raise
            else:
                await self._flush()
                return result

    async def _read_record(self) -> bool:
        """Read a record (RFC 8446, section 5.1); False if the stream ends before it does."""
        header = b""
        missing = _RECORD_HEADER
        while missing:
            data = await self._stream.receive(missing)
            if not data:
                return False
            self.session.incoming.write(data)
            missing -= len(data)
            if len(header) < _RECORD_HEADER:
                header += data
                if not missing:
                    # What is not TLS is not longer than this either, and OpenSSL says what it is.
                    missing = int.from_bytes(header[3:], "big")
        return True

    async def _flush(self) -> None:
        if data := self.session.outgoing.read():
            await self._stream.send(data)
