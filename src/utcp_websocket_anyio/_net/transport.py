"""Reaching a host: which way, over which TLS, and what goes wrong on it as the package's error.

A `Network` belongs to one protocol object. Given an address, `Network.route` decides between three ways, and is the
last gate in front of them all:

- a *Unix socket*, where the user's settings map the host's name to one;
- *through a proxy*, where the settings or the environment name one and the host is not loopback;
- *directly*.

Where a proxy is named there is no other way: if it fails, the connection fails. `open_socket` goes that way, for the
wire and for HTTP requests alike. With a proxy it speaks python-socks' protocols, over a stream of this package's own:
python-socks neither resolves names nor opens sockets. With ``socks5h`` and HTTP proxies the host's name goes to the
proxy and is never looked up here.

The legs of a connection fail with different texts: *the proxy cannot be reached*, *TLS with the proxy*, *the proxy did
not connect*, and behind it the same as without a proxy.
"""

from __future__ import annotations

import errno
import functools
import http
import logging
import math
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import WebSocketConnectionError, WebSocketSecurityError, mapped
from .hosts import is_literal_loopback, is_local, plain_host
from .proxies import ENVIRONMENT, Proxy, proxy_of_environment
from .resolver import resolve
from .security import Address
from .settings import NetworkSettings, current_settings
from .sockets import ByteStream, SocketStream, TLSSession, TLSStream, open_tcp, open_unix

__all__ = ["Network", "Opened", "Route", "connection_failure", "default_context", "open_socket", "open_tunnel"]

_log = logging.getLogger(__name__)

