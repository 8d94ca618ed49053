"""Streams that move or resume, at the moments when something else happens to them; and who waits for whom."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, aclosing
from typing import Any

import anyio
import pytest
from support.peers import CLOSE, TEXT, Peer, frame, peer
from support.protocol import entered, pool_of, template

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._connections.connection import Connection

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


def connections_of(protocol: WebSocketCommunicationProtocol) -> list[Connection]:
    return [connection for there in pool_of(protocol)._endpoints.values() for connection in there.connections]


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

    for handler, error in (({"lost": True}, WebSocketClosedError), ({"resume": True}, WebSocketConnectionError)):
        connections = 0
        fields: dict[str, Any] = {
            "on_connect": [{"expect": {"hello": 1}}],
            "incoming": {"each": True},
            "on_message": [{"match": {"bad": 1}, **handler}],
            "message": {},
            "resume": {},
            "max_connections": 1,
            "timeout": 5,
            "reconnect_attempts": 0,
        }
        async with entered() as protocol, peer(script) as url:
            made = call_template(url, multiplex, **fields)
            for _ in range(2):
                with pytest.raises(error):
                    await protocol.call_tool(None, "m.t", {}, made)
            assert await protocol.call_tool(None, "m.t", {}, made) == {"n": 1}


async def test_what_comes_again_while_a_stream_logs_in_to_resume_reaches_the_stream(multiplex: bool) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        assert await peer.receive_json() == {"op": "login" if connections == 1 else "resume"}
        if connections == 1:
            await peer.send_raw(texts({"ok": True}, {"n": 0}))
            await peer.receive()
            await peer.reset()
        else:
            await peer.send_raw(texts({"n": 1}))
            await peer.send_raw(texts({"n": 2}, {"resumed": True}, {"n": 3}))
            await peer.until_closed()

    fields: dict[str, Any] = {
        "on_connect": [{"send": {"op": "login"}, "expect": {"ok": True}}],
        "message": {"op": "read"},
        "resume": {"on_connect": [{"send": {"op": "resume"}, "expect": {"resumed": True}}], "request": []},
        "result": {"path": "n"},
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            with anyio.fail_after(20):
                assert [await stream.__anext__() for _ in range(4)] == [0, 1, 2, 3]


# Asked for another connection before this one is ready


class Elsewhere:
    """Sends whoever logs in with the key `one` to the key `two`, so many times."""

    def __init__(self, times: int = 1) -> None:
        self.times = times
        self.keys: list[str] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.keys.append(peer.request.split(" ")[1].partition("key=")[2])
        if len(self.keys) <= self.times:
            await peer.send({"go": "two"})
            await peer.until_gone()
        await peer.send({"hello": True})
        await peer.receive()
        await peer.send({"n": 1})
        await peer.until_closed()


ELSEWHERE: dict[str, Any] = {
    "prepare": [{"compute": {"key": "one"}}],
    "on_connect": [{"expect": {"hello": True}}],
    "message": {},
    "result": {"path": "n"},
}
GOES = {"match": {"go": {"$any": True}}, "capture": {"next": {"path": "go"}}}


@pytest.mark.parametrize("streams", [False, True], ids=["call", "stream"])
@pytest.mark.parametrize(
    ("resume", "key"),
    [(True, "one"), ({}, "one"), ({"prepare": [{"compute": {"key": "{{captured.next}}"}}], "before": []}, "two")],
    ids=["as ever", "all anew", "elsewhere"],
)
async def test_a_first_login_that_is_sent_elsewhere_is_an_attempt_that_failed(
    multiplex: bool, streams: bool, resume: Any, key: str
) -> None:
    server = Elsewhere()
    async with entered() as protocol, peer(server) as url:
        fields = {**ELSEWHERE, "on_message": [{**GOES, "resume": resume}]}
        made = call_template(url + "?key={{captured.key}}", multiplex, **fields)
        if streams:
            async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
                assert await stream.__anext__() == 1
        else:
            assert await protocol.call_tool(None, "m.t", {}, made) == 1
        assert protocol.statistics().reconnects == 1
    assert server.keys == ["one", key]


async def test_a_login_that_is_sent_elsewhere_is_the_template_s_own_again_when_all_is_to_be_done_anew(
    multiplex: bool,
) -> None:
    keys: list[str] = []
    said: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        keys.append(peer.request.split(" ")[1].partition("key=")[2])
        if len(keys) < 3:
            await peer.send({"go": "two"} if len(keys) == 1 else {"anew": True})
            await peer.until_gone()
        await peer.send({"hello": True})
        await peer.receive()
        await peer.send({"n": 1})
        said.append(await peer.receive_json())
        await peer.until_closed()

    async with peer(script) as url, entered(30) as protocol:
        goes = {**GOES, "resume": {"prepare": [{"compute": {"key": "{{captured.next}}"}}]}}
        fields: dict[str, Any] = {
            **ELSEWHERE,
            "on_message": [goes, {"match": {"anew": True}, "resume": {}}],
            # A step that needs what was captured is left out.
            "on_close": [{"send": {"next": "{{captured.next}}"}}, {"send": {"key": "{{captured.key}}"}}],
        }
        made = call_template(url + "?key={{captured.key}}", multiplex, **fields)
        assert await protocol.call_tool(None, "m.t", {}, made) == 1
    assert keys == ["one", "two", "one"]
    assert said == [{"key": "one"}]


async def test_after_so_many_first_logins_that_are_sent_elsewhere_the_error_is_one_that_callers_know(
    multiplex: bool,
) -> None:
    server = Elsewhere(times=99)
    errors: list[WebSocketError] = []

    async def call() -> None:
        with pytest.raises(WebSocketConnectionError) as caught:
            await protocol.call_tool(None, "m.t", {}, made)
        errors.append(caught.value)

    async with entered() as protocol, peer(server) as url, anyio.create_task_group() as tasks:
        fields = {**ELSEWHERE, "on_message": [{**GOES, "resume": True}], "resume": {}}
        made = call_template(url + "?key={{captured.key}}", multiplex, **fields)
        for _ in range(2):
            tasks.start_soon(call)
    assert [type(error) for error in errors] == [WebSocketConnectionError] * 2
    assert "asked for another connection" in str(errors[0])
    assert len(server.keys) == (3 if multiplex else 6)


async def test_after_so_many_logins_to_resume_that_are_sent_elsewhere_the_error_is_one_that_callers_know(
    multiplex: bool,
) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        if connections == 1:
            await peer.send({"hello": True})
            await peer.receive()
            await peer.send({"n": 1})
            await peer.reset()
        else:
            await peer.send({"go": "two"})
            await peer.until_gone()

    async with entered() as protocol, peer(script) as url:
        fields = {**ELSEWHERE, "on_message": [{**GOES, "resume": True}], "resume": {"attempts": 2}}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert await stream.__anext__() == 1
            with anyio.fail_after(30), pytest.raises(WebSocketClosedError) as caught:
                await stream.__anext__()
    assert type(caught.value) is WebSocketClosedError
    assert connections == 3


async def test_a_call_that_waits_for_a_replacement_which_is_sent_elsewhere_waits_for_the_next_one() -> None:
    server = Elsewhere(times=0)

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if server.keys and not sent:
            sent.append(True)
            await peer.handshake()
            while not protocol.statistics().waiting:
                await anyio.sleep(0.001)
            await peer.send({"go": "two"})
            await peer.until_gone()
            return
        await server(peer)

    async def ask() -> None:
        answers.append(await protocol.call_tool(None, "m.t", {}, made))

    sent: list[bool] = []
    answers: list[Any] = []
    async with entered() as protocol, peer(script) as url:
        # Opened for the stream, and not for the call.
        resume = {"prepare": [{"compute": {"key": "three"}}]}
        fields = {**ELSEWHERE, "on_message": [{**GOES, "resume": True}], "resume": resume}
        made = call_template(url + "?key={{captured.key}}", True, **fields)
        stream = protocol.call_tool_streaming(None, "m.t", {}, made)
        async with aclosing(stream), anyio.create_task_group() as tasks:
            assert await stream.__anext__() == 1
            tasks.start_soon(stream.__anext__)
            for connection in list(connections_of(protocol)):
                connection.fail(WebSocketClosedError("lost"))
            tasks.start_soon(ask)
            with anyio.fail_after(20):
                while not answers:
                    await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    assert answers == [1]
    assert server.keys == ["one", "three"]


# Who opens the connection that takes a lost one's place


LOGS_IN_TO_RESUME: dict[str, Any] = {
    "on_connect": [{"send": {"op": "login"}, "expect": {"ok": True}}],
    "resume": {"on_connect": [{"send": {"op": "resume"}, "expect": {"ok": True}}], "request": []},
    "result": {"path": "n"},
}


class Resumable:
    """Pushes to who has logged in, goes on pushing to who resumes, and answers calls.

    Attributes:
        logins: What was said first on each connection.
        peers: The connections.
        replays: What comes again, the first before the answer to a login that resumes.
    """

    def __init__(self, *replays: Any) -> None:
        self.logins: list[str] = []
        self.peers: list[Peer] = []
        self.replays = replays

    async def __call__(self, peer: Peer) -> None:
        self.peers.append(peer)
        await peer.handshake()
        login = (await peer.receive_json())["op"]
        self.logins.append(login)
        if login == "resume":
            await peer.send_raw(texts(*self.replays[:1], {"ok": True}, *self.replays[1:], {"n": "resumed"}))
        else:
            await peer.send({"ok": True})
        while True:
            said = await peer.receive_json()
            await peer.send({"n": said["op"]})


async def test_a_call_that_comes_while_a_shared_connection_is_being_replaced_waits_for_it() -> None:
    server = Resumable()
    async with entered() as protocol, peer(server) as url:
        streaming = call_template(url, True, message={"op": "read"}, **LOGS_IN_TO_RESUME)
        asking = call_template(
            url, True, **{**LOGS_IN_TO_RESUME, "message": {"op": "ask"}, "message_filter": {"n": "ask"}}
        )
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, streaming)) as stream:
            assert await stream.__anext__() == "read"
            await server.peers[0].reset()
            while protocol.statistics().active:
                await anyio.sleep(0.001)
            with anyio.fail_after(20):
                assert await protocol.call_tool(None, "m.t", {}, asking) == "ask"
                assert await stream.__anext__() == "resumed"
    assert server.logins == ["login", "resume"]


@pytest.mark.parametrize("how", ["left", "refused"])
async def test_a_call_that_waits_for_a_replacement_which_does_not_come_opens_a_connection(how: str) -> None:
    server = Resumable()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if server.peers and how == "refused" and len(refused) < 1:
            refused.append(True)
            await peer.send_raw(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            return
        await server(peer)

    async def ask() -> None:
        try:
            answers.append(await protocol.call_tool(None, "m.t", {}, asking))
        except WebSocketError as error:
            answers.append(type(error).__name__)

    refused: list[bool] = []
    answers: list[Any] = []
    async with entered() as protocol, peer(script) as url, anyio.create_task_group() as tasks:
        streaming = call_template(url, True, message={"op": "read"}, **LOGS_IN_TO_RESUME)
        asking = call_template(
            url, True, **{**LOGS_IN_TO_RESUME, "message": {"op": "ask"}, "message_filter": {"n": "ask"}}
        )
        stream = protocol.call_tool_streaming(None, "m.t", {}, streaming)
        async with aclosing(stream):
            assert await stream.__anext__() == "read"
            await server.peers[0].reset()
            while protocol.statistics().active:
                await anyio.sleep(0.001)
            tasks.start_soon(ask)
            while not protocol.statistics().waiting:
                await anyio.sleep(0.001)
            if how == "refused":
                with pytest.raises(WebSocketAuthError):
                    await stream.__anext__()
        with anyio.fail_after(20):
            while not answers:
                await anyio.sleep(0.001)
    # Who waits for a connection that is refused is refused with it.
    assert answers == (["ask"] if how == "left" else ["WebSocketAuthError"])
    assert server.logins == (["login", "login"] if how == "left" else ["login"])


@pytest.mark.parametrize("capacity", [1, 3])
async def test_a_stream_that_logs_in_to_resume_takes_no_connection_of_another_kind(
    multiplex: bool, capacity: int
) -> None:
    async def read(stream: Any) -> None:
        with anyio.fail_after(20):
            items.append(await stream.__anext__())

    items: list[Any] = []
    server = Resumable()
    limits: dict[str, Any] = {"max_connections": capacity + multiplex, "multiplex": multiplex}
    goodbye = {"on_end": [{"send": {"op": "bye"}}]}
    async with entered(30) as protocol, peer(server) as url:
        streaming = template(url, **{**JSON, **limits, "message": {"op": "read"}, **LOGS_IN_TO_RESUME})
        other = template(
            url, **{**JSON, **limits, **LOGS_IN_TO_RESUME, **goodbye, "message": {"op": "read"}, "resume": None}
        )
        if multiplex:
            # The same farewell as that of another one takes a connection of its own.
            first = protocol.call_tool_streaming(None, "m.t", {}, other)
            assert await first.__anext__() == "read"
            streaming = template(url, **{**JSON, **limits, **LOGS_IN_TO_RESUME, **goodbye, "message": {"op": "read"}})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, streaming)) as stream:
            assert await stream.__anext__() == "read"
            if multiplex:
                await first.aclose()
            await server.peers[-1].reset()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, stream)
                while protocol.statistics().active:
                    await anyio.sleep(0.001)
                if not multiplex:
                    # Quicker than the stream.
                    assert await protocol.call_tool(None, "m.t", {}, streaming) == "read"
            assert protocol.statistics().idle == (1 if multiplex or capacity > 1 else 0)
    assert items == ["resumed"]
    assert server.logins == ["login", "login", "resume"]


async def test_a_stream_that_logs_in_to_resume_is_given_no_connection_of_another_kind(multiplex: bool) -> None:
    server = Resumable()

    async def script(peer: Peer) -> None:
        await peer.read_request()
        if len(server.peers) == 1:
            # The call's. It is opened while the stream waits.
            while not (protocol.statistics().waiting > multiplex and not protocol.statistics().active):
                await anyio.sleep(0.001)
        await server(peer)

    async def ask() -> None:
        answers.append(await protocol.call_tool(None, "m.t", {}, leaving))

    answers: list[Any] = []
    async with (
        entered(30) as protocol,
        peer(script) as url,
        anyio.create_task_group() as tasks,
        AsyncExitStack() as streams,
    ):
        fields = {**LOGS_IN_TO_RESUME, "message": {"op": "read"}, "max_connections": 1 + multiplex}
        plain = call_template(url, multiplex, **fields)
        leaving = call_template(url, multiplex, **fields, on_end=[{"send": {"op": "bye"}}])
        # With the same farewell, a call takes no part of a stream's connection.
        for made in [leaving, plain] if multiplex else [plain]:
            stream = await streams.enter_async_context(aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)))
            assert await stream.__anext__() == "read"
        tasks.start_soon(ask)
        while not (protocol.statistics().opening if multiplex else protocol.statistics().waiting):
            await anyio.sleep(0.001)
        await server.peers[0].reset()
        while (item := await stream.__anext__()) == "read":
            pass
    assert item == "resumed"
    assert answers == ["read"]
    assert server.logins == ["login", "login", "resume"]


async def test_more_than_is_kept_until_all_streams_have_resumed_is_an_error_of_those_that_missed_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send({"n": 1})
        await peer.receive()
        for n in range(3):
            await peer.send({"n": n, "much": "x" * 100_000})
        await peer.send({"n": "last"})
        await peer.until_closed()

    async with entered(30) as protocol, peer(script) as url:
        made = call_template(url, True, message={})
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, made)) as stream:
            assert (await stream.__anext__())["n"] == 1
            (connection,) = connections_of(protocol)
            connection.begin_replaying()
            connection.post("{}")
            while (await stream.__anext__())["n"] != "last":
                pass
            with pytest.raises(WebSocketProtocolError, match="before the stream had resumed"):
                connection.take_replayed()
            assert connection._replayed == []


async def test_what_comes_again_with_a_login_reaches_every_stream_that_resumes_on_it() -> None:
    server = Resumable({"n": 1}, {"n": 2}, {"n": 3})
    got: list[Any] = []
    wanted: list[Any] = []

    async def read(numbers: list[int]) -> None:
        fields = {**LOGS_IN_TO_RESUME, "message_filter": {"n": {"$in": [*numbers, "read"]}}}
        streaming = call_template(url, True, message={"op": "read"}, **fields)
        async with aclosing(protocol.call_tool_streaming(None, "m.t", {}, streaming)) as stream:
            # Its own answer, and perhaps that of others.
            while (item := await stream.__anext__()) == "read":
                wanted.append(item)
            assert [item, await stream.__anext__()] == numbers
            got.append(numbers)

    async with entered(30) as protocol, peer(server) as url, anyio.create_task_group() as tasks:
        for numbers in ([1, 2], [2, 3], [1, 3]):
            tasks.start_soon(read, numbers)
        while len(wanted) < 6:
            await anyio.sleep(0.001)
        await server.peers[0].reset()
        while len(got) < 3:
            await anyio.sleep(0.001)
        assert [connection._replayed for connection in connections_of(protocol)] == [None]
    assert sorted(got) == [[1, 2], [1, 3], [2, 3]]
    assert server.logins == ["login", "resume"]


# What a stream's own steps see


async def test_the_steps_that_open_a_connection_for_a_stream_see_what_the_stream_has_captured(multiplex: bool) -> None:
    keys: list[str] = []
    logins: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        keys.append(peer.request.split(" ")[1].partition("key=")[2])
        logins.append(await peer.receive_json())
        await peer.receive_json()
        await peer.send({"n": len(keys)})
        if len(keys) == 1:
            await peer.reset()
        await peer.until_closed()

    fields: dict[str, Any] = {
        "prepare": [{"compute": {"key": "first"}}],
        "on_connect": [{"send": {"login": "first"}}],
        "message": {},
        "on_response": {"capture": {"last": {"path": "n"}}},
        "result": {"path": "n"},
        "resume": {
            "prepare": [{"compute": {"key": "after-{{captured.last}}"}}],
            "on_connect": [{"send": {"after": "{{captured.last}}"}}],
        },
    }
    async with entered() as protocol, peer(script) as url:
        made = call_template(url + "?key={{captured.key}}", multiplex, **fields)
        stream = protocol.call_tool_streaming(None, "m.t", {}, made)
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(2)] == [1, 2]
            connections = list(connections_of(protocol))
            assert [dict(connection.captured) for connection in connections] == [{"key": "after-1"}], "it is the call's"
    assert keys == ["first", "after-1"]
    assert logins == [{"login": "first"}, {"after": 1}]


async def test_a_login_that_goes_on_sees_what_the_stream_has_captured_where_its_connection_captured_nothing(
    multiplex: bool,
) -> None:
    logins: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        logins.append(await peer.receive_json())
        await peer.receive_json()
        await peer.send({"n": len(logins)})
        if len(logins) == 1:
            await peer.reset()
        await peer.until_closed()

    fields: dict[str, Any] = {
        "on_connect": [{"send": {"login": "first"}}],
        "message": {},
        "on_response": {"capture": {"last": {"path": "n"}}},
        "result": {"path": "n"},
        "resume": {"on_connect": [{"send": {"after": "{{captured.last}}"}}]},
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(2)] == [1, 2]
    assert logins == [{"login": "first"}, {"after": 1}]


@pytest.mark.parametrize("losses", [1, 3])
async def test_a_connection_lost_during_its_login_is_an_attempt_that_failed(multiplex: bool, losses: int) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        assert await peer.receive_json() == {"op": "login"}
        if connections <= losses:
            await peer.reset()
            return
        await peer.send({"ok": True})
        await peer.receive()
        await peer.send({"n": 1})
        await peer.until_closed()

    fields: dict[str, Any] = {
        "on_connect": [{"send": {"op": "login"}, "expect": {"ok": True}}],
        "message": {"op": "ask"},
        "result": {"path": "n"},
        "reconnect_attempts": 2,
    }
    async with entered() as protocol, peer(script) as url:
        made = call_template(url, multiplex, **fields)
        if losses == 1:
            assert await protocol.call_tool(None, "m.t", {}, made) == 1
        else:
            with pytest.raises(WebSocketConnectionError, match="lost during the login"):
                await protocol.call_tool(None, "m.t", {}, made)
    assert connections == min(losses + 1, 3)


async def test_a_login_that_the_server_closes_is_not_repeated(multiplex: bool) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        await peer.receive_json()
        await peer.close(1011, "no")

    fields: dict[str, Any] = {"on_connect": [{"send": {"op": "login"}, "expect": {"ok": True}}], "message": {}}
    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketClosedError) as caught:
            await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, **fields))
    assert caught.value.code == 1011
    assert connections == 1


async def test_a_stream_that_loses_its_connection_while_it_subscribes_goes_on(multiplex: bool) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        assert await peer.receive_json() == {"op": "subscribe"}
        if connections == 1:
            await peer.reset()
            return
        await peer.send({"ok": True})
        await peer.send({"n": 1})
        await peer.until_closed()

    fields: dict[str, Any] = {
        "before": [{"send": {"op": "subscribe"}, "expect": {"ok": True}}],
        "listen_only": True,
        "resume": {},
        "result": {"path": "n"},
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            with anyio.fail_after(20):
                assert await stream.__anext__() == 1
    assert connections == 2
