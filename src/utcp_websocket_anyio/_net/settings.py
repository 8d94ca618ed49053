"""This process's network settings: they are the user's, and no call template or manual can change them.

`NetworkSettings` are given to one protocol object or client, or, with `configure`, to the whole process. Two members
are asked for before any client sees a call template, when it is validated:

- `trusted_hosts`: always those of the process's settings, wherever else settings were given;
- the names of `unix_sockets`: those of any settings that are in use somewhere. A template may name such a host; whether
  there is a way to it is decided by the settings of the client that connects (`transport.Network.route`).
"""

from __future__ import annotations

import os
import ssl
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from ..errors import mapped
from .forks import in_each_child
from .hosts import HostList, is_local, plain_host
from .proxies import ENVIRONMENT, Proxy

__all__ = ["NetworkSettings", "configure", "current_settings", "is_trusted_host"]

_SECRETS = ("client_key_password",)


@dataclass(frozen=True, eq=False, kw_only=True)
class NetworkSettings:
    """Network settings of connections and of token, discovery and ``http`` step requests.

    They are checked when they are made, the files included, and cannot be changed afterwards.

    Args:
        proxy: The URL of a proxy (``http://``, ``https://``, ``socks5://`` with names resolved here, ``socks5h://``
            with names resolved by the proxy; ``user:password@`` if it asks for them); ``"environment"``: as the
            environment says (``WSS_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY`` and so on, and the system's
            settings where there are any); None: no proxy. Loopback is never reached through a proxy.
        ca_file: Certificates (PEM) that are trusted beside those of the system's store.
        client_cert: The client's certificate chain (PEM), for servers that ask for one.
        client_key: Private key of the certificate (PEM), if it is not in `client_cert`.
        client_key_password: Password of the encrypted key.
        trusted_hosts: Names, addresses and networks (``"nas.home"``, ``"192.168.0.0/16"``) to which plain ``ws://``
            and ``http://`` are allowed because you trust the way there. Only those given to `configure` count.
        unix_sockets: Host names of ``ws://`` and ``http://`` URLs that stand for a Unix domain socket, with its path.
        max_idle_connections: Idle connections that a protocol object keeps open over all endpoints.

    Raises:
        ValueError: A setting cannot be used; the text names it and shows no secret.
    """

    proxy: str | None = ENVIRONMENT
    ca_file: str | os.PathLike[str] | None = None
    client_cert: str | os.PathLike[str] | None = None
    client_key: str | os.PathLike[str] | None = None
    client_key_password: str | None = field(default=None, repr=False)
    trusted_hosts: Iterable[str] = ()
    unix_sockets: Mapping[str, str] = field(default_factory=dict)
    max_idle_connections: int = 100

    def __post_init__(self) -> None:
        _set(self, "trusted_hosts", _checked_names(self.trusted_hosts))
        _set(self, "unix_sockets", MappingProxyType(_checked_sockets(self.unix_sockets)))
        for name in ("ca_file", "client_cert", "client_key"):
            value = getattr(self, name)
            if value is not None:
                _set(self, name, _path(value, name))
        if self.client_cert is None and (self.client_key is not None or self.client_key_password is not None):
            raise ValueError("client_key and client_key_password need a client_cert")
        limit: Any = self.max_idle_connections
        if not isinstance(limit, int) or isinstance(limit, bool) or limit < 0:
            raise ValueError("max_idle_connections: must be an integer that is not negative")
        _set(self, "_proxy", None)
        if self.proxy is not None and self.proxy != ENVIRONMENT:
            if not isinstance(self.proxy, str):
                raise ValueError('proxy: must be a URL, "environment" or None')
            _set(self, "_proxy", Proxy.parse(self.proxy, "proxy"))
        _set(self, "_trusted", HostList.of(self.trusted_hosts))
        # Made now: a certificate that cannot be loaded is a mistake in these settings, not of the first connection.
        _set(self, "_contexts", _contexts(self) if self.has_own_tls else None)
        if self.unix_sockets:
            with _lock:
                _with_sockets[id(self)] = self

    def __repr__(self) -> str:
        """The members that differ from their default, without secrets."""
        shown = []
        for member in fields(self):
            value = getattr(self, member.name)
            default = {} if member.name == "unix_sockets" else member.default
            if value == default:
                continue
            if member.name in _SECRETS:
                value = "<secret>"
            elif member.name == "proxy" and self.parsed_proxy is not None:
                value = self.parsed_proxy.display
            elif member.name == "unix_sockets":
                value = dict(value)
            shown.append(f"{member.name}={value!r}")
        return f"NetworkSettings({', '.join(shown)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSettings) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def __reduce__(self) -> Any:
        # A TLS context cannot be pickled; it is made again.
        values = {member.name: getattr(self, member.name) for member in fields(self)}
        return _rebuild, ({**values, "unix_sockets": dict(self.unix_sockets)},)

    @property
    def has_own_tls(self) -> bool:
        """True if there is a trusted certificate or a client certificate in these settings."""
        return self.ca_file is not None or self.client_cert is not None

    @property
    def parsed_proxy(self) -> Proxy | None:
        """The proxy for everything; None if there is none, or the environment says which."""
        proxy: Proxy | None = self.__dict__["_proxy"]
        return proxy

    @property
    def contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext] | None:
        """TLS settings for endpoints and for proxies; None: nothing but the system's trust store."""
        contexts: tuple[ssl.SSLContext, ssl.SSLContext] | None = self.__dict__["_contexts"]
        return contexts

    @property
    def trusted(self) -> HostList:
        """`trusted_hosts`, to compare with."""
        trusted: HostList = self.__dict__["_trusted"]
        return trusted

    @property
    def _identity(self) -> tuple[Any, ...]:
        values = {member.name: getattr(self, member.name) for member in fields(self)}
        values["trusted_hosts"] = frozenset(self.trusted_hosts)
        values["unix_sockets"] = frozenset(self.unix_sockets.items())
        return tuple(values.values())


