"""The rules about addresses, headers and manuals, as functions that touch nothing.

Two questions are asked of a URL, and they are answered from opposite sides. *May this be connected to?* is strict:
`split_address` takes the URL apart in one way, refuses whatever two parsers might read differently, and its result is
both what is judged and what is connected to. *Could this lead to the reader's own machine, or to a host that only the
reader trusts?* is liberal: `names_own_network` says yes to every spelling that some resolver takes for it.

What goes into a handshake or an HTTP request has one gate as well: `check_handshake`, through which `Target` passes all
headers and subprotocols, wherever they come from. Templates are checked with the same functions when they are
validated, so that a mistake shows early; the gate does not rely on that.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from pydantic import BaseModel

from ..errors import WebSocketSecurityError, mapped
from .hosts import is_literal_loopback, is_local, loose_host, plain_host
from .settings import is_trusted_host

if TYPE_CHECKING:
    from utcp.data.tool import Tool

__all__ = [
    "Address",
    "add_query",
    "check_captured_url",
    "check_handshake",
    "check_header",
    "check_http_url",
    "check_manual_origin",
    "check_subprotocol",
    "check_websocket_url",
    "display_url",
    "is_loopback",
    "is_reserved_header",
    "is_text",
    "names_own_network",
    "origin_of",
    "split_address",
]

_PORTS = {"ws": 80, "wss": 443, "http": 80, "https": 443}
_SHAPE = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<authority>[^/?#]*)(?P<path>[^?#]*)", re.IGNORECASE)
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f\\\ud800-\udfff]")
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST_AND_PORT = re.compile(
    rf"(?:(?P<name>{_LABEL}(?:\.{_LABEL})*\.?)|\[(?P<ipv6>[0-9a-f:.]+)\])(?::(?P<port>[0-9]{{0,5}}))?"
)
_MAX_NAME_LENGTH = 254
_MAX_SHOWN = 100
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# The last two would give the handshake a body: a server that believes them takes frames for it (RFC 9112, section 6).
_RESERVED_HEADERS = frozenset({"host", "connection", "upgrade", "content-length", "transfer-encoding"})

# Where call templates name addresses: UTCP's own fields and those of its plugins, by the last part of their name.
_ADDRESS_KEY = re.compile(
    r"(?:^|_)(?:ur[il]|endpoint|host|hostname|address|server|proxy)s?$|(?:Ur[il]|URL|Host|Endpoint)$"
)
# What a WebSocket call template sends, compares and shows is data, whatever its keys are called.
_DATA_KEYS = frozenset(
    {
        "message", "send", "send_each", "reply", "match", "expect", "reject", "message_filter", "last_filter",
        "end_filter", "error_filter", "error_result", "result", "capture", "compute", "gap_item", "discovery_message",
        "headers", "query", "json", "form", "body", "session", "protocol", "key",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Address:
    """The host and port of a URL; the host as it should be resolved, in lower case and without brackets."""

    secure: bool
    host: str
    port: int

    @property
    def server_name(self) -> str:
        """The host as TLS compares it with the certificate: without the last dot (RFC 6066, section 3)."""
        return self.host.rstrip(".")


def split_address(url: str, schemes: tuple[str, str] = ("ws", "wss"), *, what: str = "url") -> Address:
    """Find out where a URL leads.

    Args:
        schemes: The plain one and the secure one.
        what: Name of the URL, for errors.

    Raises:
        WebSocketSecurityError: The URL has another scheme, user information, no host, or a form that parsers read
            differently.
    """
    plain, secure = schemes
    shape = _SHAPE.match(url)
    if _FORBIDDEN.search(url):
        reason = "contains white space, a control character, a backslash or a lone surrogate"
    elif shape is None or shape["scheme"].lower() not in schemes:
        reason = f"must start with {secure}://, or with {plain}:// for loopback and trusted hosts"
    elif "@" in shape["authority"]:
        reason = "contains user information; put credentials in auth"
    else:
        scheme = shape["scheme"].lower()
        found = _HOST_AND_PORT.fullmatch(shape["authority"].lower())
        if found is not None:
            host = found["name"] or found["ipv6"]
            port = int(found["port"] or _PORTS[scheme])
            if 0 < port < 65536 and len(host) <= _MAX_NAME_LENGTH and (found["name"] or _is_ipv6(host)):
                return Address(scheme == secure, host, port)
        reason = "has no valid host and port; an international name needs its ASCII form (xn--…)"
    raise WebSocketSecurityError(f"{what}: {reason}", endpoint=display_url(url))


def check_websocket_url(url: str) -> Address:
    """``wss://`` anywhere, ``ws://`` only to a literal loopback host or one that the user trusts.

    Returns:
        Where it leads.

    Raises:
        WebSocketSecurityError: The URL is neither; the text shows no more of it than `display_url`.
    """
    return _checked(url, ("ws", "wss"), "url")


def check_http_url(url: str, what: str) -> Address:
    """The same rule for ``https://`` and ``http://``.

    Args:
        what: Name of the URL, for errors.

    Returns:
        Where it leads.

    Raises:
        WebSocketSecurityError: The URL is neither.
    """
    return _checked(url, ("http", "https"), what)


def display_url(url: str) -> str:
    """A URL as it may be shown: without user information, query and fragment. Never raises."""
    shape = _SHAPE.match(url)
    if shape is None or _FORBIDDEN.search(url) or not url.isprintable():
        return "<invalid URL>"
    host_and_port = shape["authority"].rpartition("@")[2].lower()
    if _HOST_AND_PORT.fullmatch(host_and_port) is None:
        return "<invalid URL>"
    return f"{shape['scheme'].lower()}://{host_and_port}{shape['path']}"


def add_query(url: str, parameters: Iterable[tuple[str, str]]) -> str:
    """A URL with parameters added to its query, percent-encoded. It must have no fragment.

    Raises:
        ValueError: A parameter cannot be encoded; it is not shown.
    """
    for name, value in parameters:
        if not (is_text(name) and is_text(value)):
            raise ValueError("a query parameter contains a lone surrogate, which UTF-8 cannot encode")
        path, _, query = url.partition("?")
        separator = "&" if query and not query.endswith("&") else ""
        url = f"{path}?{query}{separator}{quote(name, safe='')}={quote(value, safe='')}"
    return url


def is_loopback(url: str) -> bool:
    """True if a URL may name this machine, in any spelling that a resolver takes for it.

    A name that the outside world's DNS points here is not recognised: that takes the resolver.
    """
    return any(map(is_local, _possible_hosts(url)))


def names_own_network(url: str) -> str | None:
    """The kind of user-owned host that a URL names: ``"loopback"``, ``"trusted-host"``, or None for neither."""
    hosts = _possible_hosts(url)
    if any(map(is_local, hosts)):
        return "loopback"
    return "trusted-host" if any(is_trusted_host(loose_host(host)) for host in hosts) else None


def check_manual_origin(origin: str, tools: Iterable[Tool]) -> None:
    """A manual from a remote origin may not send its reader to the reader's own machine, or to a host of their own.

    Call templates of every protocol are looked at, to any depth, inline tools included. In those of WebSockets what
    is sent, compared and shown is left out: a URL there is data. A manual may always name the host it came from.

    Args:
        origin: The URL that the manual came from.
        tools: Its tools.

    Raises:
        WebSocketSecurityError: One of them does; the text names the tool and the field.
    """
    source = _literal_host(origin)
    if source is not None and is_literal_loopback(source):
        return
    for tool in tools:
        template = _json_form(_get(tool, "tool_call_template"))
        for where, value in _addresses(template):
            named = names_own_network(value if "://" in value else f"x://{value}")
            if named is None or (source is not None and _literal_host(value) == source):
                continue
            raise WebSocketSecurityError(
                f"the tool {str(_get(tool, 'name'))[:_MAX_SHOWN]!r} of a remote manual names a {named} address"
                f" in {where}",
                endpoint=display_url(origin),
            )


def check_captured_url(url: str, source: str, where: str) -> None:
    """Check that a URL named by a remote server does not lead to the user's own machine or to a host of their own.

    A URL that the user wrote may name loopback; one that a remote server answers has only the rights of its manual.
    Whether it may be connected to at all is decided by `check_websocket_url` and `check_http_url`.

    Args:
        url: The URL that was named, in full.
        source: The URL that it was captured from.
        where: Place in the call template, for errors.

    Raises:
        WebSocketSecurityError: The URL leads there; the text shows no more of it than `display_url`.
    """
    origin = _literal_host(source)
    if origin is not None and (is_literal_loopback(origin) or _literal_host(url) == origin):
        return
    if (named := names_own_network(url)) is not None:
        raise WebSocketSecurityError(
            f"{where}: a remote server ({display_url(source)}) names a {named} address", endpoint=display_url(url)
        )


def origin_of(url: str) -> str:
    """A URL without path and query, as it may be shown."""
    return "/".join(display_url(url).split("/", 3)[:3])


def is_text(value: str) -> bool:
    """True if a string can be encoded: JSON can bring half a surrogate pair, and Python's error holds the string."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def check_handshake(headers: Iterable[tuple[str, str]], subprotocols: Iterable[str], endpoint: str) -> None:
    """Check everything that a call template, its arguments, credentials and captures put into a handshake.

    The URL is checked elsewhere (`check_websocket_url`).

    Args:
        headers: Names and values of the headers.
        subprotocols: Subprotocols to offer.
        endpoint: URL as errors show it.

    Raises:
        WebSocketSecurityError: Something of it could change the handshake; no value is shown.
    """
    with mapped(lambda reason: WebSocketSecurityError(reason, endpoint=endpoint), WebSocketSecurityError):
        for name, value in headers:
            check_header(name, value)
        for subprotocol in subprotocols:
            check_subprotocol(subprotocol)


