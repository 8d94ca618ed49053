"""A WebSocket client without I/O: bytes in, messages out, and the other way round.

The protocol itself is the sans-I/O core of `websockets`. What is added here is what a client needs around it: the
handshake's answer is judged by its head alone (a refusal's body may never end), fragments become messages within a
limit, and whatever ends the connection becomes the error that a caller is to see, in `closed`.
"""

from __future__ import annotations

import logging
import platform
from collections import deque
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, NegotiationError, PayloadTooBig
from websockets.extensions import Extension
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.typing import ExtensionParameter
from websockets.uri import parse_uri

from .. import __version__
from ..errors import (
    WebSocketAuthError,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
)
from . import Target

__all__ = ["Session", "refused", "user_agent"]

_LONGEST_HEAD = 64 * 1024

# Frames (RFC 6455, section 5.2): the first byte of a message in one frame, and how lengths up to 65,535 are written.
_WHOLE_TEXT = 0x81
_WHOLE_MESSAGE = (_WHOLE_TEXT, 0x82)
_SHORTEST_HEADER = 2
_TWO_BYTES_OF_LENGTH = 126
_LENGTH_BYTES = 2

# Its records would show handshake headers and messages.
_silent = logging.Logger("utcp_websocket_anyio.wire", level=logging.CRITICAL + 1)  # noqa: LOG001 - not in the tree
_silent.disabled = True


