"""What only trio's engine has to cope with: a transport that takes a part of what it is given."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
from support.peers import PING, PONG, TEXT, Peer, peer

from utcp_websocket_anyio._wire import Target, _trio
from utcp_websocket_anyio.errors import WebSocketClosedError

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["trio"])]


@asynccontextmanager
async def connected(frames: list[tuple[int, bytes]]) -> AsyncIterator[_trio.TrioWire]:
    """A wire to a peer that notes what it receives and answers pings."""

    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            opcode, payload = await peer.receive_frame()
            frames.append((opcode, payload))
            await peer.send_frame(PONG if opcode == PING else TEXT, payload)

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await _trio.open_wire(Target(url=url, endpoint=url))
            assert isinstance(wire, _trio.TrioWire)
            yield wire
            wire.abort()


@pytest.mark.parametrize("room", [0, 3])
async def test_a_ping_that_there_was_no_room_for_is_finished_first(room: int) -> None:
    frames: list[tuple[int, bytes]] = []
    async with connected(frames) as wire:
        answered: list[str] = []
        send_nowait = wire._send_nowait
        assert send_nowait is not None
        wire._send_nowait = lambda data: send_nowait(data[:room]) if room else 0
        assert not wire.ping_nowait(lambda: answered.append("first"))
        wire._send_nowait = send_nowait
        if room:
            assert not wire.ping_nowait(lambda: answered.append("not before the first"))
        await wire.send("a message")
        assert await wire.receive() == "a message"
        assert frames == [(PING, b"1")] * bool(room) + [(TEXT, b"a message")]
        assert answered == ["first"] * bool(room)
        assert wire.ping_nowait(lambda: answered.append("last"))
        await wire.send("another")
        assert await wire.receive() == "another"
        assert answered[-1] == "last"


async def test_a_ping_on_a_broken_connection_is_the_end_of_it() -> None:
    async with connected([]) as wire:

        def broken(data: bytes) -> int:
            raise trio.BrokenResourceError

        wire._send_nowait = broken
        with pytest.raises(WebSocketClosedError) as caught:
            wire.ping_nowait(lambda: None)
        assert caught.value.__context__ is None
        assert wire.closed is not None
