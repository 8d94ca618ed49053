"""The asynchronous iterator between a protocol's stream and the client's caller."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from .iteration import Iteration

__all__ = ["ToolStream"]


class ToolStream(Iteration):
    """What `start` returns, item by item; it is called when the first one is asked for.

    A native async generator would keep the stream inside it alive until an event loop closes it. This one closes what
    is inside when it is closed itself, and lets go of it when it is garbage collected.

    Cancelling `__anext__` ends the stream.
    """

    def __init__(self, start: Callable[[], Awaitable[AsyncGenerator[Any, None]]]) -> None:
        self._start: Callable[[], Awaitable[AsyncGenerator[Any, None]]] | None = start
        self._items: AsyncGenerator[Any, None] | None = None
        self._running = False

    def _processed(self, item: Any) -> Any:
        """What the caller gets for an item."""
        return item

    async def __anext__(self) -> Any:
        if self._running:
            raise RuntimeError("anext(): the stream is already being read by another task")
        self._running = True
        ended = True
        try:
            if self._start is not None:
                start, self._start = self._start, None
                self._items = await start()
            if self._items is None:
                raise StopAsyncIteration
            item = self._processed(await self._items.__anext__())
            ended = False
            return item
        finally:
            self._running = False
            if ended:
                # As leaving a block with `aclosing` would; a cancellation reaches into it.
                await self._finish()  # noqa: ASYNC102

    async def aclose(self) -> None:
        """End the stream, and that of the protocol."""
        if self._running:
            raise RuntimeError("aclose(): the stream is being read by another task")
        await self._finish()

    async def _finish(self) -> None:
        self._start = None
        items, self._items = self._items, None
        if items is not None:
            await items.aclose()
