"""TLS settings, and what goes wrong while connecting as the package's error."""

from __future__ import annotations

import functools
import os
import socket
import ssl
from collections.abc import Iterator

from ..errors import WebSocketConnectionError

__all__ = ["connection_failure", "default_context"]

_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Not TLS failed, but what is below it."""


@functools.cache
def default_context() -> ssl.SSLContext:
    """Verification against the system's trust store, made once: loading it takes milliseconds."""
    return ssl.create_default_context()


def connection_failure(
    error: BaseException,
    endpoint: str,
    *,
    what: str = "cannot connect",
    lost: str = "the connection was lost",
) -> WebSocketConnectionError:
    """The error for a failure of DNS, TCP or TLS; it says what failed, and nothing of what was sent.

    Args:
        what: How its text begins.
        lost: What it says where nothing better is known.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"TLS: the certificate is not trusted: {cause.verify_message}"
        elif isinstance(cause, ssl.SSLError) and not isinstance(cause, _HUNG_UP):
            reason = f"TLS: {cause.reason or 'the handshake failed'}"
        else:
            continue
        return WebSocketConnectionError(f"{what}: {reason}", endpoint=endpoint)
    reason = lost
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            reason = "the host name cannot be resolved"
            break
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
            reason = os.strerror(cause.errno or 0)
    return WebSocketConnectionError(f"{what}: {reason}", endpoint=endpoint, transient=True)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what is in it, and what is behind it."""
    while error is not None:
        yield error
        for inner in getattr(error, "exceptions", ()):
            yield from _causes(inner)
        error = error.__cause__ or error.__context__