class Session:
    """One connection, from its handshake to its end.

    Attributes:
        messages: What was received and not taken yet.
        pongs: Payloads of the pongs that were received and not taken yet.
        closed: Why there will be no further message; None before.
        is_open: Whether the handshake is done.
    """

    def __init__(self, target: Target) -> None:
        self.messages: deque[str | bytes] = deque()
        self.pongs: list[bytes] = []
        self.closed: WebSocketError | None = None
        self.is_open = False
        self._target = target
        self._head: bytearray | None = bytearray()
        self._takes_whole_frames = False
        self._unfinished = 0
        self._opcode = Opcode.TEXT
        self._is_fragmented = False
        self._fragments = bytearray()  # not a list: a hostile peer's are two bytes each
        self._protocol = ClientProtocol(
            parse_uri(target.url),
            extensions=[_DeflateFactory(target.compression_threshold, self._inflated)] if target.compression else None,
            subprotocols=[target.subprotocol] if target.subprotocol is not None else None,  # type: ignore[list-item]
            max_size=target.max_message_size,
            logger=_silent,
        )
        request = self._protocol.connect()
        for name, value in target.headers:
            request.headers[name] = value
        if "User-Agent" not in request.headers:
            request.headers["User-Agent"] = user_agent()
        self._protocol.send_request(request)

    def to_send(self) -> bytes:
        """What is to be sent now: the handshake, answers to pings and closes, or nothing."""
        writes = self._protocol.data_to_send()
        return writes[0] if len(writes) == 1 else b"".join(writes)

    def feed(self, data: bytes | bytearray) -> None:
        """Take in what was received; no bytes mean the end of the stream. Never raises."""
        if self.closed is not None:
            return
        if data and self._takes_whole_frames and not (self._unfinished or self._is_fragmented):
            data = self._take_whole_frames(data)
            if not data:
                return
        if self._head is not None:
            rest = self._judge_head(data)
            if rest is None:
                return
            data = rest
            self._unfinished = len(data) - data.find(b"\r\n\r\n") - 4
        else:
            self._unfinished += len(data)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._take_events()

    def _take_whole_frames(self, data: bytes | bytearray) -> bytes | bytearray:
        """Take short messages of one frame, which most are, without the core's detours; give back what is left.

        Whatever is out of the ordinary, and so everything that can be wrong but the text, is left to the core.
        """
        position, end = 0, len(data)
        while end - position >= _SHORTEST_HEADER:
            first, size = data[position], data[position + 1]
            start = position + _SHORTEST_HEADER
            if size == _TWO_BYTES_OF_LENGTH and end - start >= _LENGTH_BYTES:
                size = int.from_bytes(data[start : start + _LENGTH_BYTES], "big")
                start += _LENGTH_BYTES
            elif size >= _TWO_BYTES_OF_LENGTH:
                break
            stop = start + size
            if first not in _WHOLE_MESSAGE or stop > end or size > self._target.max_message_size:
                break
            try:
                payload = data[start:stop]
                self.messages.append(str(payload, "utf-8") if first == _WHOLE_TEXT else bytes(payload))
            except UnicodeDecodeError:
                break
            position = stop
        return data[position:] if position else data

    def _inflated(self, more: int) -> None:
        """A frame came out longer by so many bytes than it was received."""
        self._unfinished += more

    def message(self, data: str | bytes) -> bytes:
        """The frame of a message.

        Raises:
            WebSocketError: The connection is closed.
        """
        self._check_open()
        if isinstance(data, str):
            self._protocol.send_text(data.encode())
        else:
            self._protocol.send_binary(data)
        return self.to_send()

    def ping(self, payload: bytes) -> bytes:
        """The frame of a ping.

        Raises:
            WebSocketError: The connection is closed.
        """
        self._check_open()
        self._protocol.send_ping(payload)
        return self.to_send()

    def close(self, code: int, reason: str) -> bytes:
        """The frame that starts the closing handshake; nothing when it has been started already."""
        if self._protocol.state is not State.OPEN:
            return b""
        self._protocol.send_close(code, reason)
        return self.to_send()

    @property
    def is_amid_message(self) -> bool:
        """Whether something of a message was received that is not taken yet."""
        return bool(self.messages or self._unfinished) or self._is_fragmented

    @property
    def close_received(self) -> bool:
        return self._protocol.close_rcvd is not None or self._protocol.state is State.CLOSED

    def lose(self, error: WebSocketError | None = None) -> None:
        """The transport is gone."""
        if self.closed is None:
            self.closed = error or WebSocketClosedError("the connection was lost", endpoint=self._target.endpoint)

    def _check_open(self) -> None:
        if self.closed is not None:
            raise self.closed
        if self._protocol.state is not State.OPEN:
            raise WebSocketClosedError("the connection is being closed", endpoint=self._target.endpoint)

    # The handshake

    def _judge_head(self, data: bytes | bytearray) -> bytes | None:
        """Collect the head of the answer; the bytes to go on with once it is complete and good."""
        head = self._head
        assert head is not None
        endpoint = self._target.endpoint
        head += data
        end = head.find(b"\r\n\r\n")
        if end < 0:
            if not data:
                self.closed = WebSocketConnectionError(
                    "the connection was closed during the handshake", endpoint=endpoint, transient=True
                )
            elif len(head) > _LONGEST_HEAD or not b"HTTP/1.1 ".startswith(head[:9]):
                self._refuse("it was not answered in HTTP")
            return None
        self._head = None
        words = bytes(head[: head.find(b"\r\n")]).split(b" ", 2)
        if words[0] != b"HTTP/1.1" or len(words) < 2 or not (len(words[1]) == 3 and words[1].isdigit()):
            self._refuse("it was not answered in HTTP")
            return None
        if words[1] != b"101":
            self.closed = refused(int(words[1]), endpoint)
            return None
        return bytes(head)

    def _refuse(self, why: str) -> None:
        self.closed = WebSocketConnectionError(f"no WebSocket handshake: {why}", endpoint=self._target.endpoint)

    def _opened(self) -> None:
        failure = self._protocol.handshake_exc
        if failure is None:
            if self._protocol.subprotocol != self._target.subprotocol:
                self.closed = WebSocketProtocolError(
                    f"the server did not take the subprotocol {self._target.subprotocol!r}",
                    endpoint=self._target.endpoint,
                )
            self.is_open = self.closed is None
            self._takes_whole_frames = self.is_open and not self._protocol.extensions
        elif isinstance(failure, NegotiationError):
            self.closed = WebSocketProtocolError(
                "the server chose a subprotocol or an extension that was not offered", endpoint=self._target.endpoint
            )
        else:
            kind = type(failure).__name__ if isinstance(failure, InvalidHandshake) else "invalid response"
            self._refuse(f"its answer is not that of a WebSocket server ({kind})")

    # Frames

    def _take_events(self) -> None:
        for event in self._protocol.events_received():
            if isinstance(event, Frame):
                self._take_frame(event)
            elif isinstance(event, Response):
                self._opened()
            if self.closed is not None:
                return
        if self._protocol.parser_exc is not None or self._protocol.state is State.CLOSED:
            self._ended()
        elif self._protocol.handshake_exc is not None:
            self._opened()

    def _take_frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        self._unfinished -= _header_size(frame) + len(frame.data)
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self._is_fragmented = not frame.fin
            if frame.fin:
                self._deliver(opcode, frame.data)
            else:
                self._opcode = opcode
                self._fragments = bytearray(frame.data)
        elif opcode is Opcode.CONT:
            self._fragments += frame.data
            if frame.fin:
                self._is_fragmented = False
                fragments, self._fragments = self._fragments, bytearray()
                self._deliver(self._opcode, fragments)
        elif opcode is Opcode.PONG:
            self.pongs.append(bytes(frame.data))
        elif opcode is Opcode.CLOSE:
            self._ended()

    def _deliver(self, opcode: Opcode, data: Any) -> None:
        if opcode is Opcode.BINARY:
            self.messages.append(bytes(data))
            return
        try:
            self.messages.append(str(data, "utf-8"))
        except UnicodeDecodeError:
            self._protocol.fail(1007, "invalid UTF-8")
            self._break("text that is not UTF-8")

    def _ended(self) -> None:
        if self.closed is not None:
            return
        fault = self._protocol.parser_exc
        close = self._protocol.close_rcvd
        if isinstance(fault, PayloadTooBig):
            self._break(f"a message longer than {self._target.max_message_size} bytes")
        elif isinstance(fault, UnicodeDecodeError):
            self._break("text that is not UTF-8")
        elif fault is not None and not isinstance(fault, EOFError):
            self._break(str(fault) or type(fault).__name__)
        elif close is not None:
            self.closed = closed_by_peer(close.code, close.reason, self._target.endpoint)
        else:
            self.lose()

    def _break(self, how: str) -> None:
        self.closed = WebSocketProtocolError(
            f"the peer broke the WebSocket protocol: {how}", endpoint=self._target.endpoint
        )


