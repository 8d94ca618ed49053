"""Peers that send thousands of frames that cost them nothing, while a connection is idle and during a call.

No other call is held up, and the connection survives or is given up as the contract says.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.faulty_server import UNASKED, FaultyServer, Mischief
from support.leftovers import nothing_is_left
from support.peers import TEXT, frame, peer
from support.protocol import answer_everything, template

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol, WebSocketProtocolError

pytestmark = pytest.mark.anyio

OWN: dict[str, Any] = {"message_filter": {"id": "{{uuid}}"}}
MODES: dict[str, dict[str, Any]] = {
    "exclusive": {},
    "filtered": {**OWN},
    "multiplexed": {"multiplex": True, **OWN},
    "compressed": {"compression": "deflate", "compression_threshold": 0, **OWN},
}
CONTROL = [Mischief.PINGS, Mischief.PONGS]
# Without a filter, a call takes every message for its own.
FLOODS = [pytest.param(mode, flood, id=f"{mode}-{flood.name}") for mode in MODES for flood in CONTROL] + [
    pytest.param(mode, flood, id=f"{mode}-{flood.name}") for mode in MODES if MODES[mode] for flood in UNASKED
]
USES = [("exclusive", True)] + [(mode, is_idle) for mode in MODES if MODES[mode] for is_idle in (True, False)]


def call_template(url: str, **fields: Any) -> WebSocketCallTemplate:
    message = {"id": "{{uuid}}", "n": 1, "start": 0, "parts": 1, "pad": "", "pause": "{{args.pause}}", "ends": True}
    return template(url, message=message, response_format="json", result={"path": "part"}, ping_interval=None, **fields)


@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "in a call"])
@pytest.mark.parametrize(("mode", "flood"), FLOODS)
async def test_a_connection_survives_a_flood_and_its_calls_are_right(mode: str, flood: Mischief, is_idle: bool) -> None:
    server = FaultyServer(compressed=mode == "compressed")
    with anyio.fail_after(60):
        async with nothing_is_left(), WebSocketCommunicationProtocol() as protocol, peer(server) as url:
            calls = call_template(url, **MODES[mode])

            async def call(pause: float = 0) -> None:
                assert await protocol.call_tool(None, "manual.t", {"pause": pause}, calls) == 0

            await call()
            for _ in range(3):
                conversation = server.conversations[0]
                async with anyio.create_task_group() as task_group:
                    if not is_idle:
                        task_group.start_soon(call, 0.01)
                    await server.do(flood, conversation)
                    await conversation.until_read()
                    conversation.control_frames = 0
                await call()
            assert server.connections == 1


@pytest.mark.parametrize("is_idle", [True, False], ids=["idle", "in a call"])
@pytest.mark.parametrize("mode", MODES)
async def test_too_many_control_frames_end_the_connection_and_the_next_call_is_right(mode: str, is_idle: bool) -> None:
    server = FaultyServer(compressed=mode == "compressed")
    with anyio.fail_after(60):
        async with nothing_is_left(), WebSocketCommunicationProtocol() as protocol, peer(server) as url:
            calls = call_template(url, **MODES[mode])

            async def call(pause: float = 0) -> None:
                assert await protocol.call_tool(None, "manual.t", {"pause": pause}, calls) == 0

            async def fail() -> None:
                with pytest.raises(WebSocketProtocolError, match="control frames in a row"):
                    await call(pause=60)

            await call()
            async with anyio.create_task_group() as task_group:
                if not is_idle:
                    task_group.start_soon(fail)
                    while not protocol.statistics().active:
                        await anyio.lowlevel.checkpoint()
                await server.do(Mischief.TOO_MANY_PINGS, server.conversations[0])
            assert server.exceeded
            while (figures := protocol.statistics()).idle + figures.active + figures.closing:
                await anyio.sleep(0.001)
            await call()
            assert server.connections == 2


@pytest.mark.parametrize(("mode", "is_idle"), USES)
async def test_calls_to_another_endpoint_go_on_during_a_flood(mode: str, is_idle: bool) -> None:
    """Measured in calls and not in seconds: some of them are made while one flood is taken in."""
    server = FaultyServer(compressed=mode == "compressed")
    with anyio.fail_after(60):
        async with (
            nothing_is_left(),
            WebSocketCommunicationProtocol() as protocol,
            peer(server) as url,
            peer(answer_everything) as other,
        ):
            calls = call_template(url, **MODES[mode])
            await protocol.call_tool(None, "manual.t", {"pause": 0}, calls)
            conversation = server.conversations[0]
            made = 0
            async with anyio.create_task_group() as task_group:

                async def call_the_other() -> None:
                    nonlocal made
                    while True:
                        assert await protocol.call_tool(None, "other.t", {}, template(other, message="x")) == "x"
                        made += 1

                async def flood() -> None:
                    if not is_idle:
                        task_group.start_soon(protocol.call_tool, None, "manual.t", {"pause": 60}, calls)
                    await conversation.peer.send_raw(frame(TEXT) * 100_000)
                    await conversation.until_read()
                    task_group.cancel_scope.cancel()

                task_group.start_soon(call_the_other)
                task_group.start_soon(flood)
            assert made >= 5
