"""Headless Chromium with its DevTools protocol."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from .installing import debian_program
from .process import running

__all__ = ["Chromium", "chromium"]

_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-breakpad",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-address=127.0.0.1",
    "--remote-debugging-port=0",
]


@dataclass(frozen=True)
class Chromium:
    """A running browser: the port of its DevTools, and the id of the browser among its targets."""

    port: int
    browser: str

    async def pages(self) -> list[dict[str, Any]]:
        """The pages that can be attached to, as the browser lists them over HTTP."""
        return [target for target in await self._ask("GET", "list") if target["type"] == "page"]

    async def new_page(self) -> str:
        """Open a page; its id is the last part of the address that it is attached to at."""
        page = await self._ask("PUT", "new?about:blank")
        return str(page["webSocketDebuggerUrl"]).rpartition("/")[2]

    async def _ask(self, method: str, path: str) -> Any:
        async with httpx.AsyncClient(trust_env=False) as api:
            answer = await api.request(method, f"http://127.0.0.1:{self.port}/json/{path}")
            return answer.raise_for_status().json()


@contextmanager
def chromium(installed: Path, folder: Path) -> Iterator[Chromium]:
    program = debian_program("chromium", "chromium")
    profile = folder / "profile"
    written = profile / "DevToolsActivePort"

    def lines() -> list[str]:
        return written.read_text().splitlines() if written.is_file() else []

    command = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    own_folders = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"), str(folder))
    with running(command, folder=folder, ready=lambda: len(lines()) == 2, environment=own_folders):
        port, path = lines()
        yield Chromium(int(port), path.rpartition("/")[2])
