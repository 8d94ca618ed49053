from __future__ import annotations

from contextlib import aclosing
from typing import Any

import anyio
import pytest

from utcp_websocket_anyio import WebSocketAuthError

from .servers.mosquitto import Mosquitto, mosquitto
from .tools import Tools, open_tools

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server(start: Any) -> Mosquitto:
    found: Mosquitto = start(mosquitto)
    return found


TOPIC = "home/lamp/level"


def tools_of(server: Mosquitto, password: str | None = None) -> Any:
    variables = {"PORT": server.port, "USER": server.user, "PASSWORD": password or server.password}
    return open_tools("mosquitto", variables)


async def test_a_message_is_acknowledged_and_kept(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            assert await tools.call("set", topic=TOPIC, payload="42 %") == bytes.fromhex("40020001")
            assert await tools.call("get", topic=TOPIC) == "42 %"
            assert await tools.call("set", topic=TOPIC, payload="é ☃ {{uuid}}") == bytes.fromhex("40020001")
            assert await tools.call("get", topic=TOPIC) == "é ☃ {{uuid}}"


async def test_messages_are_streamed_as_they_are_published(server: Mosquitto) -> None:
    levels = [f"{level} %" for level in range(0, 100, 7)]
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            await tools.call("set", topic=TOPIC, payload="50 %")
            stream = tools.stream("watch", topic=TOPIC)
            async with aclosing(stream):
                assert await anext(stream) == "50 %"
                for level in levels:
                    await tools.call("publish", topic=TOPIC, payload=level)
                    assert await anext(stream) == level


async def test_leaving_a_topic_tells_the_broker_and_keeps_the_connection(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            await tools.call("set", topic=TOPIC, payload="1")
            before = server.said("New client connected")
            for _ in range(10):
                async with aclosing(tools.stream("watch", topic=TOPIC)) as stream:
                    assert await anext(stream) == "1"
                # Until the broker has acknowledged it, the next call has a connection of its own.
                assert await tools.call("get", topic=TOPIC) == "1"
        assert server.said("New client connected") <= before + 5


async def test_calls_at_once_are_answered_on_connections_of_their_own(server: Mosquitto) -> None:
    answers: dict[str, str] = {}

    async def set_and_get(tools: Tools, name: str) -> None:
        await tools.call("set", topic=f"home/{name}", payload=name)
        answers[name] = await tools.call("get", topic=f"home/{name}")

    names = [f"{n:03}" for n in range(25)]
    with anyio.fail_after(20):
        async with tools_of(server) as tools, anyio.create_task_group() as group:
            for name in names:
                group.start_soon(set_and_get, tools, name)
    assert answers == {name: name for name in names}


async def test_a_client_says_farewell(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        before = server.said(" disconnected.")
        async with tools_of(server) as tools:
            await tools.call("publish", topic=TOPIC, payload="0")
        while server.said(" disconnected.") == before:
            await anyio.sleep(0.01)


async def test_a_refused_login_is_an_authentication_error(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        async with tools_of(server, "wrong") as tools:
            with pytest.raises(WebSocketAuthError):
                await tools.call("publish", topic=TOPIC, payload="0")
