"""This package as a user calls it: through the protocol object, and through a UTCP client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from growth import Growth
from measure import arguments, without_logging
from protocol_workloads import ProtocolWorkloads
from utcp.utcp_client import UtcpClient
from workloads import CONNECTIONS, WORKLOADS

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol, open_client


async def all_at_once(work: Callable[[int], Coroutine[Any, Any, None]], tasks: int) -> None:
    async with anyio.create_task_group() as task_group:
        for task in range(tasks):
            task_group.start_soon(work, task)


@asynccontextmanager
async def open_stock_client() -> AsyncIterator[UtcpClient]:
    async with AsyncExitStack() as stack:
        client = await UtcpClient.create()
        stack.push_async_callback(client.close)
        yield client


def open_protocol() -> WebSocketCommunicationProtocol:
    """A protocol object that keeps as many idle connections as a workload has."""
    try:
        from utcp_websocket_anyio import NetworkSettings
    except ImportError:  # an older tree, without a limit
        return WebSocketCommunicationProtocol()
    return WebSocketCommunicationProtocol(network=NetworkSettings(max_idle_connections=10_000))


async def main() -> None:
    if name == "client-64":
        async with open_stock_client() if contender.endswith("stock") else open_client() as client:
            await workloads.through_client(client)
    elif name == "growth":
        await Growth(workloads, open_protocol).measure()
    else:
        async with open_protocol() as protocol:
            await workloads.run(name, protocol)


contender, name, url = arguments()
workloads = ProtocolWorkloads(
    contender,
    WORKLOADS[name],
    url,
    WebSocketCallTemplate,
    all_at_once,
    anyio.sleep,
    sharing={"max_connections": CONNECTIONS},
)
without_logging()
if "trio" in contender:
    anyio.run(main, backend="trio")
elif "uvloop" in contender:
    anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True})
else:
    asyncio.run(main())
workloads.outcome.report()
