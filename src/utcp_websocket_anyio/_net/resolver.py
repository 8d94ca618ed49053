"""Looking up host names without holding anybody up.

The system's resolver blocks, for as long as a name server takes to answer, and so it needs threads. They are this
module's own: in the event loop's default executor a few slow names would hold up what an application does there. One
lookup at a time is made for a name, however many callers ask for it, on whichever event loop; and the number of
lookups at once is bounded. Addresses in figures and `localhost` (RFC 6761, section 6.3) need no lookup.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from contextlib import suppress
from typing import Any, Final

from .forks import in_each_child
from .wakeup import Wakeup

__all__ = ["Address", "resolve"]

Address = tuple[socket.AddressFamily, Any]
"""The family of an address, and what `socket.connect` takes."""

_MAX_LOOKUPS: Final = 32

# A server that listens on both is reached on either; where only one answers, the other one refuses at once.
_LOCALHOST: Final[tuple[tuple[socket.AddressFamily, str], ...]] = (
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET6, "::1"),
)


async def resolve(host: str, port: int) -> list[Address]:
    """The addresses of a host, best first.

    Raises:
        OSError: The name has no address.
    """
    if host.removesuffix(".") == "localhost":
        return [
            (family, (address, port)) for family, address in _LOCALHOST if family != socket.AF_INET6 or socket.has_ipv6
        ]
    for family in (socket.AF_INET, socket.AF_INET6):
        # Faster than asking the resolver, which knows other forms as well.
        with suppress(OSError):
            socket.inet_pton(family, host)
            return [(family, (host, port))]
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        infos = await _lookups.find(host)
    return [(family, (address[0], port, *address[2:])) for family, _, _, _, address in infos]


class _Lookup:
    """One question to the system's resolver, and all that wait for its answer."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.waiting: set[Wakeup] = set()
        self.infos: list[Any] = []
        self.error: OSError | None = None


class _Lookups:
    """All lookups of the process. The lock protects all of it: several event loops and the lookups' threads use it."""

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Have no lookups; in a process that was forked, no thread makes those of before."""
        self._lock = threading.Lock()
        self._by_host: dict[str, _Lookup] = {}
        self._queue: deque[_Lookup] = deque()
        self._running = 0

    async def find(self, host: str) -> list[Any]:
        """The answer for a host, of a lookup that may have begun earlier. Cancelling it ends only this wait."""
        wakeup = Wakeup()
        with self._lock:
            lookup = self._by_host.get(host)
            if lookup is None:
                lookup = self._by_host[host] = _Lookup(host)
                self._queue.append(lookup)
            lookup.waiting.add(wakeup)
            self._start()
        try:
            await wakeup.wait()
        finally:
            with self._lock:
                lookup.waiting.discard(wakeup)
        if lookup.error is not None:
            # Each caller gets an error of its own: raising one adds to it.
            raise type(lookup.error)(*lookup.error.args)
        return lookup.infos

    def _start(self) -> None:
        """Start what is queued, as far as there is room for it."""
        while self._queue and self._running < _MAX_LOOKUPS:
            lookup = self._queue.popleft()
            if not lookup.waiting:
                del self._by_host[lookup.host]
                continue
            self._running += 1
            # A thread of the interpreter's own kind would keep the process alive until the name server answers.
            threading.Thread(target=self._run, args=(lookup,), name=f"resolve {lookup.host}", daemon=True).start()

    def _run(self, lookup: _Lookup) -> None:
        try:
            lookup.infos = socket.getaddrinfo(lookup.host, 0, type=socket.SOCK_STREAM)
        except OSError as error:
            lookup.error = error
        except Exception:  # noqa: BLE001 - a name that cannot even be encoded has no address
            lookup.error = socket.gaierror(socket.EAI_NONAME, "the name is invalid")
        with self._lock:
            self._running -= 1
            del self._by_host[lookup.host]
            waiting, lookup.waiting = lookup.waiting, set()
            self._start()
        for wakeup in waiting:
            wakeup.set()


_lookups = _Lookups()
in_each_child(_lookups.begin_anew)
