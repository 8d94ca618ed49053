"""Logs and errors show no secrets."""

from __future__ import annotations

import logging

import pytest
from support.peers import TEXT, Peer, frame, peer
from support.protocol import entered, template

from utcp_websocket_anyio import (
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketProtocolError,
)

pytestmark = pytest.mark.anyio


async def test_no_log_record_and_no_error_text_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive()
        await peer.send("hunter2-in-a-message")
        await peer.send_raw(frame(TEXT, b"hunter2-\xff"))

    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    async with entered() as protocol, peer(script) as url:
        secret = template(
            url + "path?token=hunter2-in-query",
            headers={"X-Key": "hunter2-in-header"},
            auth={"auth_type": "basic", "username": "hunter2", "password": "hunter2"},
            message="hunter2-in-request",
        )
        for call_template in (secret, secret.model_copy(update={"url": "ws://127.0.0.1:1/?token=hunter2"})):
            try:
                await protocol.call_tool(None, "manual.t", {}, call_template)
                await protocol.call_tool(None, "manual.t", {}, call_template)
            except (WebSocketProtocolError, WebSocketConnectionError, WebSocketClosedError) as error:
                chain: BaseException | None = error
                while chain is not None:
                    texts += [str(chain), repr(chain)]
                    chain = chain.__cause__ or chain.__context__
    assert texts
    assert caplog.records
    for text in [*texts, caplog.text, *(str(record.__dict__) for record in caplog.records)]:
        assert "hunter2" not in text
