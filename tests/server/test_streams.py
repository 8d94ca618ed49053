"""Generators as streams: asynchronous and plain, called as streams and as calls, by our client and by the stock one."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from functools import partial, wraps
from typing import Any

import anyio
import anyio.to_thread
import pytest
from support.tool_server import Thread, discovered, entered, frame, raw_client
from utcp.utcp_client import UtcpClient

from utcp_websocket_anyio import ToolServer, WebSocketTimeoutError, WebSocketToolError, open_client

pytestmark = pytest.mark.anyio


def _hidden(function: Callable[..., Iterator[int]]) -> Callable[..., Iterator[int]]:
    @wraps(function)
    def call(**arguments: Any) -> Iterator[int]:
        return function(**arguments)

    return call


def counting() -> ToolServer:
    """One stream in each form in which Python has it."""
    server = ToolServer("counting")

    @server.tool
    async def asynchronous(to: int) -> AsyncIterator[int]:
        for number in range(to):
            yield number

    @server.tool
    def plain(to: int) -> Iterator[int]:
        yield from range(to)

    @server.tool
    def returned(to: int) -> Iterator[int]:
        return iter(range(to))

    @server.tool
    async def awaited(to: int) -> AsyncIterator[int]:
        return asynchronous(to)

    @server.tool
    @_hidden
    def decorated(to: int) -> Iterator[int]:
        yield from range(to)

    @server.tool
    async def single(to: int) -> int:
        return to

    return server


STREAMS = ["asynchronous", "plain", "returned", "awaited", "decorated"]


async def test_streams_of_every_kind_are_streamed_and_called(thread: Thread) -> None:
    url = await thread.serve(counting())
    async with entered() as protocol:
        templates = await discovered(protocol, url)
        for name in STREAMS:
            for to in (0, 1, 3):
                stream = protocol.call_tool_streaming(None, f"manual.{name}", {"to": to}, templates[name])
                assert [item async for item in stream] == list(range(to))
                called = await protocol.call_tool(None, f"manual.{name}", {"to": to}, templates[name])
                assert called == list(range(to))


async def test_a_call_is_streamed_as_its_one_result(thread: Thread) -> None:
    url = await thread.serve(counting())
    async with entered() as protocol:
        template = (await discovered(protocol, url))["single"]
        assert [item async for item in protocol.call_tool_streaming(None, "manual.single", {"to": 3}, template)] == [3]


async def test_calls_and_streams_share_a_connection(thread: Thread) -> None:
    url = await thread.serve(counting())
    async with entered() as protocol, anyio.create_task_group() as tasks:
        templates = await discovered(protocol, url)
        results: dict[tuple[str, int], Any] = {}

        async def call(name: str, to: int) -> None:
            results[name, to] = await protocol.call_tool(None, f"manual.{name}", {"to": to}, templates[name])

        expected: dict[tuple[str, int], Any] = {(name, to): list(range(to)) for name in STREAMS for to in range(8)}
        expected.update({("single", to): to for to in range(8)})
        for name, to in expected:
            tasks.start_soon(call, name, to)
        with anyio.fail_after(20):
            while len(results) < len(expected):
                await anyio.sleep(0.01)
        assert results == expected
        assert protocol.__repr__().count("2 open") == 1  # one for discovery, one for all calls


async def test_our_client_gets_streams_as_streams_and_as_lists(thread: Thread) -> None:
    url = await thread.serve(counting())
    manual = {"name": "manual", "call_template_type": "websocket", "url": url}
    with anyio.fail_after(30):
        async with open_client({"manual_call_templates": [manual]}) as client:
            assert await client.call_tool("manual.plain", {"to": 0}) == []
            assert await client.call_tool("manual.asynchronous", {"to": 3}) == [0, 1, 2]
            assert [item async for item in client.call_tool_streaming("manual.plain", {"to": 3})] == [0, 1, 2]
            assert await client.call_tool("manual.single", {"to": 3}) == 3


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], ids=["asyncio"])
async def test_the_stock_client_gets_streams_as_streams_and_as_lists(thread: Thread, registries: None) -> None:
    url = await thread.serve(counting())
    manual = {"name": "manual", "call_template_type": "websocket", "url": url}
    with anyio.fail_after(30):
        client = await UtcpClient.create(config={"manual_call_templates": [manual]})
        try:
            assert await client.call_tool("manual.asynchronous", {"to": 0}) == []
            assert await client.call_tool("manual.plain", {"to": 3}) == [0, 1, 2]
            stream: Any = client.call_tool_streaming("manual.plain", {"to": 3})
            assert [item async for item in stream] == [0, 1, 2]
            assert await client.call_tool("manual.single", {"to": 3}) == 3
        finally:
            await client.close()  # noqa: ASYNC102 - the last that the test does


async def test_a_plain_stream_that_fails_gives_what_it_had_and_then_the_error(thread: Thread) -> None:
    server = ToolServer("breaking")

    @server.tool
    def break_off() -> Iterator[int]:
        yield 1
        raise LookupError("no second one")

    url = await thread.serve(server)
    received = []
    async with entered() as protocol:
        template = (await discovered(protocol, url))["break_off"]
        stream = protocol.call_tool_streaming(None, "manual.break_off", {}, template)
        with pytest.raises(WebSocketToolError) as streamed:
            async with aclosing(stream):
                async for item in stream:
                    received.append(item)
        with pytest.raises(WebSocketToolError) as called:
            await protocol.call_tool(None, "manual.break_off", {}, template)
    for caught in (streamed, called):
        assert caught.value.response["error"] == "LookupError: no second one"
    assert received == [1]


async def test_a_stream_that_takes_too_long_is_a_time_out_and_no_shorter_list(thread: Thread) -> None:
    server = ToolServer("endless")

    @server.tool(timeout=0.2)
    async def forever() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    url = await thread.serve(server)
    async with entered() as protocol:
        template = (await discovered(protocol, url))["forever"]
        with pytest.raises(WebSocketTimeoutError):
            await protocol.call_tool(None, "manual.forever", {}, template)


class Blocking:
    """A plain stream whose second item is long in coming."""

    def __init__(self) -> None:
        self.server = ToolServer("blocking")
        self.server.tool(self.stream)
        self.entered, self.released, self.closed = threading.Event(), threading.Event(), threading.Event()

    def stream(self) -> Iterator[int]:
        try:
            yield 1
            self.entered.set()
            self.released.wait(20)
            yield 2
            yield 3
        finally:
            self.closed.set()


async def happened(event: threading.Event) -> None:
    assert await anyio.to_thread.run_sync(event.wait, 20)


async def test_a_plain_stream_that_its_client_has_left_is_closed_when_its_step_is_done(thread: Thread) -> None:
    blocking = Blocking()
    url = await thread.serve(blocking.server)
    request = {"type": "call_tool", "request_id": 1, "tool_name": "stream"}
    with anyio.fail_after(30):
        client = raw_client(url, frame(1, json.dumps(request).encode()))
        await happened(blocking.entered)
        client.close()
        assert not blocking.closed.is_set()
        blocking.released.set()
        await happened(blocking.closed)


async def test_a_plain_stream_holds_no_server_up_that_ends(thread: Thread) -> None:
    blocking = Blocking()
    url = await thread.serve(blocking.server)
    request = {"type": "call_tool", "request_id": 1, "tool_name": "stream"}
    try:
        with anyio.fail_after(30), raw_client(url, frame(1, json.dumps(request).encode())):
            await happened(blocking.entered)
            await anyio.to_thread.run_sync(thread.join)
            assert not blocking.closed.is_set()
    finally:
        blocking.released.set()


async def test_slow_functions_of_clients_that_hang_up_do_not_pile_up_in_threads(
    thread: Thread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utcp_websocket_anyio._server.threads._MAX_THREADS", 3)
    server = ToolServer("slow")
    entered_once, released = threading.Semaphore(0), threading.Event()
    running = 0
    most = 0
    lock = threading.Lock()

    @server.tool
    def slow() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        entered_once.release()
        released.wait(20)
        with lock:
            running -= 1

    @server.tool
    async def ready() -> bool:
        return True

    url = await thread.serve(server)
    call = frame(1, json.dumps({"type": "call_tool", "request_id": 1, "tool_name": "slow"}).encode())
    ready_call = frame(1, json.dumps({"type": "call_tool", "request_id": 1, "tool_name": "ready"}).encode())
    try:
        with anyio.fail_after(30):
            for number in range(6):
                client = await anyio.to_thread.run_sync(partial(raw_client, url, call + ready_call))
                if number < 3:
                    assert await anyio.to_thread.run_sync(entered_once.acquire, True, 20)
                # Its answer comes after the other call has begun, or waits.
                while b'"result": true' not in await anyio.to_thread.run_sync(client.recv, 65536):
                    pass
                client.close()
            async with entered() as protocol:
                templates = await discovered(protocol, url)
                assert await protocol.call_tool(None, "manual.ready", {}, templates["ready"])
            assert most == 3
            released.set()
            async with entered() as protocol:
                assert await protocol.call_tool(None, "manual.slow", {}, templates["slow"]) is None
            assert most == 3
    finally:
        released.set()
