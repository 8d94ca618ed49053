"""The moments around requests, on both kinds of connection: handlers, heartbeats, farewells, many messages."""

from __future__ import annotations

import base64
import gc
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from support.http_peer import answering, serve_http
from support.peers import TEXT, Peer, frame, peer
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
    WebSocketToolError,
)

pytestmark = pytest.mark.anyio

JSON: dict[str, Any] = {"response_format": "json"}
ON_ERROR: dict[str, Any] = {"error": {"$any": True}}


def call_template(url: str, multiplex: bool, **fields: Any) -> WebSocketCallTemplate:
    return template(url, **{**JSON, "multiplex": multiplex, **fields})


def texts(*messages: Any) -> bytes:
    """Messages in one segment."""
    return b"".join(frame(TEXT, (m if isinstance(m, str) else json.dumps(m)).encode()) for m in messages)


# Nothing is lost between two steps


SUBSCRIPTION: dict[str, Any] = {
    "before": [
        {"send": {"op": "subscribe", "id": "{{call_id}}"}, "expect": {"id": "{{call_id}}"},
         "capture": {"sub": {"path": "sub"}}},
    ],
    "request": [],
    "message_filter": {"sub": "{{captured.sub}}"},
    "result": {"path": "n"},
}  # fmt: skip


async def test_notifications_in_one_segment_with_the_answer_that_tells_their_id_reach_the_stream(
    multiplex: bool,
) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        await peer.send_raw(
            texts(
                {"sub": "s1", "n": 0},
                {"sub": "other", "n": 99},
                {"id": request["id"], "sub": "s1"},
                {"sub": "s1", "n": 1},
                {"sub": "s1", "n": 2},
            )
        )
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **SUBSCRIPTION))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(3)] == [0, 1, 2]


async def test_two_waiting_steps_whose_messages_come_in_one_segment_both_complete(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        await peer.send_raw(texts({"id": request["id"], "state": "accepted"}, {"id": request["id"], "state": "ready"}))
        go = await peer.receive_json()
        await peer.send({"id": go["go"], "state": "done"})

    async with entered() as protocol, peer(script) as url:
        steps = [
            {"send": {"id": "{{call_id}}"}, "expect": {"state": "accepted"}, "capture": {"id": {"path": "id"}}},
            {"expect": {"id": "{{captured.id}}", "state": "ready"}},
        ]
        fields: dict[str, Any] = {"before": steps, "message": {"go": "{{captured.id}}"}, "result": {"path": "state"}}
        ready = call_template(url, multiplex, **fields, message_filter={"id": "{{captured.id}}"})
        assert await protocol.call_tool(None, "m.t", {}, ready) == "done"


async def test_too_much_before_the_awaited_answer_fails_the_call(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        for _ in range(40):
            await peer.send({"sub": "s1", "n": "x" * 10_000})
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketProtocolError, match="more than 256 KiB arrived before step 1 of before"):
            await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **SUBSCRIPTION))


# on_message and on_response


async def test_a_message_is_captured_answered_and_delivered_as_its_handler_says(multiplex: bool) -> None:
    got: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send({"type": "event", "seq": 7})
        got.append(await peer.receive_json())
        await peer.send({"type": "hidden", "seq": 8})
        await peer.send({"type": "end", "seq": 9})
        got.append(await peer.receive_json())
        await peer.until_closed()

    handlers = [
        {"match": {"type": "event"}, "capture": {"seq": {"path": "seq"}}, "reply": {"ack": "{{message.seq}}"},
         "deliver": True},
        {"match": {"type": "hidden"}, "deliver": False},
    ]  # fmt: skip
    fields: dict[str, Any] = {
        "message": "go", "on_message": handlers, "message_filter": {"type": {"$any": True}},
        "end_filter": {"type": "end"}, "result": {"path": "seq"},
        "on_close": [{"send": {"last": "{{captured.seq}}"}}],
    }  # fmt: skip
    async with peer(script) as url:
        async with entered() as protocol:
            stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
            assert [item async for item in stream] == [7]
        assert got == [{"ack": 7}, {"last": 7}]


