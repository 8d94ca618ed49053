"""Streams that go on after their connection was lost, and sessions, which never do so in silence."""

from __future__ import annotations

import json
import logging
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from support.backends import virtual_time
from support.peers import TEXT, Peer, frame, peer, peer_in_memory
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketTimeoutError,
)

pytestmark = pytest.mark.anyio

JSON: dict[str, Any] = {"response_format": "json", "message_filter": {"n": {"$any": True}}}


def call_template(url: str, multiplex: bool, **fields: Any) -> WebSocketCallTemplate:
    return template(url, **{**JSON, "multiplex": multiplex, **fields})


class Losing:
    """Pushes three numbers on each connection and then loses it, so many times."""

    def __init__(self, losses: int, *, code: int | None = None) -> None:
        self.losses = losses
        self.code = code
        self.requests: list[Any] = []
        self.n = 0

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.requests.append(await peer.receive_json())
        for _ in range(3):
            await peer.send({"n": self.n, "token": f"t{self.n}"})
            self.n += 1
        if len(self.requests) > self.losses:
            await peer.until_closed()
        elif self.code is None:
            await peer.reset()
        else:
            await peer.close(self.code)


async def test_a_lost_stream_goes_on_and_the_gap_is_reported(multiplex: bool) -> None:
    server = Losing(2)
    fields: dict[str, Any] = {
        "message": {"sub": "{{uuid}}"},
        "resume": {"gap_item": {"gap": "{{gap}}"}},
        "result": {"path": "n"},
    }
    async with entered() as protocol, peer(server) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            items = [await stream.__anext__() for _ in range(11)]
        numbers = [item for item in items if isinstance(item, int)]
        gaps = [item for item in items if not isinstance(item, int)]
        assert numbers == list(range(9))
        assert len(gaps) == 2
        assert all(0 <= gap["gap"] < 20 for gap in gaps)
        assert protocol.statistics().resumes == 2
    assert len({request["sub"] for request in server.requests}) == 1, "the stream keeps its uuid"


async def test_a_stream_resumes_from_what_it_remembers(multiplex: bool) -> None:
    server = Losing(1)
    fields: dict[str, Any] = {
        "message": {"sub": "all"},
        "on_response": {"capture": {"last": {"path": "token"}}},
        "resume": {"request": [{"send": {"after": "{{captured.last}}"}}]},
        "result": {"path": "n"},
    }
    async with entered() as protocol, peer(server) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(4)] == [0, 1, 2, 3]
    assert server.requests == [{"sub": "all"}, {"after": "t2"}]


class Missed:
    """Tells a stream that logs in again what it has missed, and then that it goes on; all connections but one are lost.

    Args:
        connections: For each, how many numbers come before the answer to the login, and up to which one they go. If
            there are not so many, the connection is lost before that answer.
    """

    def __init__(self, *connections: tuple[int, int]) -> None:
        self.connections = list(connections)
        self.logins: list[Any] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.logins.append(await peer.receive_json())
        early, last = self.connections[len(self.logins) - 1]
        begin = self.logins[-1].get("after", -1) + 1
        numbers = list(range(begin, last + 1))
        for n in numbers[:early]:
            await peer.send({"n": n})
        if early <= len(numbers):
            await peer.send({"welcome": True})
            for n in numbers[early:]:
                await peer.send({"n": n})
        if len(self.logins) == len(self.connections):
            await peer.until_closed()
        else:
            await peer.reset()


LOGGING_IN: dict[str, Any] = {
    "listen_only": True,
    "on_connect": [{"send": {"login": True}, "expect": {"welcome": True}}],
    "on_message": [{"match": {"n": {"$any": True}}, "capture": {"last": {"path": "n"}}}],
    "resume": {"on_connect": [{"send": {"after": "{{captured.last}}"}, "expect": {"welcome": True}}]},
    "result": {"path": "n"},
}


@pytest.mark.parametrize(
    "server",
    [Missed((0, 1), (2, 4)), Missed((0, 1), (0, 2), (3, 6)), Missed((0, 1), (9, 3), (2, 4))],
    ids=["once", "twice", "lost amid the login"],
)
async def test_what_comes_while_a_stream_logs_in_again_is_its_own(multiplex: bool, server: Missed) -> None:
    server = Missed(*server.connections)
    last = server.connections[-1][1]
    async with entered(60) as protocol, peer(server) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **LOGGING_IN))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(last + 1)] == list(range(last + 1))
    assert len(server.logins) == len(server.connections)


async def test_after_a_final_code_the_error_is_raised(multiplex: bool) -> None:
    async with entered() as protocol, peer(Losing(9, code=4004)) as url:
        fields: dict[str, Any] = {"message": {}, "resume": {"not_after": [[4000, 4010]]}}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        with pytest.raises(WebSocketClosedError) as caught:
            _ = [item async for item in stream]
        assert caught.value.code == 4004


