"""The rules about addresses and headers, as pure functions.

Two questions are asked of a URL, and they are answered from opposite sides. *May this be connected to?* is strict:
`split_address` takes the URL apart in one way, refuses whatever two parsers might read differently, and its result is
both what is judged and what is connected to. *Could this lead to the reader's own machine?* is liberal: `is_loopback`
says yes to every spelling that some resolver takes for it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from ..errors import WebSocketSecurityError

if TYPE_CHECKING:
    from utcp.data.tool import Tool

__all__ = [
    "Address",
    "check_header",
    "check_http_url",
    "check_manual_origin",
    "check_websocket_url",
    "display_url",
    "is_loopback",
    "is_reserved_header",
    "split_address",
]

_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}
_SHAPE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_AND_PORT = re.compile(
    rf"(?:(?P<name>{_LABEL}(?:\.{_LABEL})*\.?)|\[(?P<ipv6>[0-9a-f:.]+)\])(?::(?P<port>[0-9]{{0,5}}))?"
)
_LONGEST_NAME = 254
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_LOCAL_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback"})
# The last two would give the handshake a body: a server that believes them takes frames for it (RFC 9112, section 6).
_RESERVED_HEADERS = frozenset({"host", "connection", "upgrade", "content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL leads: the host as it is to be resolved, lower case and without brackets, and the port."""

    secure: bool
    host: str
    port: int


def split_address(url: str, schemes: tuple[str, str] = ("ws", "wss"), *, what: str = "url") -> Address:
    """Find out where a URL leads.

    Args:
        schemes: The plain one and the secure one.
        what: What the URL is, for errors.

    Raises:
        WebSocketSecurityError: It has another scheme, user information, no host, or a form that parsers read
            differently.
    """
    plain, secure = schemes
    shape = _SHAPE.match(url)
    if _FORBIDDEN.search(url):
        fault = "holds white space, a control character or a backslash"
    elif shape is None or shape["scheme"].lower() not in schemes:
        fault = f"must start with {secure}://, or with {plain}:// for loopback"
    elif "@" in shape["authority"]:
        fault = "holds user information; credentials belong in auth"
    else:
        scheme = shape["scheme"].lower()
        found = _HOST_AND_PORT.fullmatch(shape["authority"].lower())
        if found is not None:
            host = found["name"] or found["ipv6"]
            port = int(found["port"] or _PORTS[scheme])
            if 0 < port < 65536 and len(host) <= _LONGEST_NAME and (found["name"] or _is_ipv6(host)):
                return Address(scheme == secure, host, port)
        fault = "names no valid host and port; an international name needs its ASCII form (xn--…)"
    raise WebSocketSecurityError(f"{what}: {fault}", endpoint=display_url(url))


def check_websocket_url(url: str) -> None:
    """``wss://`` anywhere, ``ws://`` to a literal loopback host only.

    Raises:
        WebSocketSecurityError: The URL is neither; nothing of it is shown but what `display_url` shows.
    """
    _check(url, ("ws", "wss"), "url")


def check_http_url(url: str, what: str) -> None:
    """The same rule for ``https://`` and ``http://``.

    Args:
        what: What the URL is, for errors.

    Raises:
        WebSocketSecurityError: The URL is neither.
    """
    _check(url, ("http", "https"), what)


def display_url(url: str) -> str:
    """A URL as it may be shown: without user information, query and fragment. Never raises."""
    shape = _SHAPE.match(url)
    if shape is None or _FORBIDDEN.search(url) or not url.isprintable():
        return "<invalid URL>"
    host_and_port = shape["authority"].rpartition("@")[2].lower()
    if _HOST_AND_PORT.fullmatch(host_and_port) is None:
        return "<invalid URL>"
    return f"{shape['scheme'].lower()}://{host_and_port}{shape['path']}"


def is_loopback(url: str) -> bool:
    """Whether a URL may name this machine, in any spelling that a resolver takes for it.

    A name that the outside world's DNS points here is not seen: that takes the resolver.
    """
    # Browsers read a backslash as a slash, and so end the host there; others do not.
    return any(_is_local_host(reading) for reading in {url, url.replace("\\", "/")})