_HUNG_UP = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Errors of the layer below TLS rather than of TLS itself."""

_MAX_PROXY_ANSWER = 64 * 1024

# RFC 1928, section 6. The first number in each pair is the reply; the flag says whether trying again may help.
_SOCKS_REPLIES = {
    1: ("general failure", True),
    2: ("not allowed by its rules", False),
    3: ("the network is unreachable", True),
    4: ("the host is unreachable", True),
    5: ("the connection was refused", True),
    6: ("the time to live expired", True),
    7: ("it does not support connecting", False),
    8: ("it does not support this kind of address", False),
}


@dataclass(frozen=True, slots=True)
class Route:
    """The way to an address.

    Attributes:
        unix_socket: Connect to this path instead.
        proxy: Connect to this proxy, and through it to the address.
    """

    address: Address
    unix_socket: str | None = None
    proxy: Proxy | None = None


class Network:
    """The network access of one protocol object.

    Args:
        settings: None: those that `configure` set, or the defaults.
        ssl_context: Context of every TLS connection, the proxy's included, used as it is; None: made of the settings.

    Raises:
        ValueError: Both an `ssl_context` and certificates in the settings are given.
    """

    def __init__(self, settings: NetworkSettings | None = None, ssl_context: ssl.SSLContext | None = None) -> None:
        if settings is not None and not isinstance(settings, NetworkSettings):
            raise TypeError(f"network must be NetworkSettings, not {type(settings).__name__}")
        self.settings = settings or current_settings()
        if ssl_context is not None and self.settings.has_own_tls:
            raise ValueError(
                "an ssl_context is used as it is: load ca_file and client_cert into it, and leave them out of the"
                " network settings"
            )
        self._ssl_context = ssl_context
        if not set(self.settings.trusted_hosts) <= set(current_settings().trusted_hosts):
            _log.warning("trusted_hosts count only if configure() was given them; those of other settings are ignored")

    def __repr__(self) -> str:
        return f"<Network {self.settings!r}>"

    @property
    def tls(self) -> ssl.SSLContext:
        """TLS towards an endpoint."""
        return self._context(0)

    @property
    def proxy_tls(self) -> ssl.SSLContext:
        """TLS towards a proxy; it does not show the client's certificate unless the user's own context does."""
        return self._context(1)

    def route(self, scheme: str, address: Address, endpoint: str) -> Route:
        """The way to an address.

        Args:
            scheme: ``ws`` or ``http``, for both the plain and the secure one.
            endpoint: URL as errors show it.

        Raises:
            WebSocketSecurityError: Without TLS there is none.
            WebSocketConnectionError: The environment names a proxy that cannot be used.
        """
        settings = self.settings
        host = plain_host(address.host)
        unix_socket = settings.unix_sockets.get(host)
        if unix_socket is not None:
            return Route(address, unix_socket=unix_socket)
        if not (address.secure or is_literal_loopback(address.host) or current_settings().trusted.matches(host)):
            # A host that other settings map to a Unix socket passes the template's own check.
            raise WebSocketSecurityError(
                f"{scheme}:// goes to localhost, 127.0.0.0/8, [::1] and trusted hosts only; use {scheme}s://",
                endpoint=endpoint,
            )
        if is_local(host):
            return Route(address)
        if settings.proxy != ENVIRONMENT:
            return Route(address, proxy=settings.parsed_proxy)
        with mapped(lambda reason: WebSocketConnectionError(reason, endpoint=endpoint), ValueError):
            proxy = proxy_of_environment(f"{scheme}s" if address.secure else scheme, host, address.port)
        return Route(address, proxy=proxy)

    def _context(self, index: int) -> ssl.SSLContext:
        if self._ssl_context is not None:
            return self._ssl_context
        contexts = self.settings.contexts
        return default_context() if contexts is None else contexts[index]


@functools.cache
def default_context() -> ssl.SSLContext:
    """Verification against the system's trust store, made once: loading it takes milliseconds.

    OpenSSL finds that store, and follows ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``.
    """
    return ssl.create_default_context()


async def open_tunnel(
    stream: ByteStream, proxy: Proxy, address: Address, endpoint: str, *, what: str = "cannot connect"
) -> None:
    """Ask a proxy to connect to an address; afterwards the stream leads there.

    Args:
        stream: Connected to the proxy, through TLS where the proxy is asked for over it. It is not closed.
        endpoint: URL as errors show it.
        what: Beginning of the text of an error.

    Raises:
        WebSocketConnectionError: The proxy did not connect, or what it says is not the proxy's protocol.
    """
    import python_socks
    from python_socks.async_.anyio.v2 import Proxy as Client

    host = address.server_name
    if not proxy.resolves_names:
        host = await _look_up(host, address.port, endpoint)
    talk = _ProxyTalk(stream)
    client = Client(
        python_socks.ProxyType.SOCKS5 if proxy.scheme.startswith("socks5") else python_socks.ProxyType.HTTP,
        proxy.host,
        proxy.port,
        username=proxy.username,
        password=proxy.password,
        rdns=True,
        forward=talk,  # type: ignore[arg-type]  # any object that gives a stream
    )
    try:
        await client.connect(host, address.port, timeout=math.inf)
        if talk.has_more:
            raise python_socks.ProxyError("it went on speaking")
        return
    except python_socks.ProxyError as error:
        reason, transient = _refusal(proxy, error.error_code, ended=talk.ended)
    except OSError:
        reason, transient = "closed the connection", True
    except (ValueError, IndexError, TypeError):
        # What python-socks makes of an answer that is none; its texts quote it.
        reason, transient = _refusal(proxy, None, ended=talk.ended)
    raise WebSocketConnectionError(
        f"{what}: the proxy {proxy.display} {reason}", endpoint=endpoint, transient=transient
    )


def _refusal(proxy: Proxy, code: int | None, *, ended: bool) -> tuple[str, bool]:
    """The reason of a proxy's refusal, without its text, which may quote the request; True if a retry may help."""
    if code is None:
        if ended:
            return "closed the connection", True
        if proxy.scheme.startswith("socks5"):
            given = (
                "refused the user name or password, or" if proxy.username else "asks for a user name and password, or"
            )
            return f"{given} does not speak SOCKS 5", False
        return "does not answer as an HTTP proxy", False
    if proxy.scheme.startswith("socks5"):
        said, transient = _SOCKS_REPLIES.get(code, (f"reply {code}", False))
        return f"could not connect: {said}", transient
    try:
        phrase = f"{code} {http.HTTPStatus(code).phrase}"
    except ValueError:
        phrase = str(code)
    if code in (http.HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, http.HTTPStatus.UNAUTHORIZED):  # tinyproxy says 401
        given = "refused the user name or password" if proxy.username else "asks for a user name and password"
        return f"{given} (status {phrase})", False
    return f"did not connect: status {phrase}", code in (429, 502, 503, 504)


class _ProxyTalk:
    """The stream that python-socks speaks over; `connect` hands it over as if it were another proxy's.

    Not a byte is taken that comes behind the proxy's answer. The client speaks first in every protocol that is
    tunnelled, so more than that is an error.

    Attributes:
        ended: True if the proxy has closed.
    """

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._received = bytearray()
        self.ended = False

    @property
    def has_more(self) -> bool:
        """True if something was received that python-socks did not ask for."""
        return bool(self._received)

    async def connect(self, **_: Any) -> _ProxyTalk:
        """As a proxy's `connect`."""
        return self

    async def write(self, data: bytes) -> None:
        await self._stream.send(data)

    async def read(self, max_bytes: int = _MAX_PROXY_ANSWER) -> bytes:
        """The head of an HTTP answer, which may arrive in pieces."""
        while (end := self._received.find(b"\r\n\r\n")) < 0 and len(self._received) < max_bytes:
            if not await self._receive():
                return b""
        return self._take(end + 4 if end >= 0 else len(self._received))

    async def read_exactly(self, n: int) -> bytes:
        from python_socks import ProxyError

        while len(self._received) < n:
            if not await self._receive():
                raise ProxyError("the proxy closed the connection")
        return self._take(n)

    async def close(self) -> None:
        """Do nothing: the opener of the connection closes it."""

    async def _receive(self) -> bool:
        data = await self._stream.receive(_MAX_PROXY_ANSWER)
        self.ended = not data
        self._received += data
        return bool(data)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken


