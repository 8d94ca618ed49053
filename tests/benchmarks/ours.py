"""This package as a user calls it: through the protocol object, and through a UTCP client."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from measure import Outcome, allow_files, arguments, resident, without_logging
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.utcp_client import UtcpClient
from workloads import IDLE_SECONDS, WORKLOADS, Workload

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol, open_client

contender, name, url = arguments()
workload: Workload = WORKLOADS[name]
outcome = Outcome()
payload = "x" * workload.size


def template(path: str = "/echo", **fields: Any) -> WebSocketCallTemplate:
    return WebSocketCallTemplate(name="bench", url=url + path, message="UTCP_ARG_m_UTCP_ARG", **fields)


async def calls(protocol: WebSocketCommunicationProtocol) -> None:
    call_template = template()
    for _ in range(workload.warmup):
        await protocol.call_tool(None, "bench.t", {"m": payload}, call_template)
    with outcome.timed():
        for _ in range(workload.count):
            outcome.check(await protocol.call_tool(None, "bench.t", {"m": payload}, call_template), payload)


async def tasks(protocol: WebSocketCommunicationProtocol) -> None:
    call_template = template(max_connections=workload.tasks)

    async def call(task: int) -> None:
        for number in range(workload.count // workload.tasks):
            message = f"{task} {number} {payload}"
            outcome.check(await protocol.call_tool(None, "bench.t", {"m": message}, call_template), message)

    with outcome.timed():
        async with anyio.create_task_group() as task_group:
            for task in range(workload.tasks):
                task_group.start_soon(call, task)


async def multiplexed(protocol: WebSocketCommunicationProtocol) -> None:
    call_template = WebSocketCallTemplate(
        name="bench",
        url=url + "/echo",
        multiplex=True,
        message={"id": "{{call_id}}", "text": "{{args.m}}"},
        message_filter={"id": "{{call_id}}"},
        result={"path": "text"},
    )

    async def call(count: int, task: int) -> None:
        for number in range(count):
            message = f"{task} {number} {payload}"
            outcome.check(await protocol.call_tool(None, "bench.t", {"m": message}, call_template), message)

    await call(workload.warmup, -1)
    outcome.right = 0
    with outcome.timed():
        async with anyio.create_task_group() as task_group:
            for task in range(workload.tasks):
                task_group.start_soon(call, workload.count // workload.tasks, task)


async def stream(protocol: WebSocketCommunicationProtocol) -> None:
    call_template = template(f"/stream?count={workload.count}&size={workload.size}")
    with outcome.timed():
        async for item in protocol.call_tool_streaming(None, "bench.t", {"m": "go"}, call_template):
            outcome.check(item, payload)


async def connect(protocol: WebSocketCommunicationProtocol) -> None:
    call_template = template()

    async def once() -> Any:
        answer = await protocol.call_tool(None, "bench.t", {"m": payload}, call_template)
        await protocol.deregister_manual(None, call_template)
        return answer

    for _ in range(workload.warmup):
        await once()
    with outcome.timed():
        for _ in range(workload.count):
            outcome.check(await once(), payload)


async def idle(protocol: WebSocketCommunicationProtocol) -> None:
    allow_files(workload.count)
    await protocol.call_tool(None, "bench.t", {"m": payload}, template("/echo?warm"))
    gc.collect()
    before = resident()
    for number in range(workload.count):
        answer = await protocol.call_tool(None, "bench.t", {"m": payload}, template(f"/echo?{number}"))
        outcome.check(answer, payload)
    gc.collect()
    outcome.memory = resident() - before
    with outcome.timed():
        await anyio.sleep(IDLE_SECONDS)


@asynccontextmanager
async def open_stock_client() -> AsyncIterator[UtcpClient]:
    async with AsyncExitStack() as stack:
        client = await UtcpClient.create()
        stack.push_async_callback(client.close)
        yield client


async def through_client() -> None:
    open_one = open_stock_client if contender.endswith("stock") else open_client
    async with open_one() as client:
        message = {"id": "UTCP_ARG_id_UTCP_ARG", "text": "UTCP_ARG_text_UTCP_ARG"}
        call_template = WebSocketCallTemplate(name="bench", url=url + "/echo", message=message, response_format="json")
        manual = UtcpManual(tools=[Tool(name="bench.t", description="", tool_call_template=call_template)])
        await client.config.tool_repository.save_manual(call_template, manual)
        for number in range(-workload.warmup, workload.count):
            if number == 0:
                outcome.start()
            answer = await client.call_tool("bench.t", {"id": f"{number}", "text": payload})
            outcome.check(answer, {"id": f"{number}", "text": payload})
        outcome.stop()


async def main() -> None:
    run = {"tasks": tasks, "multiplexed": multiplexed, "connect": connect, "idle": idle}.get(name)
    if name == "client-64":
        await through_client()
        return
    async with WebSocketCommunicationProtocol() as protocol:
        await (run or (stream if name.startswith("stream") else calls))(protocol)


without_logging()
if "trio" in contender:
    anyio.run(main, backend="trio")
elif "uvloop" in contender:
    anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True})
else:
    asyncio.run(main())
outcome.report()