async def test_handlers_work_while_a_connection_is_idle_and_while_a_consumer_is_slow(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        for _ in range(2):
            await peer.receive()
            await peer.send({"n": 1})
            for number in range(3):
                await peer.send({"ping": number})
                assert await peer.receive_json() == {"pong": number}
            answered.set()

    answered = anyio.Event()
    fields: dict[str, Any] = {
        "message": "go", "message_filter": {"n": {"$any": True}},
        "on_message": [{"match": {"ping": {"$any": True}}, "reply": {"pong": "{{message.ping}}"}}],
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields))
        await answered.wait()
        answered = anyio.Event()
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert await stream.__anext__() == {"n": 1}
            await answered.wait()


async def test_a_connection_that_retires_takes_no_further_call_and_closes_when_it_is_free(multiplex: bool) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            await peer.send({"going": "away"})
            await peer.send({"id": request["id"]})

    fields: dict[str, Any] = {
        "message": {"id": "{{call_id}}"}, "message_filter": {"id": "{{call_id}}"},
        "on_message": [{"match": {"going": "away"}, "retire": True}],
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        for _ in range(3):
            await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields))
        await until_idle(protocol, 0)
    assert connections == 3


async def test_what_the_caller_was_given_is_acknowledged_and_nothing_else(multiplex: bool) -> None:
    acknowledged: list[int] = []
    all_sent = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        for number in range(5):
            await peer.send({"event": number})
        all_sent.set()
        while True:
            acknowledged.append((await peer.receive_json())["ack"])

    fields: dict[str, Any] = {
        "message": "go", "message_filter": {"event": {"$any": True}},
        "on_response": {"send": {"ack": "{{message.event}}"}}, "on_end": [{"send": {"ack": -1}}],
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert [(await stream.__anext__())["event"] for _ in range(2)] == [0, 1]
            await all_sent.wait()
        while not acknowledged or acknowledged[-1] != -1:
            await anyio.sleep(0.001)
    assert acknowledged == [0, 1, -1]


# heartbeat


async def test_a_heartbeat_goes_out_by_the_clock_and_its_answer_is_hidden(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        for beat in (1, 2, 3):
            assert await peer.receive_json() == {"op": "beat", "seen": beat - 1}
            await peer.send({"op": "beat-ack", "beat": beat})
        await peer.send({"n": "done"})
        await peer.until_closed()

    fields: dict[str, Any] = {
        "message": "go", "message_filter": {"n": {"$any": True}},
        "on_connect": [{"compute": {"beat": 0}}],
        "heartbeat": {
            "send": {"op": "beat", "seen": "{{captured.beat}}"}, "every": 0.02, "timeout": 10,
            "expect": {"op": "beat-ack"}, "capture": {"beat": {"path": "beat"}},
        },
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        assert await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields)) == {"n": "done"}


@pytest.mark.parametrize("kind", ["unanswered", "silent"])
async def test_a_connection_whose_heart_stops_is_lost(multiplex: bool, kind: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.until_closed()

    beat = {"send": "beat", "every": 0.01, "expect": "ack", "timeout": 0.02}
    fields = {"message": "go", "message_filter": "x", "heartbeat": beat if kind == "unanswered" else {"silence": 0.05}}
    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketClosedError) as caught:
            await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields))
        assert caught.value.code == 1011


# on_end


UNSUBSCRIBE: dict[str, Any] = {
    "message": {"id": "{{call_id}}", "op": "subscribe"},
    "message_filter": {"id": "{{call_id}}", "n": {"$any": True}},
    "on_end": [{"send": {"op": "unsubscribe", "id": "{{call_id}}"}, "expect": {"left": "{{call_id}}"}}],
}


