"""The opening handshake without I/O: what is sent, and what the answer means (RFC 6455, section 4; RFC 9110 and 9112).

The answer is judged by its head, as a server may write it: header fields in any order and case, lists over several
lines, empty elements, no reason phrase, other informational answers in front, and fields that mean nothing beside a
101 (`Transfer-Encoding`, `Content-Length`). Of a refusal the body is looked at too, if it is short and text or JSON,
because it often says why; but it may never come, and so the driver of the handshake waits for it only for a moment.
"""

from __future__ import annotations

import base64
import os
import platform
import re
import urllib.parse
from http import HTTPStatus
from typing import Final

from websockets.exceptions import InvalidHandshake
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory, PerMessageDeflate
from websockets.headers import build_extension, parse_extension
from websockets.utils import accept_key

from .._net.http import may_come_right, reason_of, seconds_to_wait
from .._version import __version__
from ..errors import WebSocketAuthError, WebSocketConnectionError, WebSocketError, WebSocketProtocolError
from ._interface import Target

__all__ = ["REASON_TIME", "Handshake", "printable"]

REASON_TIME: Final = 0.5
"""Seconds to wait for the body of a refusal."""

_MAX_HEAD_LENGTH = 256 * 1024
_MAX_BODY_LENGTH = 4096

_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([0-9]{3})(?: .*)?")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
_USER_AGENT = f"utcp-websocket-anyio/{__version__} Python/{platform.python_version()}"