async def _look_up(host: str, port: int, endpoint: str) -> str:
    """An address of a host, for a proxy that takes addresses: of IPv4 if there is one, as not every proxy has IPv6."""
    try:
        found = await resolve(host, port)
    except OSError as error:
        failure = connection_failure(error, endpoint)
    else:
        return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[1][0])
    raise failure


@dataclass(slots=True)
class Opened:
    """A connection to an address, as far as everybody needs it.

    Attributes:
        socket: Connected and non-blocking.
        proxy_session: All that goes over the socket goes through this TLS session with the proxy; None: nothing does.
        leg: Beginning of the text of an error that happens from here on.
    """

    socket: socket.socket
    proxy_session: TLSSession | None = None
    leg: str = "cannot connect"


async def open_socket(route: Route, network: Network, endpoint: str, *, what: str = "cannot connect") -> Opened:
    """Connect to an address by the way that was decided on, without the TLS that the address itself may ask for.

    Cancelling it leaves nothing open.

    Args:
        endpoint: URL as errors show it.
        what: Beginning of the text of an error.

    Raises:
        WebSocketConnectionError: There is no connection.
    """
    address, proxy = route.address, route.proxy
    opened: socket.socket | None = None
    session: TLSSession | None = None
    begin = what
    failure: WebSocketConnectionError
    try:
        if route.unix_socket is not None:
            return Opened(await open_unix(route.unix_socket), leg=what)
        if proxy is None:
            return Opened(await open_tcp(address.host, address.port), leg=what)
        begin = f"{what}: the proxy {proxy.display} cannot be reached"
        opened = await open_tcp(proxy.host, proxy.port)
        stream: ByteStream = SocketStream(opened)
        if proxy.scheme == "https":
            begin = f"{what}: the proxy {proxy.display}"
            session = TLSSession(network.proxy_tls, proxy.host)
            stream = secured = TLSStream(stream, session)
            await secured.handshake()
        await open_tunnel(stream, proxy, address, endpoint, what=what)
        return Opened(opened, session, f"{what} behind the proxy {proxy.display}")
    except WebSocketConnectionError as error:
        failure = error
    except (OSError, UnicodeError) as error:
        failure = connection_failure(error, endpoint, what=begin)
    except BaseException:
        if opened is not None:
            opened.close()
        raise
    if opened is not None:
        opened.close()
    raise failure


def connection_failure(
    error: BaseException,
    endpoint: str,
    *,
    what: str = "cannot connect",
    lost: str = "the connection was lost",
) -> WebSocketConnectionError:
    """The error for a failure of DNS, TCP or TLS; it says what failed, and nothing of what was sent.

    Args:
        what: Beginning of its text.
        lost: Reason that it gives if none is known.
    """
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"TLS: the certificate is not trusted: {cause.verify_message}"
        elif isinstance(cause, ssl.SSLError) and not isinstance(cause, _HUNG_UP):
            reason = f"TLS: {cause.reason or 'the handshake failed'}"
        elif isinstance(cause, UnicodeError):
            # The codec for names; its errors hold the name.
            reason = "the host name is not valid"
        else:
            continue
        return WebSocketConnectionError(f"{what}: {reason}", endpoint=endpoint)
    reason, number = lost, None
    for cause in causes:
        if isinstance(cause, socket.gaierror):
            reason = "the host name cannot be resolved"
            break
        if isinstance(cause, OSError) and not isinstance(cause, ssl.SSLError) and (cause.errno or 0) > 0:
            reason, number = os.strerror(cause.errno or 0), cause.errno
    exhausted = number in (errno.EMFILE, errno.ENFILE)
    failure = WebSocketConnectionError(f"{what}: {reason}", endpoint=endpoint, transient=not exhausted)
    # The pool closes idle connections where file descriptors are exhausted; trying again by itself does not help.
    failure.errno = number
    return failure


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what is in it, and what is behind it."""
    while error is not None:
        yield error
        for inner in getattr(error, "exceptions", ()):
            yield from _causes(inner)
        error = error.__cause__ or error.__context__
