"""What goes wrong while connecting, as the package's error."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator

from ..errors import WebSocketConnectionError

__all__ = ["connection_failure"]

_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Not TLS failed, but what is below it."""


def connection_failure(error: BaseException, endpoint: str) -> WebSocketConnectionError:
    """The error for a failure of DNS, TCP or TLS; it says what failed, and nothing of what was sent."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return WebSocketConnectionError(
                f"TLS: the certificate is not trusted: {cause.verify_message}", endpoint=endpoint
            )
        if isinstance(cause, ssl.SSLError) and not isinstance(cause, _HUNG_UP):
            return WebSocketConnectionError(f"TLS: {cause.reason or 'the handshake failed'}", endpoint=endpoint)
        if isinstance(cause, socket.gaierror):
            return WebSocketConnectionError("the host name cannot be resolved", endpoint=endpoint, transient=True)
    for cause in _causes(error):
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
            return WebSocketConnectionError(
                f"cannot connect: {os.strerror(cause.errno or 0)}", endpoint=endpoint, transient=True
            )
    return WebSocketConnectionError("the connection was lost while connecting", endpoint=endpoint, transient=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what is in it, and what is behind it."""
    while error is not None:
        yield error
        for inner in getattr(error, "exceptions", ()):
            yield from _causes(inner)
        error = error.__cause__ or error.__context__
