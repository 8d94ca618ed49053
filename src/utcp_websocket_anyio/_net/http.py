"""The one HTTP client of this package: for OAuth2 tokens, manuals, and ``http`` steps.

httpx builds the request; the connection is opened as those of the wire are (`transport.open_socket`), so that proxies,
certificates and Unix sockets are the user's; and h11, on which httpx's own transport stands, speaks HTTP/1.1 over it.
That transport itself breaks what this package promises: it sets ALPN on the user's TLS context, leaves a socket open
when it is cancelled in a TLS handshake, decompresses without limit, and writes URLs and headers into its own log.

One request, one connection: nothing is kept open, so nothing has to be closed later. Everything that goes wrong becomes
one of the package's errors here. No text shows the query, headers or bodies, except `Answer.reason`, which is the
server's own word on why it refused.
"""

from __future__ import annotations

import email.utils
import json as json_module
import logging
import time
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import WebSocketConnectionError, WebSocketError, WebSocketProtocolError, mapped
from .security import add_query, check_header, check_http_url, display_url, is_text
from .sockets import ByteStream, SocketStream, TLSSession, TLSStream
from .transport import Network, connection_failure, open_socket

if TYPE_CHECKING:
    import httpx

__all__ = ["Answer", "may_come_right", "reason_of", "request", "seconds_to_wait"]

_log = logging.getLogger(__name__)

MAX_SIZE = 16 * 2**20
"""Default limit of an answer, in bytes."""

_MAX_HEAD = 64 * 1024
_MAX_REASON = 500
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

