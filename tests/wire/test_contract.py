"""The contract of every engine: messages, pings, back-pressure, closing, and how a connection ends."""

from __future__ import annotations

import random
import struct
from contextlib import suppress
from typing import Any

import anyio
import pytest
from support.engines import Opener, anyio_backend, connect, engine
from support.peers import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, Peer, echo_server, frame, peer

from utcp_websocket_anyio._wire import Interrupted, Wire
from utcp_websocket_anyio._wire._buffers import READ_SIZE
from utcp_websocket_anyio.errors import (
    WebSocketAuthError,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
)

__all__ = ["anyio_backend", "connect", "engine"]

pytestmark = pytest.mark.anyio


async def serve_nothing(peer: Peer) -> None:
    await peer.handshake()


async def test_text_and_binary_messages_come_back_as_they_were_sent(connect: Opener) -> None:
    with anyio.fail_after(10):
        async with echo_server() as url:
            wire = await connect(url)
            messages: list[str | bytes] = ["hello", "", "ü€😀", b"\x00\xff", b"", "x" * 70_000, b"y" * 1_000_000]
            for message in messages:
                await wire.send(message)
                assert await wire.receive() == message
            assert wire.bytes_sent == wire.bytes_received
            await wire.close()


async def test_fragments_are_joined_and_empty_ones_cost_nothing(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send_frame(TEXT, "sp\u00e4t".encode()[:3], fin=False)
        await peer.send_frame(PING, b"between")
        for _ in range(10_000):
            await peer.send_frame(CONTINUATION, b"", fin=False)
        await peer.send_frame(CONTINUATION, "sp\u00e4t".encode()[3:])
        await peer.send_frame(BINARY, b"a", fin=False)
        await peer.send_frame(CONTINUATION, b"b")

    with anyio.fail_after(20):
        async with peer(script) as url:
            wire = await connect(url)
            assert await wire.receive() == "sp\u00e4t"
            assert await wire.receive() == b"ab"
            await wire.close()


async def test_pings_of_the_peer_are_answered_while_a_task_receives(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send_frame(PING, b"are you there")
        opcode, payload = await peer.receive_frame()
        await peer.send(f"{opcode:x} {payload.decode()}")

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            assert await wire.receive() == "a are you there"
            await wire.close()


async def test_a_ping_waits_for_the_message_in_front_of_it(connect: Opener) -> None:
    reads = anyio.Event()
    long = b"x" * (16 * 2**20)

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await reads.wait()
        size = 2 + 8 + 4 + len(long)
        while size:
            size -= len(await peer.stream.receive(min(size, 2**20)))
        opcode, payload = await peer.receive_frame()
        assert opcode == PING
        await peer.send_frame(PONG, payload)
        await anyio.sleep_forever()

    with anyio.fail_after(20):
        async with peer(script) as url:
            wire = await connect(url)
            answered = anyio.Event()

            async def ping() -> None:
                await wire.ping()
                answered.set()

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(wire.send, long)
                await anyio.wait_all_tasks_blocked()
                task_group.start_soon(ping)
                task_group.start_soon(wire.receive)
                await anyio.wait_all_tasks_blocked()
                assert not answered.is_set()
                before = wire.progress
                reads.set()
                await answered.wait()
                assert wire.progress - before > 2**20
                task_group.cancel_scope.cancel()
            wire.abort()


async def test_a_ping_returns_at_any_sign_of_life(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        for reply in (PONG, TEXT):
            opcode, payload = await peer.receive_frame()
            assert opcode == PING
            await peer.send_frame(reply, payload)

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(wire.receive)
                await wire.ping()
                before = wire.progress
                await wire.ping()
                assert wire.progress > before
            wire.abort()


async def test_a_ping_that_is_cancelled_harms_nothing_and_one_on_a_lost_connection_says_so(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        assert [(await peer.receive_frame())[0] for _ in range(2)] == [PING, TEXT]
        await peer.send("still there")
        await peer.receive_frame()
        await peer.reset()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            with anyio.move_on_after(0.05):
                await wire.ping()
            await wire.send("there?")
            assert await wire.receive() == "still there"
            async with anyio.create_task_group() as task_group:
                with pytest.raises(WebSocketClosedError):
                    task_group.start_soon(expect_closed, wire)
                    await wire.ping()
            wire.abort()


async def expect_closed(wire: Wire) -> None:
    with pytest.raises(WebSocketClosedError):
        await wire.receive()


@pytest.mark.parametrize("compression", [False, True])
async def test_a_message_may_be_sent_in_fragments(connect: Opener, compression: bool) -> None:
    frames: list[tuple[int, bytes]] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        frames.extend([await peer.receive_frame() for _ in range(3)])
        await peer.send("done")

    with anyio.fail_after(10):
        async with echo_server(compression=compression) as url:
            wire = await connect(url, compression=compression, compression_threshold=10)
            messages: list[str | bytes] = ["x" * 100, b"y" * 10, b"", "\u20ac" * 5, "z"]
            for message in messages:
                await wire.send(message, fragment=7)
                assert await wire.receive() == message
            await wire.close()
        if not compression:
            async with peer(script) as url:
                wire = await connect(url)
                await wire.send("abcdefg", fragment=3)
                assert await wire.receive() == "done"
                assert frames == [(TEXT, b"abc"), (CONTINUATION, b"def"), (CONTINUATION, b"g")]
                wire.abort()


@pytest.mark.parametrize("compression", [False, True])
async def test_messages_that_are_sent_together_arrive_one_by_one(connect: Opener, compression: bool) -> None:
    messages: list[str | bytes] = ["first", b"second", "", "x" * 70, "\u20ac"]
    with anyio.fail_after(10):
        async with echo_server(compression=compression) as url:
            wire = await connect(url, compression=compression, compression_threshold=10)
            for fragment in (None, 2):
                before, progress = wire.bytes_sent, wire.progress
                await wire.send_many(messages, fragment)
                assert [await wire.receive() for _ in messages] == messages
                assert wire.bytes_sent - before == sum(len(m.encode() if isinstance(m, str) else m) for m in messages)
                assert wire.progress > progress
            await wire.close()
            with pytest.raises(WebSocketClosedError):
                await wire.send_many(messages)


async def test_the_data_callback_is_called_for_data_without_a_receiver_where_data_is_pushed(connect: Opener) -> None:
    more = [anyio.Event() for _ in range(3)]

    async def script(peer: Peer) -> None:
        await peer.handshake()
        for event in more:
            await event.wait()
            await (peer.close(1001) if event is more[-1] else peer.send("news"))
        await peer.until_gone()

    async def told_of(expected: int) -> None:
        while len(told) < expected:
            await anyio.sleep(0.01)

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            told: list[str] = []
            if wire.set_data_callback(lambda: told.append("early")):
                more[0].set()
                await told_of(1)
                assert list(wire.take_nowait()) == ["news"]
                assert wire.set_data_callback(None)
                more[1].set()
                while not wire.has_unread_data():
                    await anyio.sleep(0.01)
                await anyio.sleep(0.05)
                assert told == ["early"]
                # What came meanwhile is told of, too.
                assert wire.set_data_callback(lambda: told.append("late"))
                await told_of(2)
                more[2].set()
                await told_of(3)
                assert told == ["early", "late", "late"]
                assert wire.closed is not None
            wire.abort()


async def test_a_close_by_the_peer_is_raised_at_once_with_code_and_reason(connect: Opener) -> None:
    closed = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("last words")
        await peer.close(4001, "enough")
        opcode, payload = await peer.receive_frame()
        assert (opcode, payload[:2]) == (CLOSE, struct.pack("!H", 4001))
        closed.set()
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            assert await wire.receive() == "last words"
            with pytest.raises(WebSocketClosedError) as caught:
                await wire.receive()
            assert (caught.value.code, caught.value.reason) == (4001, "enough")
            assert wire.has_unread_data()
            with pytest.raises(WebSocketClosedError):
                await wire.send("too late")
            with pytest.raises(WebSocketClosedError):
                await wire.ping()
            await closed.wait()


async def test_a_close_without_a_code_is_1005(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send_frame(CLOSE)

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            with pytest.raises(WebSocketClosedError) as caught:
                await wire.receive()
            assert caught.value.code == 1005


@pytest.mark.parametrize("how", ["end of stream", "reset", "end inside a frame"])
async def test_a_connection_that_is_dropped_is_1006(connect: Opener, how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        if how == "end inside a frame":
            await peer.send_raw(frame(TEXT, b"half of it")[:5])
        if how == "reset":
            await peer.reset()
        else:
            await peer.stream.aclose()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            await wire.send("now")
            with pytest.raises(WebSocketClosedError) as caught:
                await wire.receive()
            assert caught.value.code == 1006
            assert isinstance(caught.value, ConnectionError)


async def test_closing_says_so_and_waits_for_the_answer(connect: Opener) -> None:
    said: list[Any] = []
    gone = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        said.append(await peer.receive_frame())
        await peer.close(1000)
        await peer.until_gone()
        gone.set()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            await wire.close(1000, "done")
            await wire.close()
            assert said[0] == (CLOSE, struct.pack("!H", 1000) + b"done")
            with pytest.raises(WebSocketClosedError):
                await wire.receive()
            await gone.wait()


async def test_after_its_close_frame_everything_is_received_until_the_peer_closes_too(connect: Opener) -> None:
    heard: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send("under way")
        heard.append(await peer.receive_frame())
        await peer.send_frame(PING, b"?")
        await peer.send("behind the close")
        await peer.close(1011)
        with suppress(anyio.IncompleteRead):
            heard.append(await peer.receive_frame())

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            await wire.send_close(1011)
            with pytest.raises(WebSocketClosedError):
                await wire.send("too late")
            assert wire.closed is None
            assert [await wire.receive(), await wire.receive()] == ["under way", "behind the close"]
            with pytest.raises(WebSocketClosedError) as caught:
                await wire.receive()
            assert caught.value.code == 1011
            with pytest.raises(WebSocketClosedError):
                await wire.send_close(1000)
    assert heard == [(CLOSE, struct.pack("!H", 1011))], "one close frame, and nothing behind it"


async def test_closing_after_the_close_frame_was_sent_waits_for_the_answer(connect: Opener) -> None:
    go, gone = anyio.Event(), anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive_close()
        await peer.send("it is not received any more")
        await go.wait()
        await peer.close(1011)
        await peer.until_gone()
        gone.set()

    with anyio.fail_after(10):
        async with peer(script) as url, anyio.create_task_group() as task_group:
            wire = await connect(url)
            await wire.send_close(1011)
            task_group.start_soon(wire.close)
            await anyio.wait_all_tasks_blocked()
            go.set()
            await gone.wait()
            with pytest.raises(WebSocketClosedError):
                await wire.receive()


async def test_closing_while_another_task_receives_ends_that_too(connect: Opener) -> None:
    with anyio.fail_after(10):
        async with echo_server() as url:
            wire = await connect(url)
            ended = anyio.Event()

            async def receive() -> None:
                with pytest.raises(WebSocketClosedError):
                    await wire.receive()
                ended.set()

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(receive)
                await anyio.wait_all_tasks_blocked()
                await wire.close()
                await ended.wait()


async def test_several_tasks_may_close_and_a_task_that_receives_meanwhile_gets_the_error(connect: Opener) -> None:
    asked, go = anyio.Event(), anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive_close()
        asked.set()
        await go.wait()
        await peer.close(1000)

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            async with anyio.create_task_group() as task_group:
                for _ in range(3):
                    task_group.start_soon(wire.close)
                await asked.wait()
                with pytest.raises(WebSocketClosedError, match="closed by this side"):
                    await wire.receive()
                with pytest.raises(WebSocketClosedError):
                    await wire.send("too late")
                go.set()
            assert wire.closed is not None


async def test_cancelling_receive_loses_nothing(connect: Opener) -> None:
    go = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await go.wait()
        await peer.send("one")
        await peer.send("two")

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            for _ in range(3):
                async with anyio.create_task_group() as task_group:
                    task_group.start_soon(wire.receive)
                    await anyio.wait_all_tasks_blocked()
                    task_group.cancel_scope.cancel()
            go.set()
            assert await wire.receive() == "one"
            assert await wire.receive() == "two"
            await wire.close()


async def test_interrupting_receive_ends_it_and_the_wire_goes_on(connect: Opener) -> None:
    with anyio.fail_after(10):
        async with echo_server() as url:
            wire = await connect(url)
            left: list[Wire] = []

            async def receive() -> None:
                with pytest.raises(Interrupted):
                    await wire.receive()
                left.append(wire)

            wire.interrupt()  # nobody is there
            for _ in range(2):
                async with anyio.create_task_group() as task_group:
                    task_group.start_soon(receive)
                    await anyio.wait_all_tasks_blocked()
                    wire.interrupt()
            assert left == [wire, wire]
            await wire.send("still there")
            assert await wire.receive() == "still there"
            await wire.close()


async def test_interrupting_a_send_that_waits_for_room_ends_it(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await anyio.sleep_forever()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            left = anyio.Event()

            async def send() -> None:
                # Where the message could not even be given to the transport the wire is lost.
                with suppress(WebSocketClosedError):
                    await wire.send(b"x" * 50_000_000)
                left.set()

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(send)
                await anyio.wait_all_tasks_blocked()
                assert not left.is_set()
                wire.interrupt()
                await left.wait()
            wire.abort()


@pytest.mark.parametrize("compression", [False, True], ids=["plain", "compressed"])
async def test_an_interrupt_does_not_reach_messages_of_others(connect: Opener, compression: bool) -> None:
    """A message of nobody in particular is half sent; one that waits behind it is left out."""
    go = anyio.Event()
    pad = random.Random(1).randbytes(20_000_000)
    read: list[str | bytes] = []

    def respond(message: str | bytes) -> list[str | bytes]:
        read.append(message)
        return ["read"]

    with anyio.fail_after(60):
        async with echo_server(compression=compression, respond=respond, start=go) as url:
            wire = await connect(url, compression=compression)
            left: list[str] = []

            async def send_of_others() -> None:
                await wire.send_many([pad])
                left.append("others")

            async def send() -> None:
                with suppress(Interrupted):
                    await wire.send("late")
                left.append("own")

            async with anyio.create_task_group() as task_group:
                task_group.start_soon(send_of_others)
                await anyio.wait_all_tasks_blocked()
                task_group.start_soon(send)
                await anyio.wait_all_tasks_blocked()
                assert not left
                wire.interrupt()
                while not left:
                    await anyio.lowlevel.checkpoint()
                assert left == ["own"]
                go.set()
            await wire.send("last")
            while await wire.receive() and read[-1] != "last":
                pass
            assert read[0] == pad
            assert read[1:] in (["last"], ["late", "last"])
            await wire.close()


async def test_a_second_receiver_is_refused(connect: Opener) -> None:
    with anyio.fail_after(10):
        async with echo_server() as url:
            wire = await connect(url)
            async with anyio.create_task_group() as task_group:
                task_group.start_soon(wire.receive)
                await anyio.wait_all_tasks_blocked()
                with pytest.raises(anyio.BusyResourceError):
                    await wire.receive()
                task_group.cancel_scope.cancel()
            wire.abort()


async def test_an_unread_flood_is_held_back(connect: Opener) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.handshake()
        while True:
            await peer.send(b"x" * 65_536)
            sent += 65_536

    with anyio.fail_after(30):
        async with peer(script) as url:
            wire = await connect(url)
            assert await wire.receive() == b"x" * 65_536
            before = -1
            while before != sent:
                before = sent
                await anyio.sleep(0.1)
            # What is under way fills the sockets' buffers (some MB on loopback), not this process.
            queued = getattr(wire, "_queued", 0)
            assert queued < 2**20
            assert await wire.receive() == b"x" * 65_536
            wire.abort()


async def test_one_long_message_that_is_not_taken_holds_back_the_next(connect: Opener) -> None:
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.handshake()
        while True:
            await peer.send(bytes(2**20))
            sent += 1

    with anyio.fail_after(30):
        async with peer(script) as url:
            wire = await connect(url)
            for _ in range(3):
                await wire.receive()
                before = -1
                while before != sent:
                    before = sent
                    await anyio.sleep(0.1)
                assert len(wire.take_nowait()) <= 1
                # The read that brought the end of one message may have brought the beginning of the next.
                engine: Any = wire
                assert engine._core._assembly.size <= READ_SIZE
            wire.abort()


async def test_unread_data_tells_of_messages_and_of_the_end(connect: Opener) -> None:
    go, end = anyio.Event(), anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await go.wait()
        await peer.send("there")
        await end.wait()
        await peer.stream.aclose()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url)
            await anyio.wait_all_tasks_blocked()
            assert not wire.has_unread_data()
            go.set()
            while not wire.has_unread_data():
                await anyio.sleep(0.001)
            assert await wire.receive() == "there"
            assert not wire.has_unread_data()
            end.set()
            while not wire.has_unread_data():
                await anyio.sleep(0.001)
            with pytest.raises(WebSocketClosedError):
                await wire.receive()


async def test_concurrent_senders_never_mix_their_frames(connect: Opener) -> None:
    with anyio.fail_after(30):
        async with echo_server() as url:
            wire = await connect(url)
            messages = [chr(97 + number) * 200_000 for number in range(10)]

            async with anyio.create_task_group() as task_group:
                for message in messages:
                    task_group.start_soon(wire.send, message)
                received = [await wire.receive() for _ in messages]
            assert sorted(map(str, received)) == messages
            await wire.close()


async def test_the_handshake_carries_headers_and_subprotocol_and_no_origin(connect: Opener) -> None:
    requests: list[Peer] = []

    async def script(peer: Peer) -> None:
        requests.append(peer)
        await peer.handshake("Sec-WebSocket-Protocol: chat")

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(
                url + "path?a=b", headers=(("X-One", "1"), ("Authorization", "Bearer t")), subprotocols=("chat",)
            )
            wire.abort()
    assert requests[0].request.startswith("GET /path?a=b HTTP/1.1\r\n")
    assert requests[0].header("X-One") == "1"
    assert requests[0].header("Authorization") == "Bearer t"
    assert requests[0].header("Sec-WebSocket-Protocol") == "chat"
    assert requests[0].header("Origin") is None
    assert (requests[0].header("User-Agent") or "").startswith("utcp-websocket-anyio/")


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found", "503 Busy", "302 Found"])
async def test_a_refused_handshake_is_reported_by_its_status_without_waiting_for_a_body(
    connect: Opener, status: str
) -> None:
    contacted = False

    async def elsewhere(peer: Peer) -> None:
        nonlocal contacted
        contacted = True

    with anyio.fail_after(10):
        async with peer(elsewhere) as other:

            async def script(peer: Peer) -> None:
                # The body is announced and never sent.
                await peer.answer(status, f"Location: {other}", "Content-Length: 1000")
                await anyio.sleep_forever()

            async with peer(script) as url:
                with pytest.raises(WebSocketConnectionError) as caught:
                    await connect(url)
    error = caught.value
    assert error.status == int(status[:3])
    assert isinstance(error, WebSocketAuthError) == (error.status in (401, 403))
    assert error.transient == (error.status >= 500)
    assert not contacted
    assert error.__cause__ is None
    assert error.__context__ is None


async def test_a_wrong_accept_key_fails_the_handshake(connect: Opener) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake(accept="c29tZXRoaW5nIGVsc2U=")

    with anyio.fail_after(10):
        async with peer(script) as url:
            with pytest.raises(WebSocketConnectionError) as caught:
                await connect(url)
    assert not caught.value.transient


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH_9.2\r\n\r\n", b"\x00" * 100_000, b"HTTP/1.1 abc\r\n\r\n", b""])
async def test_an_answer_that_is_not_http_fails_the_handshake(connect: Opener, garbage: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send_raw(garbage)
        await peer.stream.aclose()

    with anyio.fail_after(10):
        async with peer(script) as url:
            with pytest.raises(WebSocketConnectionError):
                await connect(url)


@pytest.mark.parametrize("chosen", [None, "other"])
async def test_a_server_that_takes_another_subprotocol_or_none_breaks_the_protocol(
    connect: Opener, chosen: str | None
) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake(*([] if chosen is None else [f"Sec-WebSocket-Protocol: {chosen}"]))

    with anyio.fail_after(10):
        async with peer(script) as url:
            with pytest.raises(WebSocketProtocolError):
                await connect(url, subprotocols=("chat",))


async def test_a_closed_port_is_a_transient_failure(connect: Opener) -> None:
    async with peer(serve_nothing) as url:
        pass
    with anyio.fail_after(10), pytest.raises(WebSocketConnectionError) as caught:
        await connect(url)
    assert caught.value.transient
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


async def test_cancelled_in_a_silent_handshake_nothing_stays_open(connect: Opener) -> None:
    asked, gone = anyio.Event(), anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        asked.set()
        await peer.until_gone()
        gone.set()

    with anyio.fail_after(10):
        async with peer(script) as url, anyio.create_task_group() as task_group:
            task_group.start_soon(connect, url)
            await asked.wait()
            task_group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await gone.wait()


VIOLATIONS: dict[str, tuple[bytes, int]] = {
    "invalid UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "invalid UTF-8 over fragments": (frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"("), 1007),
    "reserved opcode": (frame(0x3, b""), 1002),
    "reserved bit": (frame(TEXT, b"a", rsv=4), 1002),
    "masked frame": (frame(TEXT, b"a", mask=True), 1002),
    "2^62 bytes announced": (bytes([0x82, 127]) + struct.pack("!Q", 2**62), 1009),
    "more than the limit": (frame(BINARY, b"x" * 5000), 1009),
    "more than the limit in fragments": (
        b"".join([frame(BINARY, b"x" * 999, fin=False), *[frame(CONTINUATION, b"x" * 999, fin=False)] * 5]),
        1009,
    ),
    "continuation of nothing": (frame(CONTINUATION, b"a"), 1002),
    "message inside a fragmented one": (frame(TEXT, b"a", fin=False) + frame(TEXT, b"b"), 1002),
    "fragmented ping": (frame(PING, b"a", fin=False), 1002),
    "ping of 126 bytes": (frame(PING, b"a" * 126), 1002),
    "close of one byte": (frame(CLOSE, b"a"), 1002),
    "close code 1006": (frame(CLOSE, struct.pack("!H", 1006)), 1002),
    "close code 999": (frame(CLOSE, struct.pack("!H", 999)), 1002),
    "close code 5000": (frame(CLOSE, struct.pack("!H", 5000)), 1002),
}


@pytest.mark.parametrize("what", VIOLATIONS)
async def test_a_violation_is_a_protocol_error_and_the_peer_gets_a_close(connect: Opener, what: str) -> None:
    data, code = VIOLATIONS[what]
    told: list[bytes] = []
    done = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send_raw(data)
        try:
            opcode, payload = await peer.receive_frame()
            assert opcode == CLOSE
            told.append(payload[:2])
        finally:
            done.set()

    with anyio.fail_after(10):
        async with peer(script) as url:
            wire = await connect(url, max_message_size=4000)
            with pytest.raises(WebSocketProtocolError) as caught:
                await wire.receive()
            assert caught.value.__cause__ is None
            with anyio.move_on_after(5):
                await done.wait()
            wire.abort()
    assert told == [struct.pack("!H", code)]


async def test_a_message_of_exactly_the_limit_is_received(connect: Opener) -> None:
    with anyio.fail_after(10):
        async with echo_server() as url:
            wire = await connect(url, max_message_size=4000)
            await wire.send(b"x" * 4000)
            assert len(await wire.receive()) == 4000
            await wire.close()


async def test_after_abort_everything_says_closed(connect: Opener) -> None:
    with anyio.fail_after(10):
        async with echo_server() as url:
            wire = await connect(url)
            wire.abort()
            wire.abort()
            for operation in (wire.receive, wire.ping, lambda: wire.send("x")):
                with pytest.raises(WebSocketError):
                    await operation()
            await wire.close()
