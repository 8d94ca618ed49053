"""The asynchronous iterators that streaming calls return: the protocol's, and the client's around any protocol's.

Both are async generators in all but their implementation. A native one that is dropped half-way would be closed by a
task of the event loop, some time later, and on trio with a warning; these let go of what they hold when they are
garbage collected, and cannot hold a cancel scope open across a ``yield``.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import Any

from .exchange import END, Exchange

__all__ = ["AsyncGeneratorBase", "ResponseStream", "ToolStream"]


class AsyncGeneratorBase(AsyncGenerator[Any, None]):
    """An asynchronous generator that takes no values and is read by one task at a time."""

    _is_running = False

    @abstractmethod
    async def _next(self) -> Any:
        """The next item; `END` after the last one. Whatever else ends it also ends the iteration."""

    @abstractmethod
    async def _finish(self) -> None:
        """Release what the iteration holds. It may be called more than once."""

    async def __anext__(self) -> Any:
        if self._is_running:
            raise RuntimeError("anext(): the stream is already being read by another task")
        self._is_running = True
        item: Any = END
        try:
            item = await self._next()
        finally:
            self._is_running = False
            # END is also what an error or a cancellation leaves behind.
            if item is END:
                await self._finish()  # noqa: ASYNC102 - as leaving `aclosing` would; a cancellation reaches into it
        if item is END:
            raise StopAsyncIteration
        return item

    async def aclose(self) -> None:
        """End the iteration."""
        if self._is_running:
            raise RuntimeError("aclose(): the stream is being read by another task")
        await self._finish()

    async def asend(self, value: Any) -> Any:
        """The next item; `value` must be None."""
        if value is not None:
            raise TypeError("a stream of responses takes no values")
        return await self.__anext__()

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
    ) -> Any:
        """End the iteration and raise the exception."""
        await self.aclose()
        if isinstance(typ, BaseException):
            raise typ
        raise typ() if val is None else val if isinstance(val, BaseException) else typ(val)


class ResponseStream(AsyncGeneratorBase):
    """The responses of one exchange, as they arrive.

    Cancelling `__anext__` ends the stream.

    Args:
        start: Prepares the exchange, at the first step.
        in_place_of: Called with the error that ends the stream; its result is raised instead, without a context.
        is_here: False in another event loop than the one in which the stream began.
    """

    def __init__(
        self,
        start: Callable[[], Awaitable[Exchange]],
        in_place_of: Callable[[Exception], Exception | None] = lambda error: None,
        is_here: Callable[[], bool] = lambda: True,
    ) -> None:
        self._start: Callable[[], Awaitable[Exchange]] | None = start
        self._in_place_of = in_place_of
        self._is_here = is_here
        self._exchange: Exchange | None = None
        self._ready: deque[Any] | None = None

    async def __anext__(self) -> Any:
        # Responses that are there already are handed out without touching the connection.
        if self._ready:
            return self._ready.popleft()
        if self._exchange is not None and not self._is_here():
            raise RuntimeError("the stream belongs to the event loop in which it began")
        return await super().__anext__()

    async def _next(self) -> Any:
        try:
            if self._start is not None:
                start, self._start = self._start, None
                self._exchange = await start()
                await self._exchange.open()
                return await self._exchange.next()
            if self._exchange is None:
                return END
            response = await self._exchange.next()
            self._ready = self._exchange.take_nowait()
        except Exception as error:
            strange = self._in_place_of(error)
            if strange is None:
                raise
        else:
            return response
        raise strange

    async def _finish(self) -> None:
        self._start = self._ready = None
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self._is_here():
            exchange.finish()
            await exchange.close_sources()
        else:
            exchange.finish_later()

    def __del__(self) -> None:
        exchange = getattr(self, "_exchange", None)
        if exchange is not None:
            # In whatever thread this is, and whether or not an event loop runs: nothing is done here but leave a note.
            exchange.finish_later()


class ToolStream(AsyncGeneratorBase):
    """The items of the stream that `start` returns; it is called when the first one is asked for.

    Cancelling `__anext__` ends the stream, and that of the protocol.
    """

    def __init__(self, start: Callable[[], Awaitable[AsyncGenerator[Any, None]]]) -> None:
        self._start: Callable[[], Awaitable[AsyncGenerator[Any, None]]] | None = start
        self._items: AsyncGenerator[Any, None] | None = None

    def _processed(self, item: Any) -> Any:
        """The item as the caller gets it."""
        return item

    async def _next(self) -> Any:
        if self._start is not None:
            start, self._start = self._start, None
            self._items = await start()
        if self._items is None:
            return END
        try:
            return self._processed(await self._items.__anext__())
        except StopAsyncIteration:
            return END

    async def _finish(self) -> None:
        self._start = None
        items, self._items = self._items, None
        if items is not None:
            await items.aclose()
