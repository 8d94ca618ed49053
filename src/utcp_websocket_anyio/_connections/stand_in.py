"""Who reads a connection that nobody else reads, where nothing arrives by itself.

Its answers to pings, and its notice of the end, are what an idle connection needs. While the consumer of a stream is
away, what it reads waits in an inbox of bounded size; past that TCP holds the sender back.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import anyio

from .lull import MOMENT, Lull

if TYPE_CHECKING:
    from .._templates.received import Message
    from .connection import Connection

__all__ = ["StandIn"]

_INBOX_MESSAGES = 16
_INBOX_BYTES = 256 * 1024


class StandIn:
    """Reads an exclusive connection in the absence of its user.

    It is still at it when the next user comes, and hands over the answer. Where that happens now and then, it goes on
    reading, because going away and coming back costs more than handing over; where one call follows the other, it
    leaves the reading to the users.

    Attributes:
        inbox: What it has read for the user.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._lull = Lull(self._is_needless)
        self._handed_over = -math.inf
        self._stays = False
        self.inbox: deque[Message] = deque()

    def others_have_read(self) -> None:
        """Stay away for another while."""
        self._lull.reads += 1

    def nudge(self) -> None:
        """Read at once, or see that it is over, unless somebody else is reading."""
        self._lull.nudge()

    async def run(self) -> None:
        """Read until the connection is over.

        Raises:
            WebSocketError: Which is the end of it.
        """
        connection = self._connection
        while await self._turn_to_read():
            message = await connection.read_one()
            if message is not None and (connection.is_in_use or connection.retired):
                self.inbox.append(message)
                before, self._handed_over = self._handed_over, anyio.current_time()
                self._stays = self._handed_over - before > MOMENT

    async def _turn_to_read(self) -> bool:
        """Wait until nobody else reads; False: there is nothing to read any more."""
        if not (self._connection.is_over or self._can_read_on()):
            await self._lull.wait()
        return not self._connection.is_over

    def _can_read_on(self) -> bool:
        may = self._stays or not self._connection.is_in_use
        return may and self._lull.has_come and not self._is_needless()

    def _is_needless(self) -> bool:
        """Whether somebody else reads, or there is no room."""
        if self._connection.is_over:
            return False
        size = sum(len(message.data) for message in self.inbox)
        return self._connection.is_being_read or len(self.inbox) >= _INBOX_MESSAGES or size >= _INBOX_BYTES
