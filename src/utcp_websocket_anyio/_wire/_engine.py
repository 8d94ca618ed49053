"""Shared code of the two engines: a socket on one side, the protocol on the other, TLS between them if needed."""

from __future__ import annotations

import copy
import select
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any, Final

from .._net.sockets import TLSSession
from .._net.transport import Opened, connection_failure, open_socket
from ..errors import WebSocketClosedError, WebSocketError
from ._buffers import shared_buffers
from ._core import ProtocolCore
from ._interface import Target, Wire
from ._tls import TLSLayer

__all__ = ["SENDS_PER_TURN", "EngineWire", "open_engine"]

SENDS_PER_TURN: Final = 64
"""Messages after which a sender lets other tasks run, even if there was always room."""

_TURNS_AFTER_LOSS: Final = 32
"""Turns' worth of reading done at once after a failed write: the peer's close may be behind that much data."""


async def open_engine(engine: Callable[[Target, Opened], EngineWire], target: Target) -> Wire:
    """Connect, and have an engine shake hands. Cancelling it leaves nothing open.

    Args:
        engine: The engine's class.
        target: The place to connect to, and how.

    Raises:
        WebSocketError: There is no connection, or no WebSocket at its other end.
    """
    route = target.network.route("ws", target.address, target.endpoint)
    opened = await open_socket(route, target.network, target.endpoint)
    wire: EngineWire | None = None
    failure: WebSocketError
    try:
        wire = engine(target, opened)
        await wire.handshake()
        return wire
    except WebSocketError as error:
        failure = error
    except (OSError, UnicodeError) as error:
        failure = connection_failure(error, target.endpoint)
    except BaseException:
        _abandon(opened, wire)
        raise
    _abandon(opened, wire)
    # Not in the `except`: nothing of a library's error may be behind it.
    raise failure


def _abandon(opened: Opened, wire: Wire | None) -> None:
    """Close what belongs to a wire that could not be opened, which may not even have been made."""
    if wire is None:
        opened.socket.close()
    else:
        wire.abort()


class EngineWire(Wire):
    """A wire on `ProtocolCore`.

    Bytes of the socket go through the layers between it and the core: none, or TLS with the server, or with a proxy, or
    one in the other.

    Args:
        opened: The connection; it belongs to the wire.
    """

    def __init__(self, target: Target, opened: Opened) -> None:
        self._endpoint = target.endpoint
        self._socket = opened.socket
        self._probe = SocketProbe(opened.socket.fileno())
        address = target.address
        sessions = [] if opened.proxy_session is None else [opened.proxy_session]
        if address.secure:
            sessions.append(TLSSession(target.network.tls, address.server_name))
        self._core = ProtocolCore(target, shared_buffers.of_layer(len(sessions)), leg=opened.leg)
        self._layer: ProtocolCore | TLSLayer = self._core
        while sessions:
            session = sessions.pop()
            self._layer = TLSLayer(self._layer, session, shared_buffers.of_layer(len(sessions)))
        # Here and not only in the class: up to Python 3.11, an attribute of the class takes ten times as long to read.
        self.closed = None
        self._bytes_read = 0
        self._sends = 0
        self._interrupts = 0  # number of calls of `interrupt`: a waiter compares it with the earlier value

    def send(self, data: str | bytes, fragment: int | None = None) -> Coroutine[Any, Any, None]:
        # The other's coroutine instead of one more: it would cost each call a third of a microsecond.
        return self._send((data,), fragment, self._interrupts)

    def send_many(self, messages: Sequence[str | bytes], fragment: int | None = None) -> Coroutine[Any, Any, None]:
        return self._send(messages, fragment, None)

    @abstractmethod
    async def _send(self, messages: Sequence[str | bytes], fragment: int | None, interrupts: int | None) -> None:
        """Send messages.

        Args:
            interrupts: Number of interrupts so far; a further one ends the waiting. None: none does.
        """

    def _pieces(self, messages: Sequence[str | bytes], fragment: int | None) -> Iterable[bytes]:
        """The bytes to write for messages, piece by piece; several messages may form one piece."""
        message = self._core.message
        if len(messages) > 1:
            return (b"".join([piece for data in messages for piece in message(data, fragment)]),)
        return message(messages[0], fragment)

    @abstractmethod
    async def handshake(self) -> None:
        """Perform the opening handshake.

        Raises:
            WebSocketError: There will be no WebSocket.
        """

    def has_unread_data(self) -> bool:
        return self.closed is not None or self._layer.is_amid_message or self._probe()

    def has_partial_message(self) -> bool:
        return self._core.has_partial_message

    def take_nowait(self) -> deque[str | bytes]:
        core = self._core
        messages, core.messages = core.messages, deque()
        return messages

    def _check_open(self) -> None:
        if self.closed is not None:
            raise copy.copy(self.closed)

    def _closed_here(self, code: int = 1006, reason: str = "") -> WebSocketError:
        return WebSocketClosedError("closed by this side", code=code, reason=reason, endpoint=self._endpoint)

    def _lose(self, cause: BaseException | None) -> None:
        """The connection is lost. What the peer has said before, its close above all, is read first.

        It is still there: a reset ends what can be sent, and leaves what has arrived.
        """
        layer, core = self._layer, self._core
        try:
            for _ in range(_TURNS_AFTER_LOSS):
                if core.closed is not None:
                    break
                if layer.has_leftover:
                    layer.resume()
                elif size := self._socket.recv_into(layer.get_buffer()):
                    self._bytes_read += size
                    layer.received(size)
                else:
                    layer.received_eof()
        except OSError:
            pass
        core.lose(cause)


class SocketProbe:
    """Tells if a socket has something to read, for a system call and nothing else."""

    __slots__ = ("_fileno", "_poll")

    def __init__(self, fileno: int) -> None:
        self._fileno = fileno
        self._poll: select.poll | None = None
        if hasattr(select, "poll"):
            self._poll = select.poll()
            self._poll.register(fileno, select.POLLIN)

    def __call__(self) -> bool:
        """True if there is something to read, the end included."""
        if self._poll is not None:
            return bool(self._poll.poll(0))
        return bool(select.select([self._fileno], [], [], 0)[0])
