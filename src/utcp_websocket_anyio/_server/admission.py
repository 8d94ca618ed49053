"""The rules for admitting clients to a tool server.

A tool server on loopback is reachable for everything that runs on the machine, and that includes the pages in its
browser: a page of any site may open a WebSocket to 127.0.0.1, and no same-origin policy stands in the way. Three checks
keep others out, in this order:

1. ``Host`` must be an address or a name of this server. A page can make a name of its own lead to 127.0.0.1 (DNS
   rebinding), after which the browser takes the server for a part of the page's site; but then the name in ``Host`` is
   still the page's.
2. ``Origin``, which browsers send with every handshake and pages cannot change, must be one that was allowed. Programs
   send none.
3. The token, if there is one: the only check that says something about clients which are not browsers.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .transport import Handshake, Refusal

__all__ = ["Admission", "host_of", "is_loopback"]

_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<name>[^\[\]:/@?#\s]+))(?::[0-9]{0,5})?")
_ORIGIN = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[^\[\]:/@?#\s]+)(?::(?P<port>[0-9]+))?")
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# RFC 6750, section 2.1; it keeps out what a header or a call template would take for something else.
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
_EXCERPT_LENGTH = 100


class Admission:
    """The rules of one server.

    Args:
        hosts: Names and addresses of the server, besides those that it knows.
        origins: Origins of pages that may connect: ``scheme://host[:port]``, or ``null``.
        token: Token that every client must send; None: none is needed.

    Raises:
        ValueError: One of them could never match.
    """

    def __init__(self, *, hosts: Iterable[str], origins: Iterable[str], token: str | None) -> None:
        self._hosts = frozenset(map(_host_name, _listed(hosts)))
        self._origins = frozenset(map(_origin, _listed(origins)))
        if token is not None and _TOKEN.fullmatch(token) is None:
            raise ValueError("token must consist of letters, digits and -._~+/ (RFC 6750), and not be empty")
        self._token = token

    @property
    def has_token(self) -> bool:
        """True if clients need a token."""
        return self._token is not None

    @property
    def origins(self) -> frozenset[str]:
        """The origins of pages that may connect."""
        return self._origins

    def refusal(self, handshake: Handshake, served: str) -> Refusal | None:
        """Why a client may not connect; None if it may.

        Args:
            served: The host that the server was told to listen at.
        """
        host = host_of(handshake.host)
        if host is None or not self._is_ours(host, handshake.local_address, served):
            return Refusal(
                403, f"{_shown(handshake.host)} is not a name of this server; if it should be, add it to hosts"
            )
        if handshake.origins and not self._allows(handshake.origins):
            shown = " ".join(handshake.origins)
            return Refusal(403, f"pages of {_shown(shown)} may not connect; if they should, add it to origins")
        if self._token is not None and self.credentials(handshake) is None:
            return Refusal(
                401,
                "this server needs a token: Authorization: Bearer TOKEN, or ?token=TOKEN",
                (("WWW-Authenticate", "Bearer"),),
            )
        return None

    def credentials(self, handshake: Handshake) -> dict[str, Any] | None:
        """The token in the form in which this client gave it, as the `auth` of a call template; None if it did not."""
        token = self._token
        if token is None:
            return None
        given = "".join(handshake.authorizations) if len(handshake.authorizations) == 1 else ""
        scheme, _, in_header = given.partition(" ")
        in_query = parse_qs(urlsplit(handshake.target).query).get("token", [""])[0]
        # Both comparisons are always made, so that the time tells nothing.
        header_matches = _equal(in_header.strip(), token) and scheme.lower() == "bearer"
        query_matches = _equal(in_query, token)
        if header_matches:
            form = {"api_key": f"Bearer {token}", "var_name": "Authorization", "location": "header"}
        elif query_matches:
            form = {"api_key": token, "var_name": "token", "location": "query"}
        else:
            return None
        return {"auth_type": "api_key", **form}

    def _is_ours(self, host: str, local_address: str, served: str) -> bool:
        if host in self._hosts or host == host_of(served):
            return True
        local = _address(local_address)
        if local is not None and host == local:
            return True
        if local is not None and is_loopback(local) and is_loopback(host):
            return True
        machine = socket.gethostname().lower()
        return host in (machine, f"{machine}.local")

    def _allows(self, origins: tuple[str, ...]) -> bool:
        # RFC 6454: there is one. A browser writes it in the one form that `_origin` makes of every other.
        return len(origins) == 1 and origins[0].lower() in self._origins


def host_of(text: str) -> str | None:
    """The host of a ``Host`` header, or of what a server was told to listen at, in one form; None: there is none."""
    address = _address(text)
    if address is not None:
        return address
    found = _HOST.fullmatch(text)
    if found is None:
        return None
    name: str = found["ipv6"] or found["name"]
    return _address(name) or name.lower().removesuffix(".") or None


def is_loopback(host: str) -> bool:
    """True if a host, in the form of `host_of`, is this machine and nothing else."""
    return host == "localhost" or (_address(host) is not None and ipaddress.ip_address(host).is_loopback)


def _address(text: str) -> str | None:
    """An IP address in one form; None: it is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    # A socket for both families calls a client's 127.0.0.1 ::ffff:127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def _listed(values: Iterable[str]) -> list[str]:
    return [values] if isinstance(values, str) else list(values)


def _host_name(value: str) -> str:
    host = host_of(value)
    if host is None:
        raise ValueError(f"hosts: {value!r} is not a host name or an address")
    return host


def _origin(value: str) -> str:
    lower = value.lower()
    if lower == "null":
        return lower
    found = _ORIGIN.fullmatch(lower)
    if found is None:
        raise ValueError(f"origins: {value!r} must be scheme://host or scheme://host:port, with nothing behind it")
    port = found["port"]
    is_default = port is None or port == _DEFAULT_PORTS.get(found["scheme"])
    return f"{found['scheme']}://{found['host']}" + ("" if is_default else f":{port}")


def _equal(given: str, token: str) -> bool:
    # Digests, because compare_digest says how long they are.
    first, second = (hashlib.sha256(text.encode("utf-8", "replace")).digest() for text in (given, token))
    return hmac.compare_digest(first, second)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= _EXCERPT_LENGTH else f"{text[:_EXCERPT_LENGTH]}...")
