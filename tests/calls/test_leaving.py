"""Calls that are left, or whose time is up, amid their own conversation.

The caller hears of it at once, whatever a step was waiting for; a farewell is said as a whole all the same; and the
peer of a shared connection is not told a part of a request that nobody wants any more.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
import trio
from support.backends import virtual_time
from support.http_peer import serve_http, silent
from support.peers import Peer, peer, peer_in_memory
from support.protocol import entered, pool_of, template

from utcp_websocket_anyio import (
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketTimeoutError,
)

pytestmark = pytest.mark.anyio

BY_ID: dict[str, Any] = {
    "message": {"id": "{{uuid}}"},
    "message_filter": {"id": "{{uuid}}"},
    "response_format": "json",
    "ping_interval": None,
}
FAREWELL = [
    {"send": {"id": "{{uuid}}", "bye": 1}, "expect": {"id": "{{uuid}}", "bye": 1}},
    {"send": {"id": "{{uuid}}", "bye": 2}},
]


async def note_everything(peer: Peer, received: list[Any], go: anyio.Event | None = None) -> None:
    """Answers the first message of a farewell and nothing else."""
    await peer.handshake()
    if go is not None:
        await go.wait()
    while True:
        message = await peer.receive_json()
        received.append(message)
        if message.get("bye") == 1:
            await peer.send(message)


@pytest.mark.parametrize("on_end", [None, FAREWELL], ids=["", "farewell"])
async def test_a_step_that_waits_for_an_http_server_ends_with_the_deadline(multiplex: bool, on_end: Any) -> None:
    received: list[Any] = []
    async with (
        entered(60) as protocol,
        serve_http(silent) as http,
        peer(lambda peer: note_everything(peer, received)) as url,
    ):
        before = [{"http": {"url": http.url}}]
        fields = {**BY_ID, "multiplex": multiplex, "before": before, "on_end": on_end, "response_timeout": 0.1}
        with pytest.raises(WebSocketTimeoutError):
            await protocol.call_tool(None, "manual.t", {}, template(url, **fields))
        await http.left.wait()
        while on_end and len(received) < 2:
            await anyio.sleep(0.001)
    assert [message["bye"] for message in received] == ([1, 2] if on_end else [])


async def test_a_step_that_waits_for_an_http_server_ends_with_its_connection(multiplex: bool) -> None:
    async with serve_http(silent) as http:

        async def script(peer: Peer) -> None:
            await peer.handshake()
            await http.asked.wait()
            await peer.close(1011, "that took too long")

        async with entered(60) as protocol, peer(script) as url:
            fields = {**BY_ID, "multiplex": multiplex, "before": [{"http": {"url": http.url}}], "response_timeout": 600}
            with pytest.raises(WebSocketClosedError, match="that took too long"):
                await protocol.call_tool(None, "manual.t", {}, template(url, **fields))
            await http.left.wait()


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_a_step_before_the_request_takes_nothing_of_the_farewell_after_its_deadline(
    multiplex: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        asked = await peer.receive_json()
        assert asked["sub"]
        bye = await peer.receive_json()
        await anyio.sleep(1)
        await peer.send(bye)

    fields = {
        **BY_ID,
        "multiplex": multiplex,
        "before": [{"send": {"id": "{{uuid}}", "sub": True}, "expect": {"id": "{{uuid}}", "sub": "done"}}],
        "on_end": FAREWELL[:1],
        "response_timeout": 5,
    }
    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        began = trio.current_time()
        with pytest.raises(WebSocketTimeoutError):
            await protocol.call_tool(None, "manual.t", {}, template(url, **fields))
        assert trio.current_time() - began == pytest.approx(5)
        await anyio.sleep(1.5)
        assert protocol.statistics().idle == 1, "the farewell was answered, so the connection is good"


@pytest.mark.parametrize("ends", ["cancelled", "timed out"])
async def test_all_messages_of_a_farewell_are_sent(multiplex: bool, ends: str) -> None:
    received: list[Any] = []
    async with entered(60) as protocol, peer(lambda peer: note_everything(peer, received)) as url:
        timeout = 0.05 if ends == "timed out" else 600
        fields = {**BY_ID, "multiplex": multiplex, "on_end": FAREWELL, "response_timeout": timeout}
        async with anyio.create_task_group() as caller:

            async def call() -> None:
                with pytest.raises(WebSocketTimeoutError):
                    await protocol.call_tool(None, "manual.t", {}, template(url, **fields))

            caller.start_soon(call)
            while ends == "cancelled" and not received:
                await anyio.sleep(0.001)
            if ends == "cancelled":
                caller.cancel_scope.cancel()
        while len(received) < 3:
            await anyio.sleep(0.001)
    assert [message.get("bye") for message in received] == [None, 1, 2]


@pytest.mark.usefixtures("both_exchanges")
@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("on_end", [None, FAREWELL[1:]], ids=["", "farewell"])
async def test_a_request_that_was_left_while_it_was_queued_is_not_sent_in_part(on_end: Any, parts: int) -> None:
    """Nothing of it is sent; or all that was queued, and the farewell behind it."""
    go = anyio.Event()
    received: list[Any] = []
    shared = {**BY_ID, "multiplex": True, "timeout": 60}
    request = [{"send": {"id": "{{uuid}}", "part": part}} for part in range(parts)]
    async with entered(60) as protocol, peer(lambda peer: note_everything(peer, received, go)) as url:
        long = template(url, **{**shared, "message": {"pad": "{{args.pad}}"}, "expected_responses": 0})
        several = template(url, **{**shared, "message": None, "request": request, "on_end": on_end})
        async with anyio.create_task_group() as callers:
            callers.start_soon(protocol.call_tool, None, "manual.t", {"pad": "x" * 20_000_000}, long)
            await until_queued(protocol, 0)
            async with anyio.create_task_group() as caller:
                caller.start_soon(protocol.call_tool, None, "manual.t", {}, several)
                await until_queued(protocol, parts)
                caller.cancel_scope.cancel()
            go.set()
        await protocol.call_tool(None, "manual.t", {}, template(url, **{**shared, "expected_responses": 0}))
        while not received or "part" in received[-1] or received[-1].keys() & {"pad", "bye"}:
            await anyio.sleep(0.001)
    told = [message.get("bye", message.get("part")) for message in received if "pad" not in message]
    assert told == ([*range(parts), 2, None] if on_end else [None])


async def until_queued(protocol: WebSocketCommunicationProtocol, messages: int) -> None:
    """Wait until a connection is sending, and so many messages wait behind it."""
    while True:
        for site in pool_of(protocol)._endpoints.values():
            for connection in site.connections:
                outbox = connection._outbox
                if outbox is not None and connection.wire.has_unsent_data() and len(outbox._queue) == messages:
                    return
        await anyio.sleep(0.001)