def check_subprotocol(subprotocol: str, where: str = "protocol") -> None:
    """Check that a subprotocol is a token (RFC 6455, section 4.1; RFC 9110, section 5.6.2).

    Args:
        subprotocol: The subprotocol to offer.
        where: Place in the call template, for errors.

    Raises:
        WebSocketSecurityError: The subprotocol is not a token. It may be a secret, so it is not shown.
    """
    if not _TOKEN.fullmatch(subprotocol):
        raise WebSocketSecurityError(
            f"{where}: a subprotocol must be a token: letters, digits and !#$%&'*+-.^_`|~ without spaces or commas"
        )


def is_reserved_header(name: str) -> bool:
    """True if a header belongs to the handshake itself (RFC 6455, section 4.1), or would give it a body."""
    lower = name.lower()
    return lower in _RESERVED_HEADERS or lower.startswith("sec-websocket-")


def check_header(name: str, value: str, where: str | None = None) -> None:
    """A header that a call template may set (RFC 9110, section 5).

    Values are ASCII: what a server makes of other characters is nowhere agreed on.

    Args:
        where: The field it stands in, for errors.

    Raises:
        WebSocketSecurityError: Name or value could change the request; the value is not shown.
    """
    at = "" if where is None else f"{where}: "
    if not _TOKEN.fullmatch(name):
        raise WebSocketSecurityError(f"{at}invalid header name {name[:_MAX_SHOWN]!r}")
    if is_reserved_header(name):
        raise WebSocketSecurityError(f"{at}the header {name} belongs to the handshake and cannot be set")
    if _CONTROL.search(value):
        raise WebSocketSecurityError(f"{at}the value of the header {name} contains a control character")
    if not value.isascii():
        raise WebSocketSecurityError(
            f"{at}the value of the header {name} contains characters beyond ASCII; send them encoded, such as in base64"
        )