Pairs = Iterable[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a server.

    Attributes:
        status: Never that of a redirect.
        headers: Names in lower case, in order.
        body: Decompressed.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def __repr__(self) -> str:
        return f"<Answer {self.status}, {len(self.body)} bytes>"

    def header(self, name: str) -> str | None:
        """The value of a header; several are joined (RFC 9110, section 5.3)."""
        values = [value for other, value in self.headers if other == name.lower()]
        return ", ".join(values) if values else None

    def json(self) -> Any:
        """The body as JSON, or None where it is not JSON: cut short, nested too deep, a number of too many digits."""
        try:
            return json_module.loads(self.body)
        except (ValueError, RecursionError):
            return None

    def reason(self) -> str | None:
        """Why the server refused, in its own words; None if it does not say."""
        return reason_of(self.body)


async def request(
    method: str,
    url: str,
    *,
    network: Network,
    what: str,
    endpoint: str | None = None,
    headers: Pairs = (),
    query: Pairs = (),
    json: Any = None,
    form: Pairs | Mapping[str, str] | None = None,
    body: str | bytes | None = None,
    max_size: int = MAX_SIZE,
) -> Answer:
    """Make one HTTP request.

    It has no time limit of its own: that is the caller's cancel scope. Cancelling it closes its connection. It follows
    no redirect, keeps no cookies, and takes no credentials from the environment.

    Args:
        network: The way there, and how TLS is verified.
        what: Name of the request, for errors: ``token request``, ``step 1 of prepare``.
        endpoint: Endpoint that errors name; None: the URL.
        headers: Checked here as those of a handshake are. One that is given replaces what httpx would add.
        query: Parameters that are added to the URL's own, percent-encoded.
        json: Sent as JSON, if it is not None.
        form: Sent as ``application/x-www-form-urlencoded``.
        body: Sent as it is. At most one of `json`, `form` and `body` is given.
        max_size: Longest answer, compressed and decompressed, in bytes.

    Raises:
        WebSocketSecurityError: The URL may not be asked, or a header could change the request.
        ValueError: Something else in the request cannot be sent.
        WebSocketConnectionError: There is no answer, or it is a redirect.
        WebSocketProtocolError: The answer is too long, or in a content encoding that was not asked for.
    """
    address = check_http_url(url, what)
    endpoint = endpoint or display_url(url)
    headers = list(headers)
    for name, value in headers:
        check_header(name, value, where=what)
    with mapped(lambda reason: ValueError(f"{what}: {reason}"), ValueError):
        target = add_query(url, query)
        prepared = _prepared(method, target, headers=headers, json=json, form=form, body=body)
    route = network.route("http", address, endpoint)
    opened = await open_socket(route, network, endpoint, what=f"the {what} failed")
    failure: WebSocketError
    try:
        stream: ByteStream = SocketStream(opened.socket)
        if opened.proxy_session is not None:
            stream = TLSStream(stream, opened.proxy_session)
        if address.secure:
            stream = secured = TLSStream(stream, TLSSession(network.tls, address.server_name))
            await secured.handshake()
        answer = await _exchange(stream, prepared, max_size)
    except _Unusable as error:
        failure = error.as_error(what, endpoint)
    except OSError as error:
        failure = connection_failure(error, endpoint, what=opened.leg)
    else:
        _log.debug("%s: %s answered with status %d", what, display_url(url), answer.status)
        if not 300 <= answer.status < 400:
            return answer
        failure = WebSocketConnectionError(
            f"the {what} was answered with a redirect, which is not followed", endpoint=endpoint, status=answer.status
        )
    finally:
        opened.socket.close()
    # Raised here, nothing of the libraries is behind it: their errors hold the request.
    raise failure


def may_come_right(status: int) -> bool:
    """True if a server that answered with this status may answer otherwise soon."""
    return status in (429, 502, 503, 504)


def seconds_to_wait(retry_after: str | None) -> float | None:
    """The seconds to wait by a ``Retry-After`` header (RFC 9110, section 10.2.3), which has a number or a date."""
    if retry_after is None:
        return None
    if retry_after.isascii() and retry_after.isdigit() and len(retry_after) < 10:
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None


def reason_of(body: bytes | str) -> str | None:
    """Why a server refused, from the body of its answer: one line, shortened, control characters escaped.

    A JSON object says it in ``error`` (or its ``message``), ``error_description`` or ``message``; any other short text
    says it itself. HTML and bytes say nothing.
    """
    text = body if isinstance(body, str) else body.decode("utf-8", "replace")
    try:
        content = json_module.loads(text)
    except (ValueError, RecursionError):
        content = text
    if isinstance(content, Mapping):
        error = content.get("error")
        if isinstance(error, Mapping):
            error = error.get("message") or error.get("code")
        described = content.get("error_description") or content.get("message") or content.get("detail")
        said = [str(part) for part in (error, described) if isinstance(part, str | int) and part not in ("", True)]
        content = ": ".join(dict.fromkeys(said))
    if not isinstance(content, str) or "\ufffd" in content or content.lstrip()[:1] == "<":
        return None
    content = " ".join(content[: 2 * _MAX_REASON].split())
    if not content:
        return None
    content = "".join(character if character.isprintable() else _escape(character) for character in content)
    return content if len(content) <= _MAX_REASON else f"{content[:_MAX_REASON]}…"


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def _prepared(
    method: str,
    url: str,
    *,
    headers: list[tuple[str, str]],
    json: Any,
    form: Pairs | Mapping[str, str] | None,
    body: str | bytes | None,
) -> httpx.Request:
    import httpx  # slow to import, and not every user needs it

    if method not in _METHODS:
        raise ValueError(f"the method {method[:20]!r} is not one of {', '.join(sorted(_METHODS))}")
    content: dict[str, Any] = {}
    if body is not None:
        content = {"content": body if isinstance(body, bytes) else _text(body).encode()}
    elif form is not None:
        fields: dict[str, list[str]] = {}
        for name, value in form.items() if isinstance(form, Mapping) else form:
            fields.setdefault(_text(name), []).append(_text(value))
        content = {"data": fields}
    elif json is not None:
        # Written here, as messages are: httpx's releases differ.
        content = {"content": json_module.dumps(json, allow_nan=False).encode()}
        headers = [("Content-Type", "application/json"), *headers]
    with mapped(lambda _: ValueError("the URL is too long"), httpx.InvalidURL):
        return httpx.Request(method, url, headers=_completed(headers), **content)


def _completed(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The headers with those that are always sent; what was given wins."""
    given: dict[str, tuple[str, str]] = {}
    others = []
    for name, value in headers:
        # The last one of a name that is sent once.
        if name.lower() in ("content-type", "accept", "accept-encoding", "user-agent"):
            given[name.lower()] = (name, value)
        else:
            others.append((name, value))
    given.setdefault("accept", ("Accept", "application/json"))
    # Some servers refuse clients without a User-Agent.
    given.setdefault("user-agent", ("User-Agent", "utcp-websocket-anyio"))
    # What else there is could not be decompressed within a limit.
    given["accept-encoding"] = ("Accept-Encoding", "gzip")
    return [*given.values(), *others]


def _text(value: str) -> str:
    if not is_text(value):
        raise ValueError("a value contains a lone surrogate, which UTF-8 cannot encode")
    return value


class _Unusable(Exception):  # noqa: N818 - becomes an error with `as_error`
    """An answer that cannot be used. Its text is the end of a sentence about it."""

    def as_error(self, what: str, endpoint: str) -> WebSocketError:
        """The package's error."""
        return WebSocketProtocolError(f"the answer to the {what} {self}", endpoint=endpoint)


class _NoHttp(_Unusable):
    def as_error(self, what: str, endpoint: str) -> WebSocketError:
        return WebSocketConnectionError(f"the {what} failed: {self}", endpoint=endpoint, transient=True)


async def _exchange(stream: ByteStream, prepared: httpx.Request, max_size: int) -> Answer:
    """Send a request and read its answer, up to the limit."""
    import h11

    protocol = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    head = h11.Request(
        method=prepared.method.encode(),
        target=prepared.url.raw_path,
        headers=[*prepared.headers.raw, (b"Connection", b"close")],
    )
    data = b"".join(
        protocol.send(event) or b"" for event in (head, h11.Data(data=prepared.content), h11.EndOfMessage())
    )
    # A server may answer, and close, before it has read a long body. Its answer says more than the loss.
    with suppress(OSError):
        await stream.send(data)
    body = _Body("identity", max_size)
    answer: h11.Response | None = None
    try:
        while True:
            event = protocol.next_event()
            if isinstance(event, h11.Response):
                answer = event
                if 300 <= event.status_code < 400:
                    break  # whatever comes with it
                body = _Body(_header(event, b"content-encoding"), max_size)
            elif isinstance(event, h11.Data):
                body.feed(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                break
            elif isinstance(event, h11.ConnectionClosed):
                raise _NoHttp("the connection was closed before an answer came")
            elif event is h11.NEED_DATA:
                protocol.receive_data(await stream.receive())
    except h11.RemoteProtocolError:
        raise _NoHttp("the connection was lost, or the answer is not valid HTTP") from None
    assert answer is not None
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in answer.headers)
    return Answer(answer.status_code, headers, body.finish())


def _header(answer: Any, name: bytes) -> str:
    return str(next((value.decode("latin-1") for other, value in answer.headers if other == name), "identity"))


class _Body:
    """The body of an answer as it arrives, decompressed within its limit."""

    def __init__(self, encoding: str, max_size: int) -> None:
        encoding = encoding.strip().lower()
        self._content = bytearray()
        self._received = 0
        self._max_size = max_size
        self._is_known = encoding in ("identity", "gzip", "x-gzip", "")
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding.endswith("gzip") else None

    def feed(self, chunk: bytes) -> None:
        """Take in what was received."""
        if not self._is_known:
            raise _Unusable("has a content encoding that was not asked for")
        self._received += len(chunk)
        if self._inflate is not None:
            try:
                chunk = self._inflate.decompress(chunk, self._max_size + 1 - len(self._content))
            except zlib.error:
                raise _Unusable("is not valid gzip") from None
        self._content += chunk
        if self._received > self._max_size or len(self._content) > self._max_size:
            raise _Unusable(f"is longer than {self._max_size} bytes")

    def finish(self) -> bytes:
        """All of it."""
        if self._received and self._inflate is not None and not self._inflate.eof:
            raise _Unusable("is not valid gzip")
        return bytes(self._content)
