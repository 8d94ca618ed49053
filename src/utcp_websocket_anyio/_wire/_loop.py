"""The services of an event loop besides I/O: its clock, and a way to wake a task from any thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

import sniffio

__all__ = ["loop_clock", "loop_waker"]


def loop_clock() -> Callable[[], float]:
    """The clock of the running event loop, in seconds.

    `anyio.current_time` asks for the running library at each call, which a callback of an asyncio transport cannot
    answer, as it runs in no task, and which costs more than looking at the clock.
    """
    if sniffio.current_async_library() == "trio":
        import trio

        return trio.current_time
    return asyncio.get_running_loop().time


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
