"""A ping now and then: what keeps a connection open on its way through proxies, and tells when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from .errors import WebSocketClosedError, WebSocketError

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .connection import Connection
    from .watch import Watch

__all__ = ["Heartbeat"]


class Heartbeat:
    """The heartbeat of one connection. It has a task only while a pong is awaited.

    Args:
        connection: Given up when a pong does not come in time.
        interval: Seconds from a pong to the next ping.
        task_group: Where that task runs.
        watch: What tells when it is time.
    """

    __slots__ = ("_connection", "_interval", "_task_group", "_watch", "deadline")

    def __init__(self, connection: Connection, interval: float, *, task_group: TaskGroup, watch: Watch) -> None:
        self._connection = connection
        self._interval = interval
        self._task_group = task_group
        self._watch = watch
        self._wait()

    def stop(self) -> None:
        """Send no further ping."""
        self._watch.discard(self)

    def expire(self) -> None:
        """Send a ping."""
        self._task_group.start_soon(self._beat)

    def _wait(self) -> None:
        self.deadline = anyio.current_time() + self._interval
        self._watch.add(self)

    async def _beat(self) -> None:
        connection = self._connection
        if connection.error is not None:
            return
        connection.have_read()
        timeout = connection.plan.pong_timeout
        with anyio.move_on_after(timeout) as scope:
            try:
                await connection.wire.ping()
            except WebSocketError as error:
                connection.fail(error)
        if scope.cancelled_caught and not connection.is_held_back:
            connection.fail(WebSocketClosedError(f"no pong within {timeout:g} s", endpoint=connection.label))
        if connection.error is None:
            self._wait()
