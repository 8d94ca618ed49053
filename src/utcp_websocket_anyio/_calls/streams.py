"""The asynchronous iterator that a streaming call returns."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from .exchange import Exchange
from .iteration import Iteration
from .responses import END

__all__ = ["ResponseStream"]


class ResponseStream(Iteration):
    """The responses of one exchange, as they arrive.

    It is an async generator in all but its implementation. A native one that is dropped half-way would be closed by a
    task of the event loop, some time later, and on trio with a warning; this one gives its connection up in the moment
    it is garbage collected, and it can hold no cancel scope open across a ``yield``.

    Cancelling `__anext__` ends the stream.

    Args:
        start: Prepares the exchange, at the first step.
        in_place_of: Told of the error that ends the stream; what it returns is raised instead, with nothing behind it.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Exchange]],
        in_place_of: Callable[[Exception], Exception | None] = lambda error: None,
    ) -> None:
        self._start: Callable[[], Awaitable[Exchange]] | None = start
        self._in_place_of = in_place_of
        self._exchange: Exchange | None = None
        self._ready: deque[Any] | None = None
        self._running = False
        self._thread = threading.get_ident()

    async def __anext__(self) -> Any:
        if self._ready:
            return self._ready.popleft()
        if self._running:
            raise RuntimeError("anext(): the stream is already being read by another task")
        self._running = True
        response: Any = END
        strange: Exception | None = None
        try:
            if self._exchange is not None:
                response = await self._exchange.next()
                self._ready = self._exchange.take_nowait()
            elif self._start is not None:
                response = await self._first()
        except Exception as error:
            strange = self._in_place_of(error)
            if strange is None:
                raise
        finally:
            self._running = False
            # END is also what an error or a cancellation leaves behind.
            if response is END:
                self._finish()
        if strange is not None:
            raise strange
        if response is END:
            raise StopAsyncIteration
        return response

    async def _first(self) -> Any:
        start, self._start = self._start, None
        assert start is not None
        exchange = self._exchange = await start()
        await exchange.open()
        return await exchange.next()

    async def aclose(self) -> None:
        """End the stream; its connection is given up without waiting for anything."""
        if self._running:
            raise RuntimeError("aclose(): the stream is being read by another task")
        self._finish()

    def _finish(self) -> None:
        self._start = self._ready = None
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            exchange.finish()

    def __del__(self) -> None:
        exchange = getattr(self, "_exchange", None)
        if exchange is not None:
            if threading.get_ident() == self._thread:
                exchange.finish()
            else:
                exchange.finish_later()
