"""The published plugin, `utcp-websocket`, as its users call it; with its logging as it installs itself, or off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from measure import arguments, without_logging
from protocol_workloads import ProtocolWorkloads
from utcp.utcp_client import UtcpClient
from utcp_websocket import WebSocketCallTemplate, WebSocketCommunicationProtocol
from workloads import WORKLOADS


async def all_at_once(work: Callable[[int], Coroutine[Any, Any, None]], tasks: int) -> None:
    await asyncio.gather(*map(work, range(tasks)))


async def main() -> None:
    if name == "client-64":
        client = await UtcpClient.create()
        await workloads.through_client(client)
        await client.close()
        return
    protocol = WebSocketCommunicationProtocol()
    try:
        await workloads.run(name, protocol)
    finally:
        await asyncio.wait_for(protocol.close(), 30)


contender, name, url = arguments()
# Calls at once on its one connection wait for answers that another call took: not for long.
workloads = ProtocolWorkloads(
    contender, WORKLOADS[name], url, WebSocketCallTemplate, all_at_once, asyncio.sleep, sharing={"timeout": 2}
)
if "logging" not in contender:
    without_logging()
if "uvloop" in contender:
    import uvloop

    uvloop.run(main())
else:
    asyncio.run(main())
workloads.outcome.report()
