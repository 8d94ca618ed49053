"""Connections that are reset at chosen moments: amid TLS's handshake, in a record, right behind one, in a wait."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
import pytest
import trustme
from support.fault_proxy import FaultProxy, Records, fault_proxy
from support.leftovers import nothing_is_left
from support.peers import Peer, peer
from support.protocol import port_of, template

from utcp_websocket_anyio import (
    WebSocketCallTemplate,
    WebSocketClosedError,
    WebSocketCommunicationProtocol,
    WebSocketConnectionError,
)

pytestmark = pytest.mark.anyio

PARTS = [0.001, 0.5, 0.999]
"""Places in a TLS record: in its header, and in what is encrypted."""


@dataclass
class Line:
    """A client, a server behind TLS, and the proxy between them."""

    protocol: WebSocketCommunicationProtocol
    proxy: FaultProxy
    url: str
    fields: dict[str, Any]
    asked: anyio.Event = field(default_factory=anyio.Event)

    def template(self, **fields: Any) -> WebSocketCallTemplate:
        common: dict[str, Any] = {
            "message": {"id": "{{uuid}}", "parts": "{{args.parts}}", "pad": "{{args.pad}}"},
            "message_filter": {"id": "{{uuid}}"},
            "result": {"path": "part"},
            "reconnect_attempts": 0,
        }
        return template(self.url, **{**common, **self.fields, **fields})

    async def call(self, parts: int = 1, pad: str = "", **fields: Any) -> Any:
        arguments = {"parts": parts, "pad": pad}
        return await self.protocol.call_tool(None, "manual.t", arguments, self.template(**fields))

    async def stream_until_lost(self) -> list[Any]:
        """What a stream of five gives before its connection is lost."""
        arguments = {"parts": 5, "pad": ""}
        stream = self.protocol.call_tool_streaming(None, "manual.t", arguments, self.template())
        received: list[Any] = []
        try:
            async for item in stream:
                received.append(item)
        except WebSocketClosedError as error:
            assert error.code == 1006
            return received
        raise AssertionError("the stream has ended without an error")

    async def until_open(self, connections: int) -> None:
        """Wait until so many connections are there, and no call uses one."""
        while (figures := self.protocol.statistics()).active + figures.closing or figures.idle != connections:
            await anyio.sleep(0.001)

    async def is_good_again(self) -> None:
        """Nothing is in the way of the next call."""
        self.proxy.reset_at = None
        assert await self.call() == 0
        await self.until_open(1)


@pytest.fixture(params=["exclusive", "multiplexed"])
def fields(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"multiplex": request.param == "multiplexed"}


@asynccontextmanager
async def connected(authority: trustme.CA, fields: dict[str, Any]) -> AsyncIterator[Line]:
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(client)

    async def answer(peer: Peer) -> None:
        await peer.handshake()
        while True:
            request = await peer.receive_json()
            line.asked.set()
            for part in range(request["parts"]):
                await peer.send({"id": request["id"], "part": part, "pad": "x" * 1000})

    with anyio.fail_after(60):
        async with (
            nothing_is_left(),
            peer(answer, tls=server) as url,
            fault_proxy(port_of(url)) as proxy,
            WebSocketCommunicationProtocol(ssl_context=client) as protocol,
        ):
            line = Line(protocol, proxy, url.replace(str(port_of(url)), str(proxy.port)), fields)
            yield line


async def test_wherever_a_connection_is_reset_its_call_ends_with_what_had_come(
    authority: trustme.CA, fields: dict[str, Any]
) -> None:
    """At each record that the server sends, from the first of the handshake to that of the answer."""
    outcomes: list[str] = []
    async with connected(authority, fields) as line:
        while "right" not in outcomes:
            for part in [0, *PARTS]:
                line.proxy.reset_at = Records(len(outcomes) // 4, part)
                try:
                    assert await line.call() == 0
                    outcomes.append("right")
                except WebSocketConnectionError:
                    outcomes.append("not connected")
                except WebSocketClosedError as error:
                    assert error.code == 1006
                    outcomes.append("lost")
                await line.until_open(0)
                if "right" in outcomes:
                    break
        await line.is_good_again()
    # The answer is one record; before it are those of TLS's handshake and the one with that of WebSocket.
    assert outcomes == ["not connected"] * (len(outcomes) - 5) + ["lost"] * 4 + ["right"]
    assert len(outcomes) >= 5 + 4 * 3


@pytest.mark.parametrize(("whole", "part"), [*((1, part) for part in PARTS), (2, 0)])
async def test_what_came_before_a_reset_reaches_the_stream(
    authority: trustme.CA, fields: dict[str, Any], whole: int, part: float
) -> None:
    async with connected(authority, fields) as line:
        assert await line.call() == 0
        line.proxy.reset_at = Records(whole, part)
        assert await line.stream_until_lost() == list(range(whole))
        await line.until_open(0)
        await line.is_good_again()


@pytest.mark.parametrize("waits", ["to receive", "to send"])
async def test_a_reset_ends_the_waiting_of_a_call(authority: trustme.CA, fields: dict[str, Any], waits: str) -> None:
    async with connected(authority, fields) as line:
        assert await line.call() == 0
        codes: list[int] = []

        async def call() -> None:
            try:
                await line.call(parts=0, pad="x" * 20_000_000 if waits == "to send" else "")
            except WebSocketClosedError as error:
                codes.append(error.code)

        line.asked = anyio.Event()
        line.proxy.is_holding_up = waits == "to send"
        async with anyio.create_task_group() as callers:
            callers.start_soon(call)
            if waits == "to receive":
                await line.asked.wait()
            await anyio.wait_all_tasks_blocked()
            line.proxy.is_holding_up = False
            line.proxy.reset_all()
        assert codes == [1006]
        await line.until_open(0)
        await line.is_good_again()


async def test_the_reset_of_an_idle_connection_is_noticed(authority: trustme.CA, fields: dict[str, Any]) -> None:
    async with connected(authority, fields) as line:
        assert await line.call() == 0
        await line.until_open(1)
        line.proxy.reset_all()
        await line.until_open(0)
        await line.is_good_again()


@pytest.mark.parametrize("part", [0, *PARTS])
async def test_the_proxy_resets_connections_amid_records(authority: trustme.CA, part: float) -> None:
    """Seen by a socket: what came before is there, and behind it is a reset instead of an end."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    outgoing, incoming = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()

    def received_by(port: int) -> bytes:
        data = b""
        with socket.create_connection(("127.0.0.1", port), timeout=30) as client, suppress(ConnectionResetError):
            client.sendall(hello)
            while chunk := client.recv(65536):
                data += chunk
            raise AssertionError("it was closed in an orderly way")
        return data

    async with connected(authority, {}) as line:
        line.proxy.reset_at = Records(1, part)
        data = await anyio.to_thread.run_sync(received_by, line.proxy.port)
    first = 5 + int.from_bytes(data[3:5], "big")
    assert (len(data) == first) if part == 0 else (len(data) > first)
    follows = Records(1)
    assert follows.within(data) == first