class Subscriptions:
    """Pushes numbers to each subscription; notes who leaves, and whether on the same connection."""

    def __init__(self) -> None:
        self.connections = 0
        self.left: list[int] = []
        self.subscribed = anyio.Event()

    async def __call__(self, peer: Peer) -> None:
        self.connections += 1
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            if request["op"] == "subscribe":
                await peer.send({"id": request["id"], "n": 0})
                self.subscribed.set()
            else:
                self.left.append(request["id"])
                await peer.send({"id": request["id"], "n": "late"})
                await peer.send({"left": request["id"]})


@pytest.mark.parametrize("how", ["aclose", "cancel", "collect", "timeout", "silence"])
async def test_leaving_says_goodbye_and_earns_the_reuse_of_the_connection(multiplex: bool, how: str) -> None:
    server = Subscriptions()
    fields = dict(UNSUBSCRIBE)
    if how == "timeout":
        fields["response_timeout"] = 0.3
    if how == "silence":
        fields["idle_timeout"] = 0.3
    async with entered() as protocol, peer(server) as url:
        subscription = call_template(url, multiplex, **fields)
        stream = protocol.call_tool_streaming(None, "m.t", {}, subscription)
        assert (await stream.__anext__())["n"] == 0
        if how == "aclose":
            await stream.aclose()
        elif how == "collect":
            del stream
            gc.collect()
        elif how == "cancel":
            with anyio.move_on_after(0.02):
                await stream.__anext__()
        elif how == "timeout":
            with pytest.raises(WebSocketTimeoutError):
                await stream.__anext__()
        else:
            assert [item async for item in stream] == []
        while not server.left:
            await anyio.sleep(0.001)
        await until_idle(protocol, 1) if not multiplex else await anyio.sleep(0.02)
        again = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **UNSUBSCRIBE))
        async with aclosing(again):
            assert (await again.__anext__())["n"] == 0
    assert server.connections == 1
    assert len(server.left) in (1, 2)


async def test_a_step_that_is_always_done_follows_the_expected_count(multiplex: bool) -> None:
    said: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            if "bye" in request:
                said.append(request)
            else:
                await peer.send(request)

    fields: dict[str, Any] = {
        "message": {"id": "{{call_id}}"}, "message_filter": {"id": "{{call_id}}"},
        "on_end": [{"send": {"never": 1}}, {"send": {"bye": "{{call_id}}"}, "when": "always"}],
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        first = await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields))
        second = await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields))
        while len(said) < 2:
            await anyio.sleep(0.001)
    assert said == [{"bye": first["id"]}, {"bye": second["id"]}]


