from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest

from utcp_websocket_anyio import WebSocketAuthError, WebSocketToolError

from .servers.node import NodeServer, graphql
from .tools import Tools, open_tools

pytestmark = pytest.mark.anyio

HELLO = "query($name: String!, $after: String) { hello(name: $name, after: $after) }"
COUNTDOWN = "subscription($from: Int!, $pause: Int) { countdown(from: $from, pause: $pause) }"


@pytest.fixture(scope="module")
def server(start: Any) -> NodeServer:
    found: NodeServer = start(graphql)
    return found


def tools_of(server: NodeServer, **other: str) -> Any:
    return open_tools("graphql", {"PORT": server.port, "TOKEN": server.token, **other})


async def test_a_query_with_variables_gives_its_data(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            assert await tools.call("query", query=HELLO, variables={"name": "{{uuid}}"}) == {"hello": "Hello {{uuid}}"}
            assert await tools.call("query", query="{ nothing }") == {"nothing": None}


async def test_pings_are_answered_even_before_the_login_is_acknowledged(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            assert await tools.call("query", query="{ pongs }") == {"pongs": 1}


async def test_queries_at_once_share_a_connection_and_are_answered_in_any_order(
    server: NodeServer, anyio_backend_name: str
) -> None:
    names = [f"{anyio_backend_name} {n}" for n in range(6)]

    async def hello(tools: Tools, name: str, after: str | None) -> None:
        assert await tools.call("query", query=HELLO, variables={"name": name, "after": after}) == {
            "hello": f"Hello {name}"
        }

    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            async with anyio.create_task_group() as group:
                for name, after in zip(names, [*names[1:], None], strict=True):
                    group.start_soon(hello, tools, name, after)
            assert await tools.call("query", query="{ connections }") == {"connections": 1}


async def test_a_subscription_ends_with_complete(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            stream = tools.stream("subscribe", query=COUNTDOWN, variables={"from": 3})
            assert [data["countdown"] async for data in stream] == [3, 2, 1, 0]
            all_of_it = await tools.call("subscribe", query=COUNTDOWN, variables={"from": 1})
            assert all_of_it == [{"countdown": 1}, {"countdown": 0}]


async def test_breaking_off_a_subscription_ends_it_on_the_server(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            stream = tools.stream("subscribe", query=COUNTDOWN, variables={"from": 1000, "pause": 10})
            async with aclosing(stream):
                async for _ in stream:
                    assert await tools.call("query", query="{ counting }") == {"counting": 1}
                    break
            while await tools.call("query", query="{ counting }") != {"counting": 0}:
                pass


async def test_an_invalid_document_and_a_failing_resolver_are_tool_errors(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("query", query="{ noSuchField }")
            assert raised.value.response["type"] == "error"
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("query", query="{ broken }")
            assert raised.value.response["payload"]["errors"][0]["message"] == "it is broken"
            with pytest.raises(WebSocketToolError):
                await tools.call("subscribe", query="subscription { noSuchField }")
            assert await tools.call("query", query="{ nothing }") == {"nothing": None}


async def test_a_refused_login_is_an_authentication_error_with_the_reason(server: NodeServer) -> None:
    with anyio.fail_after(20):
        async with tools_of(server, TOKEN="wrong") as tools:
            with pytest.raises(WebSocketAuthError, match="4403: Forbidden"):
                await tools.call("query", query="{ nothing }")
