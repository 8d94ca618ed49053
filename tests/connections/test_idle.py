"""Idle connections do not pile up: their time, their number, and file descriptors that are exhausted."""

from __future__ import annotations

import errno
from typing import Any

import anyio
import pytest
from support.backends import virtual_time
from support.peers import Peer, echo_server, peer, peer_in_memory
from support.protocol import answer_everything, entered, template, until_idle

from utcp_websocket_anyio import (
    NetworkSettings,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._connections import connector
from utcp_websocket_anyio._wire import open_wire

pytestmark = pytest.mark.anyio

ON_VIRTUAL_TIME = pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])


@ON_VIRTUAL_TIME
async def test_an_idle_connection_is_closed_after_its_keep_alive_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer_in_memory(answer_everything, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        kept = template(url, message="x", keep_alive_timeout=100, ping_interval=None)
        for _ in range(3):
            await protocol.call_tool(None, "manual.t", {}, kept)
            await anyio.sleep(60)
            assert protocol.statistics().idle == 1
        await anyio.sleep(41)
        assert protocol.statistics().idle == 0


@ON_VIRTUAL_TIME
async def test_without_a_keep_alive_timeout_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async with peer_in_memory(answer_everything, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        kept = template(url, message="x", keep_alive_timeout=None, ping_interval=None)
        await protocol.call_tool(None, "manual.t", {}, kept)
        await anyio.sleep(50_000)
        assert protocol.statistics().idle == 1


async def test_of_too_many_idle_connections_the_one_idle_longest_is_closed() -> None:
    paths: list[str] = []

    async def script(peer: Peer) -> None:
        paths.append((await peer.read_request()).split(" ")[1])
        await answer_everything(peer)

    with anyio.fail_after(30):
        async with (
            peer(script) as url,
            WebSocketCommunicationProtocol(network=NetworkSettings(max_idle_connections=3)) as protocol,
        ):
            made = template(url + "{{args.topic}}", message="x")
            for number in range(10):
                await protocol.call_tool(None, "manual.t", {"topic": f"{number}"}, made)
            await until_idle(protocol, 3)
            # The last ones are still there, and used again.
            for number in (9, 8, 7):
                await protocol.call_tool(None, "manual.t", {"topic": f"{number}"}, made)
            assert len(paths) == 10


async def test_a_connection_that_no_other_call_can_use_is_not_kept() -> None:
    async with entered() as protocol, echo_server() as url:
        made = template(url + "{{uuid}}", message="x")
        for _ in range(5):
            await protocol.call_tool(None, "manual.t", {}, made)
        await until_idle(protocol, 0)


async def test_where_file_descriptors_are_exhausted_idle_connections_make_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 4

    async def limited(target: Any) -> Any:
        if protocol.statistics().idle >= limit:
            error = WebSocketConnectionError("too many open files", endpoint=target.endpoint)
            error.errno = errno.EMFILE
            raise error
        return await open_wire(target)

    monkeypatch.setattr(connector, "open_wire", limited)
    async with entered() as protocol, echo_server() as url:
        made = template(url + "{{args.topic}}", message="x")
        for number in range(20):
            await protocol.call_tool(None, "manual.t", {"topic": f"{number}"}, made)
        assert protocol.statistics().idle <= limit


async def test_a_shared_connection_that_takes_nothing_is_replaced() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake()
        if connections == 1:
            await anyio.sleep_forever()
        await answer_everything_again(peer)

    async def answer_everything_again(peer: Peer) -> None:
        while True:
            await peer.send(await peer.receive())

    fields: dict[str, Any] = {
        "multiplex": True, "message": {"id": "{{call_id}}", "load": "{{args.load}}"},
        "message_filter": {"id": "{{call_id}}"}, "response_timeout": 0.3, "ping_interval": 0.1, "pong_timeout": 0.1,
    }  # fmt: skip
    async with entered() as protocol, peer(script) as url:
        with pytest.raises((WebSocketTimeoutError, OSError)):
            await protocol.call_tool(None, "manual.t", {"load": "x" * 8_000_000}, template(url, **fields))
        while connections < 2:
            with anyio.move_on_after(1):
                try:
                    await protocol.call_tool(None, "manual.t", {"load": "x"}, template(url, **fields))
                except OSError:
                    await anyio.sleep(0.05)
