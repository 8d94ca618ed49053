"""The services of an event loop besides I/O: its clock, its events, and a way to wake a task from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import sniffio

__all__ = ["Event", "loop_clock", "loop_events", "loop_waker"]


class Event(Protocol):
    """Something that happens once, as `anyio.Event`."""

    def is_set(self) -> bool:
        """True if it has happened."""

    def set(self) -> object:
        """Make it happen, and wake every task that waits for it."""

    async def wait(self) -> object:
        """Wait until it has happened."""


def loop_clock() -> Callable[[], float]:
    """The clock of the running event loop, in seconds.

    `anyio.current_time` asks for the running library at each call, which a callback of an asyncio transport cannot
    answer, as it runs in no task, and which costs more than looking at the clock.
    """
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.current_time
    return asyncio.get_running_loop().time


def loop_events() -> Callable[[], Event]:
    """What makes events of the running event loop.

    Where each call waits for one, `anyio.Event` is too slow: on asyncio an eighth of a short call's time went into it.
    """
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.Event
    return partial(_AsyncioEvent, asyncio.get_running_loop())


class _AsyncioEvent:
    """An event of asyncio: a future for each task that waits, mostly one."""

    __slots__ = ("_is_set", "_loop", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._is_set = False
        self._waiting: list[asyncio.Future[None]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        if self._is_set:
            await asyncio.sleep(0)
            return
        future = self._loop.create_future()
        self._waiting.append(future)
        try:
            await future
        except BaseException:
            self._waiting.remove(future)
            raise


def loop_waker(wake: Callable[[], object]) -> Callable[[], None]:
    """A function that has `wake` called in the event loop that is running now.

    It may be called from any thread and at any time, by a finalizer too; once the loop has ended it does nothing.
    """
    if sniffio.current_async_library() == "trio":
        import trio

        token = trio.lowlevel.current_trio_token()

        def wake_trio() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(wake, idempotent=True)

        return wake_trio
    loop = asyncio.get_running_loop()

    def wake_asyncio() -> None:
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(wake)

    return wake_asyncio
