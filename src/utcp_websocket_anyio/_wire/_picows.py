"""The engine for asyncio on picows' core, whose frames cost a fraction of any other library's.

picows hands over frames. What it leaves to its user is done here: messages out of fragments, their limit, reserved
bits, the rules for close codes, and telling how a connection ended. It follows redirects and waits 10 ms between a
violation and the end of a connection; the first is switched off, the second is short enough.
"""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import Any, cast

import picows

from .._net.security import split_address
from .._net.transport import connection_failure
from ..errors import WebSocketConnectionError, WebSocketError, WebSocketProtocolError
from ._asyncio import PushedWire
from ._core import closed_by_peer, refused, user_agent
from ._happy_eyeballs import open_socket
from ._interface import Target, Wire

__all__ = ["PicowsWire", "open_wire"]

_READ_BUFFER = 4 * 1024
"""Bytes that picows starts with, per connection; it grows with the messages."""

_TEXT = picows.WSMsgType.TEXT
_BINARY = picows.WSMsgType.BINARY
_CONTINUATION = picows.WSMsgType.CONTINUATION
_PING = picows.WSMsgType.PING
_PONG = picows.WSMsgType.PONG
_CLOSE = picows.WSMsgType.CLOSE

# Its records would show handshake headers.
_silent = logging.Logger("utcp_websocket_anyio.wire", level=logging.CRITICAL + 1)  # noqa: LOG001 - not in the tree
_silent.disabled = True


class PicowsWire(PushedWire):
    """One WebSocket on picows."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._limit = target.max_message_size
        self._socket: picows.WSTransport | None = None
        self._first = _TEXT
        self._fragments: bytearray | None = None  # not a list: a hostile peer's are two bytes each

    @property
    def never_connected(self) -> bool:
        return self._socket is None

    # What the listener calls

    def connected(self, transport: picows.WSTransport) -> None:
        self._socket = transport
        self._connected(transport.underlying_transport)

    def frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """Take in a frame. What it raises would be logged by picows with the frame's content; so it raises nothing."""
        self._have_read(frame.payload_size + 2)
        if self.closed is not None and frame.msg_type != _CLOSE:
            return
        if frame.rsv1 or frame.rsv2 or frame.rsv3:
            self._break(1002, "reserved bits are set")
            return
        kind = frame.msg_type
        if kind is _TEXT or kind is _BINARY:
            if self._fragments is not None:
                self._break(1002, "a new message inside a fragmented one")
            elif frame.fin:
                self._deliver(kind is _TEXT, frame)
            else:
                self._first = kind
                self._fragments = bytearray()
                self._continue(frame)
        elif kind == _CONTINUATION:
            if self._fragments is None:
                self._break(1002, "a continuation of nothing")
            else:
                self._continue(frame)
        elif kind == _PING:
            self._pinged(frame.get_payload_as_bytes())
        elif kind == _PONG:
            self._pings.ponged(frame.get_payload_as_bytes())
        elif kind == _CLOSE:
            self._closed_by_peer(frame)

    def disconnected(self, transport: picows.WSTransport) -> None:
        if self.closed is None and transport.is_close_frame_sent:
            # picows itself found a violation and said so in its close frame.
            self._ended(self._violation(self._violation_found()))
        self._disconnected()
        self._loop.call_soon(_retrieve_failure, transport)

    def _deliver(self, is_text: bool, frame: picows.WSFrame) -> None:
        size = frame.payload_size
        if size > self._limit:
            self._break(1009, f"a message longer than {self._limit} bytes")
            return
        try:
            self._pushed(frame.get_payload_as_utf8_text() if is_text else frame.get_payload_as_bytes(), size)
        except UnicodeDecodeError:
            self._break(1007, _VIOLATIONS[1007])

    def _continue(self, frame: picows.WSFrame) -> None:
        assert self._fragments is not None
        if len(self._fragments) + frame.payload_size > self._limit:
            self._break(1009, f"a message longer than {self._limit} bytes")
            return
        self._fragments += frame.get_payload_as_bytes()
        if not frame.fin:
            return
        message, self._fragments = self._fragments, None
        if self._first == _BINARY:
            self._pushed(bytes(message), len(message))
            return
        try:
            self._pushed(message.decode(), len(message))
        except UnicodeDecodeError:
            self._break(1007, _VIOLATIONS[1007])

    def _closed_by_peer(self, frame: picows.WSFrame) -> None:
        assert self._socket is not None
        if self.closed is None and self._socket.is_close_frame_sent:
            # picows found a violation in another frame, said so, and goes on for a moment.
            self._ended(self._violation(self._violation_found()))
            return
        code = _number(frame.get_close_code()) if frame.payload_size >= 2 else 1005
        if frame.payload_size and not (code in _CLOSE_CODES or 3000 <= code < 5000):
            self._break(1002, "an invalid close code")
            return
        if not self._socket.is_close_frame_sent:
            self._send_close(1000 if code == 1005 else code, "")
        self._ended(closed_by_peer(code, frame.get_close_reason() or "", self._endpoint))
        self._socket.disconnect()

    def _break(self, code: int, how: str) -> None:
        assert self._socket is not None
        self._fragments = None
        self._send_close(code, "")
        self._ended(self._violation(how))
        self._socket.disconnect()

    def _violation_found(self) -> str:
        assert self._socket is not None
        handshake: Any = self._socket.close_handshake  # None without a close frame, whatever picows' type stub says
        return _VIOLATIONS.get(_number(handshake.sent.code), "an invalid frame")

    def _violation(self, how: str) -> WebSocketProtocolError:
        return WebSocketProtocolError(f"the peer broke the WebSocket protocol: {how}", endpoint=self._endpoint)

    # What the base calls

    def _is_amid_message(self) -> bool:
        # Part of a frame stays with picows, out of sight. What its buffer has no room for stays with TLS.
        return self._fragments is not None or (self._tls is not None and self._tls.pending() > 0)

    def _send_message(self, data: str | bytes, fragment: int | None) -> None:
        assert self._socket is not None
        kind = _TEXT if isinstance(data, str) else _BINARY
        if fragment is None:
            self._socket.send(kind, data)
            return
        payload = data.encode() if isinstance(data, str) else data
        for start in range(0, len(payload) or 1, fragment):
            stop = start + fragment
            self._socket.send(kind if start == 0 else _CONTINUATION, payload[start:stop], fin=stop >= len(payload))

    def _send_ping(self, payload: bytes) -> None:
        assert self._socket is not None
        self._socket.send_ping(payload)

    def _send_pong(self, answer: bytes) -> None:
        assert self._socket is not None
        self._socket.send_pong(answer)

    def _send_close(self, code: int, reason: str) -> None:
        assert self._socket is not None
        self._socket.send_close(cast("picows.WSCloseCode", code), reason)


