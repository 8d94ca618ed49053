"""What the layers above know of an open WebSocket, whichever event loop and library carry it."""

from __future__ import annotations

import select
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from .._net.security import check_handshake
from .._net.transport import Network
from ..errors import WebSocketError

__all__ = [
    "CLOSING_TIME",
    "LARGEST_COMPRESSED_READ",
    "Interrupted",
    "Pings",
    "Readable",
    "Target",
    "Wire",
    "size_of",
]

CLOSING_TIME: Final = 2.0
"""Seconds for the closing handshake."""

LARGEST_COMPRESSED_READ: Final = 16 * 1024
"""Bytes that are read at once where they may be compressed: they can become a thousand times as many."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where to connect to, and how.

    Attributes:
        url: What is connected to; complete, credentials in the query included.
        endpoint: The URL as it may be shown.
        headers: Added to the handshake; they have been checked.
        subprotocols: Offered in this order; the server must choose one of them.
        compression: Whether to offer permessage-deflate (RFC 7692).
        compression_threshold: Shorter outgoing messages go uncompressed, in bytes.
        max_message_size: Longest incoming message, before and after decompression, in bytes.
        network: The way there, and the TLS settings.

    Raises:
        WebSocketSecurityError: A header or subprotocol could change the handshake. Nothing reaches an engine unchecked.
    """

    url: str
    endpoint: str
    headers: tuple[tuple[str, str], ...] = ()
    subprotocols: tuple[str, ...] = ()
    compression: bool = False
    compression_threshold: int = 1024
    max_message_size: int = 16 * 2**20
    network: Network = field(default_factory=Network)

    def __post_init__(self) -> None:
        check_handshake(self.headers, self.subprotocols)

    def __repr__(self) -> str:
        return f"<Target {self.endpoint}>"


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A wait has ended because somebody else does not want it to go on."""


class Wire(ABC):
    """One open WebSocket.

    One task at a time may be in `receive`; several may be in `send` and `ping`. The peer's pings are answered, and its
    pongs noticed, while somebody is in `receive`.

    Attributes:
        closed: Why it is closed, None while it is open.
        bytes_sent: Of the messages' payload.
        bytes_received: Of the messages' payload.
        subprotocol: The one that the server chose.
    """

    closed: WebSocketError | None = None
    bytes_sent: int = 0
    bytes_received: int = 0
    subprotocol: str | None = None

    @property
    @abstractmethod
    def progress(self) -> int:
        """A number that grows with every byte read from the socket or written to it, as far as the engine can tell."""

    @abstractmethod
    def has_unread_data(self) -> bool:
        """True if something has arrived that `receive` has not returned: a message, bytes of one, or the end."""

    def set_data_callback(self, callback: Callable[[], None] | None) -> bool:
        """Register a callback for data that nobody receives: a message, or the end.

        Args:
            callback: Called in one of the next turns of the loop, once for all that is there; None: no longer.

        Returns:
            False if this is not possible, because nothing arrives, and no ping is answered, unless somebody is in
            `receive`.
        """
        return self.notify(callback)

    @abstractmethod
    def current_time(self) -> float:
        """As `anyio.current_time`, which asks whose task this is; the callbacks of an asyncio transport run in none."""

    @abstractmethod
    def pending(self) -> bool:
        """Whether something has arrived that `receive` has not returned: a message, bytes of one, or the end."""

    @abstractmethod
    async def send(self, data: str | bytes, fragment: int | None = None) -> None:
        """Send one message: a str as text, bytes as binary; with `fragment`, in fragments of at most so many bytes.

        It waits while the transport is full. Cancelled half-way the wire is closed, unless the whole message is on its
        way already.

        Raises:
            WebSocketClosedError: The wire is closed.
        """

    @abstractmethod
    async def receive(self) -> str | bytes:
        """The next message. Cancelling it loses nothing.

        Raises:
            Interrupted: `interrupt` was called.
            WebSocketClosedError: The wire is closed; messages that came before are returned first.
            WebSocketProtocolError: The peer broke the protocol, and the wire is closed.
        """

    @abstractmethod
    def interrupt(self) -> None:
        """Have whoever waits in `receive` leave it, and whoever waits in `send` wait no longer.

        The wire can be used on, unless that cut off a message.
        """

    @abstractmethod
    def take_nowait(self) -> deque[str | bytes]:
        """Every message that has been received and not returned yet; there may be none."""

    def notify(self, arrived: Callable[[], None] | None) -> bool:
        """Have somebody told when something is there that nobody receives: a message, or the end.

        Args:
            arrived: Called in one of the next turns of the loop, once for all that is there; None: nobody any more.

        Returns:
            False where that cannot be, because nothing arrives, and no ping is answered, unless somebody is in
            `receive`.
        """
        return False

    @abstractmethod
    def ping_nowait(self, answered: Callable[[], None]) -> bool:
        """Send a ping if there is room for it now.

        Args:
            answered: Called when the pong of this ping has come, unless another ping was sent meanwhile.

        Returns:
            Whether it was sent; if not, `ping` is needed.

        Raises:
            WebSocketClosedError: The wire is closed.
        """

    @abstractmethod
    async def ping(self, answered: Callable[[], None] | None = None) -> None:
        """Send a ping and wait for a sign of life: its pong, or any other byte after the ping was written.

        It needs somebody in `receive` where `set_data_callback` returns False. Cancelling it harms nothing.

        Args:
            answered: Deprecated: as `ping_nowait`, but wait until it is sent. Cancelled half-way the wire is closed.

        Raises:
            WebSocketError: The wire is closed, or was closed meanwhile.
        """

    @abstractmethod
    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Have the closing handshake, for at most two seconds, and close the socket; it is closed also on cancellation.

        Messages that were not received are thrown away.
        """

    @abstractmethod
    def abort(self) -> None:
        """Close the socket now."""


def size_of(message: str | bytes) -> int:
    """The length of a message's payload in bytes."""
    return len(message) if isinstance(message, bytes) or message.isascii() else len(message.encode())


class Pings:
    """Whose pong is awaited: the last ping's, as a peer may leave out the others (RFC 6455, section 5.5.3)."""

    __slots__ = ("_answered", "_sent")

    def __init__(self) -> None:
        self._sent = 0
        self._answered: Callable[[], None] | None = None

    def next(self, answered: Callable[[], None]) -> bytes:
        """The payload of the next ping; `answered` is called when its pong has come, unless another is sent first."""
        self._sent += 1
        self._answered = answered
        return b"%d" % self._sent

    def ponged(self, payload: bytes) -> None:
        """A pong has come."""
        if self._answered is not None and payload == b"%d" % self._sent:
            answered, self._answered = self._answered, None
            answered()


class Readable:
    """Whether a socket has something to read, for a system call and nothing else."""

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(fileno, select.POLLIN)

    def __call__(self) -> bool:
        if self._poll is not None:
            return bool(self._poll.poll(0))
        return bool(select.select([self._fileno], [], [], 0)[0])
