"""Sessions: what becomes of their calls after a loss, and what is kept between them."""

from __future__ import annotations

import json
from contextlib import aclosing
from typing import Any

import anyio
import pytest
from support.peers import TEXT, Peer, frame, peer
from support.protocol import entered, pool_of, template

from utcp_websocket_anyio import (
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketError,
)

pytestmark = pytest.mark.anyio

SESSION: dict[str, Any] = {"session": "s", "response_format": "json"}


def asking(url: str, multiplex: bool, **fields: Any) -> WebSocketCallTemplate:
    """A call whose answer has its name. With the same farewell, calls take turns on a shared connection."""
    given = {"message": {"say": "{{args.say}}"}, "message_filter": {"answer": "{{args.say}}"}, **fields}
    if multiplex:
        given["on_end"] = [{"send": {"say": "bye"}}]
    return template(url, **{**SESSION, "multiplex": multiplex, **given})


def listening(url: str, multiplex: bool, count: int | None = 1, **fields: Any) -> WebSocketCallTemplate:
    given = {"listen_only": True, "message_filter": {"push": {"$any": True}}, "result": {"path": "push"}, **fields}
    return template(url, **{**SESSION, "multiplex": multiplex, "expected_responses": count, "collect": "list", **given})


class Talk:
    """Answers on numbered connections. What is said may ask for more; `wait` is not answered.

    Attributes:
        connections: How many there were.
        peers: All of them.
    """

    def __init__(self) -> None:
        self.connections = 0
        self.peers: list[Peer] = []

    async def __call__(self, peer: Peer) -> None:
        self.connections += 1
        self.peers.append(peer)
        on = self.connections
        await peer.handshake()
        while True:
            said = (await peer.receive_json())["say"]
            pushes = [{"push": int(n)} for n in said.partition("push ")[2].split()]
            if said not in ("wait", "bye"):
                answer = [{"answer": said, "on": on}, *pushes]
                await peer.send_raw(b"".join(frame(TEXT, json.dumps(message).encode()) for message in answer))
            if "hang up" in said:
                await peer.close(1000, "enough")


class CancellingEvent:
    """An event whose setting also cancels who waits for it, in the same turn."""

    def __init__(self, event: Any, scope: anyio.CancelScope) -> None:
        self._event = event
        self._scope = scope

    def set(self) -> None:
        self._scope.cancel()
        self._event.set()

    def is_set(self) -> bool:
        return bool(self._event.is_set())

    async def wait(self) -> Any:
        return await self._event.wait()


async def until_waiting(protocol: WebSocketCommunicationProtocol, count: int) -> None:
    while protocol.statistics().waiting != count:
        await anyio.sleep(0.001)


async def until_kept(protocol: WebSocketCommunicationProtocol, count: int) -> None:
    """Until so many messages are kept between calls."""
    while True:
        connections = [one for there in pool_of(protocol)._endpoints.values() for one in there.connections]
        if [len(one.between_calls or ()) for one in connections] == [count]:
            return
        await anyio.sleep(0.001)


@pytest.mark.parametrize("first_is_left", [False, True], ids=["", "the first one is cancelled"])
async def test_every_call_that_waited_for_a_lost_session_is_told(multiplex: bool, first_is_left: bool) -> None:
    server = Talk()
    told: list[tuple[str, str]] = []
    scopes: dict[str, anyio.CancelScope] = {}

    async def call(say: str) -> None:
        with anyio.CancelScope() as scopes[say]:
            try:
                answer = await protocol.call_tool(None, "m.t", {"say": say}, made)
                told.append((say, f"on {answer['on']}"))
            except WebSocketClosedError as error:
                told.append((say, "session" if "the connection of the session 's' was closed" in str(error) else ""))

    async with entered(30) as protocol, peer(server) as url:
        made = asking(url, multiplex)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "wait")
            while not protocol.statistics().active:
                await anyio.sleep(0.001)
            for number in range(3):
                tasks.start_soon(call, f"call {number}")
                await until_waiting(protocol, number + 1)
            if first_is_left:
                # In the turn in which it would be told.
                (there,) = pool_of(protocol)._endpoints.values()
                there.waiters[0].event = CancellingEvent(there.waiters[0].event, scopes["call 0"])
            await server.peers[0].reset()
        waited = [f"call {number}" for number in range(first_is_left, 3)]
        assert sorted(told) == [*((say, "session") for say in waited), ("wait", "")]
        assert server.connections == 1
        # Now a new one, which nothing of the old one strikes.
        for _ in range(3):
            assert (await protocol.call_tool(None, "m.t", {"say": "x"}, made))["on"] == 2
        assert not pool_of(protocol)._lost_sessions


