"""The published plugin, `utcp-websocket`, as its users call it; with its logging as it installs itself, or off."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from measure import Outcome, allow_files, arguments, resident, without_logging
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.utcp_client import UtcpClient
from utcp_websocket import WebSocketCallTemplate, WebSocketCommunicationProtocol
from workloads import IDLE_SECONDS, WORKLOADS, Workload

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
    call_template = template(timeout=2)

    async def call(task: int) -> None:
        for number in range(workload.count // workload.tasks):
            message = f"{task} {number} {payload}"
            try:
                answer = await protocol.call_tool(None, "bench.t", {"m": message}, call_template)
            except Exception:  # noqa: BLE001 - it raises what its libraries raise; all count as failed calls
                outcome.wrong += 1
            else:
                outcome.check(answer, message)

    with outcome.timed():
        await asyncio.gather(*(call(task) for task in range(workload.tasks)))


async def stream(protocol: WebSocketCommunicationProtocol) -> None:
    call_template = template(f"/stream?count={workload.count}&size={workload.size}", timeout=120)
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
        call_template = template(f"/echo?{number}")
        outcome.check(await protocol.call_tool(None, "bench.t", {"m": payload}, call_template), payload)
    gc.collect()
    outcome.memory = resident() - before
    with outcome.timed():
        await asyncio.sleep(IDLE_SECONDS)


async def through_client() -> None:
    client = await UtcpClient.create()
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
    await client.close()


async def main() -> None:
    if name == "client-64":
        await through_client()
        return
    protocol = WebSocketCommunicationProtocol()
    run = {"tasks": tasks, "connect": connect, "idle": idle}.get(name)
    try:
        await (run or (stream if name.startswith("stream") else calls))(protocol)
    finally:
        await asyncio.wait_for(protocol.close(), 30)


if "quiet" in contender:
    without_logging()
asyncio.run(main())
outcome.report()
