"""What this package and the published plugin do alike: the same calls, through a protocol object or a UTCP client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

from measure import Outcome, allow_files, hold_still
from utcp.data.tool import Tool
from utcp.data.utcp_manual import UtcpManual
from utcp.utcp_client import UtcpClient
from workloads import CALLS_OF_A_TASK, IDLE_SECONDS, Workload, pushed


class CommunicationProtocol(Protocol):
    """UTCP's interface; its own class says that a stream has to be awaited."""

    async def call_tool(self, caller: Any, tool: str, arguments: dict[str, Any], template: Any, /) -> Any: ...

    def call_tool_streaming(
        self, caller: Any, tool: str, arguments: dict[str, Any], template: Any, /
    ) -> AsyncIterator[Any]: ...

    async def deregister_manual(self, caller: Any, template: Any, /) -> None: ...


@dataclass
class ProtocolWorkloads:
    """The workloads, for one contender.

    Attributes:
        name: The contender's.
        template: Makes a call template from a name, a URL, a message and other fields.
        all_at_once: Runs a function once in each of a number of tasks, with the number of the task.
        sleep: Waits for seconds.
        sharing: Fields of a template whose calls run at once.
    """

    name: str
    workload: Workload
    url: str
    template: Callable[..., Any]
    all_at_once: Callable[[Callable[[int], Coroutine[Any, Any, None]], int], Awaitable[None]]
    sleep: Callable[[float], Awaitable[None]]
    sharing: dict[str, Any]
    outcome: Outcome = field(default_factory=Outcome)

    def __post_init__(self) -> None:
        self.payload = "x" * self.workload.size
        self.multiplexing: dict[str, Any] = {
            "multiplex": True,
            "message": {"id": "{{call_id}}", "text": "{{args.m}}"},
            "message_filter": {"id": "{{call_id}}"},
            "result": {"path": "text"},
        }

    def endpoint(self, path: str = "/echo", **fields: Any) -> Any:
        """The call template of a path of the server."""
        fields.setdefault("message", "UTCP_ARG_m_UTCP_ARG")
        return self.template(name="bench", url=self.url + path, **fields)

    async def call(self, protocol: CommunicationProtocol, template: Any, message: str) -> None:
        """One call; the answer is to be what was sent."""
        try:
            answer = await protocol.call_tool(None, "bench.t", {"m": message}, template)
        except Exception:  # noqa: BLE001 - what the plugin raises is what its libraries raise
            self.outcome.wrong += 1
        else:
            self.outcome.check(answer, message)

    async def run(self, name: str, protocol: CommunicationProtocol) -> None:
        """Do a workload."""
        runs = {"pool": self.pool, "multiplexed": self.multiplexed, "connect": self.connect, "idle": self.idle}
        await runs.get(name, self.stream if name.startswith("stream") else self.calls)(protocol)

    async def calls(self, protocol: CommunicationProtocol) -> None:
        template = self.endpoint()
        for number in range(-self.workload.warmup, self.workload.count):
            if number == 0:
                self.outcome.start()
            await self.call(protocol, template, self.payload)
        self.outcome.stop()

    async def pool(self, protocol: CommunicationProtocol) -> None:
        await self.batches(protocol, self.endpoint(**self.sharing))

    async def multiplexed(self, protocol: CommunicationProtocol) -> None:
        await self.batches(protocol, self.endpoint(**self.multiplexing))

    async def batches(self, protocol: CommunicationProtocol, template: Any) -> None:
        """All calls, in tasks that run at once and do a few each, one batch of tasks after the other."""
        batch = self.workload.tasks * CALLS_OF_A_TASK
        self.outcome.start()
        for number in range(-self.workload.warmup, self.workload.count, batch):
            if number == 0:
                self.outcome.start()
            await self.spread(protocol, template, CALLS_OF_A_TASK)
            if self.outcome.wrong:  # answers of other calls, and calls without one: more of it says no more
                break
        self.outcome.stop()

    async def spread(self, protocol: CommunicationProtocol, template: Any, calls: int) -> None:
        """So many calls by each of the tasks, all at once, each message another."""

        async def work(task: int) -> None:
            for number in range(calls):
                await self.call(protocol, template, f"{task} {number} {self.payload}")

        await self.all_at_once(work, self.workload.tasks)

    async def stream(self, protocol: CommunicationProtocol) -> None:
        path = f"/stream?count={self.workload.count}&size={self.workload.size}"
        template = self.endpoint(path, timeout=120)
        expected = pushed(self.workload.size)
        items = protocol.call_tool_streaming(None, "bench.t", {"m": "go"}, template)
        # Connecting is a workload of its own.
        self.outcome.check(await anext(items), expected)
        self.outcome.start()
        async for item in items:
            self.outcome.check(item, expected)
        self.outcome.stop()

    async def connect(self, protocol: CommunicationProtocol) -> None:
        template = self.endpoint()
        for number in range(-self.workload.warmup, self.workload.count):
            if number == 0:
                self.outcome.start()
            await self.call(protocol, template, self.payload)
            await protocol.deregister_manual(None, template)
        self.outcome.stop()

    async def idle(self, protocol: CommunicationProtocol) -> None:
        allow_files(self.workload.count)
        await self.call(protocol, self.endpoint(f"/echo?of={self.name}"), self.payload)
        before = hold_still()
        for number in range(self.workload.count):
            await self.call(protocol, self.endpoint(f"/echo?of={self.name}&{number}"), self.payload)
        self.outcome.memory = hold_still() - before
        connections = self.endpoint(f"/connections?of={self.name}", message="how many")
        before_that = await protocol.call_tool(None, "bench.t", {}, connections)
        with self.outcome.timed():
            await self.sleep(IDLE_SECONDS)
        # An idle connection that was lost costs nothing.
        self.outcome.check(await protocol.call_tool(None, "bench.t", {}, connections), before_that)

    async def through_client(self, client: UtcpClient) -> None:
        """Calls of a tool that a UTCP client knows."""
        message = {"id": "UTCP_ARG_id_UTCP_ARG", "text": "UTCP_ARG_text_UTCP_ARG"}
        template = self.endpoint(message=message, response_format="json")
        manual = UtcpManual(tools=[Tool(name="bench.t", description="", tool_call_template=template)])
        await client.config.tool_repository.save_manual(template, manual)
        for number in range(-self.workload.warmup, self.workload.count):
            if number == 0:
                self.outcome.start()
            request = {"id": f"{number}", "text": self.payload}
            self.outcome.check(await client.call_tool("bench.t", request), request)
        self.outcome.stop()