class Handshake:
    """One opening handshake.

    Attributes:
        is_good: True if the server has agreed to speak WebSocket.
        failure: Why there will be no WebSocket; None before that is certain.
        awaits_reason: True while the server has refused, and its reason may follow.
        subprotocol: The one that the server chose.
        compression: The extension that the server agreed to.
    """

    def __init__(self, target: Target) -> None:
        self.is_good = False
        self.failure: WebSocketError | None = None
        self.awaits_reason = False
        self.subprotocol: str | None = None
        self.compression: PerMessageDeflate | None = None
        self._target = target
        self._key = base64.b64encode(os.urandom(16)).decode()
        self._head = bytearray()
        self._factory = ClientPerMessageDeflateFactory(client_max_window_bits=True) if target.compression else None
        self._refusal: _Refusal | None = None

    def request(self) -> bytes:
        """The request.

        Raises:
            WebSocketConnectionError: It cannot be written, because a lone surrogate is in it.
        """
        target = self._target
        address = target.address
        resource = _resource(target.url)
        host = f"[{address.host}]" if ":" in address.host else address.host
        if address.port != (443 if address.secure else 80):
            host = f"{host}:{address.port}"
        lines = [
            f"GET {resource} HTTP/1.1",
            f"Host: {host}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {self._key}",
            "Sec-WebSocket-Version: 13",
        ]
        if self._factory is not None:
            offered = build_extension([(self._factory.name, self._factory.get_request_params())])
            lines.append(f"Sec-WebSocket-Extensions: {offered}")
        if target.subprotocols:
            lines.append(f"Sec-WebSocket-Protocol: {', '.join(target.subprotocols)}")
        lines += [f"{name}: {value}" for name, value in target.headers]
        if not any(name.lower() == "user-agent" for name, _ in target.headers):
            lines.append(f"User-Agent: {_USER_AGENT}")
        request = _encoded("\r\n".join([*lines, "", ""]))
        if request is None:
            raise WebSocketConnectionError(
                "cannot connect: the URL or a header contains a lone surrogate, which is not valid Unicode",
                endpoint=target.endpoint,
            )
        return request

    def feed(self, data: bytes) -> bytes:
        """Take in what was received; gives what came behind the answer, once that is complete and good."""
        if self._refusal is not None:
            self._take_body(data)
            return b""
        head = self._head
        searched = max(len(head) - 3, 0)
        head += data
        while (end := head.find(b"\r\n\r\n", searched)) >= 0:
            lines = bytes(head[:end]).split(b"\r\n")
            rest = bytes(head[end + 4 :])
            status = _STATUS_LINE.fullmatch(lines[0])
            fields = _fields(lines[1:])
            if status is None or fields is None:
                break
            code = int(status[1])
            if code == 101:
                self._head = bytearray()
                self._agree(fields)
                return rest if self.is_good else b""
            if code >= 200:
                self._head = bytearray()
                self._refuse(code, fields, rest)
                return b""
            # An informational answer: the real one follows (RFC 9110, section 15.2).
            del head[: end + 4]
            searched = 0
        if end >= 0 or len(head) > _MAX_HEAD_LENGTH or not b"HTTP/1.1 ".startswith(head[:9]):
            self._head = bytearray()
            self._fail("it was not answered in HTTP/1.1")
        return b""

    def end(self) -> None:
        """There is nothing more to come, or no time to wait for it."""
        if self._refusal is not None:
            self.failure = self._refusal.error(self._target.endpoint)
            self.awaits_reason = False
        elif self.failure is None:
            self.failure = WebSocketConnectionError(
                "the connection was closed during the handshake", endpoint=self._target.endpoint, transient=True
            )

    # An agreement

    def _agree(self, fields: dict[str, list[str]]) -> None:
        if "upgrade" not in [token.lower() for token in _elements(fields, "connection")]:
            self._fail("its answer has no Connection: Upgrade")
        elif [token.lower() for token in _elements(fields, "upgrade")] != ["websocket"]:
            self._fail("its answer has no Upgrade: websocket")
        elif fields.get("sec-websocket-accept") != [accept_key(self._key)]:
            self._fail("its answer has a wrong Sec-WebSocket-Accept")
        elif self._agree_on_extensions(fields) and self._agree_on_subprotocol(fields):
            self.is_good = True

    def _agree_on_extensions(self, fields: dict[str, list[str]]) -> bool:
        try:
            chosen = _elements(fields, "sec-websocket-extensions")
            for name, parameters in parse_extension(", ".join(chosen)) if chosen else ():
                if self._factory is None or name != self._factory.name:
                    break
                accepted = [] if self.compression is None else [self.compression]
                self.compression = self._factory.process_response_params(parameters, accepted)
            else:
                return True
        except InvalidHandshake:
            pass
        self._break("the server chose an extension that was not offered")
        return False

    def _agree_on_subprotocol(self, fields: dict[str, list[str]]) -> bool:
        chosen = _elements(fields, "sec-websocket-protocol")
        offered = self._target.subprotocols
        # No error shows a subprotocol: it may be a secret.
        if len(chosen) > 1 or (chosen and chosen[0] not in offered):
            self._break("the server chose a subprotocol that was not offered")
        elif offered and not chosen:
            self._break("the server chose none of the subprotocols that were offered")
        else:
            self.subprotocol = chosen[0] if chosen else None
            return True
        return False

    def _break(self, what: str) -> None:
        self.failure = WebSocketProtocolError(what, endpoint=self._target.endpoint)

    def _fail(self, why: str) -> None:
        self.failure = WebSocketConnectionError(f"no WebSocket handshake: {why}", endpoint=self._target.endpoint)

    # A refusal

    def _refuse(self, status: int, fields: dict[str, list[str]], body: bytes) -> None:
        self._refusal = _Refusal(status, fields)
        self.awaits_reason = True
        self._take_body(body)

    def _take_body(self, data: bytes) -> None:
        assert self._refusal is not None
        self._refusal.body += data
        if self._refusal.is_complete:
            self.end()


