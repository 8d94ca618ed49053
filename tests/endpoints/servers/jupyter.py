"""Jupyter Server, with one kernel started through its REST interface."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from .installing import python_module
from .process import free_port, running

__all__ = ["Jupyter", "jupyter"]


@dataclass(frozen=True)
class Jupyter:
    """A running server and the kernel that was started on it."""

    port: int
    token: str
    kernel: str

    async def connections(self) -> int:
        """How many WebSocket connections the kernel has, as the server counts them."""
        async with httpx.AsyncClient(trust_env=False) as api:
            url = f"http://127.0.0.1:{self.port}/api/kernels/{self.kernel}"
            answer = await api.get(url, headers={"Authorization": f"token {self.token}"})
            return int(answer.raise_for_status().json()["connections"])


@contextmanager
def jupyter(installed: Path, folder: Path) -> Iterator[Jupyter]:
    python_module("ipykernel")
    port, token = free_port(), "a token with spaces & signs"
    settings: dict[str, Any] = {
        "ServerApp": {"ip": "127.0.0.1", "port": port, "port_retries": 0, "open_browser": False, "allow_root": True},
        "IdentityProvider": {"token": token},
    }
    (folder / "jupyter_server_config.json").write_text(json.dumps(settings))
    own_folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    api = httpx.Client(
        base_url=f"http://127.0.0.1:{port}/api/", headers={"Authorization": f"token {token}"}, trust_env=False
    )

    def ready() -> bool:
        try:
            return api.get("status").is_success
        except httpx.TransportError:
            return False

    with (
        api,
        running(
            [sys.executable, "-m", python_module("jupyter_server")],
            folder=folder,
            ready=ready,
            environment=dict.fromkeys(own_folders, str(folder)),
        ),
    ):
        kernel = api.post("kernels", json={"name": "python3"}, timeout=30).raise_for_status().json()["id"]
        try:
            yield Jupyter(port, token, kernel)
        finally:
            api.delete(f"kernels/{kernel}", timeout=30)
