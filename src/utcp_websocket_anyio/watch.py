"""One clock for all exchanges and heartbeats: who has a deadline that seldom comes leaves it here.

Nearly every call ends long before its deadline, and a cancel scope with a timer of its own takes a tenth of a short
call's time, on trio a fifth. Here a deadline costs two operations on a set. One task, with one cancel scope, sleeps
until the first deadline that it knew of, and then looks whose time is up.
"""

from __future__ import annotations

import math
from typing import Protocol

import anyio

__all__ = ["Watch", "Watched"]


class Watched(Protocol):
    """Who has a deadline."""

    deadline: float
    """On the clock of the event loop; fixed while it is watched."""

    def expire(self) -> None:
        """The deadline has passed. Must not wait."""


class Watch:
    """Who is watched, and the task that watches."""

    def __init__(self) -> None:
        self._watched: set[Watched] = set()
        self._next = math.inf
        self._sooner: anyio.Event | None = None

    def add(self, watched: Watched) -> None:
        self._watched.add(watched)
        if watched.deadline < self._next:
            self._next = watched.deadline
            if self._sooner is not None:
                self._sooner.set()

    def discard(self, watched: Watched) -> None:
        """Watch it no longer; one that is not watched is fine."""
        self._watched.discard(watched)

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            self._sooner = anyio.Event()
            with anyio.CancelScope(deadline=self._next):
                await self._sooner.wait()
            now = anyio.current_time()
            for watched in [watched for watched in self._watched if watched.deadline <= now]:
                self._watched.discard(watched)
                watched.expire()
            self._next = min((watched.deadline for watched in self._watched), default=math.inf)
