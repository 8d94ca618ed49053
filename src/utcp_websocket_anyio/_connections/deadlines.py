"""One timer for the deadlines of all calls.

Nearly every call ends long before its deadline, and a cancel scope with a timer of its own takes a tenth of a short
call's time, on trio a fifth. Here a deadline costs an entry in a dict, and only if the call outlives the next look at
the clock an entry in a heap. One task, with one cancel scope, sleeps until the first deadline that it knows of.

Only calls use it, for their responses and while they queue for a connection. Everything else that waits has a cancel
scope of its own, in the task that waits.
"""

from __future__ import annotations

import heapq
import logging
import math
from typing import Protocol

import anyio

from .bulkhead import log_internal_error

__all__ = ["Deadlines", "Expirable"]

_log = logging.getLogger(__name__)

_MAX_STALE = 100
"""Stale heap entries that are tolerated before pruning, so that pruning costs nearly nothing per entry."""

_MAX_PER_PASS = 100
"""Deadlines that expire per pass, so that other tasks can run in between."""


class Expirable(Protocol):
    """Something with a deadline."""

    deadline: float
    """On the clock of the event loop; it must not change between `Deadlines.add` and `discard`."""

    def expire(self) -> None:
        """The deadline has passed. Must not wait."""


class Deadlines:
    """The deadlines of one event loop, and the task that watches them."""

    def __init__(self) -> None:
        # What comes and goes between two looks at the clock, as most calls do, never gets into the heap.
        self._new: dict[Expirable, None] = {}
        # By a token, so that a stale entry of the heap keeps no call alive.
        self._admitted: dict[int, Expirable] = {}
        self._tokens: dict[Expirable, int] = {}
        self._heap: list[tuple[float, int]] = []
        self._last_token = 0
        self._next = math.inf
        self._sooner: anyio.Event | None = None

    def add(self, item: Expirable) -> None:
        """Watch a deadline from now on."""
        self._new[item] = None
        if item.deadline < self._next:
            self._next = item.deadline
            if self._sooner is not None:
                self._sooner.set()

    def discard(self, item: Expirable) -> None:
        """Forget a deadline. Does nothing if it is not watched."""
        if item in self._new:
            del self._new[item]
            return
        token = self._tokens.pop(item, None)
        if token is not None:
            del self._admitted[token]

    async def run(self) -> None:
        """Expire deadlines until cancelled."""
        while True:
            self._sooner = anyio.Event()
            with anyio.CancelScope(deadline=self._next):
                await self._sooner.wait()
            self._expire_due(anyio.current_time())

    def _expire_due(self, now: float) -> None:
        """Expire what is due, but not too much at once, and find out when to look again."""
        self._admit_new()
        expired = 0
        self._next = math.inf
        while self._heap:
            if expired == _MAX_PER_PASS:
                self._next = now
                break
            deadline, token = self._heap[0]
            item = self._admitted.get(token)
            if item is not None and deadline > now:
                self._next = min(self._next, deadline)
                break
            heapq.heappop(self._heap)
            if item is not None:
                self.discard(item)
                self._expire(item)
                expired += 1

    @staticmethod
    def _expire(item: Expirable) -> None:
        try:
            item.expire()
        except Exception as error:  # noqa: BLE001 - what goes wrong in one call must not end the timer of all
            log_internal_error(_log, error, "expiring a call")

    def _admit_new(self) -> None:
        """Put new items into the heap, and prune it when most of it is stale."""
        for item in self._new:
            self._last_token = token = self._last_token + 1
            self._admitted[token] = item
            self._tokens[item] = token
            heapq.heappush(self._heap, (item.deadline, token))
        self._new.clear()
        if len(self._heap) > 2 * len(self._admitted) + _MAX_STALE:
            self._heap = [entry for entry in self._heap if entry[1] in self._admitted]
            heapq.heapify(self._heap)
