"""A WebSocket client without I/O: bytes in, messages out, and the other way round.

The protocol itself is the sans-I/O core of `websockets`. What is added here is what a client needs around it: the
handshake's answer is judged by its head alone (a refusal's body may never end), fragments become messages within a
limit, and whatever ends the connection becomes the error that a caller is to see, in `closed`.
"""

from __future__ import annotations

import logging
import platform
import secrets
import struct
from collections import deque
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, NegotiationError, PayloadTooBig
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

from .._version import __version__
from ..errors import (
    WebSocketAuthError,
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketProtocolError,
)
from ._interface import Target

__all__ = ["Session", "refused", "user_agent"]

_LONGEST_HEAD = 64 * 1024

# Frames (RFC 6455, section 5.2): the first byte of a message in one frame; what the second one says of the length.
_WHOLE_TEXT, _WHOLE_BINARY = 0x81, 0x82
_WHOLE_MESSAGE = (_WHOLE_TEXT, _WHOLE_BINARY)
_PING, _PONG = 0x89, 0x8A
_CONTINUATION = 0x00
_FINAL = 0x80
_MASKED = 0x80
_LENGTH_BYTES = {126: 2, 127: 8}

_PIECE = 256 * 1024  # of what is masked; a multiple of the mask's length

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
        self._header = b""  # of a frame, as far as it came
        self._missing = 0  # bytes of the frame that was begun
        self._is_for_core = False  # the frame that was begun
        self._is_fragmented = False
        self._is_text = False
        self._partial = bytearray()  # not a list of fragments: a hostile peer's are two bytes each
        self._protocol = ClientProtocol(
            parse_uri(target.url),
            extensions=[ClientPerMessageDeflateFactory(client_max_window_bits=True)] if target.compression else None,
            subprotocols=list(target.subprotocols) or None,  # type: ignore[arg-type]
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
        if self._head is not None:
            head = self._judge_head(data)
            if head is None:
                return
            size = head.find(b"\r\n\r\n") + 4
            self._feed_core(head[:size])
            data = head[size:]
            if not data or self.closed is not None:
                return
        if data:
            self._take_frames(data)
        else:
            self._protocol.receive_eof()
            self._take_events()

    def _feed_core(self, data: bytes | bytearray) -> None:
        self._protocol.receive_data(data)
        self._take_events()

    def _take_frames(self, data: bytes | bytearray) -> None:
        """Take pongs and messages of one frame without the core's detours, and give it all other frames.

        So all that can be wrong with a frame, but for the text in it, is found by the core.
        """
        position = 0
        if self._missing:
            position = self._go_on(data)
            if self.closed is not None:
                return
        elif self._header:
            data, self._header = self._header + data, b""
        end = len(data)
        limit = self._target.max_message_size
        while end - position >= 2:
            first, second = data[position], data[position + 1]
            start, size = position + 2, second
            if second in _LENGTH_BYTES:
                start += _LENGTH_BYTES[second]
                if start > end:
                    break
                size = int.from_bytes(data[position + 2 : start], "big")
            if second >= _MASKED or size > limit:
                # The core needs no more than the header to refuse it.
                self._feed_core(data[position:])
                return
            stop = start + size
            self._is_for_core = first not in _WHOLE_MESSAGE or self._is_fragmented
            if first == _PONG and second not in _LENGTH_BYTES and stop <= end:
                self.pongs.append(bytes(data[start:stop]))
            elif self._is_for_core:
                self._feed_core(data[position:stop])
            elif stop <= end:
                self._deliver(first == _WHOLE_TEXT, data[start:stop])
            else:
                self._is_text = first == _WHOLE_TEXT
                self._partial = bytearray(data[start:])
            if self.closed is not None:
                return
            if stop > end:
                self._missing = stop - end
                return
            position = stop
        self._header = bytes(data[position:])

    def _go_on(self, data: bytes | bytearray) -> int:
        """Take what is missing of the frame that was begun; where it ends."""
        part = data[: self._missing]
        self._missing -= len(part)
        if self._is_for_core:
            self._feed_core(part)
        else:
            self._partial += part
            if not self._missing:
                self._deliver(self._is_text, self._taken())
        return len(part)

    def message(self, data: str | bytes, fragment: int | None = None) -> Iterable[bytes]:
        """The frames of a message, in pieces: one, or of at most `fragment` bytes of payload each.

        Raises:
            WebSocketError: The connection is closed.
        """
        self._check_open()
        is_text = isinstance(data, str)
        payload = data.encode() if isinstance(data, str) else data
        if not self._protocol.extensions or len(payload) < self._target.compression_threshold:
            first = _WHOLE_TEXT if is_text else _WHOLE_BINARY
            if fragment is None or len(payload) <= fragment:
                return _masked_frame(first, payload)
            return _fragments(first, payload, fragment)
        if fragment is not None and len(payload) > fragment:
            (self._protocol.send_text if is_text else self._protocol.send_binary)(payload[:fragment], fin=False)
            for start in range(fragment, len(payload), fragment):
                stop = start + fragment
                self._protocol.send_continuation(payload[start:stop], fin=stop >= len(payload))
            return [self.to_send()]
        (self._protocol.send_text if is_text else self._protocol.send_binary)(payload)
        return [self.to_send()]

    def ping(self, payload: bytes) -> bytes:
        """The frame of a ping.

        Raises:
            WebSocketError: The connection is closed.
        """
        self._check_open()
        return b"".join(_masked_frame(_PING, payload))

    def close(self, code: int, reason: str) -> bytes:
        """The frame that starts the closing handshake; nothing when it has been started already."""
        if self._protocol.state is not State.OPEN:
            return b""
        self._protocol.send_close(code, reason)
        return self.to_send()

    @property
    def is_amid_message(self) -> bool:
        """Whether something of a message was received that is not taken yet."""
        return bool(self.messages or self._header or self._missing) or self._is_fragmented

    @property
    def subprotocol(self) -> str | None:
        """The one that the server chose."""
        return self._protocol.subprotocol

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
            if self._target.subprotocols and self._protocol.subprotocol is None:
                self.closed = WebSocketProtocolError(
                    "the server chose none of the subprotocols that were offered", endpoint=self._target.endpoint
                )
            self.is_open = self.closed is None
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
        if opcode is Opcode.TEXT or opcode is Opcode.BINARY:
            self._is_fragmented = not frame.fin
            if frame.fin:
                self._deliver(opcode is Opcode.TEXT, frame.data)
            else:
                self._is_text = opcode is Opcode.TEXT
                self._partial = bytearray(frame.data)
        elif opcode is Opcode.CONT:
            self._partial += frame.data
            if frame.fin:
                self._is_fragmented = False
                self._deliver(self._is_text, self._taken())
        elif opcode is Opcode.PONG:
            self.pongs.append(bytes(frame.data))
        elif opcode is Opcode.CLOSE:
            self._ended()

    def _taken(self) -> bytearray:
        partial, self._partial = self._partial, bytearray()
        return partial

    def _deliver(self, is_text: bool, data: Any) -> None:
        try:
            self.messages.append(str(data, "utf-8") if is_text else bytes(data))
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


def _fragments(first: int, payload: bytes, size: int) -> Iterator[bytes]:
    """A message in frames of at most `size` bytes of payload."""
    opcode = first & ~_FINAL
    for start in range(0, len(payload), size):
        stop = start + size
        yield from _masked_frame(opcode if stop < len(payload) else opcode | _FINAL, payload[start:stop])
        opcode = _CONTINUATION


def _masked_frame(first: int, payload: bytes) -> Iterator[bytes]:
    """A frame in pieces, so that a long message is not copied as a whole for its mask and again for its header."""
    size = len(payload)
    if size < 126:
        header = bytes((first, _MASKED | size))
    elif size < 2**16:
        header = struct.pack("!BBH", first, _MASKED | 126, size)
    else:
        header = struct.pack("!BBQ", first, _MASKED | 127, size)
    key = secrets.token_bytes(4)
    head = header + key
    for start in range(0, size or 1, _PIECE):
        yield head + apply_mask(payload[start : start + _PIECE], key)
        head = b""
