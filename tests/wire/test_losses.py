"""Connections that end while a task waits for them, on whichever side and wherever the waiting task stands."""

from __future__ import annotations

import ssl
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trustme
from support.engines import Opener, anyio_backend, connect, engine
from support.peers import TEXT, Peer, frame, peer

from utcp_websocket_anyio._net.transport import Network
from utcp_websocket_anyio._wire import Interrupted, Wire
from utcp_websocket_anyio.errors import WebSocketClosedError, WebSocketError

__all__ = ["anyio_backend", "connect", "engine"]

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["plain", "TLS"])
def settings(request: pytest.FixtureRequest, authority: trustme.CA) -> dict[str, Any]:
    """Settings of the server (`tls`) and of the client (`network`)."""
    if request.param == "plain":
        return {"tls": None, "network": Network()}
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return {"tls": server, "network": Network(ssl_context=client)}


async def hang_up(connection: Peer, how: str) -> None:
    if how == "reset":
        await connection.reset()
    else:
        await connection.stream.aclose()
    raise anyio.EndOfStream


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_a_large_message_that_is_refused_tells_what_the_peer_said(
    connect: Opener, settings: dict[str, Any], how: str
) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.receive_exactly(1000)
        await peer.send("something else")
        await peer.close(1009, "at most 1 MB")
        await hang_up(peer, how)

    with anyio.fail_after(60):
        async with peer(script, tls=settings["tls"]) as url:
            for _ in range(5):
                wire = await connect(url, network=settings["network"])
                with pytest.raises(WebSocketClosedError) as caught:
                    await wire.send(b"x" * 50_000_000)
                    await wire.send(b"and on")
                assert (caught.value.code, caught.value.reason) == (1009, "at most 1 MB")
                assert "1009: at most 1 MB" in str(caught.value)
                # What came before it is not lost either.
                assert await wire.receive() == "something else"
                with pytest.raises(WebSocketClosedError):
                    await wire.receive()
                wire.abort()


@pytest.mark.parametrize("how", ["reset", "end"])
async def test_many_connections_that_are_lost_amid_messages_cost_only_themselves(
    connect: Opener, settings: dict[str, Any], how: str
) -> None:
    """The server ends each connection at another byte, while the client's task goes on reading."""
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        cut = connections * 37
        data = frame(TEXT, b"x" * 50) * 100
        await peer.handshake()
        await peer.receive()
        await peer.send_raw(data[:cut])
        await hang_up(peer, how)

    ended: list[WebSocketClosedError] = []

    async def use(url: str) -> None:
        for _ in range(10):
            wire = await connect(url, network=settings["network"])
            try:
                await wire.send("go")
                while True:
                    await wire.receive()
            except WebSocketClosedError as error:
                ended.append(error)
            finally:
                wire.abort()

    with anyio.fail_after(60):
        async with peer(script, tls=settings["tls"]) as url, anyio.create_task_group() as task_group:
            for _ in range(8):
                task_group.start_soon(use, url)
    assert [error.code for error in ended] == [1006] * 80


@pytest.mark.parametrize("how", ["interrupt", "abort"])
async def test_a_receiver_is_reached_wherever_it_stands(connect: Opener, settings: dict[str, Any], how: str) -> None:
    """It is sent away at every one of the first checkpoints of a receive that something makes progress."""

    async def script(peer: Peer) -> None:
        await peer.handshake()
        for byte in frame(TEXT, b"never complete")[:-1]:
            await peer.send_raw(bytes([byte]))
            await anyio.lowlevel.checkpoint()
        await anyio.sleep_forever()

    ended: list[type[BaseException]] = []

    async def receive(wire: Wire, ready: anyio.Event) -> None:
        ready.set()
        try:
            await wire.receive()
        except (WebSocketError, Interrupted) as error:
            ended.append(type(error))

    with anyio.fail_after(30):
        async with peer(script, tls=settings["tls"]) as url:
            for checkpoints in range(20):
                wire = await connect(url, network=settings["network"])
                async with anyio.create_task_group() as task_group:
                    ready = anyio.Event()
                    task_group.start_soon(receive, wire, ready)
                    await ready.wait()
                    for _ in range(checkpoints):
                        await anyio.lowlevel.checkpoint()
                    getattr(wire, how)()
                wire.abort()
    assert ended == [Interrupted if how == "interrupt" else WebSocketClosedError] * 20


async def test_an_interrupt_reaches_only_tasks_that_wait_already(connect: Opener, settings: dict[str, Any]) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.send(await peer.receive())

    with anyio.fail_after(10):
        async with peer(script, tls=settings["tls"]) as url:
            wire = await connect(url, network=settings["network"])
            wire.interrupt()
            await wire.send("hello")
            wire.interrupt()
            assert await wire.receive() == "hello"
            await wire.close()