_VIOLATIONS = {
    1002: "an invalid frame",
    1007: "text that is not UTF-8",
    1009: "a message longer than the limit",
}
_CLOSE_CODES = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})


def _number(code: object) -> int:
    """A close code as a number, which picows' type stub does not know it to be."""
    return int(cast("int", code))


class _Listener(picows.WSListener):
    """Passes on what picows calls; the wire itself cannot be an instance of picows' extension type."""

    def __init__(self, wire: PicowsWire) -> None:
        self._wire = wire
        self.on_ws_frame = wire.frame  # type: ignore[method-assign] # one call less per frame

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self._wire.connected(transport)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self._wire.disconnected(transport)

    def pause_writing(self) -> None:
        self._wire.pause_writing()

    def resume_writing(self) -> None:
        self._wire.resume_writing()


async def open_wire(target: Target) -> Wire:
    """As `utcp_websocket_anyio.wire.open_wire`."""
    address = split_address(target.url)
    wire = PicowsWire(target)
    headers = list(target.headers)
    if not any(name.lower() == "user-agent" for name, _ in headers):
        headers.append(("User-Agent", user_agent()))
    if target.subprotocols:
        headers.append(("Sec-WebSocket-Protocol", ", ".join(target.subprotocols)))
    failure: WebSocketError
    opened: socket.socket | None = None
    is_handed_over = False

    def hand_over(_: object) -> socket.socket | None:
        nonlocal is_handed_over
        is_handed_over = True
        return opened

    try:
        opened = await open_socket(address.host, address.port)
        transport, _ = await picows.ws_connect(
            lambda request, response: _Listener(wire),
            target.url,
            ssl_context=target.network.tls if address.secure else None,
            websocket_handshake_timeout=None,
            logger_name=_silent,
            enable_auto_ping=False,
            enable_auto_pong=False,
            max_frame_size=target.max_message_size,
            extra_headers=headers,
            max_redirects=0,
            proxy=None,
            read_buffer_init_size=_READ_BUFFER,
            socket_factory=hand_over,
        )
        if cast("picows.WSTransport | None", transport) is None or transport.response is None:
            # How picows tells of a connection that was closed before the server had answered.
            raise ConnectionResetError
        fault = _negotiation_fault(transport, target)
        if fault is None:
            wire.subprotocol = transport.response.headers.get("Sec-WebSocket-Protocol")
            return wire
        failure = fault
    except OSError as error:
        failure = connection_failure(error, target.endpoint)
    except picows.WSHandshakeError as error:
        failure = _handshake_failure(error, target.endpoint)
    except BaseException:
        _give_up(wire, opened, is_handed_over)
        raise
    _give_up(wire, opened, is_handed_over)
    raise failure


def _give_up(wire: PicowsWire, opened: socket.socket | None, is_handed_over: bool) -> None:
    """Leave nothing open.

    Before the handshake is done picows shows no transport. The end of the stream closes it; closing the socket under it
    would not.
    """
    wire.abort()
    if opened is None or not wire.never_connected:
        return
    if not is_handed_over:
        opened.close()
    else:
        with suppress(OSError):
            opened.shutdown(socket.SHUT_RDWR)


def _negotiation_fault(transport: picows.WSTransport, target: Target) -> WebSocketProtocolError | None:
    """What is wrong with a handshake that picows took for a good one."""
    headers = transport.response.headers
    if headers.getall("Sec-WebSocket-Extensions", []):
        fault = "the server chose an extension that was not offered"
    elif headers.getall("Sec-WebSocket-Protocol", [None]) not in [[name] for name in target.subprotocols or (None,)]:
        fault = "the server chose none of the subprotocols that were offered"
    else:
        return None
    return WebSocketProtocolError(fault, endpoint=target.endpoint)


def _handshake_failure(error: picows.WSHandshakeError, endpoint: str) -> WebSocketConnectionError:
    if isinstance(error, picows.WSInvalidStatusError) and error.response is not None:
        return refused(int(error.response.status), endpoint)
    return WebSocketConnectionError(
        f"no WebSocket handshake: its answer is not that of a WebSocket server ({type(error).__name__})",
        endpoint=endpoint,
    )


def _retrieve_failure(transport: picows.WSTransport) -> None:
    """Take the exception that picows keeps for `wait_disconnected`, or asyncio would complain that nobody did.

    The future is done by now, so the coroutine ends in its first step.
    """
    waiting = transport.wait_disconnected()
    with suppress(BaseException):
        waiting.send(None)
    waiting.close()
