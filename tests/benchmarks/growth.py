"""What a call costs as calls, endpoints and messages become more or larger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from measure import Outcome, Step, allow_files
from protocol_workloads import ProtocolWorkloads

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol

Measure = Callable[[ProtocolWorkloads, WebSocketCommunicationProtocol], Awaitable[None]]

AT_ONCE = {"1": 1, "10": 10, "100": 100, "1,000": 1000}
ENDPOINTS = {"1": 1, "1,000": 1000}
SIZES = {"1 KiB": 2**10, "32 KiB": 2**15, "1 MiB": 2**20}


async def on_own_connections(workloads: ProtocolWorkloads, protocol: WebSocketCommunicationProtocol) -> None:
    template = workloads.endpoint(max_connections=workloads.workload.tasks)

    async def open_one(task: int) -> None:
        await workloads.call(protocol, template, f"warm {task}")

    await workloads.all_at_once(open_one, workloads.workload.tasks)
    await all_calls(workloads, protocol, template)


async def on_one_connection(workloads: ProtocolWorkloads, protocol: WebSocketCommunicationProtocol) -> None:
    template = workloads.endpoint(**workloads.multiplexing)
    await workloads.call(protocol, template, "warm")
    await all_calls(workloads, protocol, template)


async def all_calls(
    workloads: ProtocolWorkloads, protocol: WebSocketCommunicationProtocol, template: WebSocketCallTemplate
) -> None:
    workloads.outcome.start()
    await workloads.spread(protocol, template, workloads.workload.count // workloads.workload.tasks)
    workloads.outcome.stop()


async def over_endpoints(workloads: ProtocolWorkloads, protocol: WebSocketCommunicationProtocol) -> None:
    endpoints = [workloads.endpoint(f"/echo?{number}") for number in range(workloads.workload.tasks)]
    for template in endpoints:
        await workloads.call(protocol, template, "warm")
    workloads.outcome.start()
    for number in range(workloads.workload.count):
        await workloads.call(protocol, endpoints[number % len(endpoints)], workloads.payload)
    workloads.outcome.stop()


@dataclass
class Growth:
    """Measures one step after the other, each with a protocol of its own, its connections open before."""

    workloads: ProtocolWorkloads
    open_protocol: Callable[[], WebSocketCommunicationProtocol]

    async def measure(self) -> None:
        allow_files(1000)
        count = self.workloads.workload.count
        for label, tasks in AT_ONCE.items():
            await self.step("calls at once, each on its own connection", label, on_own_connections, tasks=tasks)
        for label, tasks in AT_ONCE.items():
            await self.step("calls at once, on one connection", label, on_one_connection, tasks=tasks)
        for label, tasks in ENDPOINTS.items():
            await self.step("open connections to as many endpoints", label, over_endpoints, tasks=tasks)
        for label, size in SIZES.items():
            fewer = min(count, 200 * 2**20 // size)
            await self.step(
                "size of the message", label, ProtocolWorkloads.calls, size // 1024, size=size, count=fewer, warmup=20
            )

    async def step(self, series: str, label: str, measure: Measure, units: int = 1, **changes: Any) -> None:
        """Measure; the cost is that of one call, or of one of so many `units` of it."""
        workload = replace(self.workloads.workload, **changes)
        workloads = replace(self.workloads, workload=workload, outcome=Outcome())
        async with self.open_protocol() as protocol:
            await measure(workloads, protocol)
        done, total = workloads.outcome, self.workloads.outcome
        total.right += done.right
        total.wrong += done.wrong
        if done.right:
            scale = 1e6 / (done.right * units)
            total.growth.append(Step(series, label, done.seconds * scale, done.cpu * scale))
