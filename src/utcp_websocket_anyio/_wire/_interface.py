"""The interface of an open WebSocket, independent of event loop and engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from .._net.security import Address, check_handshake, split_address
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
    """The destination and the options of a connection.

    Attributes:
        url: URL to connect to; complete, credentials in the query included.
        endpoint: The URL as it may be shown.
        headers: Headers that are added to the handshake; they have been checked.
        subprotocols: Offered in this order; the server must choose one of them.
        compression: True to offer permessage-deflate (RFC 7692).
        compression_threshold: Shorter outgoing messages go uncompressed, in bytes.
        max_message_size: Longest incoming message, before and after decompression, in bytes.
        network: The way there, and the TLS settings.
        address: Destination of `url`.

    Raises:
        WebSocketSecurityError: The URL leads nowhere, or a header or subprotocol could change the handshake. Nothing
            reaches an engine unchecked.
    """

    url: str
    endpoint: str
    headers: tuple[tuple[str, str], ...] = ()
    subprotocols: tuple[str, ...] = ()
    compression: bool = False
    compression_threshold: int = 1024
    max_message_size: int = 16 * 2**20
    network: Network = field(default_factory=Network)
    address: Address = field(init=False)

    def __post_init__(self) -> None:
        check_handshake(self.headers, self.subprotocols, self.endpoint)
        object.__setattr__(self, "address", split_address(self.url))

    def __repr__(self) -> str:
        return f"<Target {self.endpoint}>"


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """Raised in a waiting task by `Wire.interrupt`."""


class Wire(ABC):
    """One open WebSocket.

    One task at a time may be in `receive`; several may be in `send` and `ping`. Where `set_data_callback` returns
    False, the peer's pings are answered, and its end is noticed, only while a task is in `receive`.

    Attributes:
        closed: Why it is closed, None while it is open. Messages that came before can still be received.
        bytes_sent: Payload bytes of sent messages.
        bytes_received: Payload bytes of received messages.
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
    def has_partial_message(self) -> bool:
        """True if a message has begun to arrive, and its end has not come."""

    @abstractmethod
    def has_unread_data(self) -> bool:
        """True if something has arrived that `receive` has not returned: a message, bytes of one, or the end."""

    def set_data_callback(self, callback: Callable[[], None] | None) -> bool:
        """Register a callback for data that arrives while no task is in `receive`: a message, or the end.

        Args:
            callback: Function that is called in one of the next turns of the loop, once for all data; None: none.

        Returns:
            False if this is not possible, because nothing arrives, and no ping is answered, unless a task is in
            `receive`.
        """
        return False

    @abstractmethod
    async def send(self, data: str | bytes, fragment: int | None = None) -> None:
        """Send one message: a str as text, bytes as binary; with `fragment`, in fragments of at most that many bytes.

        It waits while the transport is full. Cancelling or interrupting it half-way closes the wire, unless the whole
        message is on its way already.

        Raises:
            Interrupted: `interrupt` was called while it waited for other messages; nothing was sent.
            WebSocketError: The wire is closed, or was closed before the message was sent.
            ValueError: A text contains a lone surrogate.
        """

    @abstractmethod
    async def send_many(self, messages: Sequence[str | bytes], fragment: int | None = None) -> None:
        """Send messages as `send` would, one behind the other, and all of them at once: with one system call.

        They are copied on the way, so they should be small. They are of several callers, or of none, so `interrupt`
        does not reach it.
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
        """Wake the task in `receive` with `Interrupted`, and stop waiting in `send`; not in `send_many`.

        It reaches the tasks that are there now, wherever they stand, and no later one. The wire can still be used,
        unless that cut off a message.
        """

    @abstractmethod
    def take_nowait(self) -> deque[str | bytes]:
        """Every message that has been received and not returned yet; there may be none."""

    @abstractmethod
    async def ping(self) -> None:
        """Send a ping and wait for a sign of life: its pong, or any other byte after the ping was written.

        It needs a task in `receive` where `set_data_callback` returns False. Cancelling it harms nothing.

        Raises:
            WebSocketError: The wire is closed, or was closed meanwhile.
        """

    @abstractmethod
    async def send_close(self, code: int) -> None:
        """Send the close frame and nothing after it; what the peer says before its own close is still received.

        `close` or `abort` has to follow, unless the peer closes. Cancelling it harms nothing.

        Raises:
            WebSocketError: The wire is closed, or was closed meanwhile.
        """

    @abstractmethod
    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Perform the closing handshake, within two seconds, and close the socket, on cancellation too.

        Messages that were not received are discarded.
        """

    @abstractmethod
    def abort(self) -> None:
        """Close the socket now."""
