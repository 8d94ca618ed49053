"""The other end of the wire in tests: an honest server, and one that does whatever it is told, byte by byte.

Neither uses the library of the engine under test: the honest one is `wsproto`, the other writes frames itself.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest
import trio
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener, TLSStream
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Request, TextMessage
from wsproto.extensions import PerMessageDeflate

from utcp_websocket_anyio._connections import connector
from utcp_websocket_anyio._net.transport import Opened
from utcp_websocket_anyio._wire import Target, Wire
from utcp_websocket_anyio._wire._trio import TrioWire

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0


class Peer:
    """One accepted connection of a server that follows a script."""

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self._reader = BufferedByteReceiveStream(stream)
        self._sending = anyio.Lock(fast_acquire=True)
        self.request = ""
        self.reserved = 0

    async def read_request(self) -> str:
        """The head of the client's handshake."""
        self.request = (await self._reader.receive_until(b"\r\n\r\n", 65536)).decode()
        return self.request

    async def receive_exactly(self, count: int) -> bytes:
        """So many bytes as they come, such as the body of a request."""
        return await self._reader.receive_exactly(count) if count else b""

    def header(self, name: str) -> str | None:
        for line in self.request.split("\r\n")[1:]:
            key, _, value = line.partition(":")
            if key.strip().lower() == name.lower():
                return value.strip()
        return None

    async def handshake(self, *headers: str, accept: str | None = None) -> None:
        """Accept the client's handshake, which may have been read before."""
        if not self.request:
            await self.read_request()
        key = self.header("Sec-WebSocket-Key") or ""
        digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
        accept = accept or base64.b64encode(digest).decode()
        lines = [
            "HTTP/1.1 101 Switching Protocols",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Accept: {accept}",
            *headers,
        ]
        await self.send_raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def answer(self, status: str, *headers: str, body: bytes = b"") -> None:
        """Refuse the client's handshake."""
        await self.read_request()
        await self.send_raw("\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode() + body)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, all of them behind those of another task that is sending."""
        async with self._sending:
            await self.stream.send(data)

    async def send_frame(
        self, opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = False
    ) -> None:
        await self.send_raw(frame(opcode, payload, fin=fin, rsv=rsv, mask=mask))

    async def send(self, message: Any) -> None:
        """Send a message: a str as text, bytes as binary, anything else as JSON."""
        if isinstance(message, bytes):
            await self.send_frame(BINARY, message)
        else:
            text = message if isinstance(message, str) else json.dumps(message)
            await self.send_frame(TEXT, text.encode())

    async def receive_frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the client's next frame; its mask is required."""
        first, second = await self._reader.receive_exactly(2)
        self.reserved = first & 0x70
        length = second & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", await self._reader.receive_exactly(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", await self._reader.receive_exactly(8))
        assert second & 0x80, "a client masks its frames"
        key = await self._reader.receive_exactly(4)
        payload = await self._reader.receive_exactly(length) if length else b""
        return first & 0x0F, bytes(byte ^ key[index % 4] for index, byte in enumerate(payload))

    async def receive(self) -> str | bytes:
        """The client's next message; its pings are answered."""
        while True:
            opcode, payload = await self.receive_frame()
            if opcode == PING:
                await self.send_frame(PONG, payload)
            elif opcode == TEXT:
                return payload.decode()
            elif opcode == BINARY:
                return payload
            elif opcode == CLOSE:
                raise anyio.EndOfStream

    async def receive_text(self) -> str:
        message = await self.receive()
        assert isinstance(message, str)
        return message

    async def receive_json(self) -> Any:
        return json.loads(await self.receive())

    async def close(self, code: int = 1000, reason: str = "") -> None:
        await self.send_frame(CLOSE, struct.pack("!H", code) + reason.encode())

    async def reset(self) -> None:
        """Drop the connection with a TCP reset."""
        reset(self.stream)
        await anyio.aclose_forcefully(self.stream)

    async def until_closed(self) -> None:
        """Answer the client's closing handshake, whenever it comes."""
        await self.send_frame(CLOSE, await self.receive_close())

    async def receive_close(self) -> bytes:
        """The payload of the client's close frame; what comes before is thrown away."""
        while True:
            opcode, payload = await self.receive_frame()
            if opcode == CLOSE:
                return payload

    async def until_gone(self) -> None:
        """Wait until the client has closed the connection."""
        try:
            while True:
                await self._reader.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            pass


