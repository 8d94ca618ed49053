"""Peers that send as much as they can of what costs them little: nobody else is held up, and nothing is kept."""

from __future__ import annotations

import struct

import anyio
import anyio.lowlevel
import pytest
from support.engines import Opener, anyio_backend, connect, engine
from support.peers import CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, frame, peer

from utcp_websocket_anyio._wire import Interrupted, Wire, _engine
from utcp_websocket_anyio.errors import WebSocketClosedError, WebSocketError, WebSocketProtocolError

__all__ = ["anyio_backend", "connect", "engine"]

pytestmark = pytest.mark.anyio

MANY = 60_000
FLOODS = {
    "messages": (b"", frame(TEXT), b""),
    "continuations": (frame(TEXT, fin=False), frame(CONTINUATION, fin=False), frame(CONTINUATION)),
    "messages of two frames": (b"", frame(TEXT, fin=False) + frame(CONTINUATION), b""),
}


async def count_turns(turns: list[int]) -> None:
    """Count how often another task gets its turn."""
    while True:
        turns[0] += 1
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_of_empty_frames_leaves_other_tasks_their_turns(connect: Opener, what: str) -> None:
    begin, many, end = FLOODS[what]

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send_raw(begin + many * MANY + end + frame(TEXT, b"done"))

    with anyio.fail_after(30):
        async with peer(script) as url:
            wire = await connect(url)
            turns = [0]
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(count_turns, turns)
                while await wire.receive() != "done":
                    pass
                task_group.cancel_scope.cancel()
            assert turns[0] >= 6
            await wire.close()


async def test_a_task_that_keeps_sending_leaves_other_tasks_their_turns(connect: Opener) -> None:
    count = 20 * _engine.SENDS_PER_TURN

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await anyio.sleep_forever()

    with anyio.fail_after(30):
        async with peer(script) as url:
            wire = await connect(url)
            turns = [0]
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(count_turns, turns)
                for _ in range(count):
                    await wire.send("x")
                task_group.cancel_scope.cancel()
            assert turns[0] >= 10
            wire.abort()


@pytest.mark.parametrize("opcode", [PING, PONG])
@pytest.mark.parametrize("is_idle", [False, True], ids=["receiving", "idle"])
async def test_a_peer_with_thousands_of_control_frames_in_a_row_is_disconnected(
    connect: Opener, opcode: int, is_idle: bool
) -> None:
    told: list[tuple[int, bytes]] = []
    done = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        try:
            await peer.send_raw(frame(opcode) * MANY)
            while not told or told[-1][0] != CLOSE:
                told.append(await peer.receive_frame())
        finally:
            done.set()

    with anyio.fail_after(30):
        async with peer(script) as url:
            wire = await connect(url)
            if is_idle and wire.set_data_callback(lambda: None):
                while wire.closed is None:
                    await anyio.sleep(0.01)
            with pytest.raises(WebSocketProtocolError, match="control frames in a row"):
                await wire.receive()
            await done.wait()
            wire.abort()
    # TCP may cut off what a peer that goes on sending would have read.
    assert [payload for kind, payload in told if kind == CLOSE] in ([], [struct.pack("!H", 1008)])


async def test_pings_between_messages_are_never_too_many(connect: Opener) -> None:
    rounds = 300

    async def script(peer: Peer) -> None:
        await peer.handshake()
        for _ in range(rounds):
            await peer.send_raw(frame(PING) * 40 + frame(TEXT, b"x"))
            await anyio.lowlevel.checkpoint()
        await peer.send("done")

    with anyio.fail_after(30):
        async with peer(script) as url:
            wire = await connect(url)
            received = [await wire.receive() for _ in range(rounds + 1)]
            assert received[-1] == "done"
            wire.abort()


@pytest.mark.parametrize("how", ["interrupt", "close", "abort"])
async def test_a_receiver_in_a_flood_can_be_interrupted_at_any_time(connect: Opener, how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send_raw(frame(TEXT, fin=False))
        while True:
            await peer.send_raw(frame(CONTINUATION, fin=False) * 50_000)

    ended: list[BaseException] = []
    rounds = 1 if how == "close" else 8  # the peer never answers a close

    async def receive(wire: Wire) -> None:
        try:
            await wire.receive()
        except (WebSocketError, Interrupted) as error:
            ended.append(error)

    with anyio.fail_after(30):
        async with peer(script) as url:
            for turns in range(rounds):
                wire = await connect(url)
                async with anyio.create_task_group() as task_group:
                    task_group.start_soon(receive, wire)
                    await anyio.sleep(0.05)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    if how == "interrupt":
                        wire.interrupt()
                    elif how == "close":
                        await wire.close()
                    else:
                        wire.abort()
                wire.abort()
    assert [type(error) for error in ended] == [Interrupted if how == "interrupt" else WebSocketClosedError] * rounds


async def test_the_last_of_many_pings_is_answered_when_the_peer_reads_again(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        for number in range(1000):
            await peer.send_raw(frame(PING, b"%d" % number))
        answers = [b""]
        while answers[-1] != b"999":
            opcode, payload = await peer.receive_frame()
            assert opcode == PONG
            answers.append(payload)
        numbers = [int(answer) for answer in answers[1:]]
        assert numbers == sorted(numbers)
        await peer.send("done")

    with anyio.fail_after(20):
        async with peer(script) as url:
            wire = await connect(url)
            assert await wire.receive() == "done"
            await wire.close()
