"""The memory that a hostile peer can make a client use, and its growth over time.

What is measured includes the peers, which run in the same process and keep little.
"""

from __future__ import annotations

import gc
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any

import anyio
import pytest
from support.backends import virtual_time
from support.peers import BINARY, CONTINUATION, PING, PONG, TEXT, Peer, frame, peer, peer_in_memory
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketCallTemplate,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketProtocolError,
)

pytestmark = pytest.mark.anyio

ASYNCIO_DEBUG = False  # which remembers where everything came from

KIB, MIB = 2**10, 2**20
DEFLATE = "Sec-WebSocket-Extensions: permessage-deflate"
BY_ID: dict[str, Any] = {"message": {"id": "{{call_id}}"}, "message_filter": {"id": "{{call_id}}"}}
MULTIPLEX: dict[str, Any] = {"multiplex": True, **BY_ID}

how_it_is_used = pytest.mark.parametrize("fields", [BY_ID, MULTIPLEX], ids=["exclusive", "multiplexed"])


class Memory:
    """Bytes that the objects of this process take, beyond those when this was made."""

    def __init__(self) -> None:
        self._before = tracemalloc.get_traced_memory()[0]

    @property
    def held(self) -> int:
        # Otherwise it would depend on when the collector of circles ran last.
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - self._before

    @property
    def peak(self) -> int:
        return tracemalloc.get_traced_memory()[1] - self._before


@contextmanager
def measured() -> Iterator[Memory]:
    tracemalloc.start()
    try:
        memory = Memory()
        yield memory
        print(f"{memory.held / KIB:,.0f} KiB held, {memory.peak / KIB:,.0f} KiB at most")
    finally:
        tracemalloc.stop()


