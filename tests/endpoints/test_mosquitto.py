from __future__ import annotations

import base64
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


def field(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()


def packet(first: int, body: bytes) -> str:
    """An MQTT packet of at most 127 bytes, in base64."""
    return base64.b64encode(bytes([first, len(body)]) + body).decode()


def connect(user: str, password: str, *, will: str | None = None) -> str:
    flags, last_words = (0xC2, b"") if will is None else (0xC6, field("home/lamp/level") + field(will))
    return packet(
        0x10, field("MQTT") + bytes([4, flags, 0, 0]) + field("") + last_words + field(user) + field(password)
    )


def tools_of(server: Mosquitto, login: str | None = None) -> Any:
    login = login or connect(server.user, server.password)
    return open_tools("mosquitto", {"PORT": server.port, "CONNECT": login})


async def test_a_message_is_acknowledged_and_kept(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            assert await tools.call("set_level", level="042") == bytes.fromhex("40020001")
            assert await tools.call("level") == "042"
            assert await tools.call("set_level", level="100") == bytes.fromhex("40020001")
            assert await tools.call("level") == "100"


async def test_messages_are_streamed_as_they_are_published(server: Mosquitto) -> None:
    levels = [f"{level:03}" for level in range(0, 100, 7)]
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            await tools.call("set_level", level="050")
            stream = tools.stream("watch_level")
            async with aclosing(stream):
                assert await anext(stream) == "050"
                for level in levels:
                    await tools.call("publish", packet=packet(0x30, field("home/lamp/level") + level.encode()))
                    assert await anext(stream) == level


async def test_pings_at_once_are_answered_on_connections_of_their_own(server: Mosquitto) -> None:
    answers: list[bytes] = []

    async def ping(tools: Tools) -> None:
        answers.append(await tools.call("ping"))

    with anyio.fail_after(20):
        async with tools_of(server) as tools, anyio.create_task_group() as group:
            for _ in range(25):
                group.start_soon(ping, tools)
    assert answers == [bytes.fromhex("d000")] * 25


async def test_a_farewell_keeps_the_broker_from_publishing_the_will(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools, tools_of(server) as others:
            await others.call("set_level", level="001")
            stream = tools.stream("watch_level")
            async with aclosing(stream):
                assert await anext(stream) == "001"
                async with tools_of(server, connect(server.user, server.password, will="off")) as leaving:
                    await leaving.call("ping")
                await others.call("set_level", level="002")
                assert await anext(stream) == "002"


async def test_a_refused_login_is_an_authentication_error(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        async with tools_of(server, connect(server.user, "wrong")) as tools:
            with pytest.raises(WebSocketAuthError):
                await tools.call("ping")


async def test_a_packet_that_is_no_base64_is_refused_before_anything_is_sent(server: Mosquitto) -> None:
    with anyio.fail_after(20):
        async with tools_of(server) as tools:
            with pytest.raises(ValueError, match="base64"):
                await tools.call("publish", packet="no base64!")
