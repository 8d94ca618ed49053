from __future__ import annotations

import base64
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from utcp_websocket_anyio import WebSocketAuthError

from .servers.node import NodeServer, socketio
from .tools import Tools, open_tools

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(start: Any) -> NodeServer:
    found: NodeServer = start(socketio)
    return found


def tools_of(server: NodeServer, **other: str) -> Any:
    return open_tools("socketio", {"PORT": server.port, "TOKEN": server.token, **other})


@pytest.mark.parametrize(
    "value", ["text", 'a "quoted" ]1[ text\n', 7, None, [1, [2]], {"a": {"b": None}}, "{{call_id}}"]
)
async def test_an_acknowledgement_is_the_answer_with_its_json_type(server: NodeServer, value: Any) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            assert await tools.call("request", event="echo", data=value) == [value]


async def test_acknowledgements_that_come_in_reverse_order_are_told_apart_by_their_numbers(server: NodeServer) -> None:
    async def request(tools: Tools, event: str, n: int) -> None:
        assert await tools.call("request", event=event, data=n) == [n]

    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            async with anyio.create_task_group() as group:
                for n in range(5):
                    group.start_soon(request, tools, "hold", n)
                for n in range(120):
                    group.start_soon(request, tools, "echo", n)
            assert await tools.call("request", event="connections", data=None) == [1]


async def test_text_pings_keep_an_idle_connection_open(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            (before,) = await tools.call("request", event="farewells", data=None)
            # The server gives up who is silent for 600 ms.
            await anyio.sleep(1.5)
            assert await tools.call("request", event="connections", data=None) == [1]
            assert await tools.call("request", event="farewells", data=None) == [before]


async def test_leaving_says_farewell(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            (before,) = await tools.call("request", event="farewells", data=None)
        async with tools_of(server) as tools:
            assert await tools.call("request", event="farewells", data=None) == [before + 1]


async def test_a_broadcast_event_reaches_the_listeners(server: NodeServer) -> None:
    heard: list[Any] = []

    async def listen(tools: Tools) -> None:
        stream = tools.stream("listen", event="said")
        async with aclosing(stream):
            async for said in stream:
                heard.append(said["text"])
                if len(heard) == 3:
                    return

    with anyio.fail_after(20):
        async with tools_of(server) as tools, tools_of(server) as others, anyio.create_task_group() as group:
            assert await tools.call("request", event="echo", data=1) == [1]
            group.start_soon(listen, tools)
            await anyio.wait_all_tasks_blocked()
            for text in ("one", "two", "three"):
                assert await others.call("emit", event="say", data=text) is None
    assert heard == ["one", "two", "three"]


async def test_a_stream_of_events_ends_at_the_event_named_for_it(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            stream = tools.stream("converse", event="count", data=1000, answer="number", end="counted")
            assert [n async for n in stream] == list(range(1, 1001))
            numbers = await tools.call("converse", event="count", data=3, answer="number", end="counted")
            assert numbers == [1, 2, 3]


async def test_binary_attachments_go_both_ways(server: NodeServer) -> None:
    content = bytes(range(256)) * 300
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            sent = base64.b64encode(content).decode()
            assert await tools.call("upload", event="length", content=sent) == [len(content)]
            assert await tools.call("download", event="bytes", data=200, answer="content") == bytes(range(200))
            assert await tools.call("upload", event="length", content="") == [0]


async def test_a_refused_login_is_an_authentication_error(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server, TOKEN="wrong") as tools:
            with pytest.raises(WebSocketAuthError):
                await tools.call("request", event="echo", data=1)
