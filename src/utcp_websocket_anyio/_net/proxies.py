"""The choice of the proxy for a host: one that the user names, or the environment's.

The environment is read as `websockets` and httpx read it. The variables are asked for in this order, each in lower case
before upper case, as `urllib.request.getproxies` does (which also knows the settings of macOS and Windows)::

    wss://    WSS_PROXY, SOCKS_PROXY, HTTPS_PROXY, ALL_PROXY
    ws://     WS_PROXY, SOCKS_PROXY, HTTPS_PROXY, HTTP_PROXY, ALL_PROXY
    https://  HTTPS_PROXY, ALL_PROXY
    http://   HTTP_PROXY, ALL_PROXY

``NO_PROXY`` is a list, separated by commas or white space, of names (with all that is below them), addresses and
networks, each with a port or without; ``*`` is every host. It is read at each connection, as long-running processes
expect it of their environment.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from .hosts import HostList, plain_host

__all__ = ["ENVIRONMENT", "Proxy", "proxy_of_environment"]

ENVIRONMENT: Final = "environment"

_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_VARIABLES = {
    "wss": ("wss", "socks", "https", "all"),
    "ws": ("ws", "socks", "https", "http", "all"),
    "https": ("https", "all"),
    "http": ("http", "all"),
}
_MAX_CREDENTIAL = 255  # RFC 1929
_WITH_PORT = re.compile(r"(?P<host>\[[^\]]*\]|[^:\[\]]*):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the credentials for it.

    Attributes:
        scheme: ``http``, ``https`` (HTTP CONNECT over TLS), ``socks5`` or ``socks5h``.
        host: Without brackets.
    """

    scheme: str
    host: str
    port: int
    username: str | None = None
    password: str | None = None

    def __repr__(self) -> str:
        return f"<Proxy {self.display}>"

    @property
    def display(self) -> str:
        """The proxy's URL as it may be shown."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def resolves_names(self) -> bool:
        """True if the proxy is given the host's name, so that nothing is looked up here."""
        return self.scheme != "socks5"

    @classmethod
    def parse(cls, url: str, where: str) -> Proxy:
        """Read a proxy's URL.

        Args:
            url: URL of the proxy, with user name and password if it needs them.
            where: Name of its setting, for errors.

        Raises:
            ValueError: The proxy's URL cannot be used; the text shows nothing of it except the scheme.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
            username, password = (
                None if value is None else unquote(value, errors="strict") for value in (parts.username, parts.password)
            )
        except ValueError:
            # A port that is not one, brackets, an escape that is not UTF-8.
            parts = None
        if parts is None or re.search(r"[\x00-\x20\x7f\\]", url) or not url.isascii():
            raise ValueError(f"{where}: must be a URL such as http://proxy.example:3128, in ASCII")
        if parts.scheme not in _DEFAULT_PORTS:
            scheme = f"{parts.scheme}:// is not" if re.fullmatch(r"[a-z0-9+.-]+", parts.scheme) else "that is not"
            known = ", ".join(f"{known}://" for known in _DEFAULT_PORTS)
            raise ValueError(f"{where}: {scheme} a kind of proxy that can be used; use one of {known}")
        if not host or parts.path not in ("", "/") or parts.query or parts.fragment or port == 0:
            raise ValueError(f"{where}: must be a URL of scheme, host and port, such as http://proxy.example:3128")
        _check_credentials(parts.scheme, username, password, where)
        return cls(parts.scheme, plain_host(host), port or _DEFAULT_PORTS[parts.scheme], username, password)


def proxy_of_environment(scheme: str, host: str, port: int) -> Proxy | None:
    """The proxy that the environment names for a host, if any.

    Args:
        scheme: Scheme of the URL: ``ws``, ``wss``, ``http`` or ``https``.

    Raises:
        ValueError: It names one that cannot be used. Going without would be what it was set against.
    """
    import urllib.request  # slow to import, and not needed for loopback

    proxies = urllib.request.getproxies()
    name, url = next(((name, proxies[name]) for name in _VARIABLES[scheme] if proxies.get(name)), (None, None))
    if name is None or url is None or _is_excluded(proxies.get("no", ""), host, port):
        return None
    if not urllib.request.getproxies_environment() and urllib.request.proxy_bypass(f"{host}:{port}"):
        return None  # an exception in the settings of macOS or Windows
    if "://" not in url:
        url = f"http://{url}"
    if name == "socks" and url.startswith("http://"):
        url = f"socks5h://{url.removeprefix('http://')}"  # as macOS has it
    return Proxy.parse(url, f"the proxy of the environment ({name.upper()}_PROXY)")


def _is_excluded(no_proxy: str, host: str, port: int) -> bool:
    for entry in re.split(r"[\s,]+", no_proxy):
        if entry == "*":
            return True
        name = entry
        if (with_port := _WITH_PORT.fullmatch(entry)) is not None and not _is_address(entry):
            if int(with_port["port"]) != port:
                continue
            name = with_port["host"]
        try:
            # A leading dot or wildcard changes nothing, as with curl: names below a name count anyway.
            entries = HostList.of([name.removeprefix("*").removeprefix(".")])
        except ValueError:
            continue  # other programs' own extensions
        if entries.matches(plain_host(host), subdomains=True):
            return True
    return False


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _check_credentials(scheme: str, username: str | None, password: str | None, where: str) -> None:
    if username is None and password is None:
        return
    if not username or (not password and scheme.startswith("socks")):
        raise ValueError(f"{where}: needs a user name and a password, or neither")
    for value in (username, password or ""):
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"{where}: its user name or password contains a control character, or one beyond ASCII")
        if len(value) > _MAX_CREDENTIAL:
            raise ValueError(f"{where}: its user name or password is longer than {_MAX_CREDENTIAL} characters")
    if ":" in username and scheme.startswith("http"):
        raise ValueError(f"{where}: a user name with a colon cannot be told from its password (RFC 7617)")
