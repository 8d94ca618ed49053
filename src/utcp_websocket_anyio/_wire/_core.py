"""RFC 6455 on the client's side, without I/O: bytes in, messages out, and the other way round.

**In.** An engine asks `get_buffer` where the next bytes should be read to, reads them, and calls `received`. Mostly
that is the buffer which all connections of the loop share, and `received` takes frames out of it. While much of a long
message is missing, it is the memory of that message itself.

A frame is read in one of two ways. A message in one frame, all of which is in the buffer, is by far the most frequent
one, and nothing can be wrong with it but its length and the text in it: `_take_whole_messages` makes messages of such
frames as long as they follow each other. Every other frame is begun, stored as far as it has come, continued by later
reads, and ended. Its first byte says which way it goes:

==========================  =====================================================================================
first byte                  where it goes
==========================  =====================================================================================
0x81, 0x82                  text or binary in one frame: at once if it is complete and no message is in fragments;
                            otherwise `_begin_frame` … `_end_frame`
0x01, 0x02, 0x00, 0x80      fragments: joined in `_assembly`
0x41, 0x42, 0xC1, 0xC2      compressed, if that was agreed on: the frame in `_assembly`, its content in `_inflated`
0x88, 0x89, 0x8A            close, ping, pong: in `_control`, because they may come between the fragments of a message
all others                  a violation
==========================  =====================================================================================

All that lies between two calls is in `_header` (the start of a frame whose length is not known yet), `_first` and
`_missing` (the frame that was begun, and how much of it is to come), the three stores, and `_leftover`.

**Budget.** A read may hold a hundred thousand empty frames, and one frame may inflate to a thousand times its size. So
a turn of the loop takes a bounded number of frames, what is left goes into `_leftover`, and the engine calls `resume`
in the next turn. A peer that sends nothing but control frames, by the thousand, is disconnected.

**Out.** `message` gives the frames of a message; answers and what `ping` and `close` queue are fetched with `to_send`.

**The end.** Whatever ends the connection becomes the error that a caller gets, once, in `closed`. After a violation or
a close nothing more is taken in.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Final

from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Close, Frame, Opcode

try:
    from websockets.speedups import apply_mask
except ImportError:
    from websockets.utils import apply_mask

from .._net.transport import connection_failure
from ..errors import WebSocketClosedError, WebSocketError, WebSocketProtocolError
from ._buffers import READ_SIZE, Assembly, masking_keys, shared_buffers
from ._handshake import Handshake, printable
from ._interface import Target

if TYPE_CHECKING:
    from websockets.extensions.permessage_deflate import PerMessageDeflate

__all__ = ["ProtocolCore"]

# The parts of a frame's first two bytes (RFC 6455, section 5.2).
_FINAL, _RSV1, _RSV2_RSV3, _OPCODE = 0x80, 0x40, 0x30, 0x0F
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
_WHOLE_TEXT, _WHOLE_BINARY = _FINAL | _TEXT, _FINAL | _BINARY
_MASKED = 0x80
_LENGTH_IN_2_BYTES, _LENGTH_IN_8_BYTES = 126, 127
_MAX_CONTROL_LENGTH = 125

_READ_STRAIGHT: Final = READ_SIZE // 2
"""Bytes that have to be missing of a message for reading into its own memory to pay: one copy less, but a read more."""

_BUDGET: Final = 2048
"""Frames, or KiB inflated, that are taken in one turn of the loop: a few milliseconds."""

_MAX_CONTROL_FRAMES: Final = 4096
_FORGIVEN: Final = 64
"""Control frames in a row that are too many, and how many of them each read forgives."""

_LONG_READ: Final = 2048
"""Bytes that hold many frames, if these are short."""

_MAX_PONGS: Final = 64
"""Pongs that wait to be sent; of more pings only the last ones are answered (RFC 6455, section 5.5.3)."""

_PIECE: Final = 256 * 1024
"""Bytes that are masked at once; a multiple of the mask's length."""

