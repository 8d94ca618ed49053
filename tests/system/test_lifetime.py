"""Connections and the block they live in: reuse, idleness, heartbeat, deregistration, the end."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.backends import virtual_time
from support.peers import PING, PONG, Peer, echo_server, peer, peer_in_memory
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
)

pytestmark = pytest.mark.anyio


async def test_close_after_response_and_keep_alive_decide_about_the_connection() -> None:
    async with entered() as protocol, echo_server() as url:
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        await until_idle(protocol, 1)
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x", close_after_response=True))
        await until_idle(protocol, 0)
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x", keep_alive=False))
        await until_idle(protocol, 0)


async def test_an_idle_connection_answers_pings_and_notices_its_end() -> None:
    ponged = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await peer.send_frame(PING, b"still there")
        assert await peer.receive_frame() == (PONG, b"still there")
        ponged.set()
        await peer.close(1001)

    async with entered() as protocol, peer(script) as url:
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        await ponged.wait()
        await until_idle(protocol, 0)


async def test_an_idle_connection_has_no_task_where_it_is_not_needed(anyio_backend_name: str) -> None:
    async with entered() as protocol, echo_server() as url:
        quiet: dict[str, Any] = {"message": "x", "ping_interval": None}
        await protocol.call_tool(None, "manual.t", {}, template(url + "?first", **quiet))
        await anyio.wait_all_tasks_blocked()
        before = {task.id for task in anyio.get_running_tasks()}
        await protocol.call_tool(None, "manual.t", {}, template(url, **quiet))
        await anyio.wait_all_tasks_blocked()
        its_own = [
            task for task in anyio.get_running_tasks() if task.id not in before and "utcp_websocket" in str(task.name)
        ]
        assert len(its_own) == (1 if anyio_backend_name == "trio" else 0)


async def test_a_flood_while_a_connection_is_idle_is_thrown_away() -> None:
    answered = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        for _ in range(100):
            await peer.send("x" * 100_000)
        await peer.send_frame(PING, b"still there")
        assert await peer.receive_frame() == (PONG, b"still there")
        answered.set()
        await peer.send(await peer.receive())
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        assert await protocol.call_tool(None, "manual.t", {}, template(url, message="first")) == "first"
        await answered.wait()
        assert await protocol.call_tool(None, "manual.t", {}, template(url, message="second")) == "second"


async def test_deregistering_closes_the_manuals_connections_and_fails_its_calls() -> None:
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        asked.set()
        await peer.until_closed()

    async with entered() as protocol, peer(script) as url:
        failures: list[BaseException] = []

        async def call() -> None:
            try:
                await protocol.call_tool(None, "manual.t", {}, template(url))
            except WebSocketClosedError as error:
                failures.append(error)

        async with anyio.create_task_group() as task_group:
            task_group.start_soon(call)
            await asked.wait()
            await protocol.deregister_manual(None, template(url))
        assert len(failures) == 1
        await until_idle(protocol, 0)
        await protocol.deregister_manual(None, template(url))


async def test_leaving_the_block_fails_the_calls_that_still_run() -> None:
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        asked.set()
        await peer.until_closed()

    failures: list[BaseException] = []
    with anyio.fail_after(20):
        async with (
            peer(script) as url,
            anyio.create_task_group() as task_group,
            WebSocketCommunicationProtocol() as protocol,
        ):

            async def call() -> None:
                try:
                    await protocol.call_tool(None, "manual.t", {}, template(url))
                except WebSocketClosedError as error:
                    failures.append(error)

            task_group.start_soon(call)
            await asked.wait()
    assert len(failures) == 1
    with anyio.fail_after(5), pytest.raises(RuntimeError, match="closed"):
        await protocol.call_tool(None, "manual.t", {}, template(url))


async def test_an_exception_in_the_block_comes_out_as_it_is() -> None:
    with anyio.fail_after(10), pytest.raises(KeyError):
        async with echo_server() as url:
            try:
                async with WebSocketCommunicationProtocol() as protocol:
                    await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
                    raise KeyError("mine")
            except KeyError as error:
                failure = error
        raise failure


async def test_it_is_entered_once() -> None:
    async with entered() as protocol:
        with pytest.raises(RuntimeError, match="already been entered"):
            async with protocol:
                pytest.fail("it was entered twice")


on_a_jumping_clock = pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])


@on_a_jumping_clock
async def test_a_peer_that_stops_answering_pings_is_noticed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        for _ in range(3):
            opcode, payload = await peer.receive_frame()
            assert opcode == PING
            await peer.send_frame(PONG, payload)
        await peer.until_gone()

    async with peer_in_memory(script, monkeypatch) as url, WebSocketCommunicationProtocol() as protocol:
        call_template = template(url, message="x", ping_interval=20, pong_timeout=5)
        await protocol.call_tool(None, "manual.t", {}, call_template)
        began = anyio.current_time()
        await until_idle(protocol, 0, every=1)
        assert 60 <= anyio.current_time() - began <= 4 * 20 + 5 + 2 + 1, "the closing handshake included"
