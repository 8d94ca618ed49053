"""The sockets that a tool server listens on."""

from __future__ import annotations

import errno
import socket

import anyio

from .transport import BACKLOG

__all__ = ["open_sockets"]

_ATTEMPTS = 10
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT)


async def open_sockets(host: str, port: int) -> list[socket.socket]:
    """Listen at every address of a host, at the same port.

    Args:
        port: 0: any that is free.

    Raises:
        OSError: The host has no address here, or the port is taken.
    """
    found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address[0]) for family, _, _, _, address in found))
    for attempt in range(_ATTEMPTS):
        try:
            return _open(addresses, port)
        except OSError as error:
            # The port that was free at the first address was not at another.
            if port != 0 or error.errno != errno.EADDRINUSE or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def _open(addresses: list[tuple[socket.AddressFamily, str]], port: int) -> list[socket.socket]:
    opened: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            try:
                listening = socket.create_server((address, port), family=family, backlog=BACKLOG)
            except OSError as error:
                # localhost may have an address of a family that this machine has switched off.
                if error.errno not in _NO_SUCH_ADDRESS:
                    raise
                missing = error
                continue
            listening.setblocking(False)
            opened.append(listening)
            port = listening.getsockname()[1]
        if missing is not None and not opened:
            raise missing
    except BaseException:
        for listening in opened:
            listening.close()
        raise
    return opened