def closed_by_peer(code: int, reason: str, endpoint: str) -> WebSocketClosedError:
    return WebSocketClosedError(
        f"the peer closed the connection with code {code}", code=code, reason=reason, endpoint=endpoint
    )


def refused(status: int, endpoint: str) -> WebSocketConnectionError:
    """The error for a handshake that was answered with another status than 101."""
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    text = f"the handshake was answered with status {status}{phrase}"
    if status in (401, 403):
        return WebSocketAuthError(text, endpoint=endpoint, status=status)
    if 300 <= status < 400:
        text += ", a redirect, which is not followed"
    return WebSocketConnectionError(text, endpoint=endpoint, status=status, transient=status >= 500)


def user_agent() -> str:
    return f"utcp-websocket-anyio/{__version__} Python/{platform.python_version()}"


def _header_size(frame: Frame) -> int:
    """Bytes in the header of a frame without mask (RFC 6455, section 5.2)."""
    size = len(frame.data)
    return 2 if size < 126 else 4 if size < 65536 else 10


class _DeflateFactory(ClientPerMessageDeflateFactory):
    """Offers permessage-deflate, and leaves short messages as they are.

    Args:
        inflated: Told how many bytes a payload gained.
    """

    def __init__(self, threshold: int, inflated: Callable[[int], None]) -> None:
        super().__init__(client_max_window_bits=True)
        self._threshold = threshold
        self._inflated = inflated

    def process_response_params(
        self, params: Sequence[ExtensionParameter], accepted_extensions: Sequence[Extension]
    ) -> Any:
        deflate = super().process_response_params(params, accepted_extensions)
        return _Deflate(deflate, self._threshold, self._inflated)


class _Deflate(Extension):
    def __init__(self, deflate: Extension, threshold: int, inflated: Callable[[int], None]) -> None:
        self.name = deflate.name
        self._deflate = deflate
        self._threshold = threshold
        self._inflated = inflated

    def decode(self, frame: Frame, *, max_size: int | None = None) -> Frame:
        decoded = self._deflate.decode(frame, max_size=max_size)
        gained = len(decoded.data) + _header_size(decoded) - len(frame.data) - _header_size(frame)
        self._inflated(gained)
        return decoded

    def encode(self, frame: Frame) -> Frame:
        return frame if len(frame.data) < self._threshold else self._deflate.encode(frame)