def repeated(data: bytes) -> bytes:
    """About 64 KiB of it, so that sending costs little."""
    return data * max(1, 64 * KIB // len(data))


def zeros_deflated(mebibytes: int) -> bytes:
    """So many MiB of zeros as the payload of a compressed message (RFC 7692): a thousandth of that."""
    deflate = zlib.compressobj(wbits=-15)
    block = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return (block * mebibytes)[:-4]


async def send_until_read(peer: Peer, piece: bytes, times: int) -> None:
    """Send so many pieces, and wait until the client has read them. What it says meanwhile is thrown away.

    It waits now and then: a client's read buffer may grow to the size of the kernel's, some MiB on loopback.
    """

    async def receive() -> None:
        while await peer.receive_frame() != (PONG, b"all of it"):
            pass

    while times > 0:
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(receive)
            await peer.send_raw(piece * min(times, 4))
            await peer.send_frame(PING, b"all of it")
        times -= 4


async def until_still(progress: Callable[[], int]) -> None:
    """Wait until a number does not change any more."""
    before = -1
    while before != progress():
        before = progress()
        await anyio.sleep(0.1)


async def call(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> Any:
    return await protocol.call_tool(None, "manual.t", {}, call_template)


@pytest.mark.parametrize("fragments", [1, 40])
async def test_a_compression_bomb_is_refused_at_the_limit(fragments: int) -> None:
    limit, bomb = 2 * MIB, zeros_deflated(4096)
    size = -(-len(bomb) // fragments)
    parts = [bomb[start : start + size] for start in range(0, len(bomb), size)]

    async def script(peer: Peer) -> None:
        await peer.handshake(DEFLATE)
        await peer.receive()
        await peer.send_frame(BINARY, parts[0], fin=fragments == 1, rsv=4)
        for part in parts[1:]:
            await peer.send_frame(CONTINUATION, part, fin=part is parts[-1])

    async with entered() as protocol, peer(script) as url:
        bombed = template(url, message="x", compression="deflate", max_message_size=limit)
        with measured() as memory:
            with pytest.raises(WebSocketProtocolError, match="longer than"):
                await call(protocol, bombed)
            assert memory.peak < 2 * (len(bomb) + limit), "4 GiB were sent"


async def test_compressed_messages_are_inflated_only_as_they_are_taken() -> None:
    messages = repeated(frame(BINARY, zeros_deflated(1), rsv=4))
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.handshake(DEFLATE)
        while sent < 30:
            await peer.send_raw(messages)
            sent += 1

    async with entered() as protocol, peer(script) as url:
        many = template(url, listen_only=True, compression="deflate", max_message_size=2 * MIB)
        async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, many)) as stream:
            with measured() as memory:
                assert await stream.__anext__() == bytes(MIB)
                await until_still(lambda: sent)
                assert memory.peak < 32 * MIB, "there are 64 MiB in every 64 KiB"


async def test_fragments_cost_what_they_carry() -> None:
    limit = 128 * KIB
    piece = repeated(frame(CONTINUATION, b"ab", fin=False))
    carried = len(piece) // 2
    read = anyio.Event()
    more = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await peer.receive()
        await peer.send_frame(TEXT, b"", fin=False)
        for _ in range(limit // carried - 1):
            await send_until_read(peer, piece, 1)
        read.set()
        await more.wait()
        await peer.send_raw(piece * 2)

    async with entered() as protocol, peer(script) as url, anyio.create_task_group() as task_group:
        endless = template(url, message="x", max_message_size=limit)
        await call(protocol, endless)

        async def expect_refusal() -> None:
            with pytest.raises(WebSocketProtocolError, match="longer than"):
                await call(protocol, endless)

        with measured() as memory:
            task_group.start_soon(expect_refusal)
            await read.wait()
            assert memory.held < 4 * limit, "an object for each would be 30 times as much"
        more.set()


FLOODS = {
    "large messages": (frame(BINARY, bytes(60 * KIB)), 24 * MIB),
    "small messages": (frame(TEXT, b'{"event": "none of it asked for"}'), MIB // 2),
    "empty messages": (frame(TEXT, fin=False) + frame(CONTINUATION), 64 * KIB),
    "pings": (frame(PING, bytes(125)), 256 * KIB),
    "pongs": (frame(PONG, bytes(125)), 256 * KIB),
}


@how_it_is_used
@pytest.mark.parametrize("what", FLOODS)
async def test_an_idle_connection_survives_a_flood_and_keeps_nothing_of_it(what: str, fields: dict[str, Any]) -> None:
    data, total = FLOODS[what]
    piece = repeated(data)
    go, read = anyio.Event(), anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await go.wait()
        await send_until_read(peer, piece, total // len(piece))
        read.set()
        await peer.send(await peer.receive())

    async with entered() as protocol, peer(script) as url:
        flooded = template(url, **fields)
        await call(protocol, flooded)
        with measured() as memory:
            go.set()
            await read.wait()
            assert memory.held < 2 * MIB
            assert memory.peak < 12 * MIB, "what one read holds, as objects"
        assert "id" in await call(protocol, flooded)


@how_it_is_used
@pytest.mark.parametrize("what", ["pings", "application pings"])
async def test_a_peer_that_asks_and_reads_nothing_is_disconnected_and_its_answers_are_not_kept(
    what: str, fields: dict[str, Any]
) -> None:
    piece = repeated(frame(PING, bytes(125)) if what == "pings" else frame(TEXT, b"ping"))

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        while True:
            await peer.send_raw(piece)

    async with entered() as protocol, peer(script) as url:
        asked = template(
            url, **fields, auto_reply=[{"match": "^ping$", "reply": "p" * 125}], ping_interval=0.2, pong_timeout=0.2
        )
        await call(protocol, asked)
        with measured() as memory:
            await until_idle(protocol, 0)
            assert memory.peak < 4 * MIB


async def test_a_frame_that_is_only_announced_takes_no_memory() -> None:
    connections, limit, announced = 50, 16 * MIB, 0
    all_announced = anyio.Event()

    async def script(peer: Peer) -> None:
        nonlocal announced
        await peer.handshake()
        await peer.receive()
        await peer.send_raw(bytes([0x82, 127]) + limit.to_bytes(8, "big") + bytes(100))
        await until_read_at_all(peer)

    async def until_read_at_all(peer: Peer) -> None:
        # A ping would be part of the frame; the heartbeat's comes when the client has read.
        nonlocal announced
        await peer.receive_frame()
        announced += 1
        if announced == connections:
            all_announced.set()

    async with entered() as protocol, peer(script) as url:
        waiting = template(
            url, message="x", max_connections=connections, max_message_size=limit, ping_interval=0.2, pong_timeout=100
        )
        with measured() as memory:
            async with anyio.create_task_group() as task_group:
                for _ in range(connections):
                    task_group.start_soon(call, protocol, waiting)
                await all_announced.wait()
                task_group.cancel_scope.cancel()
            assert memory.peak < connections * limit / 20


async def test_a_handshake_that_never_ends_takes_little_memory() -> None:
    headers = repeated(b"X-Header: value\r\n")

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send_raw(b"HTTP/1.1 101 Switching Protocols\r\n")
        while True:
            await peer.send_raw(headers)

    async def attempt() -> None:
        with pytest.raises(WebSocketConnectionError):
            await call(protocol, template(url, message="x", connection_timeout=10, reconnect_attempts=0))

    async with entered() as protocol, peer(script) as url:
        await attempt()  # what the first one imports stays
        with measured() as memory:
            await attempt()
            assert memory.peak < MIB


@pytest.mark.parametrize("size", [16, 60 * KIB])
async def test_a_flood_at_a_slow_consumer_stays_with_the_sender(size: int) -> None:
    piece = repeated(frame(BINARY, bytes(size)))
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.handshake()
        while True:
            await peer.send_raw(piece)
            sent += 1

    async with entered() as protocol, peer(script) as url:
        many = template(url, listen_only=True)
        async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, many)) as stream:
            with measured() as memory:
                for _ in range(3):
                    assert await stream.__anext__() == bytes(size)
                    await until_still(lambda: sent)
                assert memory.peak < 8 * MIB


async def test_a_consumer_that_is_too_slow_for_a_shared_connection_fails_at_the_limit() -> None:
    message = {"id": 1, "text": "x" * MIB}

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        for _ in range(120):
            await peer.send(message)
        flooded.set()

    flooded = anyio.Event()
    async with entered() as protocol, peer(script) as url:
        shared = template(url, **MULTIPLEX, response_format="json")
        async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, shared)) as stream:
            with measured() as memory:
                assert await stream.__anext__() == message
                await flooded.wait()
                with pytest.raises(WebSocketProtocolError, match="too slowly"):
                    while await stream.__anext__():
                        pass
                assert memory.peak < 96 * MIB


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
@how_it_is_used
async def test_hours_of_heartbeats_leave_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
) -> None:
    hour, hours = 3600, 8
    pings = 0

    async def script(peer: Peer) -> None:
        nonlocal pings
        await peer.handshake(DEFLATE)
        await peer.send(await peer.receive())
        while True:
            opcode, payload = await peer.receive_frame()
            if opcode == TEXT:
                await peer.send_frame(TEXT, payload)
            elif opcode == PING:
                pings += 1
                await peer.send_frame(PONG, payload)
                await peer.send_frame(PING, b"you, too?")
                await peer.send({"event": "tick"})
                await peer.send("ping")

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        beating = template(
            url,
            **fields,
            keep_alive_timeout=None,
            compression="deflate",
            ping_interval=30,
            auto_reply=[{"match": "^ping$", "reply": "pong"}],
        )
        with measured() as memory:
            held = []
            for _ in range(hours):
                assert "id" in await call(protocol, beating)
                await anyio.sleep(hour)
                held.append(memory.held)
            assert pings == hours * hour // 30 - 1
            # Where coverage is measured, a branch that is taken for the first time may cost that 32 KiB.
            assert held[-1] - held[1] < 64 * KIB
        assert protocol.statistics().calls == hours
        assert protocol.statistics().reconnects == 0
