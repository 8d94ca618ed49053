"""Connections that only have a state, for tests of the pool on its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from utcp_websocket_anyio.errors import WebSocketClosedError, WebSocketError


@dataclass(frozen=True)
class FakeConnectionSettings:
    multiplex: bool = False
    on_close: tuple[Any, ...] = ()


@dataclass(frozen=True)
class FakeEndpoint:
    manual: str = "manual"
    display_url: str = "ws://127.0.0.1/"
    settings: FakeConnectionSettings = FakeConnectionSettings()
    session: str | None = None
    single_use: bool = False


@dataclass
class FakePlan:
    max_connections: int = 2
    timeout: float = 5


@dataclass
class FakeWire:
    bytes_sent: int = 1
    bytes_received: int = 2


class FakeConnection:
    def __init__(self, settings: FakeConnectionSettings) -> None:
        self.settings = settings
        self.is_shared = settings.multiplex
        self.is_in_use = False
        self.is_leaving = False
        self.keep_alive: float | None = None
        self.ends_session = False
        self.wire = FakeWire()
        self.error: WebSocketError | None = None
        self.retired = False
        self.why = ""
        self.may_get_stray_response = False
        self.has_unread_data = False
        self.on_lost: Any = None
        self.on_leaving: Any = None
        self.on_farewell: Any = None
        self.farewells: list[Any] = []
        self.may_close = anyio.Event()
        self.may_close.set()
        self.closed = anyio.Event()

    @property
    def is_available(self) -> bool:
        return self.error is None and not self.retired

    @property
    def is_over(self) -> bool:
        return not self.is_available

    def can_be_shared(self, farewell: Any) -> bool:
        return self.is_available and farewell not in self.farewells

    def plan_farewell(self, farewell: Any) -> None:
        self.farewells.append(farewell)

    def drop_farewell(self, farewell: Any) -> None:
        self.farewells.remove(farewell)

    def say_farewell(self, farewell: Any) -> None:
        self.drop_farewell(farewell)
        self.on_farewell(self)

    def start(self) -> None:
        pass

    async def drain(self) -> None:
        await checkpoint()
        self.has_unread_data = False

    def retire(self, why: str) -> None:
        self.retired = True
        self.why = why

    async def aclose(self) -> None:
        with anyio.CancelScope(shield=True):
            await self.may_close.wait()
        self.die(self.why)

    def abort(self, why: str) -> None:
        self.retired = True
        self.die(why)

    def die(self, why: str = "lost") -> None:
        if self.error is None:
            self.error = WebSocketClosedError(why)
            self.closed.set()
            self.on_lost(self)

    async def wait_closed(self) -> None:
        await self.closed.wait()
