"""Trio's engine alone: a socket without room for the wire's own frames."""

from __future__ import annotations

import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
import trio
from support.peers import BINARY, PING, PONG, TEXT, Peer, frame, peer

from utcp_websocket_anyio._wire import Interrupted, Target, _trio

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["trio"])]


class Room:
    """Bytes of room that the socket has; None: its real room."""

    def __init__(self, wire: _trio.TrioWire, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self._send = wire._send_nowait
        monkeypatch.setattr(wire, "_send_nowait", self._send_some)

    def _send_some(self, data: bytes | memoryview) -> int:
        if self.left is None:
            return self._send(data)
        if not self.left:
            return 0
        sent = self._send(data[: self.left])
        self.left -= sent
        return sent


@asynccontextmanager
async def connected(frames: list[tuple[int, bytes]], *, compression: bool = False) -> AsyncIterator[_trio.TrioWire]:
    """A wire to a peer that notes what it receives, and answers pings and texts."""

    async def script(peer: Peer) -> None:
        await peer.handshake(*(["Sec-WebSocket-Extensions: permessage-deflate"] if compression else []))
        inflater = zlib.decompressobj(wbits=-15)
        while True:
            opcode, payload = await peer.receive_frame()
            if peer.reserved:
                payload = inflater.decompress(payload + b"\x00\x00\xff\xff")
            frames.append((opcode, payload))
            if opcode == TEXT and payload == b"ping me":
                await peer.send_frame(PING, b"are you there")
            elif opcode in (PING, TEXT):
                await peer.send_frame(PONG if opcode == PING else TEXT, payload)

    with anyio.fail_after(20):
        async with peer(script) as url:
            target = Target(url=url, endpoint=url, compression=compression, compression_threshold=0)
            wire = await _trio.open_wire(target)
            assert isinstance(wire, _trio.TrioWire)
            yield wire
            wire.abort()


class Flooded:
    """A socket on which as much has always arrived as one read takes."""

    MESSAGE = frame(BINARY, bytes(1020))

    def __init__(self, real: socket.socket) -> None:
        self._real = real

    def recv_into(self, buffer: memoryview) -> int:
        buffer[:] = self.MESSAGE * (len(buffer) // len(self.MESSAGE))
        return len(buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


async def at_once(sock: socket.socket) -> None:
    await trio.lowlevel.checkpoint()


async def test_a_pong_that_had_no_room_does_not_wait_for_the_end_of_a_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[tuple[int, bytes]] = []
    async with connected(frames) as wire:
        room = Room(wire, monkeypatch)
        await wire.send("ping me")
        room.left = 5
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(wire.receive)
            while room.left:
                await anyio.sleep(0.001)
            task_group.cancel_scope.cancel()
        assert wire.has_unsent_data()
        monkeypatch.setattr(wire, "_socket", Flooded(wire._socket))
        monkeypatch.setattr(trio.lowlevel, "wait_readable", at_once)
        for _ in range(3):
            await wire.receive()
            wire.take_nowait()
        assert wire.has_unsent_data()
        room.left = None
        for _ in range(3):
            await wire.receive()
            wire.take_nowait()
        assert not wire.has_unsent_data()
        monkeypatch.undo()
        while (PONG, b"are you there") not in frames:
            await anyio.sleep(0.01)


@pytest.mark.parametrize("room", [0, 3])
async def test_a_ping_that_was_cancelled_half_way_is_finished_first(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[tuple[int, bytes]] = []
    async with connected(frames) as wire:
        socket = Room(wire, monkeypatch)
        socket.left = room
        with anyio.move_on_after(0.05) as scope:
            await wire.ping()
        assert scope.cancelled_caught
        assert wire.has_unsent_data()
        socket.left = None
        await wire.send("a message")
        assert await wire.receive() == "a message"
        assert frames == [(PING, b""), (TEXT, b"a message")]
        assert not wire.has_unsent_data()


@pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
@pytest.mark.parametrize("how", ["cancel", "interrupt"])
async def test_a_send_that_is_left_before_it_has_begun_leaves_no_trace(
    how: str, compression: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for the rest of a ping. What is compressed later must not refer to what was never sent."""
    frames: list[tuple[int, bytes]] = []
    async with connected(frames, compression=compression) as wire:
        socket = Room(wire, monkeypatch)
        socket.left = 3
        with anyio.move_on_after(0.05):
            await wire.ping()
        assert not socket.left

        async def send() -> None:
            with suppress(Interrupted):
                await wire.send("a message")

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(send)
            # The kernel has room, so the task never stands still.
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            if how == "cancel":
                task_group.cancel_scope.cancel()
            else:
                wire.interrupt()
        socket.left = None
        await wire.send("a message later")
        assert await wire.receive() == "a message later"
        assert frames == [(PING, b""), (TEXT, b"a message later")]
        assert wire.bytes_sent == len("a message later")


async def test_a_pong_that_there_was_no_room_for_is_sent_when_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    frames: list[tuple[int, bytes]] = []
    async with connected(frames) as wire:
        socket = Room(wire, monkeypatch)
        await wire.send("ping me")
        socket.left = 5
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(wire.receive)
            while socket.left:
                await anyio.sleep(0.001)
            assert frames == [(TEXT, b"ping me")]
            socket.left = None
            while len(frames) < 2:
                await anyio.sleep(0.01)
            task_group.cancel_scope.cancel()
        assert frames[1:] == [(PONG, b"are you there")]


@pytest.mark.parametrize("how", ["interrupt", "cancel", "abort"])
async def test_a_send_that_has_begun_and_is_left_takes_the_wire_with_it(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected([]) as wire:
        socket = Room(wire, monkeypatch)
        socket.left = 5
        ended: list[BaseException | None] = []

        async def send() -> None:
            try:
                await wire.send("half of it")
            except Exception as error:  # noqa: BLE001 - it is asserted below
                ended.append(error)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(send)
            while socket.left:
                await anyio.sleep(0.001)
            if how == "cancel":
                task_group.cancel_scope.cancel()
            elif how == "interrupt":
                wire.interrupt()
            else:
                wire.abort()
        assert [str(error)[:19] for error in ended] == ([] if how == "cancel" else ["closed by this side"])
        assert wire.closed is not None
