"""What the layers above know of an open WebSocket, whichever event loop and library carry it."""

from __future__ import annotations

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
    "Interrupted",
    "Target",
    "Wire",
]

CLOSING_TIME: Final = 2.0
"""Seconds for the closing handshake."""


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
        check_handshake(self.headers, self.subprotocols, self.endpoint)

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
    def has_unsent_data(self) -> bool:
        """True if something that was given to the wire, a ping included, still waits to be written to the socket."""

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
        return False

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
        """Deprecated: `set_data_callback`."""
        return self.set_data_callback(arrived)

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
