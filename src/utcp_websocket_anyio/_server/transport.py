"""The seam between the server's rules and an event loop.

Everything that the server decides, it decides above this seam, once: who may connect (`admission`), what is answered
and how much at once (`session`), how a function runs (`tools`, `threads`). Below it are two small modules, `on_trio`
over trio-websocket and `on_asyncio` over `websockets`, which only carry messages. Each offers::

    async def serve_connections(sockets, carrier: Carrier) -> None
    def open_tasks() -> AbstractAsyncContextManager[Tasks]
    def open_scope() -> Scope
    def loop_caller() -> Callable[[Callable[[], object]], object]
    def is_cancelled() -> bool

`serve_connections` accepts clients until it is cancelled. For each, it completes the handshake if `admit` has no
objection, and runs `handle` with the connection; whatever happens there ends that connection only. When it is
cancelled it cancels every `handle`, and ends within a few seconds whatever the clients do.

`open_tasks` opens a task group for the calls of a connection: on trio its own, because anyio's costs a small call a
quarter more. `open_scope` makes a cancel scope for one of them.

`loop_caller`, called in the event loop, gives a function with which a thread has something called there.

`is_cancelled` tells, of a cancellation that has been caught, whether it is one of this task. On asyncio it may be that
of something that the task waited for.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

__all__ = [
    "BACKLOG",
    "CLOSING_TIME",
    "GOING_AWAY",
    "HANDSHAKE_TIME",
    "MESSAGE_TOO_BIG",
    "Carrier",
    "Connection",
    "Disconnected",
    "Handshake",
    "Refusal",
    "Tasks",
    "max_parts",
]

HANDSHAKE_TIME = 10.0
"""Seconds that a client has for TLS and its handshake."""
CLOSING_TIME = 2.0
"""Seconds that a client has to answer a close."""
BACKLOG = 1024
"""Connections that the operating system keeps until they are accepted."""
GOING_AWAY = 1001
MESSAGE_TOO_BIG = 1009

_MAX_SMALL_PARTS = 4096
_SMALLEST_PART = 256


def max_parts(max_message_size: int) -> int:
    """Parts that an unfinished message may have; a client that sends more is dropped.

    The libraries (`websockets` before 17.4) keep the parts in a list, and count the bytes in them: a client could send
    empty ones without end.
    """
    return _MAX_SMALL_PARTS + max_message_size // _SMALLEST_PART


class Disconnected(Exception):  # noqa: N818 - not an error of the server: clients come and go
    """The client has gone, or is going."""


@dataclass(frozen=True, slots=True)
class Handshake:
    """The parts of a client's opening request that matter here.

    Attributes:
        target: Path and query, as sent.
        host: The header ``Host``; empty if there is not exactly one.
        origins: The values of all ``Origin`` headers.
        authorizations: The values of all ``Authorization`` headers.
        local_address: The address of this machine that the client has reached.
    """

    target: str
    host: str
    origins: tuple[str, ...]
    authorizations: tuple[str, ...]
    local_address: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """An HTTP answer in place of a connection."""

    status: int
    reason: str
    headers: tuple[tuple[str, str], ...] = ()


class Tasks(Protocol):
    """A task group."""

    @property
    def cancel_scope(self) -> Scope:
        """The scope that cancels all of them."""

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], /, *arguments: Any) -> object:
        """Start a task."""


class Scope(Protocol):
    """A cancel scope."""

    def cancel(self) -> object:
        """Cancel what runs in it."""

    def __enter__(self) -> object: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> bool: ...


class Connection(Protocol):
    """An open WebSocket connection to a client."""

    @property
    def handshake(self) -> Handshake:
        """The client's opening request."""

    @property
    def progress(self) -> object:
        """Differs from what it was before if bytes have come or gone since."""

    async def receive(self) -> str | bytes:
        """The next message. Lets others run first, also if it is there already.

        One that is longer than the limit closes the connection with 1009.

        Raises:
            Disconnected: There will be none.
        """

    async def send(self, text: str) -> None:
        """Send a text message, waiting while the client is slow to read.

        Raises:
            Disconnected: The client is not there any more.
        """

    async def ping(self) -> None:
        """Send a ping, and wait for its pong.

        Raises:
            Disconnected: The client is not there any more.
        """

    async def close(self, code: int, reason: str) -> None:
        """Say goodbye and wait for the answer, `CLOSING_TIME` at most. Never raises, except when cancelled."""

    def abort(self) -> None:
        """Drop the connection; `receive` and `send` end with `Disconnected`."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """The arguments of a `serve_connections`.

    Attributes:
        admit: Why this client may not connect; None: it may.
        handle: Runs as long as the connection.
        started: Callback for the moment from which clients can connect.
    """

    ssl_context: ssl.SSLContext | None
    max_message_size: int
    admit: Callable[[Handshake], Refusal | None]
    handle: Callable[[Connection], Awaitable[None]]
    started: Callable[[], None]
