"""What had come when a connection ended reaches its caller, whichever task notices the end, and before it.

A stream's consumer is away, so that messages lie unread, while a ping, a heartbeat or a reply finds the connection
closed; or a call is still sending when the answer is there and the connection is not any more.
"""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.peers import Peer, peer
from support.protocol import entered, template

from utcp_websocket_anyio import WebSocketCommunicationProtocol, WebSocketToolError

pytestmark = pytest.mark.anyio

BY_ID: dict[str, Any] = {
    "message": {"id": "{{uuid}}"},
    "message_filter": {"id": "{{uuid}}"},
    "response_format": "json",
    "ping_interval": None,
}
NOTICED_BY: dict[str, dict[str, Any]] = {
    "a ping": {"ping_interval": 0.05, "pong_timeout": 60},
    "a heartbeat": {"heartbeat": {"send": {"beat": 1}, "every": 0.05}},
}


async def until_lost(protocol: WebSocketCommunicationProtocol) -> None:
    while protocol.statistics().active:
        await anyio.sleep(0.001)


@pytest.mark.parametrize("ending", ["a close", "the end of the connection"])
@pytest.mark.parametrize("noticed_by", NOTICED_BY)
async def test_a_stream_gives_what_had_come_before_its_end(
    multiplex: bool, noticed_by: str, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than may be queued for a slow consumer of a connection that goes on.
    monkeypatch.setattr("utcp_websocket_anyio._calls.exchange._MAX_QUEUED_MESSAGES", 1000 if multiplex else 50)

    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        for n in range(100):
            await peer.send({"id": request["id"], "n": n})
        if ending == "a close":
            await peer.close(1000)
        await peer.stream.aclose()
        raise anyio.EndOfStream

    fields = {**BY_ID, "result": {"path": "n"}, "multiplex": multiplex, "end_on_close": "any", **NOTICED_BY[noticed_by]}
    async with entered() as protocol, peer(script) as url:
        stream = protocol.call_tool_streaming(None, "m.t", {}, template(url, **fields))
        received = [await stream.__anext__()]
        await until_lost(protocol)
        received += [item async for item in stream]
    assert received == list(range(100))


async def test_a_call_gets_the_answer_that_came_while_it_was_sending(both_exchanges: None) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive_exactly(1000)
        await peer.send({"error": "too large for this server"})
        await peer.close(1009, "too large")
        await peer.reset()
        raise anyio.EndOfStream

    fields: dict[str, Any] = {"message": {"pad": "{{args.pad}}"}, "error_filter": {"error": {"$any": True}}}
    async with entered() as protocol, peer(script) as url:
        call_template = template(url, ping_interval=None, **fields)
        with pytest.raises(WebSocketToolError, match="too large for this server"):
            await protocol.call_tool(None, "m.t", {"pad": "x" * 30_000_000}, call_template)


async def test_a_request_of_several_messages_gets_the_answer_that_came_amid_them(multiplex: bool) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        await peer.receive_exactly(1000)
        await peer.send({"id": request["id"], "answer": "enough"})
        await peer.reset()
        raise anyio.EndOfStream

    request = [{"send": {"id": "{{uuid}}"}}, {"send": "{{args.pad}}"}, {"send": "{{args.pad}}"}]
    fields = {**BY_ID, "message": None, "request": request, "multiplex": multiplex}
    async with entered() as protocol, peer(script) as url:
        answer = await protocol.call_tool(None, "m.t", {"pad": "x" * 30_000_000}, template(url, **fields))
        assert answer["answer"] == "enough"


async def test_a_connection_that_ends_while_its_consumer_is_away_leaves_its_place_to_others() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        request = await peer.receive_json()
        await peer.send({"id": request["id"], "n": 1})
        await peer.send({"id": request["id"], "n": 2})
        await peer.close(1000)

    async with entered() as protocol, peer(script) as url:
        only_one = template(url, **{**BY_ID, "max_connections": 1, "timeout": 60})
        stream = protocol.call_tool_streaming(None, "m.t", {}, only_one)
        received = [await stream.__anext__()]
        assert (await protocol.call_tool(None, "m.t", {}, only_one))["n"] == 1
        received += [item async for item in stream]
    assert [item["n"] for item in received] == [1, 2]
