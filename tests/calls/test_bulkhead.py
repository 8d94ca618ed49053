"""The bulkhead: an unexpected error ends its own call or connection, is logged once, and touches nobody else."""

from __future__ import annotations

import logging
from typing import Any

import anyio
import pytest
from support.peers import Peer, peer
from support.protocol import entered, template

from utcp_websocket_anyio import WebSocketError, WebSocketTimeoutError
from utcp_websocket_anyio._calls.exchange import Exchange
from utcp_websocket_anyio._calls.leg import Leg
from utcp_websocket_anyio._calls.responses import ResponseClassifier
from utcp_websocket_anyio._calls.single import SingleCall
from utcp_websocket_anyio._connections.connection import Connection
from utcp_websocket_anyio._connections.exclusive import ExclusiveConnection
from utcp_websocket_anyio._connections.heartbeat import Beats
from utcp_websocket_anyio._connections.multiplexed import Router
from utcp_websocket_anyio._connections.outbox import Outbox

pytestmark = pytest.mark.anyio

FIELDS: dict[str, Any] = {
    "message": {"id": "{{call_id}}"},
    "message_filter": {"id": "{{call_id}}"},
    "response_format": "json",
    "response_timeout": 0.5,
    "ping_interval": 0.05,
    "heartbeat": {"send": {"beat": True}, "every": 0.02, "expect": {"beat": True}},
    "on_message": [{"match": {"ping": True}, "reply": {"pong": True}}],
    "on_end": [{"send": {"bye": "{{call_id}}"}, "when": "always"}],
    "on_close": [{"send": {"closing": True}}],
}

PLACES: list[tuple[type, str]] = [
    (ResponseClassifier, "classify"),
    (ResponseClassifier, "value"),
    (Leg, "accept"),
    (Leg, "send_first"),
    (Leg, "say_farewell"),
    (Exchange, "expire"),
    (Exchange, "accepted"),
    (SingleCall, "accept"),
    (SingleCall, "expire"),
    (SingleCall, "fail"),
    (Connection, "_handle"),
    (Connection, "_take_in_record"),
    (Connection, "_do_as_told"),
    (Connection, "_ping"),
    (Connection, "_transmit"),
    (Connection, "_say_farewell"),
    (ExclusiveConnection, "_deliver"),
    (Beats, "run"),
    (Beats, "answered"),
    (Router, "_candidates"),
    (Outbox, "send_all"),
]


async def talkative(peer: Peer) -> None:
    await peer.handshake()
    while True:
        request = await peer.receive_json()
        if "id" in request:
            await peer.send({"ping": True})
            await peer.send(request)
        elif "beat" in request:
            await peer.send(request)


@pytest.mark.parametrize("multiplex", [False, True], ids=["exclusive", "shared"])
@pytest.mark.parametrize("error", [RecursionError, ValueError("secret")], ids=["recursion", "value"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[0].__name__}.{place[1]}")
async def test_an_unexpected_error_ends_nothing_else(
    place: tuple[type, str],
    error: Any,
    multiplex: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    kind, name = place
    original = getattr(kind, name)
    armed = False

    def fails(self: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal armed
        if armed:
            armed = False
            raise error
        return original(self, *arguments, **options)

    monkeypatch.setattr(kind, name, fails)
    caplog.set_level(logging.ERROR)
    fields = {**FIELDS, "on_end": None} if kind is SingleCall else FIELDS
    async with entered(30) as protocol, peer(talkative) as url:
        victim = template(url + "victim", multiplex=multiplex, **fields)
        other = template(url + "other", multiplex=multiplex, **fields)
        assert "id" in await protocol.call_tool(None, "m.t", {}, other)
        assert "id" in await protocol.call_tool(None, "m.t", {}, victim)
        armed = True
        # The error is thrown once; whatever it hits fails with this package's error, and nothing else does.
        failures = 0
        for made in (victim, other, other, victim, other, other, victim):
            try:
                assert "id" in await protocol.call_tool(None, "m.t", {}, made)
            except WebSocketError:
                failures += 1
            await anyio.sleep(0.02)
        assert failures <= 1
        armed = False
        for made in (victim, other):
            assert "id" in await protocol.call_tool(None, "m.t", {}, made)
    internal = [record for record in caplog.records if "internal error" in record.getMessage()]
    assert len(internal) <= 1
    assert "secret" not in caplog.text.replace('ValueError("secret")', "")


async def test_one_while_a_call_is_left_leaves_its_connection_in_order(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any) -> None:
        raise RecursionError

    monkeypatch.setattr(SingleCall, "_part", fails)
    caplog.set_level(logging.ERROR)
    fields: dict[str, Any] = {
        "message": {"id": "{{call_id}}"}, "message_filter": {"id": 0, "of": "{{call_id}}"}, "multiplex": True,
        "on_end": [{"send": {"bye": "{{call_id}}"}}], "response_timeout": 0.05,
    }  # fmt: skip
    async with entered(30) as protocol, peer(talkative) as url:
        for _ in range(3):
            with pytest.raises(WebSocketTimeoutError):
                await protocol.call_tool(None, "m.t", {}, template(url, **fields))
        statistics = protocol.statistics()
        assert (statistics.active, statistics.idle) == (0, 1)
    told = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert told == ["internal error while leaving a call"] * 3
