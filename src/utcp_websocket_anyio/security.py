"""The rules about addresses and headers, as pure functions.

An address is taken apart in one place (`split_address`), and the result is both what is judged and what is connected
to; so no two parsers can disagree about which host a URL names.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from .errors import WebSocketSecurityError

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
    "split_address",
]

_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_RESERVED_HEADERS = frozenset({"host", "connection", "upgrade"})


@dataclass(frozen=True, slots=True)
class Address:
    """A URL taken apart: what is connected to, and what is asked for there."""

    secure: bool
    host: str
    port: int
    target: str

    @property
    def authority(self) -> str:
        """Host and port as in a Host header (RFC 9110, section 7.2): without the scheme's default port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def split_address(url: str, schemes: tuple[str, str] = ("ws", "wss"), *, what: str = "url") -> Address:
    """Take a URL apart.

    Args:
        schemes: The plain one and the secure one.
        what: What the URL is, for errors.

    Raises:
        WebSocketSecurityError: It has another scheme, user information, no host, or a form that parsers read differently.
    """
    plain, secure = schemes
    if _FORBIDDEN.search(url):
        raise WebSocketSecurityError(f"{what}: holds white space, a control character or a backslash")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    if parts.scheme not in schemes:
        raise WebSocketSecurityError(f"{what}: must start with {secure}://, or with {plain}:// for loopback")
    if "@" in parts.netloc:
        raise WebSocketSecurityError(f"{what}: holds user information; credentials belong in auth")
    if not host or port == 0 or not (_HOST_NAME.fullmatch(host) or _is_ipv6(host)):
        raise WebSocketSecurityError(f"{what}: names no valid host and port")
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    return Address(parts.scheme == secure, host, port or _PORTS[parts.scheme], target)


def check_websocket_url(url: str) -> None:
    """``wss://`` anywhere, ``ws://`` to a literal loopback host only.

    Raises:
        WebSocketSecurityError: The URL is neither; nothing of it is shown but what `display_url` shows.
    """
    _check(url, ("ws", "wss"), "url")


def check_http_url(url: str, what: str) -> None:
    """The same rule for ``https://`` and ``http://``.

    Raises:
        WebSocketSecurityError: The URL is neither.
    """
    _check(url, ("http", "https"), what)


def display_url(url: str) -> str:
    """A URL as it may be shown: without user information, query and fragment."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "<invalid URL>"
    host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path}"


def is_loopback(url: str) -> bool:
    """Whether a URL names this machine, in any spelling that a resolver takes for it."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return False
    host = unicodedata.normalize("NFKC", unquote(host)).lower().rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address: Any = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        if not re.fullmatch(r"[0-9a-fx.]+", host):
            return False
        try:
            address = ipaddress.ip_address(socket.inet_ntoa(socket.inet_aton(host)))
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return bool(address.is_loopback or address.is_unspecified)


def check_manual_origin(origin: str, tools: Iterable[Tool]) -> None:
    """A manual that came from a remote origin may not send its reader to the reader's own machine.

    Args:
        origin: The URL that the manual came from.
        tools: Its tools; those whose call templates are of WebSockets are looked at.

    Raises:
        WebSocketSecurityError: One of them names loopback.
    """
    if is_loopback(origin):
        return
    for tool in tools:
        template = tool.tool_call_template
        if template.call_template_type != "websocket":
            continue
        addresses = {
            "url": getattr(template, "url", None),
            "discovery_url": getattr(template, "discovery_url", None),
            "auth.token_url": getattr(template.auth, "token_url", None),
        }
        for field, url in addresses.items():
            if isinstance(url, str) and is_loopback(url):
                raise WebSocketSecurityError(
                    f"the tool {tool.name!r} of a remote manual names a loopback {field}", endpoint=display_url(origin)
                )


def check_header(name: str, value: str) -> None:
    """A handshake header that a call template may set (RFC 9110, section 5).

    Raises:
        WebSocketSecurityError: Name or value could change the handshake; the value is not shown.
    """
    if not _TOKEN.fullmatch(name):
        raise WebSocketSecurityError(f"{name!r} is no valid header name")
    lower = name.lower()
    if lower in _RESERVED_HEADERS or lower.startswith("sec-websocket-"):
        raise WebSocketSecurityError(f"the header {name} belongs to the handshake and cannot be set")
    if _CONTROL.search(value):
        raise WebSocketSecurityError(f"the value of the header {name} holds a control character")
    if not value.isascii():
        raise WebSocketSecurityError(f"the value of the header {name} holds characters beyond ASCII")


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
    return address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def _is_ipv6(host: str) -> bool:
    try:
        return isinstance(ipaddress.ip_address(host), ipaddress.IPv6Address)
    except ValueError:
        return False
