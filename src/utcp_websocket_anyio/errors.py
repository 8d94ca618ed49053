"""The errors that a caller can get.

One root, `WebSocketError`, and a class per kind of failure. Where Python has a built-in exception for the same idea
(`ConnectionError`, `TimeoutError`, `PermissionError`, `ValueError`) the class is one of these too, so that callers who
know nothing of WebSockets still catch it.

No error text, attribute, cause or context holds a credential: `endpoint` is the URL without user information, query
and fragment, and the layers that raise these cut the chain to the library error they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

__all__ = [
    "MissingArgumentError",
    "WebSocketAuthError",
    "WebSocketClosedError",
    "WebSocketConnectionError",
    "WebSocketError",
    "WebSocketProtocolError",
    "WebSocketSecurityError",
    "WebSocketTimeoutError",
    "WebSocketToolError",
]

Phase = Literal["pool", "connect", "response"]


class WebSocketError(Exception):
    """Base class of all errors raised by this package.

    Attributes:
        endpoint: The URL of the endpoint without user information, query and fragment; None where no endpoint is
            involved yet.
    """

    def __init__(self, message: str, *, endpoint: str | None = None) -> None:
        super().__init__(message)
        self.endpoint = endpoint

    def __reduce__(self) -> tuple[Any, ...]:
        # The default calls the class with `args` alone, which leaves out what is keyword-only.
        return _rebuild, (type(self), self.args, self.__dict__)

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.endpoint is None else f"{text} ({self.endpoint})"


class WebSocketConnectionError(WebSocketError, ConnectionError):
    """No connection could be established: DNS, TCP, TLS, a proxy, a redirect, or no valid WebSocket handshake.

    Attributes:
        status: The HTTP status with which the handshake was answered, if it was and if it was not 101.
        transient: True if trying again may help: the transport failed, or the server is busy (429, 502, 503, 504).
        retry_after: The seconds that the server asked to wait before trying again, if it did.
    """

    def __init__(
        self,
        message: str,
        *,
        endpoint: str | None = None,
        status: int | None = None,
        transient: bool = False,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message, endpoint=endpoint)
        self.status = status
        self.transient = transient
        self.retry_after = retry_after


class WebSocketAuthError(WebSocketConnectionError, PermissionError):
    """The endpoint, its token endpoint or its login exchange refused the credentials.

    Attributes:
        response: The message or HTTP body that refused a login: its JSON value if it is JSON, else its text or bytes;
            None if there was none.
    """

    def __init__(self, message: str, *, response: Any = None, **details: Any) -> None:
        super().__init__(message, **details)
        self.response = response


class WebSocketTimeoutError(WebSocketError, TimeoutError):
    """A deadline passed.

    Attributes:
        phase: Thing that was being waited for: a free connection (``"pool"``), an open one (``"connect"``), or the
            responses, sending included (``"response"``).
    """

    def __init__(self, message: str, *, phase: Phase, endpoint: str | None = None) -> None:
        super().__init__(message, endpoint=endpoint)
        self.phase = phase


class WebSocketProtocolError(WebSocketError):
    """The peer broke RFC 6455 or what the call template says of it.

    Invalid frames or UTF-8, another subprotocol than the one asked for, a message over the limit, a response that
    cannot be decoded.
    """


class WebSocketClosedError(WebSocketError, ConnectionError):
    """The connection was closed, or lost, before the call was complete.

    Attributes:
        code: The close code (RFC 6455, section 7.4); 1006 where there was no close frame.
        reason: The reason the peer gave, or an empty string.
    """

    def __init__(self, message: str, *, code: int = 1006, reason: str = "", endpoint: str | None = None) -> None:
        super().__init__(message, endpoint=endpoint)
        self.code = code
        self.reason = reason


class WebSocketToolError(WebSocketError):
    """The tool itself answered with an error.

    Attributes:
        response: The message that says so: its JSON value where it is JSON, else its text or bytes.
    """

    def __init__(self, message: str, *, response: Any, endpoint: str | None = None) -> None:
        super().__init__(message, endpoint=endpoint)
        self.response = response


class WebSocketSecurityError(WebSocketError, ValueError):
    """A URL, a header or a manual breaks a security rule; nothing was contacted."""


class MissingArgumentError(WebSocketError, ValueError):
    """The call template names arguments that the call does not give; nothing was sent.

    Attributes:
        names: Every missing argument, sorted.
    """

    def __init__(self, names: Iterable[str], *, endpoint: str | None = None) -> None:
        self.names: tuple[str, ...] = tuple(sorted(names))
        super().__init__(f"missing argument: {', '.join(self.names)}", endpoint=endpoint)


@contextmanager
def mapped(make: Callable[[str], Exception], *caught: type[Exception]) -> Iterator[None]:
    """Raise `make(str(error))` in place of an error, with nothing of the original behind it.

    ``raise … from None`` hides the original from tracebacks only; its attributes may hold secrets, and are still within
    reach as ``__context__``. This is the one way in this package to raise an error in place of another one.

    Args:
        make: Makes the new error of the original's text.
        caught: The errors that are replaced.
    """
    try:
        yield
    except caught as error:
        clean = make(str(error))
        try:
            raise clean
        finally:
            # Python sets the context when the error is raised, so it can only be taken off afterwards.
            clean.__context__ = None


def _rebuild(kind: type[WebSocketError], args: tuple[Any, ...], state: dict[str, Any]) -> WebSocketError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error
