"""Statistics and log records, for operators."""

from __future__ import annotations

import logging

import anyio
import pytest
from support.peers import Peer, echo_server, peer
from support.protocol import entered, template, until_idle

from utcp_websocket_anyio import (
    MissingArgumentError,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._connections.statistics import Statistics

pytestmark = pytest.mark.anyio


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("utcp_websocket_anyio")]


async def test_an_unused_object_has_done_nothing() -> None:
    assert WebSocketCommunicationProtocol().statistics() == Statistics()


async def test_statistics_count_calls_errors_bytes_and_connections() -> None:
    asked = anyio.Event()

    async def silent(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        asked.set()

    async with entered() as protocol, echo_server() as url, peer(silent) as silent_url:
        await protocol.call_tool(None, "manual.t", {}, template(url, message="für"))
        async for _ in protocol.call_tool_streaming(
            None, "manual.t", {}, template(url, message="x", expected_responses=1)
        ):
            pass
        with pytest.raises(MissingArgumentError):
            await protocol.call_tool(None, "manual.t", {}, template(url, message="{{args.x}}"))
        with pytest.raises(WebSocketConnectionError):
            await protocol.call_tool(None, "manual.t", {}, template("ws://127.0.0.1:1/", message="x"))
        async with anyio.create_task_group() as task_group:
            one = template(silent_url, message="y", max_connections=1)
            task_group.start_soon(protocol.call_tool, None, "manual.t", {}, one)
            await asked.wait()
            task_group.start_soon(protocol.call_tool, None, "manual.t", {}, one)
            await anyio.wait_all_tasks_blocked()
            assert protocol.statistics() == Statistics(
                idle=1,
                active=1,
                waiting=1,
                calls=6,
                errors={"MissingArgumentError": 1, "WebSocketConnectionError": 1},
                reconnects=2,
                bytes_sent=6,
                bytes_received=5,
            )
            task_group.cancel_scope.cancel()
        await until_idle(protocol, 1)
        with pytest.raises(WebSocketTimeoutError):
            async for _ in protocol.call_tool_streaming(
                None, "manual.t", {}, template(silent_url, message="y", response_timeout=0.02)
            ):
                pass
        statistics = protocol.statistics()
    assert statistics.errors["WebSocketTimeoutError"] == 1
    assert statistics.bytes_sent == 7, "the bytes of closed connections still count"
    after = protocol.statistics()
    assert (after.idle, after.active, after.closing) == (0, 0, 0)


async def test_a_line_per_connection_opened_lost_and_closed_and_per_retry(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    attempts = 0

    async def script(peer: Peer) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await peer.answer("503 Busy")
            return
        await peer.handshake()
        await peer.send(await peer.receive())
        await peer.receive_frame()
        await (peer.close(1011, "out of order") if attempts == 2 else peer.close(1000))

    async with peer(script) as url, entered() as protocol:
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        with pytest.raises(WebSocketClosedError):
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
    seen = [
        (record.levelname, record.__dict__.get("event"), record.__dict__.get("endpoint")) for record in records(caplog)
    ]
    assert seen == [
        ("INFO", "retry", url),
        ("INFO", "opened", url),
        ("WARNING", "lost", url),
        ("INFO", "opened", url),
        ("INFO", "closed", url),
    ]
    lost = records(caplog)[2]
    assert lost.__dict__["calls"] == 2
    assert 0 <= lost.__dict__["duration"] < 20
    assert "1011" in lost.getMessage()


async def test_calls_are_logged_at_most_at_debug(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with entered() as protocol, echo_server() as url:
        for _ in range(20):
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
    assert len(records(caplog)) == 2
