"""Plain functions and generators in worker threads.

A thread cannot be cancelled: when its call is, the function is left to itself and its result is discarded. It keeps its
place among the threads of the server until it has returned. Otherwise a client that calls a slow function and hangs up,
again and again, could fill the machine with threads.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.to_thread

__all__ = ["Workers"]

_log = logging.getLogger(__name__)

Result = TypeVar("Result")

_MAX_THREADS = 40
_END: Any = object()


class Workers:
    """The threads of one server.

    Args:
        call_soon: Function that schedules a call in the server's event loop, from any thread.
    """

    def __init__(self, call_soon: Callable[[Callable[[], object]], object]) -> None:
        self._call_soon = call_soon
        self._places = anyio.CapacityLimiter(_MAX_THREADS)
        # The places are ours to give: anyio's asyncio half takes one back when its caller is cancelled.
        self._no_limit = anyio.CapacityLimiter(math.inf)

    async def run(self, function: Callable[[], Result]) -> Result:
        """Run a function in a thread. If this is cancelled before it has begun, it is not run at all."""
        ticket = object()
        await self._places.acquire_on_behalf_of(ticket)
        # Taken by the thread that begins, or by the caller that is cancelled before; its holder returns the ticket.
        claim = threading.Lock()

        def work() -> Result:
            if not claim.acquire(blocking=False):
                return _END  # type: ignore[no-any-return]  # never seen: its caller was cancelled
            try:
                return function()
            finally:
                # An event loop that has ended needs no tickets.
                with suppress(RuntimeError):
                    self._call_soon(partial(self._places.release_on_behalf_of, ticket))

        try:
            return await anyio.to_thread.run_sync(work, abandon_on_cancel=True, limiter=self._no_limit)
        except BaseException:
            if claim.acquire(blocking=False):
                self._places.release_on_behalf_of(ticket)
            raise

    async def iterate(self, iterator: Iterator[Any]) -> AsyncIterator[Any]:
        """The items of an iterator, each fetched in a thread."""
        # Held by the thread that is inside the iterator: a generator that runs cannot be closed.
        lock = threading.Lock()

        def step() -> Any:
            with lock:
                return next(iterator, _END)

        def close() -> None:
            try:
                with lock:
                    iterator.close()  # type: ignore[attr-defined]  # only called if there is one
            except BaseException:  # noqa: ASYNC103, BLE001 - of a stream that is no longer read
                _log.exception("a stream could not be closed")

        item = None
        try:
            while (item := await self.run(step)) is not _END:
                yield item
        finally:
            if item is not _END and hasattr(iterator, "close"):
                # Not waited for: this may be a cancellation, and the step that it has left may take its time.
                threading.Thread(target=close, daemon=True).start()