@pytest.mark.usefixtures("both_exchanges")
@pytest.mark.parametrize("own", ["{{uuid}}", "{{call_id}}"])
@pytest.mark.parametrize("how", ["answered", "refused", "ended", "unreadable", "timed out", "cancelled", "closed"])
async def test_a_call_says_goodbye_once_if_it_is_left_and_else_never(multiplex: bool, own: str, how: str) -> None:
    heard: list[tuple[str, Any]] = []
    over = anyio.Event()
    asked = anyio.Event()
    answers: dict[str, dict[str, Any]] = {
        "answered": {"n": 1}, "refused": {"error": "no"}, "ended": {"end": 1}, "unreadable": {"m": 1}, "last": {"n": 2},
    }  # fmt: skip

    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            heard.append((request["how"], request["id"]))
            if request["how"] == "cancelled":
                asked.set()
            elif request["how"] == "closed":
                await peer.close(1000)
            elif request["how"] in answers:
                await peer.send({"id": request["id"], **answers[request["how"]]})

    fields: dict[str, Any] = {
        "message": {"how": "{{args.how}}", "id": own}, "message_filter": {"id": own}, "result": {"path": "n"},
        "error_filter": {"id": own, **ON_ERROR}, "end_filter": {"id": own, "end": 1},
        "on_end": [{"send": {"how": "bye", "id": own}}],
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        left = call_template(url, multiplex, **fields, response_timeout=0.1 if how == "timed out" else 20)

        async def call() -> None:
            try:
                await protocol.call_tool(None, "m.t", {"how": how}, left)
            except WebSocketError:
                assert how != "answered"
            over.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            if how == "cancelled":
                await asked.wait()
                tasks.cancel_scope.cancel()
            else:
                await over.wait()
        assert await protocol.call_tool(None, "m.t", {"how": "last"}, call_template(url, multiplex, **fields)) == 2
        if not multiplex:  # it may be said on another connection meanwhile
            await until_idle(protocol, 1)
            heard.sort(key=lambda one: one[0] == "last")
    is_left = how in ("unreadable", "timed out", "cancelled")
    assert [said for said, _ in heard] == [how, *(["bye"] if is_left else []), "last"]
    assert not is_left or heard[0][1] == heard[1][1]


async def test_two_subscriptions_with_the_same_goodbye_do_not_share_a_connection() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        while True:
            topic = (await peer.receive_json())["topic"]
            await peer.send({"topic": topic, "n": 1})

    fields: dict[str, Any] = {
        "message": {"topic": "{{args.topic}}"}, "message_filter": {"topic": "{{args.topic}}"},
        "on_end": [{"send": {"topic": "{{args.topic}}", "leave": True}}],
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        shared = call_template(url, True, **fields)
        for topic, expected in (("a", 1), ("b", 1), ("a", 2)):
            stream = protocol.call_tool_streaming(None, "m.t", {"topic": topic}, shared)
            assert await stream.__anext__() == {"topic": topic, "n": 1}
            assert connections == expected
            streams.append(stream)
        for stream in streams:
            await stream.aclose()


streams: list[Any] = []


# A request of many messages


async def test_responses_flow_while_a_request_is_still_being_sent(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        assert await peer.receive_json() == {"start": True}
        while (chunk := await peer.receive()) != '{"end": true}':
            await peer.send({"heard": chunk if isinstance(chunk, str) else len(chunk)})
        await peer.send({"heard": "all"})

    fields: dict[str, Any] = {
        "request": [
            {"send": {"start": True}},
            {"send_each": {"of": "{{args.audio}}", "message": "{{item}}"}},
            {"send": {"end": True}},
        ],
        "message_filter": {"heard": {"$any": True}}, "last_filter": {"heard": "all"}, "result": {"path": "heard"},
    }  # fmt: skip
    gate = anyio.Event()
    closed = anyio.Event()

    async def microphone() -> AsyncIterator[bytes]:
        try:
            yield b"x" * 10
            await gate.wait()
            yield b"y" * 20
        finally:
            closed.set()

    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(
            None, "m.t", {"audio": microphone()}, call_template(url, multiplex, **fields)
        )
        async with aclosing(stream):
            assert await stream.__anext__() == 10
            gate.set()
            assert [item async for item in stream] == [20, "all"]
        await closed.wait()


async def test_bytes_are_sent_in_pieces_and_lists_item_by_item(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        got: list[Any] = []
        while len(got) < 5:
            message = await peer.receive()
            got.append(message.decode() if isinstance(message, bytes) else json.loads(message))
        await peer.send({"got": got})
        await peer.until_closed()

    fields: dict[str, Any] = {
        "request": [
            {"send_each": {"of": "{{args.audio}}", "message": "{{item}}", "chunk": 4, "encoding": "base64"}},
            {"send_each": {"of": "{{args.words}}", "message": {"word": "{{item}}"}}},
        ],
        "message_filter": {"got": {"$any": True}}, "result": {"path": "got"},
    }  # fmt: skip
    arguments = {"audio": base64.b64encode(b"0123456789").decode(), "words": ["a", {"b": 1}]}
    async with entered() as protocol, peer(script) as url:
        got = await protocol.call_tool(None, "m.t", arguments, call_template(url, multiplex, **fields))
    assert got == ["0123", "4567", "89", {"word": "a"}, {"word": {"b": 1}}]


async def test_leaving_a_call_stops_its_source(multiplex: bool) -> None:
    stopped = anyio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "x" * 1000
                await anyio.lowlevel.checkpoint()
        finally:
            stopped.set()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send({"n": 1})
        while True:
            await peer.receive()

    fields: dict[str, Any] = {
        "request": [{"send_each": {"of": "{{args.of}}", "message": "{{item}}"}}],
        "message_filter": {"n": {"$any": True}},
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {"of": endless()}, call_template(url, multiplex, **fields))
        assert await stream.__anext__() == {"n": 1}
        await stream.aclose()
        await stopped.wait()


@pytest.mark.parametrize("how", ["refused", "lost", "cancelled", "answered"])
@pytest.mark.parametrize("streams", [False, True], ids=["call", "stream"])
async def test_a_source_that_was_never_read_is_closed(how: str, streams: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        if how == "refused":
            await peer.send_raw(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        await peer.handshake()
        await peer.receive()
        if how == "lost":
            await peer.reset()
            return
        waiting.set()
        if how == "answered":
            await peer.send({"n": 1})
        await peer.until_gone()

    async def call() -> None:
        made = call_template(url, False, **fields)
        if streams:
            async with aclosing(protocol.call_tool_streaming(None, "m.t", {"of": source}, made)) as stream:
                await stream.__anext__()
        else:
            await protocol.call_tool(None, "m.t", {"of": source}, made)

    fields: dict[str, Any] = {
        "request": [
            {"send": {"op": "begin"}, "expect": {"op": "begun"}},
            {"send_each": {"of": "{{args.of}}", "message": "{{item}}"}},
        ],
        "message_filter": {"n": {"$any": True}},
    }
    waiting = anyio.Event()
    feed, source = anyio.create_memory_object_stream[str]()
    async with feed, entered() as protocol, peer(script) as url:
        if how == "cancelled":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await waiting.wait()
                tasks.cancel_scope.cancel()
        elif how == "answered":
            await call()
        else:
            with pytest.raises(WebSocketError):
                await call()
        with pytest.raises(anyio.BrokenResourceError), anyio.fail_after(20):
            await feed.send("x")


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "asynchronous"])
async def test_a_source_that_fails_fails_its_call_and_is_named(multiplex: bool, plain: bool) -> None:
    def broken() -> Iterator[str]:
        yield "one"
        raise ZeroDivisionError("s3cret")

    async def broken_too() -> AsyncIterator[str]:
        yield "one"
        raise ZeroDivisionError("s3cret")

    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            await peer.receive()

    fields: dict[str, Any] = {
        "request": [{"send_each": {"of": "{{args.of}}", "message": "{{item}}"}}],
        "message_filter": {"n": {"$any": True}},
    }
    async with entered() as protocol, peer(script) as url:
        expected = r"request\[0\].send_each.of: its source failed: ZeroDivisionError \("
        with pytest.raises(WebSocketToolError, match=expected) as caught:
            source = broken() if plain else broken_too()
            await protocol.call_tool(None, "m.t", {"of": source}, call_template(url, multiplex, **fields))
        assert "s3cret" not in repr(caught.value)
        assert caught.value.__context__ is None


async def test_no_deadlock_when_the_server_stops_reading_until_it_is_read(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            message = await peer.receive()
            if message == "end":
                break
            await peer.send("y" * 60_000)
        await peer.send("done")
        await peer.until_closed()

    fields: dict[str, Any] = {
        "response_format": None, "collect": "last", "expected_responses": -1, "last_filter": "^done$",
        "request": [{"send_each": {"of": "{{args.of}}", "message": "{{item}}"}}, {"send": "end"}],
        "message_filter": "^(y|done)",
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        of = ["x" * 60_000] * 200
        assert await protocol.call_tool(None, "m.t", {"of": of}, call_template(url, multiplex, **fields)) == "done"


# prepare, and http


async def test_what_prepare_fetches_is_used_for_one_handshake(multiplex: bool) -> None:
    paths: list[str] = []

    async def script(peer: Peer) -> None:
        request = await peer.read_request()
        paths.append(request.split(" ")[1])
        if len(paths) == 1:
            await peer.send_raw(b"HTTP/1.1 503 Busy\r\n\r\n")
            return
        await peer.handshake()
        await peer.receive()
        await peer.send({"n": 1})
        await peer.until_closed()

    tickets = iter(range(10))
    async with peer(script) as url, entered() as protocol:

        async def handler(http: Any) -> None:
            await http.answer({"url": f"{url}?ticket={next(tickets)}"})

        async with serve_http(handler) as server:
            fields: dict[str, Any] = {
                "url": "{{captured.url}}", "message": "go", "message_filter": {"n": 1},
                "prepare": [{"http": {"url": f"{server.url}/open"}, "capture": {"url": {"path": "url"}}}],
            }  # fmt: skip
            made = WebSocketCallTemplate(name="m", multiplex=multiplex, response_format="json", **fields)
            assert await protocol.call_tool(None, "m.t", {}, made) == {"n": 1}
    assert [path.rpartition("=")[2] for path in paths] == ["0", "1"]


@pytest.mark.parametrize(
    ("status", "kind"), [(401, WebSocketAuthError), (403, WebSocketAuthError), (400, WebSocketConnectionError)]
)
async def test_a_refused_preparation_says_why(status: int, kind: type[Exception]) -> None:
    async with entered() as protocol, serve_http(answering({"error": "bad key"}, status)) as server:
        fields: dict[str, Any] = {
            "url": "{{captured.url}}", "message": "go",
            "prepare": [{"http": {"url": server.url}, "capture": {"url": {"path": "url"}}}],
        }  # fmt: skip
        with pytest.raises(kind, match=f"step 1 of prepare failed: status {status}: bad key"):
            await protocol.call_tool(None, "m.t", {}, WebSocketCallTemplate(name="m", **fields))


# Records and results


async def test_two_answers_in_one_frame_reach_the_calls_they_are_for(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        requests = [json.loads((await peer.receive_text()).rstrip("\x1e")) for _ in range(2 if multiplex else 1)]
        await peer.send("".join(json.dumps({"id": r["id"], "of": r["of"]}) + "\x1e" for r in reversed(requests)))
        await peer.until_closed()

    fields: dict[str, Any] = {
        "incoming": {"split": "\x1e"}, "outgoing": {"suffix": "\x1e"},
        "message": {"id": "{{call_id}}", "of": "{{args.of}}"}, "message_filter": {"id": "{{call_id}}"},
        "result": {"path": "of"},
    }  # fmt: skip
    results: dict[int, Any] = {}
    async with entered() as protocol, peer(script) as url:

        async def call(of: int) -> None:
            made = call_template(url, multiplex, **fields)
            results[of] = await protocol.call_tool(None, "m.t", {"of": of}, made)

        async with anyio.create_task_group() as tasks:
            for of in range(2):
                tasks.start_soon(call, of)
    assert results == {0: 0, 1: 1}


async def test_compressed_binary_messages_hold_records(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send(gzip.compress(json.dumps([{"n": 1}, {"n": 2}]).encode()))
        await peer.until_closed()

    fields: dict[str, Any] = {
        "incoming": {"inflate": "gzip", "each": True}, "message": "go", "message_filter": {"n": {"$any": True}},
        "expected_responses": 2, "result": {"path": "n"},
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        assert await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields)) == [1, 2]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"spread": True, "expected_responses": 3, "result": {"path": "n"}}, [1, 2, 3]),
        ({"spread": True, "result": {"path": "n"}}, 1),
        ({"collect": "last", "expected_responses": -1, "end_filter": {"end": True}}, {"n": [3], "t": "b"}),
        ({"expected_responses": -1, "last_filter": {"n": [3]}, "result": {"path": "n.0"}}, [1, 3]),
        ({"collect": "join", "expected_responses": -1, "end_filter": {"end": True}, "result": {"path": "t"}}, "ab"),
    ],
)
async def test_results_are_spread_collected_and_joined(multiplex: bool, fields: Any, expected: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        for message in ({"n": [1, 2], "t": "a"}, {"n": [3], "t": "b"}, {"end": True}):
            await peer.send(message)
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        made = call_template(url, multiplex, message="go", message_filter={"n": {"$any": True}}, **fields)
        assert await protocol.call_tool(None, "m.t", {}, made) == expected


async def test_a_character_split_between_two_messages_is_joined() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        data = "späte Antwort".encode()
        await peer.send(data[:3])
        await peer.send(data[3:])
        await peer.close(1000)

    async with entered() as protocol, peer(script) as url:
        joined = template(url, message="go", collect="join", response_format="text", expected_responses=-1)
        assert await protocol.call_tool(None, "m.t", {}, joined) == "späte Antwort"


async def test_two_subscriptions_are_handed_objects_of_their_own() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.receive()
        await peer.send({"news": {"list": [1]}})
        await peer.until_closed()

    fields: dict[str, Any] = {"message": "go", "message_filter": {"news": {"$any": True}}, "result": {"path": "news"}}
    async with entered() as protocol, peer(script) as url:
        first, second = (
            protocol.call_tool_streaming(None, "m.t", {}, call_template(url, True, **fields)) for _ in range(2)
        )
        items: list[Any] = []

        async def take(stream: Any) -> None:
            items.append(await stream.__anext__())

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(take, first)
            tasks.start_soon(take, second)
        items[0]["list"].append("changed")
        assert items[1] == {"list": [1]}
        await first.aclose()
        await second.aclose()


# Errors that explain themselves


async def test_a_time_out_says_what_was_waited_for_and_where_the_last_message_differed(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send({"id": "hunter2", "secret": 1})
        await peer.until_closed()

    fields: dict[str, Any] = {"message": "go", "message_filter": {"id": "{{args.id}}"}, "response_timeout": 0.1}
    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketTimeoutError) as caught:
            await protocol.call_tool(None, "m.t", {"id": "mine"}, call_template(url, multiplex, **fields))
        text = str(caught.value)
        assert "waiting for a response; 1 message was skipped, the last differed" in text
        assert "id" in text
        assert "{{args.id}}" in text
        assert "hunter2" not in text
        assert "mine" not in text


async def test_a_rejected_step_says_what_the_server_said(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send({"error": {"code": 4003, "message": "no such topic"}})
        await peer.until_closed()

    steps = [{"send": "subscribe", "expect": {"ok": True}, "reject": ON_ERROR}]
    async with entered() as protocol, peer(script) as url:
        made = call_template(url, multiplex, before=steps, message="go", message_filter={"n": 1})
        with pytest.raises(WebSocketToolError, match="rejected step 1 of before: 4003: no such topic"):
            await protocol.call_tool(None, "m.t", {}, made)


@pytest.mark.parametrize(("code", "kind"), [(1008, WebSocketAuthError), (4001, WebSocketAuthError), (1011, None)])
async def test_a_close_instead_of_a_login_is_a_refusal(code: int, kind: type[Exception] | None) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.close(code, "bad token")
        await peer.until_closed()

    steps = [{"send": "login", "expect": "ok"}]
    async with entered() as protocol, peer(script) as url:
        with pytest.raises(kind or WebSocketClosedError, match="bad token"):
            await protocol.call_tool(None, "m.t", {}, template(url, on_connect=steps, message="go"))
