"""The messages that a connection still has to send, and the task that sends them.

A frame that was begun has to be finished, or the connection is lost. So whatever must not be cut off by the
cancellation of some caller is queued here and sent by one task, in order: all messages of a shared connection, and on
either kind what the connection says by itself (replies, heartbeats, farewells of calls).

What has come together while the task was away goes out at once: a system call costs as much as all else that a small
message needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import anyio

__all__ = ["Outbox", "Outgoing"]

_MAX_UNSENT_REPLIES = 1000

_MAX_BATCH = 64
_MAX_BATCH_SIZE = 64 * 1024
"""Messages that are sent at once, and how long they may be together; a longer one goes alone.

What is not in a batch yet can still be withdrawn, and a connection that is full takes no more than that.
"""


class Outgoing:
    """A queued message.

    Attributes:
        data: The message; None once it need not be sent any more.
        is_sent: True if it was sent.
        is_done: True if it was sent or never will be.
    """

    __slots__ = ("_done", "data", "is_done", "is_sent")

    def __init__(self, data: str | bytes) -> None:
        self.data: str | bytes | None = data
        self.is_sent = False
        self.is_done = False
        self._done: anyio.Event | None = None

    async def wait(self) -> None:
        """Wait until it is done."""
        if not self.is_done:
            self._done = anyio.Event()
            await self._done.wait()

    def withdraw(self) -> None:
        """Cancel sending, unless it has begun, and wake the tasks that wait for it."""
        self.data = None
        self.finish()

    def finish(self) -> None:
        """Mark it as done, and wake the tasks that wait for it."""
        self.is_done = True
        if self._done is not None:
            self._done.set()


class Outbox:
    """A queue of messages, and the task that sends them."""

    def __init__(self) -> None:
        self._queue: deque[Outgoing] = deque()
        self._replies: deque[Outgoing] = deque()
        self._last: Outgoing | None = None
        self._filled: anyio.Event | None = None
        self._closed = False

    def post(self, data: str | bytes) -> Outgoing:
        """Queue a message."""
        outgoing = Outgoing(data)
        if self._closed:
            outgoing.finish()
            return outgoing
        self._queue.append(outgoing)
        self._last = outgoing
        if self._filled is not None:
            self._filled.set()
        return outgoing

    def reply(self, data: str | bytes) -> None:
        """Queue a reply to a message, and count it for `wait_for_room`."""
        replies = self._replies
        while replies and replies[0].is_done:
            replies.popleft()
        replies.append(self.post(data))

    async def wait_for_room(self) -> None:
        """Wait while many replies are unsent.

        The reader of the connection calls it, so that a peer that asks and never listens is not read any further.
        """
        while len(self._replies) > _MAX_UNSENT_REPLIES:
            await self._replies.popleft().wait()

    async def flush(self) -> None:
        """Wait until everything that is queued now was sent."""
        if self._last is not None:
            await self._last.wait()

    def close(self) -> None:
        """End `send_all`; what is queued will not be sent."""
        self._closed = True
        while self._queue:
            self._queue.popleft().finish()
        if self._filled is not None:
            self._filled.set()

    async def send_all(self, send: Callable[[list[str | bytes]], Awaitable[None]]) -> None:
        """Send what is queued, now and later, until the outbox is closed.

        Args:
            send: Sends messages, in order.

        Raises:
            WebSocketError: The connection is closed.
        """
        while not self._closed:
            while self._queue:
                batch, messages = self._take_batch()
                try:
                    if messages:
                        await send(messages)
                        for outgoing in batch:
                            outgoing.is_sent = True
                finally:
                    for outgoing in batch:
                        outgoing.finish()
            self._filled = anyio.Event()
            await self._filled.wait()

    def _take_batch(self) -> tuple[list[Outgoing], list[str | bytes]]:
        """Take the messages to send next out of the queue: as many as may go at once, without withdrawn ones."""
        batch: list[Outgoing] = []
        messages: list[str | bytes] = []
        size = 0
        while self._queue and len(batch) < _MAX_BATCH:
            data = self._queue[0].data
            if data is not None:
                size += len(data)
                if size > _MAX_BATCH_SIZE and messages:
                    break
                messages.append(data)
                batch.append(self._queue[0])
            self._queue.popleft()
        return batch, messages