async def test_who_listens_to_a_lost_session_gets_what_is_kept_and_the_others_are_told(multiplex: bool) -> None:
    server = Talk()
    heard: list[Any] = []

    async def call(made: WebSocketCallTemplate, say: str) -> None:
        try:
            heard.append(await protocol.call_tool(None, "m.t", {"say": say}, made))
        except WebSocketClosedError as error:
            heard.append(str(error))

    async with entered(30) as protocol, peer(server) as url:
        made = asking(url, multiplex)
        assert (await protocol.call_tool(None, "m.t", {"say": "push 1 2 3"}, made))["on"] == 1
        await until_kept(protocol, 3)
        await server.peers[0].reset()
        while protocol.statistics().idle:
            await anyio.sleep(0.001)
        assert await protocol.call_tool(None, "m.t", {}, listening(url, multiplex, 2)) == [1, 2]
        assert await protocol.call_tool(None, "m.t", {}, listening(url, multiplex)) == 3
        for made_so in (listening(url, multiplex), asking(url, multiplex)):
            await call(made_so, "x")
    assert "the connection of the session 's' was closed" in heard[0]
    assert heard[1]["on"] == 2


async def test_what_is_kept_beyond_the_count_of_a_call_stays_for_the_next_one(multiplex: bool) -> None:
    server = Talk()
    async with entered(30) as protocol, peer(server) as url:
        for say in ("push 1 2", "none", "push 3 4 5"):
            await protocol.call_tool(None, "m.t", {"say": say}, asking(url, multiplex, expected_responses=0))
        await until_kept(protocol, 8)
        # These skip their own answers, too.
        assert await protocol.call_tool(None, "m.t", {}, listening(url, multiplex)) == 1
        assert await protocol.call_tool(None, "m.t", {}, listening(url, multiplex, 2)) == [2, 3]
        stream = protocol.call_tool_streaming(None, "m.t", {}, listening(url, multiplex, None))
        async with aclosing(stream):
            assert [await stream.__anext__() for _ in range(2)] == [4, 5]


async def test_what_comes_with_the_last_response_is_kept_for_the_next_call(multiplex: bool) -> None:
    server = Talk()
    async with entered(30) as protocol, peer(server) as url:
        for _ in range(20):
            await protocol.call_tool(None, "m.t", {"say": "push 1 2"}, asking(url, multiplex))
            assert await protocol.call_tool(None, "m.t", {}, listening(url, multiplex, 2)) == [1, 2]
    assert server.connections == 1


async def test_what_comes_while_a_call_runs_is_taken_or_skipped_by_it(multiplex: bool) -> None:
    server = Talk()
    async with entered(30) as protocol, peer(server) as url:
        await protocol.call_tool(None, "m.t", {"say": "push 1 2"}, asking(url, multiplex))
        await until_kept(protocol, 2)
        # It skips them.
        await protocol.call_tool(None, "m.t", {"say": "x"}, asking(url, multiplex))
        await until_kept(protocol, 0)