_MAX_INFLATED_AT_ONCE: Final = 2**31
"""Bytes that zlib inflates at most in one call."""

_pack_short_head = struct.Struct("!BB4s").pack


class ProtocolCore:
    """One connection, from its handshake to its end.

    Args:
        buffer: Result of `get_buffer`; by default the read buffer of this thread.

    Attributes:
        messages: Messages that were received and not taken yet.
        delivered: Bytes of payload in all messages that ever were in `messages`.
        closed: Why there will be no further message; None before.
        sent: Bytes of payload in all messages that were given to `message`.
        is_open: True once the handshake is done.
        has_leftover: True if a turn's budget did not suffice; `resume` goes on, and nothing must be read before.
        subprotocol: The one that the server chose.

    Raises:
        WebSocketConnectionError: The request cannot be written.
    """

    __slots__ = (
        "_assembly",
        "_budget",
        "_buffer",
        "_close_sent",
        "_compression",
        "_control",
        "_control_frames",
        "_first",
        "_handshake",
        "_header",
        "_inflated",
        "_is_compressed",
        "_is_straight",
        "_kind",
        "_leftover",
        "_leg",
        "_limit",
        "_longest_short_frame",
        "_missing",
        "_output",
        "_pongs",
        "_target",
        "closed",
        "delivered",
        "has_leftover",
        "is_open",
        "messages",
        "sent",
        "subprotocol",
    )

    def __init__(self, target: Target, buffer: memoryview | None = None, *, leg: str = "cannot connect") -> None:
        self.messages: deque[str | bytes] = deque()
        self.delivered = 0
        self.sent = 0
        self.closed: WebSocketError | None = None
        self.is_open = False
        self.has_leftover = False
        self.subprotocol: str | None = None
        self._target = target
        self._leg = leg
        self._limit = target.max_message_size
        self._longest_short_frame = 2 + min(self._limit, _MAX_CONTROL_LENGTH)
        self._buffer = shared_buffers.of_layer(0) if buffer is None else buffer
        self._is_straight = False
        self._handshake: Handshake | None = Handshake(target)
        self._compression: PerMessageDeflate | None = None
        self._output = self._handshake.request()
        self._pongs: deque[bytes] | None = None
        self._close_sent = False
        self._header = b""
        self._first = 0
        self._missing = 0
        self._kind = 0  # the opcode of the message whose first fragment has come; 0: none
        self._is_compressed = False
        self._assembly = Assembly()
        self._inflated = bytearray()
        self._control = b""
        self._control_frames = 0
        self._leftover = b""
        self._budget = 0

    # In

    def get_buffer(self) -> memoryview:
        """The buffer that the next bytes should be read into."""
        if self._missing >= _READ_STRAIGHT:
            self._is_straight = True
            return self._assembly.room(self._missing)
        self._is_straight = False
        return self._buffer

    def received(self, size: int, *, is_new_turn: bool = True) -> None:
        """Take in the bytes that were read to where `get_buffer` said. Never raises."""
        if is_new_turn:
            self._begin_turn()
        if self.closed is not None:
            return
        if self._is_straight:
            self._assembly.extend(size)
            self._missing -= size
            if not self._missing:
                self._end_frame()
        elif self._handshake is not None:
            self._shake_hands(self._handshake, bytes(self._buffer[:size]))
        elif self._missing or self._header:
            self._take(self._buffer[:size])
        else:
            self._take_frames(self._buffer[:size])

    def resume(self) -> None:
        """Go on with what the last turn has left over."""
        self._begin_turn()
        data, self._leftover, self.has_leftover = self._leftover, b"", False
        self._take_frames(data)

    def received_eof(self) -> None:
        """There is nothing more to come."""
        if self._handshake is not None and self.closed is None:
            self._handshake.end()
            self.closed = self._handshake.failure
        self.lose()

    def lose(self, cause: BaseException | None = None) -> None:
        """The transport is gone.

        Args:
            cause: Exception that reports it, if there is one.
        """
        if self.closed is not None:
            return
        endpoint = self._target.endpoint
        if self.is_open:
            self.closed = WebSocketClosedError("the connection was lost", endpoint=endpoint)
        else:
            self.closed = connection_failure(cause or EOFError(), endpoint, what=self._leg)

    def _begin_turn(self) -> None:
        self._budget = _BUDGET
        if self._control_frames:
            self._control_frames = max(0, self._control_frames - _FORGIVEN)

    def _take(self, data: memoryview) -> None:
        """Take in bytes from the shared buffer."""
        if self._missing:
            part = data[: self._missing]
            self._missing -= len(part)
            self._store(part)
            if self._missing:
                return
            self._end_frame()
            if len(part) == len(data) or self.closed is not None:
                return
            data = data[len(part) :]
        elif self._header:
            data = memoryview(self._header + data)
            self._header = b""
        self._take_frames(data)

    def _take_frames(self, data: memoryview | bytes) -> None:
        """Take all frames, as far as the budget goes; keep the start of the last one."""
        position, end = 0, len(data)
        if (
            1 < end == data[1] + 2 <= self._longest_short_frame
            and data[0] == _WHOLE_TEXT
            and not self._kind
            and self._budget > 0
        ):
            # Mostly there is one short message and nothing else, for which a loop is too much.
            try:
                self.messages.append(str(data[2:], "utf-8"))
            except UnicodeDecodeError:
                self._break(1007, "text that is not UTF-8")
                return
            self.delivered += end - 2
            self._control_frames = 0
            self._budget -= 1
            return
        if end >= _LONG_READ and (data[1] <= _MAX_CONTROL_LENGTH or (data[1] == _LENGTH_IN_2_BYTES and data[2] < 4)):
            # Many short frames, as the first has less than 1 KiB: a view takes half as long again to slice as bytes.
            data = bytes(data)
        while True:
            if not self._kind:
                position = self._take_whole_messages(data, position)
            if end - position < 2 or self.closed is not None:
                break
            if self._budget <= 0:
                # Copied, as what lies in a shared buffer is gone by the next turn.
                self._leftover = bytes(data[position:])
                self.has_leftover = True
                return
            taken = self._take_frame(data, position)
            if not taken or self.closed is not None:
                break
            position = taken
        if position < end and not self._missing and self.closed is None:
            self._header = bytes(data[position:])

    def _take_whole_messages(self, data: memoryview | bytes, position: int) -> int:
        """Take the messages, each in one frame and complete, that follow each other; gives the position behind them."""
        messages, limit, budget = self.messages, self._limit, self._budget
        end = len(data)
        delivered = self.delivered
        try:
            while position + 2 <= end and budget > 0:
                first = data[position]
                size = data[position + 1]
                start = position + 2
                if size > _MAX_CONTROL_LENGTH:
                    size, start = _long_length(data, position)
                stop = start + size
                if stop > end or size > limit:
                    break
                if first == _WHOLE_TEXT:
                    messages.append(str(data[start:stop], "utf-8"))
                elif first == _WHOLE_BINARY:
                    messages.append(bytes(data[start:stop]))
                else:
                    break
                delivered += size
                budget -= 1
                position = stop
        except UnicodeDecodeError:
            self._break(1007, "text that is not UTF-8")
        if budget < self._budget:
            self._budget = budget
            self.delivered = delivered
            self._control_frames = 0
        return position

    def _take_frame(self, data: memoryview | bytes, position: int) -> int:
        """Take a frame of any kind; gives the position behind it, 0 if it is incomplete or its head is a violation."""
        end = len(data)
        size, start = data[position + 1], position + 2
        if size > _LENGTH_IN_8_BYTES:
            self._break(1002, "a masked frame")
            return 0
        if size > _MAX_CONTROL_LENGTH:
            size, start = _long_length(data, position)
            if start > end:
                return 0
            if size >= 2**63:
                self._break(1002, "a length that does not fit in 63 bits")
                return 0
        self._budget -= 1
        if not self._begin_frame(data[position], size):
            return 0
        stop = start + size
        if stop > end:
            self._missing = stop - end
            self._store(data[start:])
            return 0
        self._store(data[start:stop])
        self._end_frame()
        return stop

    def _begin_frame(self, first: int, size: int) -> bool:
        """Judge a frame by its head; False if it is a violation."""
        opcode = first & _OPCODE
        is_whole = bool(first & _FINAL)
        if first & _RSV2_RSV3 or (first & _RSV1 and not (self._compression and opcode in (_TEXT, _BINARY))):
            return self._break(1002, "reserved bits are set")
        if opcode >= _CLOSE:
            if opcode > _PONG:
                return self._break(1002, "an unknown opcode")
            if not is_whole:
                return self._break(1002, "a control frame in fragments")
            if size > _MAX_CONTROL_LENGTH:
                return self._break(1002, "a control frame longer than 125 bytes")
        elif opcode == _CONTINUATION:
            if not self._kind:
                return self._break(1002, "a continuation of nothing")
        elif opcode > _BINARY:
            return self._break(1002, "an unknown opcode")
        elif self._kind:
            return self._break(1002, "a new message inside a fragmented one")
        else:
            self._kind = opcode
            self._is_compressed = bool(first & _RSV1)
        if opcode < _CLOSE:
            room = self._limit - (len(self._inflated) if self._is_compressed else self._assembly.size)
            # What cannot be compressed is longer afterwards, by the heads of its blocks.
            if size > (room + room // 8 + 64 if self._is_compressed else room):
                return self._break_limit()
        self._first = first
        return True

    def _store(self, data: memoryview | bytes) -> None:
        """Keep a part of the frame that was begun."""
        if self._first & _OPCODE >= _CLOSE:
            self._control += data
        else:
            self._assembly.append(data, self._missing)

    def _end_frame(self) -> None:
        """All of the frame that was begun is stored."""
        opcode = self._first & _OPCODE
        if opcode >= _CLOSE:
            payload, self._control = self._control, b""
            self._take_control(opcode, payload)
            return
        if self._assembly.size or self._first & _FINAL:
            self._control_frames = 0
        if self._is_compressed and not self._inflate():
            return
        if not self._first & _FINAL:
            return
        try:
            message: str | bytes
            if self._is_compressed:
                size = len(self._inflated)
                message = str(self._inflated, "utf-8") if self._kind == _TEXT else bytes(self._inflated)
                self._inflated = bytearray()
            else:
                size = self._assembly.size
                message = self._assembly.text() if self._kind == _TEXT else self._assembly.binary()
        except UnicodeDecodeError:
            self._break(1007, "text that is not UTF-8")
            return
        self._kind = 0
        self._assembly.clear()
        self.messages.append(message)
        self.delivered += size

    def _inflate(self) -> bool:
        """Decompress the frame in the assembly; False if that is not possible."""
        assert self._compression is not None
        first = self._first
        frame = Frame(Opcode(first & _OPCODE), self._assembly.binary(), bool(first & _FINAL), bool(first & _RSV1))
        self._assembly.clear()
        limit = min(self._limit - len(self._inflated), _MAX_INFLATED_AT_ONCE)
        try:
            inflated = self._compression.decode(frame, max_size=limit or 1).data  # a limit of 0 would be none
        except PayloadTooBig:
            return self._break_limit()
        except ProtocolError:
            return self._break(1007, "data that cannot be decompressed")
        if len(inflated) > limit:
            return self._break_limit()
        self._budget -= len(inflated) // 1024
        self._inflated += inflated
        return True

    def _take_control(self, opcode: int, payload: bytes) -> None:
        self._control_frames += 1
        if opcode == _CLOSE:
            self._take_close(payload)
        elif self._control_frames > _MAX_CONTROL_FRAMES:
            self._break(1008, f"more than {_MAX_CONTROL_FRAMES} control frames in a row")
        elif opcode == _PING and not self._close_sent:
            if self._pongs is None:
                self._pongs = deque(maxlen=_MAX_PONGS)
            self._pongs.append(payload)

    def _take_close(self, payload: bytes) -> None:
        try:
            close = Close.parse(payload)
        except ProtocolError:
            self._break(1002, "an invalid close frame")
            return
        except UnicodeDecodeError:
            self._break(1007, "a reason that is not UTF-8")
            return
        self._discard()
        self._send_close(payload[:2])
        code, reason = int(close.code), printable(close.reason, _MAX_CONTROL_LENGTH)
        self.closed = WebSocketClosedError(
            f"the peer closed the connection with code {code}{': ' if reason else ''}{reason}",
            code=code,
            reason=close.reason,
            endpoint=self._target.endpoint,
        )

    def _break(self, code: int, how: str) -> bool:
        """End the connection, because the peer has broken the protocol. (False, so that a judgement can return it.)"""
        self._discard()
        self._send_close(struct.pack("!H", code))
        self.closed = WebSocketProtocolError(
            f"the peer broke the WebSocket protocol: {how}", endpoint=self._target.endpoint
        )
        return False

    def _break_limit(self) -> bool:
        return self._break(1009, f"a message longer than max_message_size, {self._limit} bytes")

    def _discard(self) -> None:
        """Forget what was received of a message."""
        self._header = self._control = b""
        self._inflated = bytearray()
        self._missing = self._kind = 0
        self._leftover, self.has_leftover = b"", False
        self._assembly.clear()

    @property
    def has_partial_message(self) -> bool:
        """True if a message has begun to arrive, and its end has not come."""
        return bool(self._header or self._missing or self._kind)

    @property
    def is_amid_message(self) -> bool:
        """True if something of a message was received that is not taken yet."""
        return bool(self.messages or self.has_partial_message or self.has_leftover)

    # The handshake

    @property
    def awaits_reason(self) -> bool:
        """True while the server has refused the handshake, and its reason may follow."""
        return self._handshake is not None and self._handshake.awaits_reason

    def _shake_hands(self, handshake: Handshake, data: bytes) -> None:
        rest = handshake.feed(data)
        if handshake.failure is not None:
            self.closed = handshake.failure
        elif handshake.is_good:
            self._handshake = None
            self._compression = handshake.compression
            self.subprotocol = handshake.subprotocol
            self.is_open = True
            if rest:
                self._take(memoryview(rest))

    # Out

    @property
    def has_output(self) -> bool:
        """True if `to_send` gives something."""
        return bool(self._output or self._pongs)

    def to_send(self) -> bytes:
        """Take the bytes to send now: the handshake, pings, pongs, a close, or nothing."""
        output, self._output = self._output, b""
        if self._pongs:
            output = b"".join(_masked_frame(_FINAL | _PONG, payload) for payload in self._pongs) + output
            self._pongs = None
        return output

    def seal(self, data: bytes) -> bytes:
        """Bytes of a message as they are sent. (Below TLS they are others.)"""
        return data

    def message(self, data: str | bytes, fragment: int | None = None) -> Iterable[bytes]:
        """The frames of a message, in pieces: one frame, or of at most `fragment` bytes of payload each.

        Raises:
            WebSocketError: The connection is closed.
            ValueError: A text contains a lone surrogate.
        """
        self._check_open()
        if isinstance(data, bytes):
            opcode, payload = _BINARY, data
        else:
            opcode, payload = _TEXT, _encoded(data)
        self.sent += len(payload)
        if self._compression is not None and len(payload) >= self._target.compression_threshold:
            return self._compressed(opcode, payload, fragment)
        if fragment is None or len(payload) <= fragment:
            if len(payload) <= _PIECE:
                return (_masked_frame(_FINAL | opcode, payload),)
            return _pieces(_FINAL | opcode, payload)
        return _fragments(opcode, payload, fragment)

    def _compressed(self, opcode: int, payload: bytes, fragment: int | None) -> Iterator[bytes]:
        assert self._compression is not None
        deflated = bytes(self._compression.encode(Frame(Opcode(opcode), payload)).data)
        if fragment is None or len(deflated) <= fragment:
            return _pieces(_FINAL | _RSV1 | opcode, deflated)
        return _fragments(_RSV1 | opcode, deflated, fragment)

    def ping(self) -> None:
        """Queue a ping.

        Raises:
            WebSocketError: The connection is closed.
        """
        self._check_open()
        self._output += _masked_frame(_FINAL | _PING, b"")

    def close(self, code: int, reason: str) -> None:
        """Queue the frame that starts the closing handshake, unless one was sent already."""
        payload = reason.encode(errors="replace")
        if len(payload) > _MAX_CONTROL_LENGTH - 2:
            payload = payload[: _MAX_CONTROL_LENGTH - 2].decode(errors="ignore").encode()
        self._send_close(struct.pack("!H", code) + payload)

    def _send_close(self, payload: bytes) -> None:
        if self._close_sent or not self.is_open:
            return
        self._close_sent = True
        self._output += _masked_frame(_FINAL | _CLOSE, payload)

    def _check_open(self) -> None:
        if self.closed is not None:
            raise self.closed
        if self._close_sent or not self.is_open:
            raise WebSocketClosedError("the connection is being closed", endpoint=self._target.endpoint)


def _long_length(data: memoryview | bytes, position: int) -> tuple[int, int]:
    """The length of a frame that has it behind its second byte, and where its payload begins.

    The latter is behind the end of `data` if the length is incomplete. A masked frame has an impossible length.
    """
    kind = data[position + 1]
    if kind > _LENGTH_IN_8_BYTES:
        return 2**63, position + 2
    start = position + (4 if kind == _LENGTH_IN_2_BYTES else 10)
    return int.from_bytes(data[position + 2 : start], "big"), start


def _encoded(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        pass  # it holds the message, and must not be behind the error
    raise ValueError("the message contains a lone surrogate, which cannot be sent: WebSocket text is UTF-8")


def _masked_frame(first: int, payload: bytes) -> bytes:
    try:
        key = masking_keys.take()
    except IndexError:
        key = masking_keys.draw()
    size = len(payload)
    if size <= _MAX_CONTROL_LENGTH:
        return _pack_short_head(first, _MASKED | size, key) + apply_mask(payload, key)
    return b"".join((_head(first, size), key, apply_mask(payload, key)))


def _head(first: int, size: int) -> bytes:
    if size <= _MAX_CONTROL_LENGTH:
        return bytes((first, _MASKED | size))
    if size < 2**16:
        return struct.pack("!BBH", first, _MASKED | _LENGTH_IN_2_BYTES, size)
    return struct.pack("!BBQ", first, _MASKED | _LENGTH_IN_8_BYTES, size)


def _pieces(first: int, payload: bytes) -> Iterator[bytes]:
    """A frame in pieces, so that a long message is not copied as a whole for its mask and again for its header."""
    key = masking_keys.next()
    head = _head(first, len(payload)) + key
    view = memoryview(payload)
    for start in range(0, len(payload) or 1, _PIECE):
        yield head + apply_mask(view[start : start + _PIECE], key)
        head = b""


def _fragments(opcode: int, payload: bytes, size: int) -> Iterator[bytes]:
    """A message in frames of at most `size` bytes of payload. `opcode` may have the bit for compression."""
    for start in range(0, len(payload), size):
        stop = start + size
        yield from _pieces(opcode | (_FINAL if stop >= len(payload) else 0), payload[start:stop])
        opcode = _CONTINUATION