def reset(stream: anyio.abc.ByteStream) -> None:
    """Drop a TCP connection with a reset, now, whatever stream is above it; that one has still to be closed."""
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    while isinstance(stream, TLSStream):
        assert isinstance(stream.transport_stream, anyio.abc.ByteStream)
        stream = stream.transport_stream
    # On asyncio, a stream of older releases of anyio shuts the connection down before it closes it, and the other end
    # sees an orderly end instead.
    transport = getattr(stream, "_transport", None)
    if transport is not None:
        transport.abort()


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, mask: bool = False) -> bytes:
    """A frame as a server sends it; `mask` makes it one that a server may not send."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    bit = 0x80 if mask else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", len(payload))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(payload))
    return head + (bytes(4) if mask else b"") + payload


@asynccontextmanager
async def peer(
    script: Callable[[Peer], Awaitable[None]], *, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[str]:
    """A server on loopback that runs `script` for each connection; gives its URL.

    When a script ends, the client may close the connection; one that the client's end breaks is fine.
    """

    async def handle(stream: anyio.abc.ByteStream) -> None:
        async with stream:
            connection = Peer(stream)
            try:
                await script(connection)
                await connection.until_closed()
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.IncompleteRead):
                pass
            except ssl.SSLError:
                pass  # an alert: what the client thinks of records that are none

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port, reuse_port=False)
    address = listener.extra(anyio.abc.SocketAttribute.local_port)
    failure: BaseException | None = None
    served: Any = listener if tls is None else TLSListener(listener, tls, standard_compatible=False)
    try:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(served.serve, handle, task_group)  # noqa: ASYNC113 - the listener queues at once
            try:
                yield f"{'ws' if tls is None else 'wss'}://127.0.0.1:{address}/"
            except BaseException as error:  # noqa: ASYNC103, BLE001 - raised again below, outside the group
                failure = error
            task_group.cancel_scope.cancel()
        if failure is not None:
            raise failure
    finally:
        with anyio.CancelScope(shield=True):
            await served.aclose()


class SilentServer:
    """A server on loopback that reads what comes first, whatever the protocol, and answers nothing.

    Attributes:
        port: Its own.
        asked: Set when something has come.
        left: Set when the client has closed its connection since.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.asked = anyio.Event()
        self.left = anyio.Event()

    async def handle(self, stream: anyio.abc.ByteStream) -> None:
        async with stream:
            await stream.receive()
            self.asked.set()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            self.left.set()


@asynccontextmanager
async def silent_server() -> AsyncIterator[SilentServer]:
    """A server that leaves its client waiting. The client must have gone when the block ends."""
    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as task_group,
    ):
        server = SilentServer(listener.extra(anyio.abc.SocketAttribute.local_port))
        task_group.start_soon(listener.serve, server.handle)  # noqa: ASYNC113 - the listener queues at once
        yield server
        await server.left.wait()
        task_group.cancel_scope.cancel()


class _TrioStream(anyio.abc.ByteStream):
    """A stream of trio's, as anyio has its streams."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.BrokenResourceError:
            raise anyio.BrokenResourceError from None
        if not data:
            raise anyio.EndOfStream
        return bytes(data)

    async def send(self, item: bytes) -> None:
        try:
            await self._stream.send_all(item)
        except trio.BrokenResourceError:
            raise anyio.BrokenResourceError from None

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def peer_in_memory(
    script: Callable[[Peer], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[str]:
    """As `peer`, on trio and without a network, so that a clock can jump; gives a URL at which only it can be found."""

    async def serve(stream: trio.SocketStream) -> None:
        connection = Peer(_TrioStream(stream))
        try:
            await script(connection)
            await connection.until_closed()
        except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.IncompleteRead):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:

        async def open_wire(target: Target) -> Wire:
            # What is sent into a pair of sockets is there at once, so that the clock does not jump meanwhile.
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
            nursery.start_soon(serve, stream)
            wire = TrioWire(target, Opened(ours))
            try:
                await wire.handshake()
            except BaseException:
                wire.abort()
                raise
            return wire

        monkeypatch.setattr(connector, "open_wire", open_wire)
        yield "ws://127.0.0.1:9/"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def echo_server(
    *,
    compression: bool = False,
    tls: ssl.SSLContext | None = None,
    respond: Callable[[str | bytes], list[str | bytes]] = lambda message: [message],
    start: anyio.Event | None = None,
) -> AsyncIterator[str]:
    """An honest WebSocket server that answers each message with what `respond` makes of it; gives its URL.

    With `start`, it reads no message before that.
    """

    async def serve(peer: Peer) -> None:
        connection = WSConnection(ConnectionType.SERVER)
        parts: list[Any] = []
        while True:
            connection.receive_data(await peer.stream.receive())
            for event in connection.events():
                reply = b""
                if isinstance(event, Request):
                    extensions: list[Any] = [PerMessageDeflate()] if compression else []
                    reply = connection.send(AcceptConnection(extensions=extensions))
                elif isinstance(event, (TextMessage, BytesMessage)):
                    parts.append(event.data)
                    if not event.message_finished:
                        continue
                    message = "".join(parts) if isinstance(event, TextMessage) else b"".join(map(bytes, parts))
                    parts = []
                    for answer in respond(message):
                        kind = TextMessage if isinstance(answer, str) else BytesMessage
                        reply += connection.send(kind(data=answer))  # type: ignore[arg-type]  # the kind fits the answer
                elif isinstance(event, Ping):
                    reply = connection.send(event.response())
                elif isinstance(event, CloseConnection):
                    await peer.send_raw(connection.send(event.response()))
                    return
                if reply:
                    await peer.send_raw(reply)
            if start is not None:
                await start.wait()

    async with peer(serve, tls=tls) as url:
        yield url
