"""A thousand connections and a thousand calls open at once; the figures are in the summary of the test run."""

from __future__ import annotations

import gc
import logging
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from support.files import allow_many_files
from support.protocol import entered, template

from utcp_websocket_anyio import NetworkSettings, WebSocketCallTemplate, WebSocketCommunicationProtocol, WebSocketError

# On a machine that does other things, too, the server in its own process may be slow to take them all.
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(180)]

ASYNCIO_DEBUG = False  # which takes several times as long

MANY = 1000

Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def server() -> Iterator[subprocess.Popen[str]]:
    """A server in another process, which ends with these tests."""
    tests = Path(__file__).parents[1]
    command = [sys.executable, "-m", "support.load_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tests) as server:
        try:
            yield server
            server.communicate(timeout=60)
        finally:
            server.kill()
    assert server.returncode == 0


@pytest.fixture(scope="module")
def address(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline().strip()


@pytest.fixture
def url(server: subprocess.Popen[str], address: str) -> str:
    """The address of the server, which is still running."""
    assert server.poll() is None, "the server has ended"
    return address


@pytest.fixture(autouse=True)
def _many_files() -> Iterator[None]:
    with allow_many_files():
        yield


@pytest.fixture(autouse=True)
def _few_logs(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of lines would be kept, and shown if a test failed."""
    for name in ("utcp_websocket_anyio", "httpx", "asyncio"):
        caplog.set_level(logging.ERROR, name)


def calls(url: str, **fields: Any) -> WebSocketCallTemplate:
    fields = {"max_connections": MANY, "timeout": 150, "connection_timeout": 150, **fields}
    return template(
        url,
        message={"id": "{{call_id}}", "n": "{{args.n}}", "of": MANY},
        message_filter={"id": "{{call_id}}"},
        result={"path": "square"},
        **fields,
    )


async def open_at_once(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> float:
    """Make a thousand calls, none of which is answered before all are open; return the seconds they took."""
    squares: dict[int, int] = {}
    failures: list[WebSocketError] = []

    async def call(n: int) -> None:
        try:
            squares[n] = await protocol.call_tool(None, "manual.t", {"n": n}, call_template)
        except WebSocketError as error:
            failures.append(error)

    began = time.perf_counter()
    async with anyio.create_task_group() as task_group:
        for n in range(MANY):
            task_group.start_soon(call, n)
    took = time.perf_counter() - began
    assert not failures, f"{len(failures)} calls failed, the first with {failures[0]!r}"
    assert squares == {n: n * n for n in range(MANY)}
    return took


async def report(protocol: WebSocketCommunicationProtocol, url: str) -> dict[str, int]:
    """The server's counters, without the connection that asks."""
    asks = template(
        url + "report", message={"report": True}, response_format="json", timeout=150, connection_timeout=150
    )
    answer: dict[str, int] = await protocol.call_tool(None, "manual.t", {}, asks)
    return answer


async def until_left(url: str) -> None:
    """Wait until the server has no connection any more."""
    async with entered(150) as protocol:
        while (await report(protocol, url))["connections"]:
            await anyio.sleep(0.01)


async def test_a_thousand_connections_keep_alive_and_answer_and_leave_nothing(
    url: str, record_property: Record
) -> None:
    async with entered(150, network=NetworkSettings(max_idle_connections=2 * MANY)) as protocol:
        beating = calls(url, ping_interval=2, pong_timeout=60)
        assert await report(protocol, url) == {"connections": 0, "fewest_pings": 0}
        gc.collect()
        tracemalloc.start()
        try:
            await open_at_once(protocol, beating)
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert protocol.statistics().idle == MANY + 1
        while (await report(protocol, url))["fewest_pings"] < 1:
            await anyio.sleep(0.05)
        again = await open_at_once(protocol, beating)
        statistics = protocol.statistics()
        assert (statistics.idle, statistics.active, statistics.opening) == (MANY + 1, 0, 0)
        assert (statistics.errors, statistics.reconnects) == ({}, 0)
        record_property("bytes per idle connection", held // MANY)
        record_property(f"seconds for {MANY} calls at once, each on its connection", round(again, 2))
    assert protocol.statistics().idle == 0
    await until_left(url)


async def test_a_thousand_calls_share_one_connection(url: str, record_property: Record) -> None:
    async with entered(150) as protocol:
        shared = calls(url, multiplex=True)
        took = await open_at_once(protocol, shared)
        record_property(f"seconds for {MANY} calls at once on one connection", round(took, 2))
        gc.collect()
        tracemalloc.start()
        try:
            await open_at_once(protocol, shared)
            gc.collect()
            held, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        record_property("bytes per open call, at most", peak // MANY)
        assert held < MANY * 500, "a call leaves nothing behind"
        assert await report(protocol, url) == {"connections": 1, "fewest_pings": 0}
        statistics = protocol.statistics()
        assert (statistics.idle, statistics.active, statistics.errors) == (2, 0, {})
    await until_left(url)