def check_manual_origin(origin: str, tools: Iterable[Tool], *, every_kind: bool = False) -> None:
    """A manual that came from a remote origin may not send its reader to the reader's own machine.

    Looked at are a call template's `url`, `discovery_url` and the `token_url` of its `auth`, and the same in the
    inline `tools` of a call template.

    Args:
        origin: The URL that the manual came from.
        tools: Its tools.
        every_kind: Look at call templates of every protocol, not only at those of WebSockets.

    Raises:
        WebSocketSecurityError: One of them names loopback; the text says which tool and which field.
    """
    if _is_surely_local(origin):
        return
    # A stack instead of recursion: how deep inline tools are nested is up to the manual.
    pending: list[Any] = list(tools)
    while pending:
        tool = pending.pop()
        template = _get(tool, "tool_call_template")
        if template is None or not (every_kind or _get(template, "call_template_type") == "websocket"):
            continue
        addresses = {
            "url": _get(template, "url"),
            "discovery_url": _get(template, "discovery_url"),
            "auth.token_url": _get(_get(template, "auth"), "token_url"),
        }
        for field, url in addresses.items():
            if isinstance(url, str) and is_loopback(url):
                raise WebSocketSecurityError(
                    f"the tool {_get(tool, 'name')!r} of a remote manual names a loopback {field}",
                    endpoint=display_url(origin),
                )
        inline = _get(template, "tools")
        if isinstance(inline, list):
            pending += inline


def is_reserved_header(name: str) -> bool:
    """Whether a header belongs to the handshake itself (RFC 6455, section 4.1), or would give it a body."""
    lower = name.lower()
    return lower in _RESERVED_HEADERS or lower.startswith("sec-websocket-")


def check_header(name: str, value: str) -> None:
    """A handshake header that a call template may set (RFC 9110, section 5).

    Values are ASCII: what a server makes of other characters is nowhere agreed on.

    Raises:
        WebSocketSecurityError: Name or value could change the handshake; the value is not shown.
    """
    if not _TOKEN.fullmatch(name):
        raise WebSocketSecurityError(f"{name[:100]!r} is no valid header name")
    if is_reserved_header(name):
        raise WebSocketSecurityError(f"the header {name} belongs to the handshake and cannot be set")
    if _CONTROL.search(value):
        raise WebSocketSecurityError(f"the value of the header {name} holds a control character")
    if not value.isascii():
        raise WebSocketSecurityError(
            f"the value of the header {name} holds characters beyond ASCII; send them encoded, such as in base64"
        )


def _check(url: str, schemes: tuple[str, str], what: str) -> None:
    address = split_address(url, schemes, what=what)
    if not address.secure and not _is_literal_loopback(address.host):
        plain, secure = schemes
        raise WebSocketSecurityError(
            f"{what}: {plain}:// goes to localhost, 127.0.0.0/8 and [::1] only; use {secure}://",
            endpoint=display_url(url),
        )


def _is_literal_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    # Newer Pythons call ::ffff:127.0.0.1 loopback, older ones do not; it is not among the literal ones.
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _is_surely_local(origin: str) -> bool:
    for schemes in (("ws", "wss"), ("http", "https")):
        try:
            return _is_literal_loopback(split_address(origin, schemes).host)
        except WebSocketSecurityError:
            continue
    return False


def _is_local_host(url: str) -> bool:
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    host = unicodedata.normalize("NFKC", unquote(host)).lower().replace("\u3002", ".").rstrip(".")
    if host in _LOCAL_NAMES or host.endswith(".localhost"):
        return True
    try:
        address: Any = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        # The spellings of inet_aton(3): fewer than four parts, octal, hexadecimal.
        if not re.fullmatch(r"[0-9a-fx.]+", host):
            return False
        try:
            address = ipaddress.ip_address(socket.inet_ntoa(socket.inet_aton(host)))
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return bool(address.is_loopback or address.is_unspecified)


def _get(value: Any, name: str) -> Any:
    """An attribute of a model, or a key of its JSON form."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
