"""One clock for all exchanges and heartbeats: who has a deadline that seldom comes leaves it here.

Nearly every call ends long before its deadline, and a cancel scope with a timer of its own takes a tenth of a short
call's time, on trio a fifth. Here a deadline costs an entry in a heap. One task, with one cancel scope, sleeps until
the first deadline that it knew of, and then looks whose time is up.
"""

from __future__ import annotations

import heapq
import math
from typing import Protocol

import anyio

__all__ = ["Deadlines", "Expirable"]

_UNUSED = 100
"""How many deadlines that nobody has any more are kept at least, so that throwing them away costs nearly nothing."""

_AT_ONCE = 100
"""How many are told before others have their turn: a ping takes a system call."""


class Expirable(Protocol):
    """Who has a deadline."""

    deadline: float
    """On the clock of the event loop; fixed while it is watched."""

    slack: float
    """How many seconds before its deadline it may be told of it, so that fewer wake-ups are needed."""

    def expire(self) -> None:
        """The deadline has come. Must not wait."""


class Deadlines:
    """Who is watched, and the task that watches."""

    def __init__(self) -> None:
        # Whoever comes and goes between two looks at the clock, as most calls do, never gets into the heap.
        self._new: dict[Expirable, None] = {}
        # By a token, so that a deadline which nobody has any more keeps nobody alive.
        self._watched: dict[int, Expirable] = {}
        self._tokens: dict[Expirable, int] = {}
        self._deadlines: list[tuple[float, int]] = []  # a heap
        self._last_token = 0
        self._next = math.inf
        self._sooner: anyio.Event | None = None

    def add(self, watched: Expirable) -> None:
        self._new[watched] = None
        if watched.deadline < self._next:
            self._next = watched.deadline
            if self._sooner is not None:
                self._sooner.set()

    def discard(self, watched: Expirable) -> None:
        """Deadlines it no longer; one that is not watched is fine."""
        if watched in self._new:
            del self._new[watched]
            return
        token = self._tokens.pop(watched, None)
        if token is not None:
            del self._watched[token]

    async def run(self) -> None:
        """Deadlines until cancelled."""
        while True:
            self._sooner = anyio.Event()
            with anyio.CancelScope(deadline=self._next):
                await self._sooner.wait()
            self._tell(anyio.current_time())

    def _tell(self, now: float) -> None:
        """Tell whose time is up, but not too many at once, and find out when to look again."""
        self._take_in()
        told = 0
        self._next = math.inf
        while self._deadlines:
            if told == _AT_ONCE:
                self._next = now
                break
            deadline, token = self._deadlines[0]
            watched = self._watched.get(token)
            if watched is not None and deadline > now + watched.slack:
                self._next = min(self._next, deadline)
                break
            heapq.heappop(self._deadlines)
            if watched is not None:
                self.discard(watched)
                watched.expire()
                told += 1

    def _take_in(self) -> None:
        """Put the new ones into the heap, and throw away what is of nobody any more."""
        for watched in self._new:
            self._last_token = token = self._last_token + 1
            self._watched[token] = watched
            self._tokens[watched] = token
            heapq.heappush(self._deadlines, (watched.deadline, token))
        self._new.clear()
        if len(self._deadlines) > 2 * len(self._watched) + _UNUSED:
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self._watched]
            heapq.heapify(self._deadlines)
