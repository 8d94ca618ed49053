"""Establishing connections: attempts, back-off, deadlines, settings, compression."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import anyio
import pytest
from support.backends import virtual_time
from support.peers import TEXT, Peer, echo_server, frame, peer
from support.protocol import answer_everything, entered, template, until_idle

from utcp_websocket_anyio import (
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
    WebSocketProtocolError,
    WebSocketTimeoutError,
)
from utcp_websocket_anyio._connections import connector
from utcp_websocket_anyio._connections.connector import backoff

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("status", "attempts"),
    [("503 Busy", 3), ("429 Too Many", 3), ("500 Oops", 1), ("501 No", 1), ("404 Not Found", 1), ("401 Who", 1)],
)
async def test_an_attempt_is_repeated_where_the_server_is_busy_and_not_after_other_answers(
    status: str, attempts: int
) -> None:
    made = 0

    async def script(peer: Peer) -> None:
        nonlocal made
        made += 1
        await peer.answer(status)

    async with entered() as protocol, peer(script) as url:
        with pytest.raises(WebSocketConnectionError) as caught:
            await protocol.call_tool(None, "manual.t", {}, template(url, message="x"))
        assert caught.value.status == int(status[:3])
    assert made == attempts


async def test_a_later_attempt_may_succeed() -> None:
    made = 0

    async def script(peer: Peer) -> None:
        nonlocal made
        made += 1
        if made < 3:
            await peer.read_request()
            await peer.reset()
        else:
            await answer_everything(peer)

    async with entered() as protocol, peer(script) as url:
        assert await protocol.call_tool(None, "manual.t", {}, template(url, message="x")) == "x"
    assert made == 3


@pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")])
async def test_when_connection_timeout_cuts_the_attempts_short_the_last_error_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[float] = []

    async def open_wire(target: Any) -> Any:
        times.append(anyio.current_time())
        raise WebSocketConnectionError(f"attempt {len(times)}", endpoint=target.endpoint, transient=True)

    async def open_no_wire(target: Any) -> Any:
        await anyio.sleep_forever()

    monkeypatch.setattr(connector, "open_wire", open_wire)
    async with WebSocketCommunicationProtocol() as protocol:
        endless = template("ws://127.0.0.1:9/", message="x", reconnect_attempts=1000, connection_timeout=10)
        began = anyio.current_time()
        with pytest.raises(WebSocketConnectionError, match="attempt"):
            await protocol.call_tool(None, "manual.t", {}, endless)
        assert anyio.current_time() - began == pytest.approx(10)
        pauses = [later - earlier for earlier, later in pairwise(times)]
        assert pauses[0] < 0.11
        assert max(pauses) > 1, "the pauses grow"
        monkeypatch.setattr(connector, "open_wire", open_no_wire)
        began = anyio.current_time()
        with pytest.raises(WebSocketTimeoutError) as caught:
            await protocol.call_tool(None, "manual.t", {}, endless)
        assert caught.value.phase == "connect"
        assert anyio.current_time() - began == pytest.approx(10)


def test_pauses_double_up_to_a_limit_and_differ_from_each_other() -> None:
    for retry in range(1, 20):
        longest = min(0.1 * 2 ** (retry - 1), 3)
        pauses = {backoff(retry) for _ in range(50)}
        assert len(pauses) > 1
        assert longest / 2 <= min(pauses) <= max(pauses) <= longest


async def test_header_fields_url_and_message_share_the_arguments_out() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        while True:
            path = peer.request.split(" ")[1]
            body = json.loads(await peer.receive())
            await peer.send(
                {"path": path, "tenant": peer.header("X-Tenant"), "user": peer.header("X-User"), "body": body}
            )

    async with entered() as protocol, peer(script) as url:
        call_template = template(
            url + "rooms/{{args.room}}?q={{args.q}}",
            headers={"X-Tenant": "static", "X-User": "static"},
            header_fields=["X-User", "X-Absent"],
            response_format="json",
        )
        arguments = {"room": "a/b?c#d", "q": "x&y=z", "X-User": "u1", "rest": 1}
        assert await protocol.call_tool(None, "manual.t", arguments, call_template) == {
            "path": "/rooms/a%2Fb%3Fc%23d?q=x%26y%3Dz",
            "tenant": "static",
            "user": "u1",
            "body": {"rest": 1},
        }


async def test_a_connection_is_never_shared_across_credentials_urls_headers_manuals_or_settings() -> None:
    seen: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        seen.append(peer.request)
        while True:
            await peer.send(await peer.receive())

    def key(value: str) -> dict[str, Any]:
        return {"auth": {"auth_type": "api_key", "api_key": value, "var_name": "X-Key", "location": "header"}}

    async with entered() as protocol, peer(script) as url:
        variants: list[tuple[str, str, dict[str, Any]]] = [
            ("manual.t", url, key("one")),
            ("manual.t", url, key("two")),
            ("manual.t", url, {}),
            ("manual.t", url + "other", {}),
            ("manual.t", url, {"headers": {"X-A": "1"}}),
            ("manual.t", url, {"max_message_size": 1000}),
            ("manual.t", url, {"ping_interval": 7}),
            ("another.t", url, {}),
        ]
        for _ in range(3):
            for name, target, fields in variants:
                assert await protocol.call_tool(None, name, {}, template(target, message="x", **fields)) == "x"
        assert len(seen) == len(variants)
        await until_idle(protocol, len(variants))


async def test_a_message_over_the_limit_is_a_protocol_error() -> None:
    async with entered() as protocol, echo_server(respond=lambda _: ["x" * 2000]) as url:
        for fields in ({}, {"compression": "deflate"}):
            limited = template(url, message="x", max_message_size=1000, **fields)
            with pytest.raises(WebSocketProtocolError, match="1000 bytes"):
                await protocol.call_tool(None, "manual.t", {}, limited)
        await until_idle(protocol, 0)


async def test_compression_is_offered_and_used_from_its_threshold_on() -> None:
    compressed: list[bool] = []

    async def script(peer: Peer) -> None:
        await peer.read_request()
        offered = peer.header("Sec-WebSocket-Extensions") or ""
        assert "permessage-deflate" in offered
        accept = "Sec-WebSocket-Extensions: permessage-deflate"
        await peer.handshake(accept)
        for _ in range(2):
            await peer.receive_frame()
            compressed.append(peer.reserved == 0x40)
            await peer.send("ok")

    async with entered() as protocol, peer(script) as url:
        for text in ("short", "long " * 100):
            call_template = template(url, message=text, compression="deflate", compression_threshold=100)
            assert await protocol.call_tool(None, "manual.t", {}, call_template) == "ok"
    assert compressed == [False, True]


async def test_compressed_conversations_are_understood_and_bombs_are_not() -> None:
    async with entered() as protocol, echo_server(compression=True) as url:
        for text in ("short", "long " * 10_000, "ü" * 5_000):
            assert (
                await protocol.call_tool(None, "manual.t", {}, template(url, message=text, compression="deflate"))
                == text
            )
    async with (
        entered() as protocol,
        echo_server(compression=True, respond=lambda _: ["0" * 20_000_000]) as url,
    ):
        bomb = template(url, message="x", compression="deflate", max_message_size=1_000_000)
        with pytest.raises(WebSocketProtocolError, match="1000000 bytes"):
            await protocol.call_tool(None, "manual.t", {}, bomb)


async def test_a_subprotocol_is_offered_and_insisted_on() -> None:
    async def script(peer: Peer) -> None:
        await peer.read_request()
        offered = peer.header("Sec-WebSocket-Protocol")
        await peer.handshake(*([f"Sec-WebSocket-Protocol: {offered}"] if offered == "good" else []))
        await peer.send_raw(frame(TEXT, b"hello"))

    async with entered() as protocol, peer(script) as url:
        listen = {"listen_only": True, "expected_responses": 1}
        assert await protocol.call_tool(None, "manual.t", {}, template(url, protocol="good", **listen)) == "hello"
        with pytest.raises(WebSocketProtocolError, match="subprotocol"):
            await protocol.call_tool(None, "manual.t", {}, template(url, protocol="bad", **listen))