class _Refusal:
    """An answer with another status than 101."""

    def __init__(self, status: int, fields: dict[str, list[str]]) -> None:
        self.body = bytearray()
        self._status = status
        self._retry_after = seconds_to_wait(fields.get("retry-after", [None])[0])
        kind = fields.get("content-type", [""])[0].partition(";")[0].strip().lower()
        self._is_readable = (
            (kind in ("", "text/plain", "application/json") or kind.endswith("+json"))
            and not 300 <= status < 400
            and status not in (204, 205)
            and not _elements(fields, "content-encoding")
        )
        self._is_chunked = [token.lower() for token in _elements(fields, "transfer-encoding")] == ["chunked"]
        length = fields.get("content-length", [""])[0]
        self._length = int(length) if length.isascii() and length.isdigit() and len(length) < 16 else None

    @property
    def is_complete(self) -> bool:
        """True if there is nothing more to wait for."""
        if not self._is_readable or len(self.body) >= _MAX_BODY_LENGTH:
            return True
        if self._is_chunked:
            return _unchunked(self.body)[1]
        return self._length is not None and len(self.body) >= self._length

    def error(self, endpoint: str) -> WebSocketConnectionError:
        status = self._status
        try:
            phrase = f" {HTTPStatus(status).phrase}"
        except ValueError:
            phrase = ""
        text = f"the handshake was answered with status {status}{phrase}"
        if 300 <= status < 400:
            text += ", a redirect, which is not followed"
        elif reason := self._reason():
            text += f": {reason}"
        kind = WebSocketAuthError if status in (401, 403) else WebSocketConnectionError
        return kind(
            text,
            endpoint=endpoint,
            status=status,
            transient=may_come_right(status),
            retry_after=self._retry_after,
        )

    def _reason(self) -> str:
        """The reason that the server gives, if it can be read; else empty."""
        if not self._is_readable or len(self.body) >= _MAX_BODY_LENGTH:
            return ""
        body = _unchunked(self.body)[0] if self._is_chunked else bytes(self.body[: self._length])
        return reason_of(body) or ""


def printable(text: str, length: int) -> str:
    """Text of a peer as it may stand in an error: in one line, shortened, control characters escaped."""
    words = " ".join(text[: 4 * length].split())
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in words)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def _unchunked(data: bytes | bytearray) -> tuple[bytes, bool]:
    """The content of a chunked body as far as it came, and True if it is all or broken (RFC 9112, section 7.1)."""
    content = b""
    position = 0
    while (end := data.find(b"\r\n", position)) >= 0:
        try:
            size = int(bytes(data[position:end]).partition(b";")[0], 16)
        except ValueError:
            return content, True
        if size <= 0:
            return content, True
        content += data[end + 2 : end + 2 + size]
        position = end + 2 + size + 2
    return content, False


def _fields(lines: list[bytes]) -> dict[str, list[str]] | None:
    """Header fields by their lower-case names; None if that is not what the lines are."""
    fields: dict[str, list[str]] = {}
    values: list[str] = []
    for line in lines:
        if line[:1] in (b" ", b"\t") and values:
            values[-1] += " " + line.decode("latin-1").strip(" \t")
            continue
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            return None
        values = fields.setdefault(name.decode().lower(), [])
        values.append(value.decode("latin-1").strip(" \t"))
    return fields


def _elements(fields: dict[str, list[str]], name: str) -> list[str]:
    """The elements of a list in one or several lines, without the empty ones (RFC 9110, section 5.6.1)."""
    if name not in fields:
        return []
    elements = (element.strip(" \t") for element in ",".join(fields[name]).split(","))
    return [element for element in elements if element]


def _resource(url: str) -> str:
    """Path and query as they stand in the request."""
    _, _, rest = url.partition("://")
    start = next((at for at, char in enumerate(rest) if char in "/?#"), len(rest))
    resource = rest[start:].partition("#")[0]
    if not resource.startswith("/"):
        resource = f"/{resource}"
    encoded = None if resource.isascii() else _encoded(resource)
    return resource if encoded is None else urllib.parse.quote(encoded, safe=_VISIBLE)


def _encoded(text: str) -> bytes | None:
    """Text in UTF-8; None if it contains a lone surrogate. (The error for that would show the text.)"""
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None
