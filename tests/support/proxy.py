"""A proxy on loopback that records every byte: HTTP CONNECT, with or without TLS, and SOCKS 5.

It knows names by a table of its own, so that a name which nobody else can resolve leads to a server of the test.
"""

from __future__ import annotations

import base64
import ipaddress
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.abc
from anyio.streams.buffered import BufferedByteReceiveStream
from anyio.streams.tls import TLSListener

_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.IncompleteRead, OSError)


@dataclass
class ProxyServer:
    """A running proxy.

    Attributes:
        hosts: The names it knows, each with a port on loopback. An address of loopback leads to itself.
        user: The name and password that it asks for.
        refuse: What it answers instead of connecting: an HTTP status line, or a SOCKS reply code.
        requests: The hosts and ports that it was asked for.
        received: All that clients sent, a connection each.
        sent: All that clients were sent.
        connections: How many clients there were.
    """

    scheme: str
    port: int = 0
    hosts: dict[str, int] = field(default_factory=dict)
    user: tuple[str, str] | None = None
    refuse: bytes | int | None = None
    requests: list[tuple[str, int]] = field(default_factory=list)
    received: list[bytearray] = field(default_factory=list)
    sent: list[bytearray] = field(default_factory=list)

    @property
    def connections(self) -> int:
        return len(self.received)

    def url(self, scheme: str | None = None, user: str = "") -> str:
        return f"{scheme or self.scheme}://{user}127.0.0.1:{self.port}"

    async def serve(self, client: anyio.abc.ByteStream) -> None:
        recorded = _Recorded(client)
        self.received.append(recorded.received)
        self.sent.append(recorded.sent)
        try:
            async with client:
                server = await (self._socks(recorded) if self.scheme == "socks5" else self._http(recorded))
                if server is None:
                    return
                async with server, anyio.create_task_group() as tasks:
                    tasks.start_soon(self._pass_on, recorded, server, tasks.cancel_scope)
                    tasks.start_soon(self._pass_on, server, recorded, tasks.cancel_scope)
        except* _GONE:
            pass

    async def _http(self, client: _Recorded) -> anyio.abc.ByteStream | None:
        buffered = BufferedByteReceiveStream(client)
        head = (await buffered.receive_until(b"\r\n\r\n", 8192)).decode()
        method, target, _ = head.split("\r\n")[0].split()
        assert method == "CONNECT"
        host, _, port = target.rpartition(":")
        self.requests.append((host.strip("[]"), int(port)))
        if self.user is not None:
            expected = base64.b64encode(":".join(self.user).encode()).decode()
            if f"Proxy-Authorization: Basic {expected}" not in head:
                await client.send(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
                return None
        if isinstance(self.refuse, bytes):
            await client.send(self.refuse)
            return None
        server = await self._connect(*self.requests[-1])
        if server is None:
            await client.send(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
            return None
        # In pieces: a client may not take the first one for all.
        for piece in (b"HTTP/1.1 200 Connec", b"tion established\r\nVia: 1.1 test\r", b"\n\r\n"):
            await client.send(piece)
            await anyio.sleep(0.01)
        return server

    async def _socks(self, client: _Recorded) -> anyio.abc.ByteStream | None:
        async def read(size: int) -> bytes:
            return await buffered.receive_exactly(size)

        buffered = BufferedByteReceiveStream(client)
        _, count = await read(2)
        methods = await read(count)
        wanted = 0 if self.user is None else 2
        if wanted not in methods:
            await client.send(b"\x05\xff")
            return None
        await client.send(bytes([5, wanted]))
        if self.user is not None:
            name = await read((await read(2))[1])
            password = await read((await read(1))[0])
            good = (name.decode(), password.decode()) == self.user
            await client.send(b"\x01\x00" if good else b"\x01\x01")
            if not good:
                return None
        kind = (await read(4))[3]
        if kind == 3:
            host = (await read((await read(1))[0])).decode()
        else:
            host = str(ipaddress.ip_address(await read(4 if kind == 1 else 16)))
        self.requests.append((host, int.from_bytes(await read(2), "big")))
        reply = self.refuse if isinstance(self.refuse, int) else 0
        server = None if reply else await self._connect(*self.requests[-1])
        if server is None:
            await client.send(bytes([5, reply or 5, 0, 1]) + bytes(6))
            return None
        await client.send(bytes([5, 0, 0, 1]) + bytes(6))
        return server

    async def _connect(self, host: str, port: int) -> anyio.abc.ByteStream | None:
        if host in self.hosts:
            port = self.hosts[host]
        elif not host.startswith("127."):
            return None
        try:
            return await anyio.connect_tcp("127.0.0.1", port)
        except OSError:
            return None

    @staticmethod
    async def _pass_on(source: Any, sink: Any, both: anyio.CancelScope) -> None:
        try:
            while True:
                await sink.send(await source.receive())
        except _GONE:
            both.cancel()


class _Recorded(anyio.abc.ByteStream):
    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self._stream = stream
        self.received = bytearray()
        self.sent = bytearray()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        data = await self._stream.receive(max_bytes)
        self.received += data
        return data

    async def send(self, item: bytes) -> None:
        self.sent += item
        await self._stream.send(item)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def run_proxy(
    scheme: str, *, hosts: Mapping[str, int] | None = None, ssl_context: ssl.SSLContext | None = None, **settings: Any
) -> AsyncIterator[ProxyServer]:
    """A proxy of scheme ``http``, ``https`` or ``socks5``, until the block is left."""
    proxy = ProxyServer(scheme, hosts=dict(hosts or {}), **settings)
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as tcp, anyio.create_task_group() as tasks:
        proxy.port = tcp.extra(anyio.abc.SocketAttribute.local_port)
        listener = tcp if ssl_context is None else TLSListener(tcp, ssl_context, standard_compatible=False)
        tasks.start_soon(listener.serve, proxy.serve)  # noqa: ASYNC113 - the listener queues connections from the start
        try:
            yield proxy
        finally:
            tasks.cancel_scope.cancel()


# What this process looks up and connects to


_observers: list[Callable[[str, Any], None]] = []


def _observe(event: str, arguments: Any) -> None:
    for observer in _observers:
        observer(event, arguments)


@contextmanager
def observed_network() -> Iterator[tuple[list[str], list[Any]]]:
    """The names that are looked up, and the addresses that are connected to, while the block runs.

    uvloop does both in C, where Python's audit events do not reach.
    """
    names: list[str] = []
    addresses: list[Any] = []

    def observer(event: str, arguments: Any) -> None:
        if event == "socket.getaddrinfo" and not _is_address(arguments[0]):
            names.append(arguments[0])
        elif event == "socket.connect" and arguments[0].family != getattr(socket, "AF_UNIX", None):
            addresses.append(arguments[1])

    if not hasattr(sys, "_observed_by_tests"):
        sys.addaudithook(_observe)  # for good: there is no way to remove one
        sys._observed_by_tests = True  # type: ignore[attr-defined]  # a mark for the tests
    _observers.append(observer)
    try:
        yield names, addresses
    finally:
        _observers.remove(observer)


def _is_address(host: Any) -> bool:
    try:
        ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return True
