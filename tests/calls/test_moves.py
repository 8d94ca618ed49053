"""Streams that a message moves to another connection: nothing that the old one still says is lost, or comes twice.

The old connection is closed when the new one is ready, and read until the server has closed it, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import Any, cast

import anyio
import anyio.abc
import pytest
from support.backends import virtual_time
from support.http_peer import HttpPeer, serve_http
from support.peers import CLOSE, TEXT, Peer, frame, peer, peer_in_memory
from support.protocol import entered, pool_of, template

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._calls import exchange
from utcp_websocket_anyio._calls.leg import Leg
from utcp_websocket_anyio._connections.connection import Connection

pytestmark = pytest.mark.anyio

MOVES: dict[str, Any] = {
    "response_format": "json",
    "message_filter": {"n": {"$any": True}},
    "result": {"path": "n"},
    "resume": {"gap_item": "gap"},
    "on_message": [{"match": {"going": "away"}, "resume": True}],
}


def call_template(url: str, multiplex: bool, **fields: Any) -> WebSocketCallTemplate:
    return template(url, **{**MOVES, "multiplex": multiplex, **fields})


def texts(*messages: Any) -> bytes:
    """Messages in one segment."""
    return b"".join(frame(TEXT, json.dumps(message).encode()) for message in messages)


def say_now(peer: Peer, data: bytes) -> None:
    """Give bytes to the kernel before any other task runs."""
    raw = peer.stream.extra(anyio.abc.SocketAttribute.raw_socket)
    assert os.write(raw.fileno(), data) == len(data)


async def until_left(protocol: WebSocketCommunicationProtocol, connections: int = 1) -> None:
    while protocol.statistics().active + protocol.statistics().closing > connections:
        await anyio.sleep(0.001)


def connections_of(protocol: WebSocketCommunicationProtocol) -> list[Connection]:
    return [connection for there in pool_of(protocol)._endpoints.values() for connection in there.connections]


class Connections:
    """Accepts connections and does something else on each; on the last ones the same."""

    def __init__(self, *scripts: Callable[[Peer], Awaitable[None]]) -> None:
        self.scripts = scripts
        self.peers: list[Peer] = []

    async def __call__(self, peer: Peer) -> None:
        self.peers.append(peer)
        script = self.scripts[min(len(self.peers), len(self.scripts)) - 1]
        await peer.handshake()
        await script(peer)


async def said(peer: Peer, *messages: Any) -> None:
    """Wait for a request, and answer it with messages in one segment."""
    await peer.receive()
    await peer.send_raw(texts(*messages))


ANSWERED = frame(CLOSE, (1011).to_bytes(2, "big"))

SAYS = {
    "before the new handshake is answered": "handshake",
    "in one turn with what makes the new leg ready": "ready",
    "right after the new leg was ready": "first",
    "when it has seen the close": "close",
    "with the answer to the close": "answer",
    "with its end, without an answer to the close": "end",
}


class Moving:
    """Sends numbers on its first connection, tells it to go, and sends the next ones there at a chosen point."""

    def __init__(self, when: str, more: int = 3) -> None:
        self.when = when
        self.more = more
        self.connections: list[Peer] = []
        self.closes: list[int] = []

    def say(self, when: str, end: bytes = b"") -> None:
        if when == self.when:
            say_now(self.connections[0], texts(*({"n": 1 + n} for n in range(self.more))) + end)

    async def __call__(self, peer: Peer) -> None:
        self.connections.append(peer)
        if len(self.connections) == 1:
            await self.old(peer)
        else:
            await self.new(peer)

    async def old(self, peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send_raw(texts({"ok": True}, {"n": 0}, {"going": "away"}))
        self.closes.append(int.from_bytes((await peer.receive_close())[:2], "big"))
        self.say("close")
        if self.when == "end":
            self.say("end")
            await anyio.aclose_forcefully(peer.stream)
        elif self.when == "answer":
            self.say("answer", ANSWERED)
        else:
            await peer.send_raw(ANSWERED)

    async def new(self, peer: Peer) -> None:
        await peer.read_request()
        self.say("handshake")
        await peer.handshake()
        await peer.receive()
        if self.when == "first":
            say_now(peer, texts({"ok": True}, {"n": 100}))
            self.say("first")
        else:
            self.say("ready")
            say_now(peer, texts({"ok": True}, {"n": 100}))
        await peer.until_closed()


WAYS: dict[str, dict[str, Any]] = {
    "message": {"message": {"op": "subscribe"}},
    "step": {"before": [{"send": {"op": "subscribe"}, "expect": {"ok": True}}], "request": []},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("when", SAYS.values(), ids=SAYS)
async def test_what_the_old_connection_still_says_comes_before_the_new_one(
    multiplex: bool, when: str, way: dict[str, Any]
) -> None:
    server = Moving(when)
    async with entered() as protocol, peer(server) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **way))
        async with aclosing(stream):
            with anyio.fail_after(30):
                assert [await stream.__anext__() for _ in range(5)] == [0, 1, 2, 3, 100]
            await until_left(protocol)
    assert server.closes == [1011]
    assert len(server.connections) == 2


async def test_a_slow_consumer_loses_nothing_of_what_the_old_connection_said(multiplex: bool) -> None:
    # On an exclusive connection more than may wait on this side, so that TCP holds the server back.
    total = 5_000 if multiplex else 12_000
    long = "x" * (10 if multiplex else 1000)
    is_saying = anyio.Event()

    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0}, {"going": "away"})
        await peer.receive_close()
        is_saying.set()
        for first in range(1, total, 1000):
            await peer.send_raw(texts(*({"n": n, "long": long} for n in range(first, min(first + 1000, total)))))
        await peer.send_raw(ANSWERED)

    async def new(peer: Peer) -> None:
        await said(peer, {"n": "new"})

    async with entered() as protocol, peer(Connections(old, new)) as url:
        made = call_template(url, multiplex, message={"op": "subscribe"})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert await stream.__anext__() == 0
            await is_saying.wait()
            await anyio.wait_all_tasks_blocked()
            assert [await stream.__anext__() for _ in range(total)] == [*range(1, total), "new"]
            await until_left(protocol)


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
@pytest.mark.parametrize("is_slow", [False, True], ids=["a quick consumer", "a slow consumer"])
async def test_an_old_connection_that_is_never_closed_is_left_in_time(
    multiplex: bool, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0}, {"going": "away"})
        for n in range(1, 1_000_000):
            await anyio.sleep(0.1)
            await peer.send({"n": n})

    async def new(peer: Peer) -> None:
        await said(peer, {"n": "new"})

    async with (
        peer_in_memory(Connections(old, new), monkeypatch) as url,
        WebSocketCommunicationProtocol() as protocol,
    ):
        # A ping behind the close frame would be a violation.
        made = call_template(url, multiplex, message={"op": "subscribe"}, ping_interval=0.5)
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            begun = anyio.current_time()
            items = [await stream.__anext__()]
            while items[-1] != "new":
                items.append(await stream.__anext__())
                await anyio.sleep(0.3 if is_slow else 0)
            assert items == [*range(len(items) - 1), "new"]
            assert 18 <= len(items) <= 23
            await until_left(protocol)
            assert anyio.current_time() - begun < 10


async def test_a_flood_on_the_old_connection_does_not_last_either(multiplex: bool) -> None:
    """It leaves no time to wait in, so that something else than time has to end it."""
    flood = texts({"n": 1, "long": "x" * 2**20})

    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0}, {"going": "away"})
        while True:
            await peer.send_raw(flood)

    async def new(peer: Peer) -> None:
        await said(peer, {"n": 2})

    async with entered() as protocol, peer(Connections(old, new)) as url:
        made = call_template(url, multiplex, message={"op": "subscribe"})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            count = 0
            while await stream.__anext__() != 2:
                count += 1
            assert 64 <= count < 80, "64 MiB"
            await until_left(protocol)


async def test_a_flood_on_a_new_shared_connection_does_not_wait_for_the_end_of_the_old_one() -> None:
    total = 12_000  # more than may wait

    async def old(peer: Peer) -> None:
        await said(peer, {"n": -1}, {"going": "away"})
        await peer.until_gone()

    async def new(peer: Peer) -> None:
        await peer.receive()
        for first in range(0, total, 1000):
            await peer.send_raw(texts(*({"n": n} for n in range(first, first + 1000))))

    async with entered() as protocol, peer(Connections(old, new)) as url:
        made = call_template(url, True, message={"op": "subscribe"})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert [await stream.__anext__() for _ in range(total + 1)] == list(range(-1, total))


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_what_waits_for_the_end_of_the_old_connection_is_no_silence(
    multiplex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0}, {"going": "away"})
        await peer.until_gone()

    async def new(peer: Peer) -> None:
        await said(peer, {"n": 1})

    async with (
        peer_in_memory(Connections(old, new), monkeypatch) as url,
        WebSocketCommunicationProtocol() as protocol,
    ):
        made = call_template(url, multiplex, message={"op": "subscribe"}, idle_timeout=0.5)
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert [item async for item in stream] == [0, 1]


async def test_each_attempt_to_move_begins_with_what_the_old_connection_has_captured_by_then(multiplex: bool) -> None:
    connections = 0
    requests: list[Any] = []

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            first.append(peer)
            await peer.handshake()
            await said(peer, {"n": 0}, {"going": "away"})
            await peer.until_closed()
        elif connections == 2:
            await peer.read_request()
            await first[0].send({"n": 1})
            while items != [0, 1]:
                await anyio.sleep(0.001)
            await peer.send_raw(b"HTTP/1.1 500 Sorry\r\nContent-Length: 0\r\n\r\n")
        else:
            await peer.handshake()
            requests.append(await peer.receive_json())
            await peer.send({"n": 2})

    first: list[Peer] = []
    items: list[Any] = []
    fields: dict[str, Any] = {
        "message": {"after": -1},
        "on_message": [*MOVES["on_message"], {"match": {"n": {"$any": True}}, "capture": {"last": {"path": "n"}}}],
        "resume": {"request": [{"send": {"after": "{{captured.last}}"}}]},
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            while len(items) < 3:
                items.append(await stream.__anext__())
    assert items == [0, 1, 2]
    assert requests == [{"after": 1}]


async def test_a_shared_connection_is_left_even_if_a_call_goes_on_using_it() -> None:
    answer = anyio.Event()
    asked = anyio.Event()

    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0})
        assert await peer.receive_json() == {"op": "ask"}
        await peer.send_raw(texts({"going": "away"}, {"n": 1}))
        asked.set()
        await answer.wait()
        await peer.send({"answer": 42})
        await peer.until_closed()

    async def new(peer: Peer) -> None:
        await said(peer, {"n": 2})

    async def ask() -> None:
        fields = {"message": {"op": "ask"}, "message_filter": {"answer": {"$any": True}}, "result": {"path": "answer"}}
        answers.append(await protocol.call_tool(None, "m.t", {}, call_template(url, True, **fields)))

    answers: list[Any] = []
    server = Connections(old, new)
    async with entered() as protocol, peer(server) as url, anyio.create_task_group() as tasks:
        made = call_template(url, True, message={"op": "subscribe"})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert await stream.__anext__() == 0
            tasks.start_soon(ask)
            await asked.wait()
            # The stream waits no longer for the call than for a closing handshake.
            assert [await stream.__anext__() for _ in range(2)] == [1, 2]
            assert not answers
            assert not any(connection.is_parting for connection in connections_of(protocol))
            answer.set()
            await until_left(protocol)
    assert answers == [42]
    assert len(server.peers) == 2


async def test_streams_that_share_a_connection_move_together_and_lose_nothing() -> None:
    requests: list[Any] = []

    async def old(peer: Peer) -> None:
        for n in range(2):
            requests.append(await peer.receive_json())
            await peer.send({"n": n})
        await peer.send({"going": "away"})
        await peer.receive_close()
        await peer.send_raw(texts({"n": 2}, {"n": 3}) + ANSWERED)

    async def new(peer: Peer) -> None:
        for _ in range(2):
            requests.append(await peer.receive_json())
        await peer.send_raw(texts({"n": 4}, {"n": 5}))

    async def read(n: int) -> None:
        made = call_template(url, True, message={"sub": n}, message_filter={"n": {"$in": [n, n + 2, n + 4]}})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            got.extend([await stream.__anext__() for _ in range(3)])

    got: list[Any] = []
    server = Connections(old, new)
    async with entered() as protocol, peer(server) as url, anyio.create_task_group() as tasks:
        tasks.start_soon(read, 0)
        while not requests:
            await anyio.sleep(0.001)
        tasks.start_soon(read, 1)
    assert sorted(got) == [0, 1, 2, 3, 4, 5]
    assert len(server.peers) == 2


async def test_what_the_old_connection_said_last_is_acknowledged_on_the_new_one(multiplex: bool) -> None:
    acknowledged: list[tuple[str, Any]] = []

    async def listen(peer: Peer, name: str, more: int) -> None:
        for _ in range(more):
            acknowledged.append((name, (await peer.receive_json())["ack"]))

    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0})
        await listen(peer, "old", 1)
        await peer.send({"going": "away"})
        await peer.receive_close()
        await peer.send_raw(texts({"n": 1}) + ANSWERED)

    async def new(peer: Peer) -> None:
        await said(peer, {"n": 2})
        await listen(peer, "new", 2)

    async with entered() as protocol, peer(Connections(old, new)) as url:
        fields = {"message": {"op": "subscribe"}, "on_response": {"send": {"ack": "{{message.n}}"}}}
        made = call_template(url, multiplex, **fields)
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert [await stream.__anext__() for _ in range(3)] == [0, 1, 2]
            while len(acknowledged) < 3:
                await anyio.sleep(0.001)
    assert acknowledged == [("old", 0), ("new", 1), ("new", 2)]


async def test_a_reply_that_is_due_behind_the_close_is_left_out_and_loses_nothing(multiplex: bool) -> None:
    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0}, {"going": "away"})
        await peer.receive_close()
        await peer.send({"op": "ping"})
        while not any("pinged" in connection.captured for connection in connections_of(protocol)):
            await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        await peer.send_raw(texts({"n": 1}) + ANSWERED)
        with pytest.raises(anyio.EndOfStream):
            await peer.stream.receive()

    async def new(peer: Peer) -> None:
        await said(peer, {"n": 2})

    replies = {"match": {"op": "ping"}, "capture": {"pinged": {"path": "op"}}, "reply": {"op": "pong"}}
    async with entered() as protocol, peer(Connections(old, new)) as url:
        fields = {"message": {"op": "subscribe"}, "on_message": [*MOVES["on_message"], replies]}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            with anyio.fail_after(20):
                assert [await stream.__anext__() for _ in range(3)] == [0, 1, 2]


async def test_what_was_read_when_the_time_is_over_is_not_lost(
    anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("nothing is read before it is asked for")
    monkeypatch.setattr(exchange, "CLOSING_TIME", 0)
    goes = anyio.Event()

    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0}, {"going": "away"}, *({"n": n} for n in range(1, 100)))
        await peer.until_gone()

    async def new(peer: Peer) -> None:
        goes.set()
        await said(peer, {"n": 100})

    async with entered() as protocol, peer(Connections(old, new)) as url:
        made = call_template(url, False, message={"op": "subscribe"})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert await stream.__anext__() == 0
            await goes.wait()
            await until_left(protocol)
            assert [await stream.__anext__() for _ in range(100)] == list(range(1, 101))


# What else happens while it moves


LEAVES: dict[str, Any] = {
    "message": {"op": "subscribe"},
    "on_end": [{"send": {"op": "unsubscribe"}}],
}


class Parting:
    """Its old connection waits for `go` with its answer to the close; the new one pushes and listens meanwhile."""

    def __init__(self, *pushed: Any) -> None:
        self.pushed = pushed
        self.is_parting = anyio.Event()
        self.go = anyio.Event()
        self.heard: list[Any] = []

    async def old(self, peer: Peer) -> None:
        await said(peer, {"n": 0, "x": 0}, {"going": "away"})
        await peer.receive_close()
        self.is_parting.set()
        await self.go.wait()
        await peer.send_raw(texts({"n": 1}) + ANSWERED)

    async def new(self, peer: Peer) -> None:
        await said(peer, *self.pushed)
        await self.is_parting.wait()
        while True:
            self.heard.append(await peer.receive_json())


@pytest.mark.parametrize("how", ["left", "failed"])
async def test_a_stream_that_is_left_or_fails_while_its_old_connection_parts_says_goodbye_once(
    multiplex: bool, how: str
) -> None:
    requests: list[str] = []

    async def answer(request: HttpPeer) -> None:
        requests.append(request.method)
        await request.answer({})

    server = Parting({"n": 2})
    async with (
        entered() as protocol,
        peer(Connections(server.old, server.new)) as url,
        serve_http(answer) as http,
    ):
        fields = {
            "message": {"op": "subscribe"},
            "on_response": {"capture": {"x": {"path": "x"}}},
            "on_end": [{"http": {"method": "DELETE", "url": http.url}}],
        }
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert await stream.__anext__() == 0
            await server.is_parting.wait()
            if how == "failed":
                server.go.set()
                while not requests:
                    await anyio.sleep(0.001)
        server.go.set()
        await until_left(protocol, 0)
    assert requests == ["DELETE"]


@pytest.mark.parametrize("how", ["leave", "time"])
async def test_a_stream_that_ends_while_its_old_connection_parts_says_goodbye_on_the_new_one(
    multiplex: bool, how: str
) -> None:
    server = Parting({"n": 2})
    fields = LEAVES if how == "leave" else {**LEAVES, "response_timeout": 0.5, "last_filter": {"n": "never"}}
    async with entered() as protocol, peer(Connections(server.old, server.new)) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert await stream.__anext__() == 0
            if how == "leave":
                await server.is_parting.wait()
            else:
                with pytest.raises(WebSocketTimeoutError):
                    await stream.__anext__()
        while not server.heard:
            await anyio.sleep(0.001)
        server.go.set()
        await until_left(protocol, 0)
    assert server.heard == [{"op": "unsubscribe"}]


@pytest.mark.parametrize("how", ["reset", "given up"])
async def test_a_stream_whose_new_connection_is_lost_while_the_old_one_parts_resumes_behind_it(
    multiplex: bool, how: str
) -> None:
    server = Parting()

    async def new(peer: Peer) -> None:
        await said(peer, {"n": 2})
        await server.is_parting.wait()
        if how == "reset":
            await peer.reset()
        else:
            await peer.send({"give": "up"})
        while sum(not connection.is_over for connection in connections_of(protocol)) > 1:
            await anyio.sleep(0.001)
        server.go.set()
        await peer.until_closed()

    async def third(peer: Peer) -> None:
        await said(peer, {"n": 3})

    async with entered() as protocol, peer(Connections(server.old, new, third)) as url:
        gives_up = {"match": {"give": "up"}, "lost": True}
        fields = {"message": {"op": "subscribe"}, "on_message": [*MOVES["on_message"], gives_up]}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            items = [await stream.__anext__() for _ in range(5)]
            await until_left(protocol)
    assert items == [0, 1, 2, "gap", 3]


async def test_a_stream_that_is_told_to_move_on_while_its_old_connection_parts_moves_again(multiplex: bool) -> None:
    server = Parting()
    is_told = anyio.Event()

    async def new(peer: Peer) -> None:
        await said(peer, {"n": 2}, {"going": "away"})
        is_told.set()
        await peer.receive_close()
        await peer.send_raw(texts({"n": 3}) + ANSWERED)

    async def third(peer: Peer) -> None:
        await said(peer, {"n": 4})

    connections = Connections(server.old, new, third)
    async with entered() as protocol, peer(connections) as url:
        made = call_template(url, multiplex, message={"op": "subscribe"})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert await stream.__anext__() == 0
            await server.is_parting.wait()
            await is_told.wait()
            while not all(connection.is_leaving for connection in connections_of(protocol)):
                await anyio.sleep(0.001)
            server.go.set()
            assert [await stream.__anext__() for _ in range(4)] == [1, 2, 3, 4]
            await until_left(protocol)
    assert len(connections.peers) == 3


@pytest.mark.parametrize("answer", ["403 Forbidden", "503 Busy"])
async def test_a_move_that_fails_is_told_while_the_old_connection_is_quiet(multiplex: bool, answer: str) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await peer.answer(answer)
            return
        await peer.handshake()
        await said(peer, {"n": 0}, {"going": "away"})
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        fields = {"message": {"op": "subscribe"}, "resume": {"attempts": 1}, "reconnect_attempts": 0}
        made = call_template(url, multiplex, **fields)
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert await stream.__anext__() == 0
            with anyio.fail_after(30), pytest.raises((WebSocketAuthError, WebSocketClosedError, ConnectionError)):
                await stream.__anext__()
        await until_left(protocol, 0)


@pytest.mark.parametrize("limits", [{"max_connections": 1}, {"session": "s"}], ids=["max_connections", "session"])
async def test_a_move_gives_no_second_connection_to_who_waits_for_the_only_one(limits: dict[str, Any]) -> None:
    async def old(peer: Peer) -> None:
        await said(peer, {"n": 0})
        await go.wait()
        await peer.send({"going": "away"})
        await peer.receive_close()
        await peer.send_raw(ANSWERED)

    async def new(peer: Peer) -> None:
        while True:
            await said(peer, {"n": len(server.peers)})

    async def ask() -> None:
        made = call_template(url, False, message={"op": "ask"}, **limits)
        answers.append(await protocol.call_tool(None, "m.t", {}, made))

    go = anyio.Event()
    answers: list[Any] = []
    server = Connections(old, new)
    async with entered() as protocol, peer(server) as url, anyio.create_task_group() as tasks:
        made = call_template(url, False, message={"op": "subscribe"}, **limits)
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert await stream.__anext__() == 0
            tasks.start_soon(ask)
            while not protocol.statistics().waiting:
                await anyio.sleep(0.001)
            go.set()
            assert await stream.__anext__() == 2
            await until_left(protocol)
            assert protocol.statistics().waiting == 1, "the stream's connection is the only one allowed"
            assert not protocol.statistics().opening
        if "session" not in limits:
            while not answers:
                await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()
    assert not answers or answers == [3]


@pytest.mark.parametrize("when", ["connects", "subscribes"])
async def test_a_session_has_moved_with_its_stream_even_if_the_old_connection_went_meanwhile(
    multiplex: bool, when: str
) -> None:
    goes, gone = anyio.Event(), anyio.Event()
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await peer.handshake()
            await said(peer, {"ok": True}, {"n": 0}, {"going": "away"})
            await goes.wait()
            await peer.reset()
            return
        if when == "connects":
            goes.set()
            await gone.wait()
        await peer.handshake()
        await peer.receive()
        if when == "subscribes":
            goes.set()
            await gone.wait()
        await peer.send_raw(texts({"ok": True}, {"n": 1}))
        assert await peer.receive_json() == {"op": "unsubscribe"}
        await peer.send({"bye": True})
        await said(peer, {"n": 2})

    fields = {
        "session": "s",
        "before": [{"send": {"op": "subscribe"}, "expect": {"ok": True}}],
        "request": [],
        "on_end": [{"send": {"op": "unsubscribe"}, "expect": {"bye": True}}],
    }
    async with entered() as protocol, peer(script) as url, anyio.create_task_group() as tasks:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert await stream.__anext__() == 0
            items: list[Any] = []

            async def read() -> None:
                items.extend([await stream.__anext__() for _ in range(2)])

            tasks.start_soon(read)
            await goes.wait()
            while any(connection.is_leaving for connection in connections_of(protocol)):
                await anyio.sleep(0.001)
            gone.set()
            while not items:
                await anyio.sleep(0.001)
        asking = call_template(url, multiplex, session="s", message={"op": "ask"})
        with anyio.fail_after(20):
            assert await protocol.call_tool(None, "m.t", {}, asking) == 2
    assert items == ["gap", 1]
    assert connections == 2


# What may happen to a leg before it carries the stream

SUBSCRIBES: dict[str, Any] = {
    "before": [{"send": {"op": "subscribe"}, "expect": {"ok": True}}],
    "request": [],
    "ends_on_close": "never",
}


async def lose(peer: Peer) -> None:
    await peer.reset()


async def flood(peer: Peer) -> None:
    for n in range(3):
        await peer.send({"n": 100 + n, "much": "x" * 100_000})
    # A shared connection stays, and the stream tries again on it.
    await said(peer, {"ok": True}, {"n": 1})
    await peer.until_closed()


async def send_on(peer: Peer) -> None:
    await peer.send({"going": "away"})
    await peer.until_gone()


@pytest.mark.parametrize("trouble", [lose, flood, send_on])
async def test_what_ends_a_new_leg_amid_its_first_steps_is_a_failed_attempt(
    multiplex: bool, trouble: Callable[[Peer], Awaitable[None]]
) -> None:
    async def first(peer: Peer) -> None:
        await said(peer, {"ok": True}, {"n": 0})
        await read.wait()
        await peer.reset()

    async def second(peer: Peer) -> None:
        await peer.receive()
        await trouble(peer)

    async def third(peer: Peer) -> None:
        await said(peer, {"ok": True}, {"n": 1})
        await peer.until_closed()

    read = anyio.Event()
    server = Connections(first, second, third)
    async with entered(20) as protocol, peer(server) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **SUBSCRIBES))
        async with aclosing(stream):
            assert await stream.__anext__() == 0
            read.set()
            assert [await stream.__anext__() for _ in range(2)] == ["gap", 1]
    assert len(server.peers) == (2 if trouble is flood and multiplex else 3)


@pytest.mark.parametrize("when", ["in one turn", "meanwhile"])
async def test_the_close_of_the_old_connection_starts_no_second_move(
    multiplex: bool, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Any] = []
    start_resuming = exchange.Exchange._start_resuming

    def note_and_start(stream: exchange.Exchange, *arguments: Any) -> None:
        begun.append(arguments)
        start_resuming(stream, *arguments)

    monkeypatch.setattr(exchange.Exchange, "_start_resuming", note_and_start)
    end = frame(CLOSE, (1001).to_bytes(2, "big"))
    connects = anyio.Event()
    closed = anyio.Event()
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await peer.handshake()
            await peer.receive()
            await peer.send({"n": 0})
            if when == "in one turn":
                say_now(peer, texts({"going": "away"}, {"n": 1}) + end)
            else:
                await peer.send({"going": "away"})
                await connects.wait()
                say_now(peer, texts({"n": 1}) + end)
            await peer.until_gone()
            closed.set()
            return
        await peer.read_request()
        connects.set()
        # The loss comes before the new leg is ready.
        await closed.wait()
        await peer.handshake()
        await peer.receive()
        await peer.send({"n": 2})
        await peer.until_closed()

    async with entered(20) as protocol, peer(script) as url:
        made = call_template(url, multiplex, message={"op": "subscribe"})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            # The old connection was lost before its time: that is a gap.
            assert [await stream.__anext__() for _ in range(4)] == [0, 1, "gap", 2]
            assert protocol.statistics().resumes == 1
    assert len(begun) == 1
    assert connections == 2


async def test_a_stream_that_is_left_in_the_turn_in_which_its_new_leg_is_ready_holds_no_connection(
    multiplex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    legs: list[Leg] = []
    send_request = Leg.send_request

    async def send_and_leave(leg: Leg, steps: Any) -> bool:
        goes_on = await send_request(leg, steps)
        legs.append(leg)
        if len(legs) == 2:
            cast(exchange.Exchange, leg._owner).finish()
            cast(Any, stream)._exchange = None
        return goes_on

    async def first(peer: Peer) -> None:
        await said(peer, {"n": 0})
        await peer.reset()

    async def second(peer: Peer) -> None:
        await peer.receive()
        goodbyes.append(await peer.receive_json())
        await peer.until_gone()

    monkeypatch.setattr(Leg, "send_request", send_and_leave)
    goodbyes: list[Any] = []
    async with peer(Connections(first, second)) as url, entered(20) as protocol:
        made = call_template(url, multiplex, message={"op": "subscribe"}, on_end=[{"send": {"op": "bye"}}])
        stream = protocol.call_tool_streaming(None, "m.t", {}, made)
        async with aclosing(stream):
            assert await stream.__anext__() == 0
            while len(legs) < 2:
                await anyio.sleep(0.001)
        # A shared one stays, and is nobody's.
        while protocol.statistics().active or protocol.statistics().closing or not goodbyes:
            await anyio.sleep(0.001)
    assert goodbyes == [{"op": "bye"}]
