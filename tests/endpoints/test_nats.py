from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from utcp_websocket_anyio import WebSocketAuthError, WebSocketToolError

from .servers.nats import Nats, nats
from .tools import Tools, open_tools

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(start: Any) -> Nats:
    found: Nats = start(nats)
    return found


def tools_of(server: Nats, **other: str) -> Any:
    return open_tools("nats", {"PORT": server.port, "USER": server.user, "PASSWORD": server.password, **other})


async def subscribed(tools: Tools, stream: AsyncGenerator[str, None]) -> None:
    """Publish for ``ready`` until the stream has it: what was published before a subscription is lost."""
    async with anyio.create_task_group() as group:
        group.start_soon(_publish_for_ever, tools)
        await anext(stream)
        group.cancel_scope.cancel()


async def _publish_for_ever(tools: Tools) -> None:
    while True:
        await tools.call("publish", subject="test.ready", payload="")


@pytest.mark.parametrize(
    "payload", ["hello", "", "é and ☃ are more bytes than characters", "two\r\nlines {{uuid}} ${PORT}"]
)
async def test_what_is_published_reaches_a_subscriber(server: Nats, payload: str) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            stream = tools.stream("subscribe", subject="test.>")
            async with aclosing(stream):
                await subscribed(tools, stream)
                await tools.call("publish", subject="test.subject", payload=payload)
                async for text in stream:
                    if "test.subject" in text:
                        break
    head, _, rest = text[text.index("MSG test.subject") :].partition("\r\n")
    assert head.split()[-1] == str(len(payload.encode()))
    assert rest == f"{payload}\r\n"


async def test_a_request_is_answered_at_an_inbox_of_its_own(server: Nats) -> None:
    async def respond(tools: Tools, stream: AsyncGenerator[str, None]) -> None:
        async for text in stream:
            for line in text.split("\r\n"):
                if line.startswith("MSG test.double"):
                    _, _, _, inbox, _ = line.split()
                elif line.isdigit():
                    await tools.call("publish", subject=inbox, payload=str(2 * int(line)))

    answers: dict[int, str] = {}

    async def ask(tools: Tools, n: int) -> None:
        answers[n] = await tools.call("request", subject="test.double", payload=str(n))

    with anyio.fail_after(30):
        async with tools_of(server) as tools, tools_of(server) as others:
            stream = others.stream("subscribe", subject="test.>")
            async with aclosing(stream):
                await subscribed(others, stream)
                async with anyio.create_task_group() as responding:
                    responding.start_soon(respond, others, stream)
                    async with anyio.create_task_group() as asking:
                        for n in range(40):
                            asking.start_soon(ask, tools, n)
                    responding.cancel_scope.cancel()
    assert answers == {n: str(2 * n) for n in range(40)}


async def test_a_request_without_a_responder_fails_at_once(server: Nats) -> None:
    with anyio.fail_after(10):
        async with tools_of(server) as tools:
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("request", subject="test.nobody", payload="anybody?")
            assert b"503" in raised.value.response


async def test_pings_in_binary_frames_keep_an_idle_connection_open(server: Nats) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            await tools.call("publish", subject="test.idle", payload="")
            before = await server.connections_so_far()
            await anyio.sleep(2.5)
            await tools.call("publish", subject="test.idle", payload="")
            assert await server.connections_so_far() == before


async def test_a_violation_of_permissions_is_a_tool_error_and_the_connection_stays(server: Nats) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            await tools.call("publish", subject="test.allowed", payload="x")
            with pytest.raises(WebSocketToolError) as raised:
                await tools.call("publish", subject="forbidden", payload="x")
            assert b"Permissions Violation" in raised.value.response
            assert await tools.call("publish", subject="test.allowed", payload="x") == b"PONG\r\n"


async def test_a_subject_cannot_add_a_command(server: Nats) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            stream = tools.stream("subscribe", subject="test.>")
            async with aclosing(stream):
                await subscribed(tools, stream)
                subject = "test.a 0\r\n\r\nPUB test.injected"
                await tools.call("publish", subject=subject, payload="x")
                await tools.call("publish", subject="test.last", payload="x")
                seen = ""
                while "test.last" not in seen:
                    seen += await anext(stream)
    assert "MSG test.injected" not in seen


async def test_a_large_message_arrives_whole(server: Nats) -> None:
    payload = "0123456789" * 100_000
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            stream = tools.stream("subscribe", subject="test.>")
            async with aclosing(stream):
                await subscribed(tools, stream)
                await tools.call("publish", subject="test.large", payload=payload)
                async for text in stream:
                    if "test.large" in text:
                        break
    assert text.endswith(f" {len(payload)}\r\n{payload}\r\n")


async def test_a_refused_login_is_an_authentication_error(server: Nats) -> None:
    with anyio.fail_after(20):
        async with tools_of(server, PASSWORD="wrong") as tools:
            with pytest.raises(WebSocketAuthError):
                await tools.call("publish", subject="test.x", payload="x")