def configure(settings: NetworkSettings) -> None:
    """Set how this process reaches the network, for every protocol object that is given no settings of its own.

    The stock `UtcpClient` creates its protocol objects itself, so call this before the client is created, and before
    call templates that use `trusted_hosts` are built. ``configure(NetworkSettings())`` goes back to the defaults.
    """
    global _process_settings  # noqa: PLW0603 - this is the process's state
    if not isinstance(settings, NetworkSettings):
        raise TypeError(f"configure takes NetworkSettings, not {type(settings).__name__}")
    _process_settings = settings


def current_settings() -> NetworkSettings:
    """The settings last passed to `configure`."""
    return _process_settings


def is_trusted_host(host: str) -> bool:
    """True if plain ``ws://`` and ``http://`` may be written to a host that is not loopback."""
    if _process_settings.trusted.matches(host):
        return True
    host = plain_host(host)
    with _lock:
        return any(host in settings.unix_sockets for settings in _with_sockets.values())


def _contexts(settings: NetworkSettings) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    # The proxy gets a context of its own: the client's certificate is for endpoints.
    for_endpoints, for_proxies = ssl.create_default_context(), ssl.create_default_context()
    if settings.ca_file is not None:
        with _loading("ca_file", settings.ca_file):
            for context in (for_endpoints, for_proxies):
                context.load_verify_locations(settings.ca_file)
    if settings.client_cert is not None:
        members = "client_cert" if settings.client_key is None else "client_cert, client_key"
        password = settings.client_key_password or ""
        with _loading(members, settings.client_key or settings.client_cert):
            # Without a password to give, OpenSSL would ask for one on the terminal.
            for_endpoints.load_cert_chain(settings.client_cert, settings.client_key, lambda: password)
    return for_endpoints, for_proxies


@contextmanager
def _loading(member: str, path: str | os.PathLike[str]) -> Iterator[None]:
    def reason_of(error: Exception) -> str:
        if isinstance(error, ssl.SSLError):
            if error.reason == "KEY_VALUES_MISMATCH":
                return "the key does not belong to the certificate"
            if member == "ca_file":
                return "it contains no certificate in PEM form"
            return "it cannot be read: not PEM, or encrypted with another client_key_password"
        if isinstance(error, OSError):
            return error.strerror or "it cannot be read"
        return "client_key_password is too long"

    try:
        yield
        return
    except (OSError, ValueError) as error:
        reason = reason_of(error)
    raise ValueError(f"{member}: {path}: {reason}")


def _checked_names(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ValueError("trusted_hosts: must be a list of host names, addresses and networks")
    names = tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise ValueError("trusted_hosts: must be a list of host names, addresses and networks")
    with mapped(lambda reason: ValueError(f"trusted_hosts: {reason}"), ValueError):
        HostList.of(names)
    return names


def _checked_sockets(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("unix_sockets: must be an object of host names and paths")
    sockets = {}
    for host, path in value.items():
        try:
            names = HostList.of([host]).names if isinstance(host, str) else frozenset()
        except ValueError:
            names = frozenset()
        if not names:
            raise ValueError(f"unix_sockets: {host!r} is not a host name")
        if is_local(host):
            # It would take loopback away from everybody else.
            raise ValueError(f"unix_sockets: {host!r} is this machine itself; choose another name")
        sockets.update(dict.fromkeys(names, _path(path, f"unix_sockets[{host!r}]")))
    return sockets


def _path(value: Any, member: str) -> str:
    try:
        path = value if isinstance(value, str) else value.__fspath__()
    except AttributeError:
        path = None
    if not isinstance(path, str) or not path or "\0" in path:
        raise ValueError(f"{member}: must be the path of a file")
    return path


def _set(settings: NetworkSettings, name: str, value: Any) -> None:
    object.__setattr__(settings, name, value)


def _rebuild(values: dict[str, Any]) -> NetworkSettings:
    return NetworkSettings(**values)


_lock = threading.Lock()
"""Protects `_with_sockets`: settings are made and templates validated in any thread."""


def _begin_anew() -> None:
    global _lock  # noqa: PLW0603 - a thread of the parent may hold it
    _lock = threading.Lock()


in_each_child(_begin_anew)

# By identity: of two equal settings, one may go while the other is in use.
_with_sockets: weakref.WeakValueDictionary[int, NetworkSettings] = weakref.WeakValueDictionary()
_process_settings = NetworkSettings()
