"""Where the verdicts on a shared connection's messages wait for their exchange, which may be slow to take them."""

from __future__ import annotations

from collections import deque
from typing import Any

import anyio

from .._wire import Interrupted
from ..errors import WebSocketError

__all__ = ["Mailbox", "Raised"]

_MESSAGES = 10_000
_BYTES = 64 * 2**20


class Raised:
    """A verdict that is an error."""

    __slots__ = ("error",)

    def __init__(self, error: WebSocketError) -> None:
        self.error = error


class Mailbox:
    """A queue of verdicts, bounded in number and in bytes of their messages.

    Args:
        longest: Bytes of the longest message, which always finds room in an empty queue.
    """

    def __init__(self, longest: int) -> None:
        self._capacity = max(_BYTES, longest)
        self._queue: deque[tuple[Any, int]] = deque()
        self._size = 0
        self._arrival: anyio.Event | None = None
        self._interrupted = False

    def __len__(self) -> int:
        return len(self._queue)

    def has_room_for(self, size: int) -> bool:
        """Whether a message of so many bytes still fits."""
        return len(self._queue) < _MESSAGES and self._size + size <= self._capacity

    def put(self, verdict: Any, size: int = 0) -> None:
        """Add a verdict, whether there is room or not."""
        self._queue.append((verdict, size))
        self._size += size
        if self._arrival is not None:
            self._arrival.set()

    def pop(self) -> Any:
        """The first verdict."""
        verdict, size = self._queue.popleft()
        self._size -= size
        return verdict

    async def take(self) -> Any:
        """Wait for a verdict. Cancelling it loses none.

        Raises:
            Interrupted: `interrupt` was called.
            WebSocketError: The verdict is one.
        """
        while not self._queue or self._interrupted:
            if self._interrupted:
                raise Interrupted
            self._arrival = anyio.Event()
            await self._arrival.wait()
        verdict = self.pop()
        if isinstance(verdict, Raised):
            raise verdict.error
        return verdict

    def interrupt(self) -> None:
        """Have nobody wait for a verdict, now or later."""
        self._interrupted = True
        if self._arrival is not None:
            self._arrival.set()

    def clear(self) -> None:
        """Throw everything away."""
        self._queue.clear()
        self._size = 0
