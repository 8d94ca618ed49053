"""A ping now and then: what keeps a connection open on its way through proxies, and tells when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import WebSocketClosedError, WebSocketError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .connection import Connection
    from .deadlines import Deadlines

__all__ = ["Heartbeat"]

_SLACK = 1 / 30


class Heartbeat:
    """The heartbeat of one connection. It has a task only where a ping has to wait until there is room for it.

    Args:
        connection: Given up when a pong does not come in time.
        interval: Seconds from a pong to the next ping; up to a thirtieth of it less, to ping many connections at once.
        task_group: Where that task runs.
        deadlines: What tells when it is time.
    """

    __slots__ = ("_connection", "_interval", "_is_sending", "_pinged", "_task_group", "_watch", "deadline", "slack")

    def __init__(self, connection: Connection, interval: float, *, task_group: TaskGroup, deadlines: Deadlines) -> None:
        self._connection = connection
        self._interval = interval
        self._task_group = task_group
        self._watch = deadlines
        self._pinged = False
        self._is_sending = False
        self._rest()

    def stop(self) -> None:
        """Send no further ping."""
        self._watch.discard(self)

    def expire(self) -> None:
        """It is time for a ping, or too late for its pong."""
        connection = self._connection
        if not self._pinged:
            self._ping()
        elif connection.is_held_back:
            self._rest()
        else:
            timeout = connection.plan.pong_timeout
            connection.fail(WebSocketClosedError(f"no pong within {timeout:g} s", endpoint=connection.display_url))

    def _rest(self) -> None:
        self._pinged = False
        self._expire_in(self._interval, slack=self._interval * _SLACK)

    def _expire_in(self, seconds: float, *, slack: float = 0) -> None:
        self._watch.discard(self)
        self.deadline = self._connection.wire.current_time() + seconds
        self.slack = slack
        self._watch.add(self)

    def _ping(self) -> None:
        connection = self._connection
        connection.have_read()
        self._pinged = True
        self._expire_in(connection.plan.pong_timeout)
        if self._is_sending:
            return
        try:
            if not connection.wire.ping_nowait(self._answered):
                self._is_sending = True
                self._task_group.start_soon(self._ping_when_there_is_room)
        except WebSocketError as error:
            connection.fail(error)

    async def _ping_when_there_is_room(self) -> None:
        try:
            await self._connection.wire.ping(self._answered)
        except WebSocketError as error:
            self._connection.fail(error)
        finally:
            self._is_sending = False

    def _answered(self) -> None:
        if self._pinged and self._connection.error is None:
            self._rest()
