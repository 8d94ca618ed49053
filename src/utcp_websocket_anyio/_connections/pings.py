"""Keepalive pings: keep proxies from closing an idle connection, and detect a peer that is dead.

A ping is a task's work with a cancel scope around the wait for its pong. Two things are not taken for death. Any byte
that arrives after the ping is a sign of life, so a download may take longer than `pong_timeout`. And while bytes still
leave, the ping may be behind them: the wait only counts if the ping has left, or if nothing leaves any more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from .._wire import Wire

__all__ = ["keep_alive"]


async def keep_alive(
    wire: Wire,
    *,
    interval: float,
    pong_timeout: float,
    ensure_reading: Callable[[], None],
    is_backlogged: Callable[[], bool],
) -> None:
    """Ping until the peer shows no sign of life.

    Args:
        wire: The connection to keep alive.
        interval: Seconds from a sign of life to the next ping.
        pong_timeout: Seconds to wait for a sign of life after a ping.
        ensure_reading: Makes sure that something reads the wire, so that a pong is noticed.
        is_backlogged: True while received messages wait for a slow consumer: a pong may wait behind them.

    Raises:
        WebSocketError: The wire is closed.
    """
    while True:
        await anyio.sleep(interval)
        moved = wire.progress
        ensure_reading()
        with anyio.move_on_after(pong_timeout):
            await wire.ping()
            continue
        is_leaving = wire.has_unsent_data() and wire.progress > moved
        if not is_leaving and not is_backlogged():
            return
