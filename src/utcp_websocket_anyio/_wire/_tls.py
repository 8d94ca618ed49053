"""TLS without I/O, between a socket and the protocol: it has the methods of `ProtocolCore` that an engine drives.

Both event loops have TLS streams of their own. They are not used, because they keep things to themselves: how much
they have decrypted ahead, that a record has come in part (so that a connection looks quiet which is not), and what
becomes of a record that was written in part when its writer is cancelled. Here all of it is plain state.
"""

from __future__ import annotations

import ssl
from typing import cast

from .._net.sockets import TLSSession
from ..errors import WebSocketError
from ._core import ProtocolCore

__all__ = ["TLSLayer"]

_RECORD_HEADER = 5


class TLSLayer:
    """TLS on the client's side.

    Args:
        core: Layer above: the core, or another TLS layer. Its buffer must be another one.
        session: The TLS session, which may have begun already.
        buffer: Result of `get_buffer`.
    """

    __slots__ = ("_buffer", "_core", "_incoming", "_is_secure", "_object", "_outgoing", "_record_head", "_record_rest")

    def __init__(self, core: ProtocolCore | TLSLayer, session: TLSSession, buffer: memoryview) -> None:
        self._core = core
        self._buffer = buffer
        self._incoming = session.incoming
        self._outgoing = session.outgoing
        self._object = session.object
        self._is_secure = False
        self._record_head = b""
        self._record_rest = 0
        self._decrypt()

    # In

    def get_buffer(self) -> memoryview:
        """As `ProtocolCore.get_buffer`."""
        return self._buffer

    def received(self, size: int, *, is_new_turn: bool = True) -> None:
        """As `ProtocolCore.received`."""
        data = self._buffer[:size]
        self._follow_records(data)
        self._incoming.write(data)
        self._decrypt(is_new_turn=is_new_turn)

    def resume(self) -> None:
        """As `ProtocolCore.resume`."""
        self._core.resume()
        self._decrypt()

    def received_eof(self) -> None:
        """As `ProtocolCore.received_eof`."""
        self._incoming.write_eof()
        self._decrypt(is_new_turn=True)
        if self._is_secure:
            self._core.received_eof()

    def lose(self, cause: BaseException | None = None) -> None:
        """As `ProtocolCore.lose`."""
        self._core.lose(cause)

    @property
    def closed(self) -> WebSocketError | None:
        """As `ProtocolCore.closed`."""
        return self._core.closed

    @property
    def has_leftover(self) -> bool:
        """As `ProtocolCore.has_leftover`."""
        return self._core.has_leftover

    @property
    def is_amid_message(self) -> bool:
        """As `ProtocolCore.is_amid_message`."""
        return bool(self._record_head or self._record_rest) or self._core.is_amid_message

    def _decrypt(self, *, is_new_turn: bool = False) -> None:
        """Go on with the handshake, or decrypt what has come as far as the turn's budget goes."""
        core = self._core
        try:
            if not self._is_secure:
                self._object.do_handshake()
                self._is_secure = True
            while not core.has_leftover and core.closed is None:
                buffer = core.get_buffer()
                size = cast("int", self._object.read(len(buffer), buffer))
                if not size:
                    core.received_eof()
                    return
                core.received(size, is_new_turn=is_new_turn)
                is_new_turn = False
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            core.received_eof()
        except ssl.SSLError as error:
            core.lose(error)

    def _follow_records(self, data: memoryview) -> None:
        """Find out whether `data` ends amid a record (RFC 8446, section 5.1), a part of which OpenSSL does not show."""
        position, end = 0, len(data)
        while position < end:
            if self._record_rest:
                step = min(self._record_rest, end - position)
                self._record_rest -= step
            else:
                step = min(_RECORD_HEADER - len(self._record_head), end - position)
                self._record_head += data[position : position + step]
                if len(self._record_head) == _RECORD_HEADER:
                    self._record_rest = int.from_bytes(self._record_head[3:], "big")
                    self._record_head = b""
            position += step

    # Out

    @property
    def has_output(self) -> bool:
        """As `ProtocolCore.has_output`."""
        return bool(self._outgoing.pending) or (self._is_secure and self._core.has_output)

    def to_send(self) -> bytes:
        """As `ProtocolCore.to_send`."""
        if self._is_secure and (output := self._core.to_send()):
            return self._encrypt(output)
        return self._outgoing.read()

    def seal(self, data: bytes) -> bytes:
        """Encrypt bytes of a message; what is returned has to be sent before anything else."""
        return self._encrypt(self._core.seal(data))

    def _encrypt(self, data: bytes) -> bytes:
        try:
            self._object.write(data)
        except ssl.SSLError as error:
            self._core.lose(error)
        return self._outgoing.read()
