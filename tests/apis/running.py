"""A peer in a process of its own, for as long as a block."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Running:
    """Where a peer is."""

    ws: str
    http: str


@contextmanager
def peer_of(name: str) -> Iterator[Running]:
    """A fresh peer for as long as a block."""
    command = [sys.executable, "-m", f"apis.peers.{name}"]
    with subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield Running(**json.loads(process.stdout.readline()))
        finally:
            process.kill()
