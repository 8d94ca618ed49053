"""Waking a task of any event loop from any thread.

anyio's own primitives belong to one event loop. Its bridge from another thread (`anyio.from_thread`) waits for the
other loop, which is what a task must never do; so the loops' own thread-safe entrances are used here, each known by
its name.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import anyio.lowlevel

__all__ = ["Wakeup", "current_loop"]


def current_loop() -> Any:
    """The running event loop, to compare with: asyncio's loop, or trio's token for it."""
    token: Any = anyio.lowlevel.current_token()
    # Newer releases of anyio wrap it.
    return getattr(token, "native_token", token)


class Wakeup:
    """Waited for in the event loop in which it was made, and set from anywhere."""

    __slots__ = ("_call_soon", "_event")

    def __init__(self) -> None:
        self._event = anyio.Event()
        loop = current_loop()
        entrance = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._call_soon: Callable[[Callable[[], object]], object] = entrance

    async def wait(self) -> None:
        """Wait until it is set."""
        await self._event.wait()

    def set(self) -> None:
        """Wake the waiting task. Does nothing if its event loop has ended, which has no tasks any more."""
        # asyncio's "Event loop is closed", and trio's RunFinishedError.
        with suppress(RuntimeError):
            self._call_soon(self._event.set)
