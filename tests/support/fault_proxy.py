"""A TCP proxy on loopback that does to its connections what networks do, by a seed."""

from __future__ import annotations

import enum
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Protocol

import anyio
import anyio.abc

from support.peers import reset

_BROKEN = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError, OSError)

_RECORD_HEADER = 5


class Fault(enum.Enum):
    """The damage to one direction of a connection at some place."""

    DELAY = enum.auto()
    SPLIT = enum.auto()
    STALL = enum.auto()
    TRUNCATE = enum.auto()
    HALF_CLOSE = enum.auto()
    RESET = enum.auto()


class Place(Protocol):
    """A place in what is passed on in one direction."""

    def within(self, data: bytes) -> int | None:
        """How many of the next bytes lie before it; None if it does not come within them."""


class Bytes:
    """The place behind so many bytes."""

    def __init__(self, count: int) -> None:
        self._left = count

    def within(self, data: bytes) -> int | None:
        if self._left >= len(data):
            self._left -= len(data)
            return None
        return self._left


class Records:
    """A place in a TLS stream: behind so many whole records (RFC 8446, section 5.1) and a part of the next one.

    Args:
        whole: Number of records before it.
        part: The share of the next record that lies before it; with 0 the place is right behind the last whole one,
            and is reached before anything else has come.
    """

    def __init__(self, whole: int, part: float = 0) -> None:
        self._whole = whole
        self._part = part
        self._head = b""
        self._size = 0
        self._taken = 0  # of the record that is passing

    def within(self, data: bytes) -> int | None:
        position = 0
        while True:
            if not self._whole and not self._part:
                return position
            if position == len(data):
                return None
            if not self._size:
                needed = _RECORD_HEADER - len(self._head)
                self._head += data[position : position + needed]
                if len(self._head) < _RECORD_HEADER:
                    self._taken = len(self._head)
                    return None
                self._size = _RECORD_HEADER + int.from_bytes(self._head[3:], "big")
            end = self._size if self._whole else max(self._taken, int(self._size * self._part), 1)
            step = end - self._taken
            if step > len(data) - position:
                self._taken += len(data) - position
                return None
            position += step
            if not self._whole:
                return position
            self._whole -= 1
            self._head, self._size, self._taken = b"", 0, 0


class FaultProxy:
    """Passes bytes on to a server, until it does something else.

    Args:
        target: The server's port.
        seed: Decides which connection suffers what, and where.
        harm: The share of directions that suffer something.
        tls: True if what passes is TLS; half of the places are then counted in records.

    Attributes:
        port: Its own.
        inflicted: What was done so far, and how often.
        harm: As above; it may be changed at any time.
        reset_at: A place in what the server sends, from now on, where the connection is reset.
        is_holding_up: True while nothing more is taken from clients.
    """

    def __init__(self, target: int, *, seed: int, harm: float, tls: bool = False) -> None:
        self._target = target
        self.port = 0
        self.inflicted: Counter[Fault] = Counter()
        self.harm = harm
        self.reset_at: Place | None = None
        self.is_holding_up = False
        self._random = random.Random(seed)
        self._tls = tls
        self._is_down = False
        self._open: dict[anyio.CancelScope, anyio.abc.SocketStream] = {}

    @property
    def connections(self) -> int:
        """How many there are now."""
        return len(self._open)

    def kill_one(self) -> None:
        """Drop one of the connections, half of the time by a reset: whatever its client is doing just then."""
        if self._open:
            scope, client = self._random.choice(list(self._open.items()))
            if self._random.random() < 0.5:
                self._reset(client)
            scope.cancel()

    def reset_all(self) -> None:
        """Reset every connection now."""
        for scope, client in self._open.items():
            self._reset(client)
            scope.cancel()

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
            self._open[scope] = client
            try:
                async with (
                    client,
                    await self._connect() as server,
                    anyio.create_task_group() as task_group,
                ):
                    task_group.start_soon(self._pass_on, client, server, scope, False)
                    task_group.start_soon(self._pass_on, server, client, scope, True)
            finally:
                del self._open[scope]

    async def _connect(self) -> anyio.abc.SocketStream:
        # Cancelled at the wrong moment, connect_tcp of older releases leaves its socket open on asyncio.
        with anyio.CancelScope(shield=True):
            server = await anyio.connect_tcp("127.0.0.1", self._target)
        return server  # noqa: RET504 - a scope that may be cancelled may leave nothing to return

    def _chosen(self) -> tuple[Fault, Place] | tuple[None, None]:
        """What happens to a new direction, and where."""
        if self._random.random() >= self.harm:
            return None, None
        fault = self._random.choice(list(Fault))
        if self._tls and self._random.random() < 0.5:
            # The handshake is two to four records each way. The parts: right behind one, in a header, anywhere.
            part = self._random.choice([0, 0.001, self._random.random()])
            return fault, Records(self._random.randrange(9), part)
        return fault, Bytes(self._random.randrange(3000))

    async def _pass_on(
        self,
        source: anyio.abc.SocketStream,
        sink: anyio.abc.SocketStream,
        connection: anyio.CancelScope,
        to_client: bool,
    ) -> None:
        fault, place = self._chosen()
        try:
            while True:
                data = await source.receive()
                if to_client and self.reset_at is not None:
                    fault, place = Fault.RESET, self.reset_at
                while self.is_holding_up and not to_client:
                    await anyio.sleep(0.001)
                before = None if place is None else place.within(data)
                if fault is None or before is None:
                    await sink.send(data)
                    continue
                if before:
                    await sink.send(data[:before])
                self.inflicted[fault] += 1
                if await self._inflict(fault, data[before:], sink):
                    fault = place = None
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
            self._reset(sink)
        return False

    @staticmethod
    def _reset(sink: anyio.abc.SocketStream) -> None:
        # It may be closed already; then uvloop has no socket, or one without a descriptor.
        with suppress(OSError, AttributeError, ValueError):
            reset(sink)

    @staticmethod
    async def _end(sink: anyio.abc.SocketStream) -> None:
        # uvloop has no other word for a transport that is closed already.
        with suppress(*_BROKEN, RuntimeError):
            await sink.send_eof()


@asynccontextmanager
async def fault_proxy(target: int, *, seed: int = 0, harm: float = 0, tls: bool = False) -> AsyncIterator[FaultProxy]:
    """A proxy in front of the server at a port; without harm it only does what it is told."""
    proxy = FaultProxy(target, seed=seed, harm=harm, tls=tls)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    proxy.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    failure: BaseException | None = None
    async with listener, anyio.create_task_group() as task_group:
        task_group.start_soon(listener.serve, proxy.serve)  # noqa: ASYNC113 - the listener queues from the start
        try:
            yield proxy
        except BaseException as error:  # noqa: ASYNC103, BLE001 - raised again below, outside the group
            failure = error
        task_group.cancel_scope.cancel()
    if failure is not None:
        raise failure