async def test_after_too_many_failures_in_a_row_the_last_error_is_raised(multiplex: bool) -> None:
    connections = 0

    async def once(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:
            await peer.handshake()
            await peer.receive()
            await peer.send({"n": 1})
            await peer.reset()
        else:
            await peer.answer("503 Busy")

    async with entered(30) as protocol, peer(once) as url:
        fields: dict[str, Any] = {"message": {}, "resume": {"attempts": 2}, "reconnect_attempts": 0}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        with pytest.raises(WebSocketConnectionError) as refused:
            _ = [item async for item in stream]
        assert refused.value.status == 503
        assert connections == 3


async def test_an_endpoint_that_refuses_is_not_asked_again(multiplex: bool) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        if connections > 1:
            await peer.answer("403 Forbidden")
            return
        await peer.handshake()
        await peer.receive()
        await peer.send({"n": 1})
        await peer.reset()

    async with entered() as protocol, peer(script) as url:
        fields: dict[str, Any] = {"message": {}, "resume": {}}
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        with pytest.raises(WebSocketAuthError):
            _ = [item async for item in stream]
    assert connections == 2


async def test_a_stream_is_moved_before_the_old_connection_goes_and_nothing_is_lost(multiplex: bool) -> None:
    moved = anyio.Event()
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        if connections == 1:
            await peer.receive()
            await peer.send({"n": 0})
            await peer.send({"going": "away"})
            await peer.send({"n": 1})
            await moved.wait()
            await peer.until_closed()
        else:
            await peer.receive()
            moved.set()
            await peer.send({"n": 2})
            await peer.until_closed()

    fields: dict[str, Any] = {
        "message": {}, "resume": {}, "result": {"path": "n"},
        "on_message": [{"match": {"going": "away"}, "resume": True}],
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(3)] == [0, 1, 2]
            await until_idle_or_one(protocol)
    assert connections == 2


async def until_idle_or_one(protocol: WebSocketCommunicationProtocol) -> None:
    while protocol.statistics().active + protocol.statistics().closing > 1:
        await anyio.sleep(0.001)


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_a_time_out_after_a_loss_tells_of_the_new_connection_only(
    multiplex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        await peer.handshake()
        await peer.receive()
        connections += 1
        for _ in range(3 if connections == 1 else 1):
            await peer.send({"noise": True})
        if connections == 1:
            await peer.close(1011)

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        numbers = call_template(url, multiplex, message={}, resume={})
        async with aclosing(protocol.call_tool_streaming(None, "manual.t", {}, numbers)) as stream:
            with pytest.raises(WebSocketTimeoutError, match="for a response; 1 message was skipped"):
                await stream.__anext__()


async def test_a_call_is_never_repeated(multiplex: bool) -> None:
    server = Losing(0, code=1011)
    server.losses = 5

    async def script(peer: Peer) -> None:
        await peer.handshake()
        server.requests.append(await peer.receive_json())
        await peer.reset()

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketClosedError):
            await protocol.call_tool(None, "m.t", {}, call_template(url, multiplex, message={}, resume={}))
    assert len(server.requests) == 1


@pytest.mark.timeout(300)
@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_a_day_of_losses_tells_every_gap_and_leaks_nothing(
    multiplex: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Five records for each of 1,440 losses, which the test would keep.
    caplog.set_level(logging.CRITICAL, logger="utcp_websocket_anyio")
    n = 0

    async def script(peer: Peer) -> None:
        nonlocal n
        await peer.handshake()
        await peer.receive()
        for _ in range(6):
            await peer.send({"n": n})
            n += 1
            await anyio.sleep(10)
        await peer.close(1011)

    minutes = 24 * 60
    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        fields: dict[str, Any] = {
            "message": {},
            "result": {"path": "n"},
            "resume": {"gap_item": {"gap": "{{gap}}"}},
            "ping_interval": None,
        }  # fmt: skip
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        numbers, gaps = [], 0
        async with aclosing(stream):
            while gaps < minutes:
                item = await stream.__anext__()
                if isinstance(item, dict):
                    gaps += 1
                else:
                    numbers.append(item)
        assert numbers == list(range(len(numbers))), "no message twice, none lost"
        assert protocol.statistics().resumes == minutes
        while (now := protocol.statistics()).active or now.closing or now.idle > multiplex:
            await anyio.sleep(1)


async def test_what_comes_behind_the_message_that_gives_a_connection_up_is_not_counted_as_seen(multiplex: bool) -> None:
    requests: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        requests.append(await peer.receive_json())
        if len(requests) == 1:
            messages = [{"n": 0}, {"op": "reconnect"}, {"n": 1}]
        else:
            messages = [{"n": n} for n in range(requests[-1]["after"] + 1, 3)]
        await peer.send_raw(b"".join(frame(TEXT, json.dumps(message).encode()) for message in messages))
        await peer.until_closed()

    fields: dict[str, Any] = {
        "message": {"after": -1},
        "on_message": [
            {"match": {"op": "reconnect"}, "lost": True},
            {"match": {"n": {"$any": True}}, "capture": {"last": {"path": "n"}}},
        ],
        "resume": {"request": [{"send": {"after": "{{captured.last}}"}}]},
        "result": {"path": "n"},
    }
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, call_template(url, multiplex, **fields))
        async with aclosing(stream):
            with anyio.fail_after(20):
                assert [await stream.__anext__() for _ in range(3)] == [0, 1, 2]
    assert requests == [{"after": -1}, {"after": 0}]


# Sessions


SESSION: dict[str, Any] = {
    "session": "{{args.session}}",
    "message": {"say": "{{args.say}}"},
    "response_format": "json",
}


class Talk:
    """Numbers what it hears on each connection."""

    def __init__(self) -> None:
        self.connections = 0

    async def __call__(self, peer: Peer) -> None:
        self.connections += 1
        number = self.connections
        await peer.handshake()
        heard = 0
        while True:
            said = (await peer.receive_json())["say"]
            heard += 1
            if said == "hang up":
                await peer.close(1000, "enough")
                return
            await peer.send({"n": heard, "on": number})
            if said == "push":
                await peer.send({"n": "pushed", "on": number})


async def test_the_calls_of_a_session_share_one_connection_and_its_state(multiplex: bool) -> None:
    server = Talk()
    async with entered() as protocol, peer(server) as url:
        made = call_template(url, multiplex, **SESSION)

        async def say(session: str, what: str = "x") -> Any:
            return await protocol.call_tool(None, "m.t", {"session": session, "say": what}, made)

        assert await say("a") == {"n": 1, "on": 1}
        assert await say("b") == {"n": 1, "on": 2}
        assert await say("a") == {"n": 2, "on": 1}
        assert await say("b") == {"n": 2, "on": 2}
    assert server.connections == 2


async def test_a_lost_session_is_reported_once_and_then_starts_anew(multiplex: bool) -> None:
    server = Talk()
    async with entered() as protocol, peer(server) as url:
        made = call_template(url, multiplex, **SESSION)

        async def say(what: str = "x") -> Any:
            return await protocol.call_tool(None, "m.t", {"session": "a", "say": what}, made)

        assert (await say())["on"] == 1
        with pytest.raises(WebSocketClosedError, match="enough"):
            await say("hang up")
        with pytest.raises(WebSocketClosedError, match="the connection of the session 'a' was closed"):
            await say()
        assert await say() == {"n": 1, "on": 2}


async def test_what_arrives_between_the_calls_of_a_session_is_kept_for_one_that_takes_it() -> None:
    server = Talk()
    async with entered() as protocol, peer(server) as url:
        made = call_template(url, False, **SESSION)
        assert (await protocol.call_tool(None, "m.t", {"session": "a", "say": "push"}, made))["n"] == 1
        listen = {**SESSION, "message_filter": {"n": "pushed"}}
        del listen["message"]
        heard = await protocol.call_tool(
            None, "m.t", {"session": "a"}, call_template(url, False, **listen, listen_only=True)
        )
        assert heard == {"n": "pushed", "on": 1}


async def test_a_call_that_closes_ends_the_session_and_opens_none(multiplex: bool) -> None:
    server = Talk()
    async with entered() as protocol, peer(server) as url:
        made = call_template(url, multiplex, **SESSION)
        end = {**SESSION, "request": [], "expected_responses": 0, "close_after_response": True}
        del end["message"]
        ending = call_template(url, multiplex, **end)
        assert await protocol.call_tool(None, "m.t", {"session": "a"}, ending) is None
        assert server.connections == 0
        for expected in (1, 2):
            said = await protocol.call_tool(None, "m.t", {"session": "a", "say": "x"}, made)
            assert said == {"n": 1, "on": expected}
            assert await protocol.call_tool(None, "m.t", {"session": "a"}, ending) is None
        await until_idle(protocol, 0)


async def test_an_open_session_needs_only_the_arguments_of_its_calls(multiplex: bool) -> None:
    server = Talk()
    async with entered() as protocol, peer(server) as url:
        made = call_template(url + "?key={{args.key}}", multiplex, **SESSION)
        first = await protocol.call_tool(None, "m.t", {"session": "a", "say": "x", "key": "k"}, made)
        assert first == {"n": 1, "on": 1}
        second = await protocol.call_tool(None, "m.t", {"session": "a", "say": "x"}, made)
        assert second == {"n": 2, "on": 1}
