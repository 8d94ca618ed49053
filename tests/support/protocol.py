"""Helpers for tests of the protocol object: an entered object, a template, and a look at its pool."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio

from support.peers import Peer
from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol
from utcp_websocket_anyio._connections.hosts import Entered
from utcp_websocket_anyio._connections.pool import Pool


def template(url: str, **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="manual", url=url, **fields)


def port_of(url: str) -> int:
    """The port in the URL of a test's server."""
    return int(url.rpartition(":")[2].strip("/"))


def pool_of(protocol: WebSocketCommunicationProtocol) -> Pool:
    """The pool of the running event loop; after an entered object was left, its last one."""
    home = protocol._home
    runtime = home._runtime if isinstance(home, Entered) else home.runtime_here()
    assert runtime is not None
    return runtime.pool


async def until_idle(protocol: WebSocketCommunicationProtocol, connections: int, *, every: float = 0.001) -> None:
    """Wait until no call runs and that many connections are left."""
    shown = f"<Pool [Connections: {connections} open, {connections} idle | Calls: 0 waiting]>"
    while repr(pool_of(protocol)) != shown:
        await anyio.sleep(every)


@asynccontextmanager
async def entered(seconds: float = 120, **options: Any) -> AsyncIterator[WebSocketCommunicationProtocol]:
    """An entered protocol object, for so many seconds at most: far more than a busy machine needs."""
    with anyio.fail_after(seconds):
        async with WebSocketCommunicationProtocol(**options) as protocol:
            yield protocol


async def answer_everything(peer: Peer) -> None:
    """Answers every message with itself."""
    await peer.handshake()
    while True:
        await peer.send(await peer.receive())
