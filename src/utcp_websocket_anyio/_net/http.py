"""The few HTTP requests of this package: for OAuth2 tokens and for manuals.

Everything that goes wrong becomes one of the package's errors here. httpx does the talking; three things are added to
it. The answer is decompressed here, within its limit, as httpx's decoders have none. A request that is cancelled in the
middle of its TLS handshake closes its socket, which httpcore forgets. And httpx's own log records of these requests are
dropped: they show the query of a URL at INFO, and headers at DEBUG.
"""

from __future__ import annotations

import json
import logging
import ssl
import zlib
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import anyio

from ..errors import WebSocketConnectionError, WebSocketError, WebSocketProtocolError
from .security import check_http_url, display_url
from .transport import connection_failure, default_context

if TYPE_CHECKING:
    import httpx

__all__ = ["request_json"]

_log = logging.getLogger(__name__)

_MAX_SIZE = 16 * 2**20
_LOGGERS = ("httpx", "httpcore.connection", "httpcore.http11", "httpcore.http2", "httpcore.proxy", "httpcore.socks")

_ours: ContextVar[bool] = ContextVar("utcp_websocket_anyio_request", default=False)


async def request_json(
    method: str,
    url: str,
    *,
    form: Mapping[str, str] | None = None,
    headers: Iterable[tuple[str, str]] = (),
    ssl_context: ssl.SSLContext | None = None,
    what: str,
    endpoint: str | None = None,
    max_size: int = _MAX_SIZE,
) -> tuple[int, Any]:
    """Make one request and read its answer as JSON.

    It has no time limit of its own: that is the caller's cancel scope. Cancelling it closes its connection. It follows
    no redirect, and takes neither proxies nor credentials from the environment: what goes where is for the call
    template alone to say.

    Args:
        form: Sent as ``application/x-www-form-urlencoded``.
        ssl_context: How TLS is verified; None: against the system's trust store.
        what: What the request is, for errors.
        endpoint: What errors name as their endpoint; None: the URL.
        max_size: Longest answer, compressed and decompressed, in bytes.

    Returns:
        The status, and the JSON of the body, or None where that is no JSON.

    Raises:
        WebSocketSecurityError: The URL is one that may not be asked.
        WebSocketConnectionError: There is no answer, or it is a redirect.
        WebSocketProtocolError: The answer is too long, or in a content encoding that was not asked for.
    """
    import httpx  # slow to import, and not every user needs it

    check_http_url(url, what)
    _quieten()
    endpoint = endpoint or display_url(url)
    failure: WebSocketError
    sockets = _Sockets()
    mine = _ours.set(True)
    try:
        async with (
            httpx.AsyncClient(
                verify=ssl_context or default_context(),
                trust_env=False,
                timeout=None,  # noqa: S113 - the caller's cancel scope is the deadline
            ) as client,
            client.stream(
                method,
                url,
                data=form,
                headers=[("Accept", "application/json"), ("Accept-Encoding", "gzip"), *headers],
                follow_redirects=False,
                extensions={"trace": sockets.trace},
            ) as response,
        ):
            status = response.status_code
            if 300 <= status < 400:
                raise WebSocketConnectionError(
                    f"the {what} was answered with a redirect, which is not followed", endpoint=endpoint, status=status
                )
            body = _Body(response.headers.get("Content-Encoding", "identity").strip().lower(), max_size)
            await _read(response, body, sockets)
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        failure = connection_failure(
            error, endpoint, what=f"the {what} failed", lost="the connection was lost, or the answer is no valid HTTP"
        )
    else:
        _log.debug("%s: %s answered with status %d", what, display_url(url), status)
        content = body.finish()
        if body.fault is None:
            return status, _json(content)
        failure = WebSocketProtocolError(f"the answer to the {what} {body.fault}", endpoint=endpoint)
    finally:
        _ours.reset(mine)
        await sockets.aclose()
    # Raised here, nothing of httpx is behind it: its errors hold the request with URL and headers.
    raise failure


class _Body:
    """The body of an answer as it arrives, decompressed.

    Attributes:
        fault: What is wrong with it; None while nothing is.
    """

    def __init__(self, encoding: str, max_size: int) -> None:
        self.fault: str | None = None
        self._content = bytearray()
        self._received = 0
        self._max_size = max_size
        self._inflate = zlib.decompressobj(16 + zlib.MAX_WBITS) if encoding == "gzip" else None
        if encoding not in ("identity", "gzip", ""):
            self.fault = "has a content encoding that was not asked for"

    def feed(self, chunk: bytes) -> None:
        """Take in what was received."""
        self._received += len(chunk)
        try:
            if self._inflate is not None:
                chunk = self._inflate.decompress(chunk, self._max_size + 1 - len(self._content))
        except zlib.error:
            self.fault = "is not valid gzip"
            return
        self._content += chunk
        if self._received > self._max_size or len(self._content) > self._max_size:
            self.fault = f"is longer than {self._max_size} bytes"

    def finish(self) -> bytes:
        """All of it; or nothing, where there is a fault."""
        if self._received and self._inflate is not None and not self._inflate.eof and self.fault is None:
            self.fault = "is not valid gzip"
        return b"" if self.fault else bytes(self._content)


async def _read(response: httpx.Response, body: _Body, sockets: _Sockets) -> None:
    import httpx

    try:
        async for chunk in response.aiter_raw():
            if body.fault is None:
                body.feed(chunk)
            if body.fault is not None:
                # The generators behind this loop are only done when they reach an end, so they are given one: what
                # leaves them midway is left to the garbage collector, of which trio warns.
                await sockets.aclose()
    except httpx.TransportError:
        if body.fault is None:
            raise


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


class _Sockets:
    """The connections of a request, closed whatever becomes of it: httpcore forgets one whose TLS handshake is
    cancelled.
    """

    def __init__(self) -> None:
        self._streams: list[Any] = []

    async def trace(self, event: str, info: Mapping[str, Any]) -> None:
        """As httpcore's "trace" extension wants it."""
        if event == "connection.connect_tcp.complete":
            self._streams.append(info["return_value"])

    async def aclose(self) -> None:
        """Close them; closing a TCP stream waits for nothing, and doing it twice does nothing."""
        with anyio.CancelScope(shield=True):
            for stream in self._streams:
                await stream.aclose()


class _Discreet(logging.Filter):
    """Drops the records of this package's own requests; those of the user's own use of httpx pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _ours.get()


_discreet = _Discreet()


def _quieten() -> None:
    # A filter of a logger does not see the records of those below it, so each gets it; adding it twice does nothing.
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_discreet)
