"""Hosts: which lead to this machine, and lists of hosts as users write them.

Two questions about loopback are answered from opposite sides. `is_literal_loopback` permits something (a connection
without TLS), so it knows only the spellings that every resolver reads alike. `is_local` forbids something (a remote
manual may not name this machine), so it says yes to every spelling that some resolver takes for it.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

__all__ = ["HostList", "is_literal_loopback", "is_local", "loose_host", "plain_host"]

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_LOCAL_NAMES = frozenset(
    f"{name}{domain}"
    for name in ("localhost", "localhost4", "localhost6", "ip6-localhost", "ip6-loopback")
    for domain in ("", ".localdomain", ".localdomain4", ".localdomain6")
)
_NAME = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*")
_MAX_NAME_LENGTH = 253


def plain_host(host: str) -> str:
    """A host in the one form in which hosts are compared: lower case, no last dot, an address as it is usually written.

    Args:
        host: A name or an address, without brackets, as `split_address` gives it.
    """
    address = _address(host)
    return host.lower().rstrip(".") if address is None else str(address)


def loose_host(host: str) -> str:
    """The host that some client could read in a host of unknown spelling (full width digits, percent-encoding)."""
    return unicodedata.normalize("NFKC", unquote(host)).lower().replace("\u3002", ".").strip("[]").rstrip(".")


def is_literal_loopback(host: str) -> bool:
    """True if a host is ``localhost``, or an address of 127.0.0.0/8, or ::1, spelt as everybody spells it."""
    if host == "localhost":
        return True
    address = _address(host)
    # Newer Pythons call ::ffff:127.0.0.1 loopback, older ones do not; it is not among the literal ones.
    return address is not None and address.is_loopback and getattr(address, "ipv4_mapped", None) is None


def is_local(host: str) -> bool:
    """True if some resolver takes a host for this machine. A name that DNS points here is not recognised."""
    host = loose_host(host)
    if host in _LOCAL_NAMES or host.endswith(".localhost"):
        return True
    address: Any = _address(host.partition("%")[0])
    if address is None:
        # The spellings of inet_aton(3): fewer than four parts, octal, hexadecimal.
        if not re.fullmatch(r"[0-9a-fx.]+", host):
            return False
        try:
            address = ipaddress.ip_address(socket.inet_ntoa(socket.inet_aton(host)))
        except OSError:
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return bool(address.is_loopback or address.is_unspecified)


@dataclass(frozen=True, slots=True)
class HostList:
    """Names, addresses and networks.

    A name matches itself, and with `subdomains` what ends with it behind a dot. An address or network matches
    addresses only: a name is compared as it is written, whatever it resolves to.
    """

    names: frozenset[str] = frozenset()
    networks: tuple[_Network, ...] = ()

    @classmethod
    def of(cls, entries: Iterable[str]) -> HostList:
        """Read entries as a user writes them: ``nas.home``, ``192.168.1.5``, ``[fd00::1]``, ``10.0.0.0/8``.

        Raises:
            ValueError: One of them is neither; the text shows it.
        """
        names: set[str] = set()
        networks: list[_Network] = []
        for entry in entries:
            host = entry.strip().removeprefix("[").removesuffix("]")
            try:
                networks.append(ipaddress.ip_network(host, strict=False))
                continue
            except ValueError:
                name = plain_host(host)
            if not _NAME.fullmatch(name) or len(name) > _MAX_NAME_LENGTH:
                raise ValueError(f"{entry[:100]!r} is not a host name, an address or a network such as 192.168.0.0/16")
            names.add(name)
        return cls(frozenset(names), tuple(networks))

    def __bool__(self) -> bool:
        return bool(self.names or self.networks)

    def __contains__(self, host: object) -> bool:
        return isinstance(host, str) and self.matches(host)

    def matches(self, host: str, *, subdomains: bool = False) -> bool:
        """True if a host is one of these."""
        host = plain_host(host)
        address = _address(host)
        if address is not None:
            mapped = getattr(address, "ipv4_mapped", None)
            # An address of one family is in no network of the other.
            return any(address in network or (mapped is not None and mapped in network) for network in self.networks)
        return host in self.names or (subdomains and any(host.endswith(f".{name}") for name in self.names))


@lru_cache(maxsize=256)  # each connection asks three times
def _address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