def _checked(url: str, schemes: tuple[str, str], what: str) -> Address:
    address = split_address(url, schemes, what=what)
    if not (address.secure or is_literal_loopback(address.host) or is_trusted_host(address.host)):
        plain, secure = schemes
        raise WebSocketSecurityError(
            f"{what}: {plain}:// goes to localhost, 127.0.0.0/8, [::1] and trusted hosts only; use {secure}://",
            endpoint=display_url(url),
        )
    return address


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _literal_host(url: str) -> str | None:
    """The host of a URL that no parser could read differently."""
    for schemes in (("ws", "wss"), ("http", "https")):
        try:
            return plain_host(split_address(url, schemes).host)
        except WebSocketSecurityError:
            continue
    return None


def _possible_hosts(url: str) -> list[str]:
    """The hosts that clients may read in a URL: browsers read a backslash as a slash, and so end the host there."""
    hosts = []
    for reading in {url, url.replace("\\", "/")}:
        try:
            hosts.append(urlsplit(reading).hostname or "")
        except ValueError:
            continue
    return hosts


def _addresses(template: Any) -> Iterator[tuple[str, str]]:
    """Every string in a call template that some protocol may connect to, with the path that leads to it."""
    # A stack instead of recursion: how deep inline tools are nested is up to the manual.
    pending: list[tuple[str, str, Any, bool]] = [("", "", template, False)]
    while pending:
        path, key, value, is_websocket = pending.pop()
        if isinstance(value, Mapping):
            if "call_template_type" in value or "tool_call_template" in value:
                is_websocket = value.get("call_template_type") == "websocket"
            is_tool = "tool_call_template" in value
            for name, member in value.items():
                if not (is_websocket and name in _DATA_KEYS) and not (is_tool and name in ("inputs", "outputs")):
                    pending.append((f"{path}.{name}" if path else str(name), str(name), member, is_websocket))
        elif isinstance(value, list | tuple):
            pending += [(f"{path}[{index}]", key, item, is_websocket) for index, item in enumerate(value)]
        elif isinstance(value, str) and _ADDRESS_KEY.search(key):
            yield path, value


def _json_form(template: Any) -> Any:
    return template.model_dump() if isinstance(template, BaseModel) else template


def _get(value: Any, name: str) -> Any:
    """An attribute of a model, or a key of its JSON form."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
