"""The few HTTP requests of this package: for OAuth2 tokens and for manuals.

Everything that goes wrong becomes one of the package's errors here, and httpx's own log records of these requests are
kept from showing what they should not: the query of a URL at INFO, headers at DEBUG.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from .errors import WebSocketConnectionError, WebSocketError, WebSocketProtocolError
from .security import display_url
from .tls import default_context

__all__ = ["request_json"]

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
    max_size: int = _MAX_SIZE,
) -> tuple[int, Any]:
    """Make one request and read its answer as JSON.

    It has no time limit of its own; cancelling it closes its connection. It follows no redirect and uses no proxy.

    Args:
        what: What the request is, for errors.
        max_size: Longest answer, decompressed, in bytes.

    Returns:
        The status, and the JSON of the body, or None where that is no JSON.

    Raises:
        WebSocketConnectionError: There is no answer, or it is a redirect.
        WebSocketProtocolError: The answer is too long.
    """
    import httpx  # not every user needs it

    _quieten()
    endpoint = display_url(url)
    failure: WebSocketError | None = None
    mine = _ours.set(True)
    try:
        async with (
            httpx.AsyncClient(verify=ssl_context or default_context(), trust_env=False, timeout=None) as client,
            client.stream(
                method, url, data=form, headers=[("Accept", "application/json"), *headers], follow_redirects=False
            ) as response,
        ):
            status = response.status_code
            if 300 <= status < 400:
                raise WebSocketConnectionError(
                    f"the {what} was answered with a redirect, which is not followed", endpoint=endpoint, status=status
                )
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > max_size:
                    raise WebSocketProtocolError(
                        f"the answer to the {what} is longer than {max_size} bytes", endpoint=endpoint
                    )
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
        tls = any(isinstance(cause, ssl.SSLError) for cause in _chain(error))
        failure = WebSocketConnectionError(
            f"the {what} failed ({'TLS' if tls else type(error).__name__})",
            endpoint=endpoint,
            transient=isinstance(error, httpx.TransportError) and not tls,
        )
    finally:
        _ours.reset(mine)
    if failure is not None:
        # Raised here, nothing of httpx is behind it: its errors hold the request with URL and headers.
        raise failure
    try:
        return status, json.loads(body)
    except (ValueError, RecursionError):
        return status, None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


class _Discreet(logging.Filter):
    """Drops the records of this package's own requests, which show URLs and headers."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _ours.get()


_discreet = _Discreet()


def _quieten() -> None:
    # A filter of a logger does not see the records of those below it, so each gets it; adding it twice does nothing.
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_discreet)
