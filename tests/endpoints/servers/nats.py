"""nats-server, with its text protocol over WebSocket for one user."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from .installing import debian_program
from .process import running

__all__ = ["Nats", "nats"]

# Who leaves two pings unanswered is disconnected.
_SETTINGS = """
listen: "127.0.0.1:-1"
http: "127.0.0.1:-1"
websocket { listen: "127.0.0.1:-1", no_tls: true }
authorization {
  users = [{ user: "worker", password: "a pass:word", permissions: { publish: { deny: "forbidden" } } }]
}
ports_file_dir: "."
ping_interval: "500ms"
ping_max: 2
"""


@dataclass(frozen=True)
class Nats:
    """A running server and whom it lets in."""

    port: int
    monitoring: str
    user: str = "worker"
    password: str = "a pass:word"

    async def connections_so_far(self) -> int:
        """How many connections there have been since the server was started, as it counts them."""
        async with httpx.AsyncClient(trust_env=False) as api:
            answer = await api.get(f"{self.monitoring}/varz")
            return int(answer.raise_for_status().json()["total_connections"])


@contextmanager
def nats(installed: Path, folder: Path) -> Iterator[Nats]:
    program = debian_program("nats-server", "nats-server")
    (folder / "nats.conf").write_text(_SETTINGS)

    def ports() -> dict[str, list[str]]:
        written = [file.read_text() for file in folder.glob("*.ports")]
        return json.loads(written[0]) if written and written[0].strip() else {}

    with running([program, "-c", "nats.conf"], folder=folder, ready=lambda: bool(ports())):
        urls = ports()
        port = urlsplit(urls["websocket"][0]).port
        assert port is not None
        yield Nats(port, urls["monitoring"][0])
