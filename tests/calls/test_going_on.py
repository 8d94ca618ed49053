"""Streams that move or resume, at the moments when something else happens to them; and who waits for whom."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from support.peers import CLOSE, TEXT, Peer, frame, peer
from support.protocol import entered, template

from utcp_websocket_anyio import (
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketError,
    WebSocketTimeoutError,
)

pytestmark = pytest.mark.anyio

JSON: dict[str, Any] = {"response_format": "json", "message_filter": {"n": {"$any": True}}}
MOVES: dict[str, Any] = {
    "message": {"op": "subscribe"},
    "resume": {},
    "result": {"path": "n"},
    "on_message": [{"match": {"going": "away"}, "resume": True}],
}


def call_template(url: str, multiplex: bool, **fields: Any) -> WebSocketCallTemplate:
    return template(url, **{**JSON, "multiplex": multiplex, **fields})


def texts(*messages: Any) -> bytes:
    """Messages in one segment."""
    return b"".join(frame(TEXT, json.dumps(message).encode()) for message in messages)


async def until_nothing_runs(protocol: WebSocketCommunicationProtocol) -> None:
    while protocol.statistics().active or protocol.statistics().closing:
        await anyio.sleep(0.001)


class Server:
    """Numbers its connections and what it pushes; the first connection of each stream is told to go, or lost."""

    def __init__(self, *, ends: Any = None) -> None:
        self.connections = 0
        self.ends = ends
        self.closes: list[int] = []
        self.heard: list[Any] = []
        self.n = 0

    async def __call__(self, peer: Peer) -> None:
        self.connections += 1
        number = self.connections
        await peer.handshake()
        self.heard.append(await peer.receive_json())
        await peer.send({"n": self.n})
        self.n += 1
        if number == 1 and self.ends == "move":
            await peer.send({"going": "away"})
        elif number == 1 and self.ends == "reset":
            await peer.reset()
            return
        payload = await peer.receive_close()
        self.closes.append(int.from_bytes(payload[:2], "big"))
        await peer.send_frame(CLOSE, payload)


async def test_what_comes_with_the_new_subscription_comes_behind_the_gap(multiplex: bool) -> None:
    connections = 0
    read = anyio.Event()

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        await peer.receive()
        first = 10 * connections
        await peer.send_raw(texts({"n": first}, {"ok": True}, {"n": first + 1}))
        if connections == 1:
            await peer.send({"n": first + 2})
            await read.wait()
            await peer.reset()
        await peer.until_closed()

    fields: dict[str, Any] = {
        "before": [{"send": {"op": "subscribe"}, "expect": {"ok": True}}],
        "request": [],
        "resume": {"gap_item": "gap"},
        "result": {"path": "n"},
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            items = [await stream.__anext__() for _ in range(3)]
            read.set()
            items += [await stream.__anext__() for _ in range(3)]
    assert items == [10, 11, 12, "gap", 20, 21]


async def test_a_connection_that_a_stream_has_moved_from_is_closed_with_1011(multiplex: bool) -> None:
    server = Server(ends="move")
    async with entered() as protocol, peer(server) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **MOVES))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(2)] == [0, 1]
            while not server.closes:
                await anyio.sleep(0.001)
    assert server.closes[0] == 1011


@pytest.mark.parametrize("limits", [{"max_connections": 1}, {"session": "s"}], ids=["max_connections", "session"])
async def test_a_stream_moves_even_if_its_old_connection_is_the_only_one_allowed(
    multiplex: bool, limits: dict[str, Any]
) -> None:
    server = Server(ends="move")
    async with entered() as protocol, peer(server) as url:
        moving = call_template(url, multiplex, **MOVES, **limits, timeout=60)
        stream = protocol.call_tool_streaming(None, "m.t", {}, moving)
        async with aclosing(stream):
            with anyio.fail_after(30):
                assert [await stream.__anext__() for _ in range(2)] == [0, 1]
        await until_nothing_runs(protocol)


async def test_a_stream_of_a_session_resumes_at_the_first_attempt(multiplex: bool) -> None:
    server = Server(ends="reset")
    async with entered() as protocol, peer(server) as url:
        fields = {**MOVES, "session": "s", "resume": {"attempts": 1}}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(2)] == [0, 1]


async def test_a_loss_does_not_end_the_deadline_of_a_stream(multiplex: bool) -> None:
    server = Server(ends="reset")
    async with entered() as protocol, peer(server) as url:
        fields = {**MOVES, "response_timeout": 2}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        with anyio.fail_after(20):
            assert [await stream.__anext__() for _ in range(2)] == [0, 1]
            with pytest.raises(WebSocketTimeoutError):
                await stream.__anext__()


async def test_a_first_response_must_come_in_time_after_a_loss_too(multiplex: bool) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        await peer.receive()
        if connections == 1:
            await peer.reset()
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **MOVES, timeout=2))
        with anyio.fail_after(20), pytest.raises(WebSocketTimeoutError):
            await stream.__anext__()
    assert connections == 2


@pytest.mark.parametrize("how", ["leave", "deregister"])
async def test_a_stream_that_is_resuming_fails_when_it_is_closed_on_this_side(multiplex: bool, how: str) -> None:
    connections = 0
    waits = anyio.Event()

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            waits.set()
            await peer.answer("503 Busy")
            return
        await peer.handshake()
        await peer.receive()
        await peer.send({"n": 0})
        await peer.reset()

    failures: list[Exception] = []

    async def read(stream: Any) -> None:
        try:
            await stream.__anext__()
        except WebSocketError as error:
            failures.append(error)

    with anyio.fail_after(30):
        async with (
            peer(script) as url,
            anyio.create_task_group() as tasks,
            WebSocketCommunicationProtocol() as protocol,
        ):
            fields = {**MOVES, "resume": {"attempts": 10_000}, "reconnect_attempts": 0}
            made = call_template(url, multiplex, **fields)
            stream = protocol.call_tool_streaming(None, "manual.t", {}, made)
            assert await stream.__anext__() == 0
            tasks.start_soon(read, stream)
            await waits.wait()
            if how == "deregister":
                await protocol.deregister_manual(None, made)
                while not failures:
                    await anyio.sleep(0.001)
    assert [type(error) for error in failures] == [WebSocketClosedError]


async def test_a_stream_left_while_it_subscribes_anew_says_goodbye(multiplex: bool) -> None:
    connections = 0
    read = anyio.Event()
    asked = anyio.Event()
    said: list[Any] = []

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        await peer.receive()
        if connections == 1:
            await peer.send_raw(texts({"ok": True}, {"n": 0}))
            await read.wait()
            await peer.reset()
            return
        asked.set()
        said.append(await peer.receive_json())
        await peer.until_closed()

    fields: dict[str, Any] = {
        "before": [{"send": {"op": "subscribe"}, "expect": {"ok": True}}],
        "request": [],
        "resume": {},
        "on_end": [{"send": {"op": "bye"}}],
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        assert (await stream.__anext__())["n"] == 0
        read.set()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.__anext__)
            await asked.wait()
            tasks.cancel_scope.cancel()
        while not said:
            await anyio.sleep(0.001)
        await until_nothing_runs(protocol)
    assert said == [{"op": "bye"}]


# Who waits for whom


GOODBYE: dict[str, Any] = {
    "message": {"op": "subscribe"},
    "multiplex": True,
    "on_end": [{"send": {"op": "unsubscribe"}}],
}


async def push_one(peer: Peer) -> None:
    await peer.handshake()
    while True:
        said = await peer.receive_json()
        if said["op"] != "unsubscribe":
            await peer.send({"n": said["op"]})


@pytest.mark.parametrize("limits", [{"max_connections": 1}, {"session": "s"}], ids=["max_connections", "session"])
async def test_who_waits_for_the_goodbye_of_another_goes_on_when_it_is_said(limits: dict[str, Any]) -> None:
    async with entered() as protocol, peer(push_one) as url, anyio.create_task_group() as tasks:
        subscribing = template(url, **JSON, **GOODBYE, **limits)
        first = protocol.call_tool_streaming(None, "m.t", {}, subscribing)
        assert await first.__anext__() == {"n": "subscribe"}
        second = protocol.call_tool_streaming(None, "m.t", {}, subscribing)
        tasks.start_soon(second.__anext__)
        while not protocol.statistics().waiting:
            await anyio.sleep(0.001)
        # One that says nothing at its end waits for nobody.
        plain = template(
            url, **{**JSON, "message_filter": {"n": "ask"}}, **limits, message={"op": "ask"}, multiplex=True
        )
        with anyio.fail_after(10):
            assert await protocol.call_tool(None, "m.t", {}, plain) == {"n": "ask"}
            await first.aclose()
            while protocol.statistics().waiting:
                await anyio.sleep(0.001)
    await second.aclose()


async def test_what_was_pushed_before_a_call_of_a_session_is_no_answer_to_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            said = (await peer.receive_json())["say"]
            await peer.send_raw(texts({"answer": said}, {"n": "pushed"}))

    async with entered() as protocol, peer(script) as url:
        ask = template(url, session="s", response_format="json", message={"say": "{{args.say}}"})
        for say in "abc":
            assert await protocol.call_tool(None, "m.t", {"say": say}, ask) == {"answer": say}
        listen = template(url, **JSON, session="s", listen_only=True, expected_responses=3, collect="list")
        with anyio.fail_after(10):
            assert await protocol.call_tool(None, "m.t", {}, listen) == [{"n": "pushed"}] * 3


async def test_a_connection_lost_with_the_end_of_its_login_takes_no_place(multiplex: bool) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        if connections < 3:
            await peer.send('[{"hello": 1}, {"bad": 1}]')
            await peer.until_gone()
        await peer.send('[{"hello": 1}]')
        await peer.receive()
        await peer.send('[{"n": 1}]')
        await peer.until_closed()

    for handler in ({"lost": True}, {"resume": True}):
        connections = 0
        fields: dict[str, Any] = {
            "on_connect": [{"expect": {"hello": 1}}],
            "incoming": {"each": True},
            "on_message": [{"match": {"bad": 1}, **handler}],
            "message": {},
            "resume": {},
            "max_connections": 1,
            "timeout": 5,
        }
        async with entered() as protocol, peer(script) as url:
            made = call_template(url, multiplex, **fields)
            for _ in range(2):
                with pytest.raises(WebSocketClosedError):
                    await protocol.call_tool(None, "m.t", {}, made)
            assert await protocol.call_tool(None, "m.t", {}, made) == {"n": 1}
