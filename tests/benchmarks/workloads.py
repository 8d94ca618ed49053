"""The workloads, and how much of each a contender does."""

from __future__ import annotations

import json
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """One thing to do.

    Attributes:
        size: Bytes per message.
        count: Operations in a run.
        warmup: Operations before it.
        tasks: How many run at once.
        rate: What is counted by the second, if anything: calls, messages or bytes (MB).
        rounds: How many rounds it takes part in, at most.
        runs: How many processes of each contender a round has.
        side_by_side: All contenders of a round run at once. For what hardly uses the processor and takes long.
    """

    title: str
    size: int
    count: int
    warmup: int = 0
    tasks: int = 1
    rate: str = ""
    rounds: int = 1000
    runs: int = 1
    side_by_side: bool = False


# Runs of a second or so: shorter ones differ too much from each other.
WORKLOADS = {
    "call-64": Workload("call, 64 B", 64, 16_000, 500),
    "call-64k": Workload("call, 64 KiB", 64 * 1024, 8_000, 100),
    "call-1m": Workload("call, 1 MiB", 2**20, 500, 20),
    "client-64": Workload("call through a UTCP client, 64 B", 64, 8_000, 200),
    "pool": Workload("100 tasks × 20 calls on 10 connections", 64, 20_000, 2_000, 100, "calls"),
    "multiplexed": Workload("100 calls at once on one connection", 64, 20_000, 2_000, 100, "calls"),
    "stream-64": Workload("stream of JSON objects, 64 B", 64, 300_000, rate="messages"),
    "stream-64k": Workload("stream of JSON objects, 64 KiB", 64 * 1024, 20_000, rate="MB"),
    "connect": Workload("connect + call + close", 64, 1_000, 20),
    "idle": Workload("1,000 idle connections", 64, 1000, rounds=1, side_by_side=True),
    "refused": Workload("import, and the first connection refused", 64, 1, runs=5),
    "answer": Workload("import, and the first answer", 64, 1, runs=5),
    "growth": Workload("growth", 64, 5_000, rounds=1),
}

LIBRARIES = ("picows", "picows.websockets", "aiohttp", "websockets", "websockets.trio", "trio-websocket")
"""What is used by hand."""
CALLS_OF_A_TASK = 20
CONNECTIONS = 10
"""As many as the calls of `pool` share."""
HEARTBEAT = 30
"""Seconds between the WebSocket pings of an idle connection; this package's default."""
IDLE_SECONDS = 33
"""Long enough for one heartbeat of every connection."""


def pushed(size: int) -> str:
    """A message of a stream: a JSON object, as the endpoints of the world push them."""
    message = {"channel": "trades", "data": ""}
    return json.dumps({**message, "data": "x" * (size - len(json.dumps(message)))})
