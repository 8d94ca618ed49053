"""The workloads, and how much of each a contender does."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One thing to do.

    Attributes:
        size: Bytes per message.
        count: Operations in a run.
        warmup: Operations before it.
        tasks: How many run at once.
    """

    title: str
    size: int
    count: int
    warmup: int = 0
    tasks: int = 1


WORKLOADS = {
    "call-64": Workload("call, 64 B", 64, 4000, 500),
    "call-64k": Workload("call, 64 KiB", 64 * 1024, 1500, 100),
    "call-1m": Workload("call, 1 MiB", 2**20, 150, 10),
    "client-64": Workload("call through a UTCP client", 64, 1500, 100),
    "tasks": Workload("100 tasks, 20 calls each", 64, 2000, 0, 100),
    "multiplexed": Workload("100 calls at once on one connection", 64, 4000, 100, 100),
    "stream-64": Workload("stream, 64 B", 64, 100_000),
    "stream-64k": Workload("stream, 64 KiB", 64 * 1024, 3000),
    "connect": Workload("connect + call + close", 64, 300, 20),
    "idle": Workload("1,000 idle connections", 64, 1000),
    "import": Workload("import", 0, 1),
}

IDLE_SECONDS = 33
"""Long enough for one heartbeat of every connection."""
