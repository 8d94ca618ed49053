"""What is still to be sent on a shared connection.

A frame that was begun has to be finished, or the connection is lost. So the exchanges that share one do not write
themselves: one task sends what they put here, in order, and a caller that is cancelled neither waits for its frame nor
cuts it off.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from .._wire import Wire

__all__ = ["Outbox", "Outgoing"]

_UNSENT_REPLIES = 1000


class Outgoing:
    """A message on its way.

    Attributes:
        data: None once it need not be sent any more.
        is_sent: Whether it was sent.
        is_done: Whether it was sent, or never will be.
    """

    __slots__ = ("_awaited", "data", "is_done", "is_sent")

    def __init__(self, data: str | bytes) -> None:
        self.data: str | bytes | None = data
        self.is_sent = False
        self.is_done = False
        self._awaited: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait until it is done."""
        if not self.is_done:
            self._awaited = anyio.Event()
            await self._awaited.wait()

    def finish(self) -> None:
        """It is done."""
        self.is_done = True
        if self._awaited is not None:
            self._awaited.set()


class Outbox:
    """A queue of messages, and the task that sends them."""

    def __init__(self) -> None:
        self._queue: deque[Outgoing] = deque()
        self._replies: deque[Outgoing] = deque()
        self._filled: anyio.Event | None = None
        self._closed = False

    def post(self, data: str | bytes) -> Outgoing:
        """Queue a message."""
        outgoing = Outgoing(data)
        self._queue.append(outgoing)
        self._wake()
        return outgoing

    async def reply(self, data: str | bytes) -> None:
        """Queue an automatic reply; waits while many are unsent, so that a peer that only asks is not read any more."""
        replies = self._replies
        while replies and replies[0].is_done:
            replies.popleft()
        replies.append(self.post(data))
        if len(replies) > _UNSENT_REPLIES:
            await replies[0].wait()

    def close(self) -> None:
        """Have `send_all` return; what is queued is not sent any more."""
        self._closed = True
        while self._queue:
            self._queue.popleft().finish()
        self._wake()

    async def send_all(self, wire: Wire) -> None:
        """Send what is queued, now and later, until the outbox is closed.

        Raises:
            WebSocketError: The wire is closed.
        """
        while not self._closed:
            while self._queue:
                outgoing = self._queue.popleft()
                try:
                    if outgoing.data is not None:
                        await wire.send(outgoing.data)
                        outgoing.is_sent = True
                finally:
                    outgoing.finish()
            self._filled = anyio.Event()
            await self._filled.wait()

    def _wake(self) -> None:
        if self._filled is not None:
            self._filled.set()