async def test_more_than_is_kept_between_its_calls_closes_a_session(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        said = await peer.receive_json()
        await peer.send({"answer": said["say"], "on": 1})
        for _ in range(3):
            await peer.send({"push": "x" * 100_000})
        await peer.until_gone()

    async with entered(30) as protocol, peer(script) as url:
        made = asking(url, multiplex)
        await protocol.call_tool(None, "m.t", {"say": "x"}, made)
        while pool_of(protocol)._endpoints:
            await anyio.sleep(0.001)
        with pytest.raises(WebSocketError, match="256 KiB arrived between its calls"):
            await protocol.call_tool(None, "m.t", {"say": "x"}, made)


async def test_what_was_taken_does_not_count_as_kept_any_more(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            said = await peer.receive_json()
            await peer.send({"answer": said["say"], "on": 1})
            await peer.send({"push": "x" * 100_000})

    async with entered(30) as protocol, peer(script) as url:
        for _ in range(4):
            await protocol.call_tool(None, "m.t", {"say": "x"}, asking(url, multiplex))
            await until_kept(protocol, 1)


async def test_what_came_before_a_request_and_is_beyond_the_count_of_its_call_stays_for_the_next_one(
    multiplex: bool,
) -> None:
    server = Talk()
    async with entered(30) as protocol, peer(server) as url:
        before = [{"send": {"say": "push 1 2"}, "expect": {"answer": {"$any": True}}}]
        subscribing = listening(url, multiplex, listen_only=False, before=before, request=[])
        assert await protocol.call_tool(None, "m.t", {}, subscribing) == 1
        assert await protocol.call_tool(None, "m.t", {}, listening(url, multiplex)) == 2


async def test_who_waited_to_listen_to_a_lost_session_gets_what_is_kept() -> None:
    server = Talk()
    heard: dict[str, Any] = {}

    async def call(made: WebSocketCallTemplate, name: str) -> None:
        try:
            heard[name] = await protocol.call_tool(None, "m.t", {"say": "wait"}, made)
        except WebSocketClosedError as error:
            heard[name] = "the connection of the session 's' was closed" in str(error)

    async with entered(30) as protocol, peer(server) as url:
        await protocol.call_tool(None, "m.t", {"say": "push 1 2"}, asking(url, False))
        await until_kept(protocol, 2)
        waiting = {"busy": asking(url, False, message_filter=None), "told": asking(url, False)}
        waiting |= {f"listens {n}": listening(url, False) for n in (1, 2, 3)}
        async with anyio.create_task_group() as tasks:
            for number, (name, made) in enumerate(waiting.items()):
                tasks.start_soon(call, made, name)
                while not protocol.statistics().active:
                    await anyio.sleep(0.001)
                await until_waiting(protocol, number)
            await server.peers[0].reset()
    assert (heard.pop("busy"), heard.pop("told")) == (False, True)
    # All of them wake at once; in which order is up to the event loop.
    assert sorted(map(str, heard.values())) == ["1", "2", "True"]
    assert server.connections == 1


@pytest.mark.parametrize("how", ["answered", "closed by the call", "lost"])
async def test_a_call_that_only_ends_a_session_and_waits_for_it_opens_none(how: str) -> None:
    server = Talk()
    ended: list[Any] = []

    async def call(made: WebSocketCallTemplate) -> None:
        try:
            ended.append(await protocol.call_tool(None, "m.t", {"say": "wait"}, made))
        except WebSocketClosedError:
            ended.append("lost")

    async with entered(30) as protocol, peer(server) as url:
        closes = how == "closed by the call"
        ending = template(url, **SESSION, request=[], expected_responses=0, close_after_response=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, asking(url, False, close_after_response=closes))
            while not (protocol.statistics().active and server.peers):
                await anyio.sleep(0.001)
            tasks.start_soon(call, ending)
            await until_waiting(protocol, 1)
            if how == "lost":
                await server.peers[0].reset()
            else:
                await server.peers[0].send({"answer": "wait", "on": 1})
        while pool_of(protocol)._endpoints:
            await anyio.sleep(0.001)
        assert server.connections == 1
        # It has ended: nothing is left to tell the next call.
        assert (await protocol.call_tool(None, "m.t", {"say": "x"}, asking(url, False)))["on"] == 2
    assert None in ended
