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
        rounds: How many rounds it takes part in, at most.
    """

    title: str
    size: int
    count: int
    warmup: int = 0
    tasks: int = 1
    rounds: int = 1000


# Runs of a second or two: shorter ones differ too much from each other.
WORKLOADS = {
    "call-64": Workload("call, 64 B", 64, 25_000, 1000),
    "call-64k": Workload("call, 64 KiB", 64 * 1024, 12_000, 200),
    "call-1m": Workload("call, 1 MiB", 2**20, 800, 20),
    "client-64": Workload("call through a UTCP client, 64 B", 64, 10_000, 200),
    "tasks": Workload("100 tasks, 200 calls each", 64, 20_000, 0, 100),
    "multiplexed": Workload("100 calls at once on one connection", 64, 20_000, 100, 100),
    "stream-64": Workload("stream, 64 B", 64, 300_000),
    "stream-64k": Workload("stream, 64 KiB", 64 * 1024, 30_000),
    "connect": Workload("connect + call + close", 64, 1500, 20),
    "idle": Workload("1,000 idle connections", 64, 1000, rounds=1),
    "import": Workload("import", 0, 1),
    "growth": Workload("growth", 64, 10_000),
}

IDLE_SECONDS = 33
"""Long enough for one heartbeat of every connection."""
