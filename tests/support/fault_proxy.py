"""A TCP proxy on loopback that does to its connections what networks do, by a seed."""

from __future__ import annotations

import enum
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.abc

_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)


class Fault(enum.Enum):
    """The damage to one direction of a connection after a number of bytes."""

    DELAY = enum.auto()
    SPLIT = enum.auto()
    STALL = enum.auto()
    TRUNCATE = enum.auto()
    HALF_CLOSE = enum.auto()
    RESET = enum.auto()


class FaultProxy:
    """Passes bytes on to a server, until it does something else.

    Args:
        target: The server's port.
        seed: Decides which connection suffers what, and after how many bytes.
        harm: The share of directions that suffer something.

    Attributes:
        port: Its own.
        inflicted: What was done so far.
    """

    def __init__(self, target: int, *, seed: int, harm: float) -> None:
        self._target = target
        self.port = 0
        self.inflicted: list[Fault] = []
        self._random = random.Random(seed)
        self._harm = harm
        self._is_down = False
        self._open: list[anyio.CancelScope] = []

    def kill_one(self) -> None:
        """Drop one of the connections."""
        if self._open:
            self._random.choice(self._open).cancel()

    async def break_down(self, seconds: float) -> None:
        """Drop every connection, and each new one for so long."""
        self._is_down = True
        for scope in self._open:
            scope.cancel()
        try:
            await anyio.sleep(seconds)
        finally:
            self._is_down = False

    async def serve(self, client: anyio.abc.SocketStream) -> None:
        if self._is_down:
            await anyio.aclose_forcefully(client)
            return
        with anyio.CancelScope() as scope:
            self._open.append(scope)
            try:
                async with (
                    client,
                    await self._connect() as server,
                    anyio.create_task_group() as task_group,
                ):
                    task_group.start_soon(self._pass_on, client, server, scope)
                    task_group.start_soon(self._pass_on, server, client, scope)
            finally:
                self._open.remove(scope)

    async def _connect(self) -> anyio.abc.SocketStream:
        # Cancelled at the wrong moment, connect_tcp of older releases leaves its socket open on asyncio.
        with anyio.CancelScope(shield=True):
            server = await anyio.connect_tcp("127.0.0.1", self._target)
        return server  # noqa: RET504 - a scope that may be cancelled may leave nothing to return

    async def _pass_on(
        self, source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, connection: anyio.CancelScope
    ) -> None:
        fault = self._random.choice(list(Fault)) if self._random.random() < self._harm else None
        left = self._random.randrange(0, 3000)
        try:
            while True:
                data = await source.receive()
                if fault is None or left >= len(data):
                    left -= len(data)
                    await sink.send(data)
                    continue
                if left > 0:
                    await sink.send(data[:left])
                self.inflicted.append(fault)
                if await self._inflict(fault, data[max(left, 0) :], sink):
                    fault = None
                    continue
                break
        except anyio.EndOfStream:
            await self._end(sink)
            return
        except _BROKEN:
            pass
        connection.cancel()

    async def _inflict(self, fault: Fault, data: bytes, sink: anyio.abc.SocketStream) -> bool:
        """Do it, with the data that are on their way; True: the direction goes on as if nothing had been."""
        if fault is Fault.DELAY:
            await anyio.sleep(self._random.random() / 20)
            await sink.send(data)
            return True
        if fault is Fault.SPLIT:
            for index in range(min(len(data), 200)):
                await sink.send(data[index : index + 1])
                await anyio.lowlevel.checkpoint()
            await sink.send(data[200:] or b"")
            return True
        if fault is Fault.STALL:
            await anyio.sleep_forever()
        if fault is Fault.HALF_CLOSE:
            await self._end(sink)
            await anyio.sleep_forever()
        if fault is Fault.RESET:
            raw = sink.extra(anyio.abc.SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    @staticmethod
    async def _end(sink: anyio.abc.SocketStream) -> None:
        # uvloop has no other word for a transport that is closed already.
        with suppress(*_BROKEN, RuntimeError):
            await sink.send_eof()


@asynccontextmanager
async def fault_proxy(target: int, *, seed: int, harm: float) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the server at a port."""
    proxy = FaultProxy(target, seed=seed, harm=harm)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    proxy.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(listener.serve, proxy.serve)  # noqa: ASYNC113 - the listener queues from the start
        yield proxy
        task_group.cancel_scope.cancel()
    with anyio.CancelScope(shield=True):
        await listener.aclose()
