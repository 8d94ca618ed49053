"""Concurrent calls on one shared connection."""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest
from support.peers import TEXT, Peer, frame, peer
from support.protocol import entered, pool_of, template, until_idle

from utcp_websocket_anyio import (
    WebSocketAuthError,
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketProtocolError,
    WebSocketToolError,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_exchanges")]

RPC: dict[str, Any] = {
    "multiplex": True,
    "message": {"id": "{{call_id}}", "method": "{{args.method}}"},
    "message_filter": {"id": "{{call_id}}"},
    "error_filter": {"id": "{{call_id}}", "error": {"$any": True}},
    "result": {"path": "result"},
}


def rpc(url: str, **fields: Any) -> WebSocketCallTemplate:
    return template(url, **{**RPC, **fields})


class Backwards:
    """Collects so many requests, then answers them in reverse order; counts connections and requests."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.connections = 0
        self.ids: list[int] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.connections += 1
        while True:
            requests = [await peer.receive_json() for _ in range(self.batch)]
            self.ids += [request["id"] for request in requests]
            for request in reversed(requests):
                await peer.send({"event": "unasked for"})
                await peer.send({"id": request["id"], "result": request["method"]})


async def test_each_call_gets_its_own_answer_in_whatever_order_they_come() -> None:
    server = Backwards(batch=50)
    async with entered() as protocol, peer(server) as url:
        answers: dict[int, Any] = {}

        async def call(n: int) -> None:
            answers[n] = await protocol.call_tool(None, "manual.t", {"method": f"m{n}"}, rpc(url))

        for _ in range(2):
            async with anyio.create_task_group() as task_group:
                for n in range(50):
                    task_group.start_soon(call, n)
            assert answers == {n: f"m{n}" for n in range(50)}
    assert server.connections == 1
    assert server.ids == sorted(server.ids), "each id is larger than all sent before"
    assert len(set(server.ids)) == 100


async def test_late_response_is_discarded_and_connection_reused() -> None:
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        late = await peer.receive_json()
        asked.set()
        current = await peer.receive_json()
        await peer.send({"id": late["id"], "result": "late"})
        await peer.send({"id": current["id"], "result": "mine"})

    async with entered() as protocol, peer(script) as url:
        # Left while the server works on it; a time-out would be, too, but might come before the request is out.
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(protocol.call_tool, None, "manual.t", {"method": "slow"}, rpc(url))
            await asked.wait()
            task_group.cancel_scope.cancel()
        assert await protocol.call_tool(None, "manual.t", {"method": "next"}, rpc(url)) == "mine"
        assert "Connections: 1 open" in repr(pool_of(protocol))


async def test_a_cancelled_call_does_not_disturb_the_others() -> None:
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        requests = [await peer.receive_json() for _ in range(2)]
        asked.set()
        await cancelled.wait()
        for request in requests:
            await peer.send({"id": request["id"], "result": request["method"]})

    cancelled = anyio.Event()
    async with entered() as protocol, peer(script) as url:
        answers: list[Any] = []

        async def call(method: str) -> None:
            answers.append(await protocol.call_tool(None, "manual.t", {"method": method}, rpc(url)))

        async with anyio.create_task_group() as task_group:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as doomed:
                    doomed.start_soon(call, "cancelled")
                    task_group.start_soon(call, "other")
                    await asked.wait()
                    scope.cancel()
            cancelled.set()
        assert answers == ["other"]


async def test_one_tool_error_is_one_calls_error() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        requests = [await peer.receive_json() for _ in range(2)]
        for request in requests:
            key = "error" if request["method"] == "bad" else "result"
            await peer.send({"id": request["id"], key: request["method"]})

    async with entered() as protocol, peer(script) as url:
        outcomes: dict[str, Any] = {}

        async def call(method: str) -> None:
            try:
                outcomes[method] = await protocol.call_tool(None, "manual.t", {"method": method}, rpc(url))
            except WebSocketToolError as error:
                outcomes[method] = error.response["error"]

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(call, "bad")
            task_group.start_soon(call, "good")
        assert outcomes == {"bad": "bad", "good": "good"}


async def test_when_the_connection_is_lost_every_call_on_it_fails_and_the_next_one_connects_again() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        if connections == 1:
            for _ in range(3):
                await peer.receive()
            await peer.close(1011, "down")
        else:
            request = await peer.receive_json()
            await peer.send({"id": request["id"], "result": "back"})

    async with entered() as protocol, peer(script) as url:
        codes: list[int] = []

        async def call() -> None:
            try:
                await protocol.call_tool(None, "manual.t", {"method": "x"}, rpc(url))
            except WebSocketClosedError as error:
                codes.append(error.code)

        async with anyio.create_task_group() as task_group:
            for _ in range(3):
                task_group.start_soon(call)
        assert codes == [1011] * 3
        assert await protocol.call_tool(None, "manual.t", {"method": "x"}, rpc(url)) == "back"


async def test_streams_and_calls_share_a_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        subscription = await peer.receive_json()
        for n in range(3):
            await peer.send({"id": subscription["id"], "result": n})
        call = await peer.receive_json()
        await peer.send({"id": call["id"], "result": "call"})
        await peer.send({"id": subscription["id"], "result": 3})
        await peer.send({"id": subscription["id"], "done": True})

    async with entered() as protocol, peer(script) as url:
        subscribe = rpc(url, end_filter={"id": "{{call_id}}", "done": True})
        async with aclosing(protocol.call_tool_streaming(None, "manual.s", {"method": "s"}, subscribe)) as stream:
            received = [await stream.__anext__() for _ in range(3)]
            assert await protocol.call_tool(None, "manual.t", {"method": "c"}, rpc(url)) == "call"
            received += [item async for item in stream]
        assert received == [0, 1, 2, 3]


async def test_a_stream_that_is_not_read_fails_by_itself_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("utcp_websocket_anyio._calls.exchange._MAX_QUEUED_MESSAGES", 50)

    async def script(peer: Peer) -> None:
        await peer.handshake()
        subscription = await peer.receive_json()
        for n in range(100):
            await peer.send({"id": subscription["id"], "result": n})
        call = await peer.receive_json()
        await peer.send({"id": call["id"], "result": "call"})

    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "manual.s", {"method": "s"}, rpc(url))
        async with aclosing(stream):
            assert await stream.__anext__() == 0
            assert await protocol.call_tool(None, "manual.t", {"method": "c"}, rpc(url)) == "call"
            with pytest.raises(WebSocketProtocolError, match="read too slowly"):
                async for _ in stream:
                    pass


async def test_a_call_without_response_returns_when_its_request_is_sent() -> None:
    received = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        received.set()

    async with entered() as protocol, peer(script) as url:
        assert await protocol.call_tool(None, "manual.t", {"method": "x"}, rpc(url, expected_responses=0)) is None
        await received.wait()


async def test_callers_that_wait_for_one_shared_connection_share_its_failure() -> None:
    async def refuse(peer: Peer) -> None:
        await peer.answer("403 Forbidden")

    async with entered() as protocol, peer(refuse) as url:
        failures: list[WebSocketConnectionError] = []

        async def call() -> None:
            try:
                await protocol.call_tool(None, "manual.t", {"method": "x"}, rpc(url))
            except WebSocketAuthError as error:
                failures.append(error)

        async with anyio.create_task_group() as task_group:
            for _ in range(5):
                task_group.start_soon(call)
        assert [failure.status for failure in failures] == [403] * 5
        assert len(set(map(id, failures))) == 5, "each caller has an error of its own"
        await until_idle(protocol, 0)


async def test_steps_before_a_request_do_not_take_other_calls_answers() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            await peer.send({"id": request["id"], "result": request["method"], "ticket": f"t-{request['method']}"})

    ticketed = {
        "before": [
            {
                "send": {"id": "{{call_id}}", "method": "ticket for {{args.method}}"},
                "expect": {"id": "{{call_id}}"},
                "capture": {"ticket": {"path": "ticket"}},
            }
        ],
        "message": {"id": "{{call_id}}", "method": "{{captured.ticket}}"},
    }
    async with entered() as protocol, peer(script) as url:
        answers: dict[int, Any] = {}

        async def call(n: int) -> None:
            answers[n] = await protocol.call_tool(None, "manual.t", {"method": f"{n}"}, rpc(url, **ticketed))

        async with anyio.create_task_group() as task_group:
            for n in range(20):
                task_group.start_soon(call, n)
        assert answers == {n: f"t-ticket for {n}" for n in range(20)}


@pytest.mark.parametrize("listen_only", [False, True], ids=["request", "listen_only"])
async def test_a_last_step_that_only_sends_loses_nothing_that_comes_after_it(listen_only: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        note = await peer.receive_json()
        if listen_only:
            await peer.send({"id": "sub", "result": 1})
            await peer.send({"id": "sub", "result": 2})
        else:
            request = await peer.receive_json()
            await peer.send({"id": request["id"], "result": note["note"]})

    async with entered() as protocol, peer(script) as url:
        fields: dict[str, Any] = {"before": [{"send": {"note": "{{args.method}}"}}]}
        if listen_only:
            fields |= {"message": None, "listen_only": True, "message_filter": {"id": "sub"}, "error_filter": None}
            fields |= {"expected_responses": 2}
        answer = await protocol.call_tool(None, "manual.t", {"method": "m"}, rpc(url, **fields))
        assert answer == ([1, 2] if listen_only else "m")


@pytest.mark.parametrize("key", [{"a": 1}, [1, 2], True, 1, "1"], ids=str)
async def test_calls_may_be_told_apart_by_whatever_json_an_argument_is(key: Any) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            await peer.send({"key": "of another call", "result": "wrong"})
            await peer.send({"key": request["key"], "result": "right"})

    fields: dict[str, Any] = {"message": {"key": "{{args.key}}"}, "message_filter": {"key": "{{args.key}}"}}
    async with entered() as protocol, peer(script) as url:
        call_template = template(url, multiplex=True, result={"path": "result"}, **fields)
        assert await protocol.call_tool(None, "manual.t", {"key": key}, call_template) == "right"


async def test_what_comes_with_the_end_of_the_login_is_for_all_who_wait_for_the_connection() -> None:
    go = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await go.wait()
        await peer.send_raw(frame(TEXT, b'{"welcome": 1}') + frame(TEXT, b'{"news": 1}'))
        await peer.until_closed()

    fields: dict[str, Any] = {
        "listen_only": True,
        "on_connect": [{"send": "login", "expect": {"welcome": 1}}],
        "message_filter": {"news": {"$any": True}},
        "timeout": 60,
    }
    async with entered() as protocol, peer(script) as url:
        received: list[Any] = []

        async def listen() -> None:
            call_template = template(url, multiplex=True, **fields)
            received.append(await protocol.call_tool(None, "manual.t", {}, call_template))

        async with anyio.create_task_group() as listeners:
            for _ in range(5):
                listeners.start_soon(listen)
            while protocol.statistics().waiting < 4:
                await anyio.sleep(0.001)
            go.set()
        assert received == ['{"news": 1}'] * 5
