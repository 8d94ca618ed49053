"""The protocol object as the stock `UtcpClient` uses it: on asyncio, never entered, called from many tasks."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import textwrap
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
import trio
import utcp_websocket
from support.backends import BACKENDS
from support.peers import Peer, echo_server, peer
from utcp.data.call_template import CallTemplateSerializer
from utcp.interfaces.communication_protocol import CommunicationProtocol
from utcp.utcp_client import UtcpClient

import utcp_websocket_anyio
from utcp_websocket_anyio import (
    WebSocketCallTemplate,
    WebSocketCallTemplateSerializer,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=[backend for backend in BACKENDS if backend.id != "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def template(url: str, **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="manual", url=url, **fields)


async def until_closed(protocol: WebSocketCommunicationProtocol) -> None:
    with anyio.fail_after(5):
        await protocol.close()
    assert repr(protocol) == "<WebSocketCommunicationProtocol closed>"


async def silence(peer: Peer) -> None:
    await peer.handshake()


async def test_the_stock_client_finds_the_plugin_by_its_entry_point_and_calls_through_it() -> None:
    tool = {"name": "echo", "description": "", "inputs": {"type": "object", "properties": {"n": {"type": "integer"}}}}
    with anyio.fail_after(20):
        async with echo_server() as url, AsyncExitStack() as stack:
            manual = {"name": "m", "call_template_type": "websocket", "url": url, "response_format": "json"}
            client = await UtcpClient.create(config={"manual_call_templates": [{**manual, "tools": [tool]}]})
            stack.push_async_callback(client.close)
            answers = await asyncio.gather(*(client.call_tool("m.echo", {"n": n}) for n in range(50)))
            assert answers == [{"n": n} for n in range(50)]


@pytest.mark.parametrize("order", ["ours last", "ours first"])
def test_beside_utcp_websocket_ours_serves_whichever_is_loaded_first(registries: None, order: str) -> None:
    for table in (
        CommunicationProtocol.communication_protocol_factories,
        CallTemplateSerializer.call_template_serializers,
    ):
        table.pop("websocket", None)
    plugins = [utcp_websocket.register, utcp_websocket_anyio.register]
    for register in plugins if order == "ours last" else reversed(plugins):
        register()
    factory = CommunicationProtocol.communication_protocol_factories["websocket"]
    assert isinstance(factory(), WebSocketCommunicationProtocol)
    assert isinstance(CallTemplateSerializer.call_template_serializers["websocket"], WebSocketCallTemplateSerializer)


async def test_the_first_uses_come_at_once_from_many_tasks() -> None:
    protocol = WebSocketCommunicationProtocol()
    with anyio.fail_after(20):
        async with echo_server() as url:
            calls = [protocol.call_tool(None, "manual.t", {}, template(url, message=f"{n}")) for n in range(20)]
            assert await asyncio.gather(*calls) == [f"{n}" for n in range(20)]
            await until_closed(protocol)


async def test_the_task_of_the_first_use_may_end_or_be_cancelled() -> None:
    protocol = WebSocketCommunicationProtocol()
    asked = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        if await peer.receive() == "first":
            asked.set()
        else:
            await peer.send("answer")

    with anyio.fail_after(20):
        async with peer(script) as url:
            first = asyncio.create_task(protocol.call_tool(None, "manual.t", {}, template(url, message="first")))
            await asked.wait()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
            assert await protocol.call_tool(None, "manual.t", {}, template(url, message="second")) == "answer"
            await until_closed(protocol)


async def test_close_may_be_called_by_any_task_any_number_of_times_and_before_any_use() -> None:
    unused = WebSocketCommunicationProtocol()
    await unused.close()
    await unused.close()
    protocol = WebSocketCommunicationProtocol()
    with anyio.fail_after(20):
        async with echo_server() as url:
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
            await asyncio.gather(*(protocol.close() for _ in range(5)))
            await protocol.close()
            for closed in (protocol, unused):
                with pytest.raises(RuntimeError, match="closed"):
                    await closed.call_tool(None, "manual.t", {}, template(url, message="x"))


async def test_close_fails_the_calls_that_still_run() -> None:
    protocol = WebSocketCommunicationProtocol()
    with anyio.fail_after(20):
        async with peer(silence) as url:
            calls = [asyncio.create_task(protocol.call_tool(None, "manual.t", {}, template(url))) for _ in range(3)]
            stream = protocol.call_tool_streaming(None, "manual.t", {}, template(url))
            waiting = asyncio.create_task(stream.__anext__())
            while "4 open" not in repr(protocol):
                await asyncio.sleep(0.001)
            await until_closed(protocol)
            outcomes = await asyncio.gather(*calls, waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [WebSocketClosedError] * 4


async def test_a_cancelled_close_goes_on_closing() -> None:
    protocol = WebSocketCommunicationProtocol()
    released = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())
        await released.wait()

    with anyio.fail_after(20):
        async with peer(script) as url:
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
            closing = asyncio.create_task(protocol.close())
            await anyio.wait_all_tasks_blocked()
            closing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await closing
            released.set()
            await until_closed(protocol)


async def test_close_cancelled_at_any_step_goes_on_closing() -> None:
    async def use(url: str, turns: int) -> bool:
        protocol = WebSocketCommunicationProtocol()
        await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        closing = asyncio.create_task(protocol.close())
        for _ in range(turns):
            await asyncio.sleep(0)
        was_cancelled = closing.cancel()
        await asyncio.wait([closing])
        await until_closed(protocol)
        statistics = protocol.statistics()
        assert (statistics.idle, statistics.active, statistics.closing) == (0, 0, 0)
        return was_cancelled

    with anyio.fail_after(30):
        async with echo_server() as url:
            turns = 0
            while await use(url, turns):
                turns += 1
            assert turns > 2


async def test_an_error_is_not_a_group_and_leaves_the_host_alive() -> None:
    protocol = WebSocketCommunicationProtocol()
    with anyio.fail_after(20):
        with pytest.raises(WebSocketConnectionError):
            await protocol.call_tool(
                None, "manual.t", {}, template("ws://127.0.0.1:1/", message="x", reconnect_attempts=0)
            )
        async with echo_server() as url:
            assert await protocol.call_tool(None, "manual.t", {}, template(url, message="x")) == "x"
            await until_closed(protocol)


def test_on_trio_an_object_that_was_not_entered_says_what_to_do() -> None:
    async def use() -> None:
        protocol = WebSocketCommunicationProtocol()
        with pytest.raises(RuntimeError, match=r"async with.*open_client"):
            await protocol.call_tool(None, "manual.t", {}, template("ws://127.0.0.1:1/", message="x"))
        await protocol.close()

    trio.run(use)


ENDS_WITHOUT_CLOSE = """
    import asyncio, contextlib, trio
    from utcp.utcp_client import UtcpClient
    from utcp_websocket_anyio import ToolServer

    server = ToolServer("tools")

    @server.tool
    def add(a: int, b: int) -> int:
        "Add."
        return a + b

    @server.tool
    async def count(n: int):
        "Count."
        for i in range(n):
            yield i

    async def main(url):
        manual = {{"name": "m", "call_template_type": "websocket", "url": url, **{fields}}}
        client = await UtcpClient.create(config={{"manual_call_templates": [manual]}})
        assert await client.call_tool("m.add", {{"a": 1, "b": 2}}) == 3
        asyncio.ensure_future(client.call_tool("m.add", {{"a": 1, "b": 2}}))
        async for item in client.call_tool_streaming("m.count", {{"n": 100}}):
            if item == 2:
                break
        {end}

    def use(url):
        with contextlib.suppress(KeyError):
            asyncio.run(main(url))

    async def serve():
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, "127.0.0.1", 0)
            await trio.to_thread.run_sync(use, server.url)
            # The client's connections are gone when its loop is: the server has nobody left to wait for.
            nursery.cancel_scope.cancel()

    trio.run(serve)
    print("done")
"""


@pytest.mark.parametrize("end", ["pass", "raise KeyError"], ids=["returns", "raises"])
@pytest.mark.parametrize(
    "fields",
    ["{}", '{"compression": "deflate"}', '{"on_close": [{"send": "bye", "expect": "never"}]}'],
    ids=["plain", "compressed", "farewell"],
)
def test_asyncio_run_that_ends_without_close_leaves_nothing_and_says_nothing(end: str, fields: str) -> None:
    source = textwrap.dedent(ENDS_WITHOUT_CLOSE).format(end=end, fields=fields)
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", source]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    # utcp-websocket has installed a log handler, which also shows how long debug mode takes.
    noise = re.compile(r"\[INFO\]|\[WARNING\] base_events.* took [\d.]+ seconds")
    assert [line for line in outcome.stderr.splitlines() if not noise.search(line)] == []
    assert outcome.stdout == "done\n"
    assert outcome.returncode == 0
