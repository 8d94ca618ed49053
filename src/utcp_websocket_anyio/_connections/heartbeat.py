"""The template's own heartbeat: a message by the clock, a watchdog, or both.

Each is a task with a cancel scope in the pool's task group, beside that of the pings. Their times are on the clock of
the event loop; a beat is due `every` seconds after the one before, however long its answer took.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from .._templates.placeholders import MissingCaptureError
from .._templates.values import Template, render_number

if TYPE_CHECKING:
    from .._templates.plan import Heartbeat
    from .._templates.values import RenderContext

__all__ = ["Beats", "watch_silence"]


class Beats:
    """Sends a connection's heartbeat, and knows whether one is unanswered.

    Args:
        heartbeat: Message to send, and its times.
        context: Values of the placeholders of the next beat.
        compute: Takes what a beat computes.
        send: Queues a message.
        pong_timeout: Seconds to wait for the answer, if the template does not say.
        is_backlogged: True while messages wait for a slow consumer: the answer may wait behind them.
    """

    def __init__(
        self,
        heartbeat: Heartbeat,
        *,
        context: Callable[[], RenderContext],
        compute: Callable[[dict[str, object]], None],
        send: Callable[[str | bytes], object],
        pong_timeout: float,
        is_backlogged: Callable[[], bool],
    ) -> None:
        self._heartbeat = heartbeat
        self._context = context
        self._compute = compute
        self._send = send
        self._pong_timeout = pong_timeout
        self._is_backlogged = is_backlogged
        self._answered = anyio.Event()
        self.last_context: RenderContext | None = None

    def answered(self) -> None:
        """The answer to a beat has come."""
        self._answered.set()

    async def run(self) -> None:
        """Beat until an answer does not come in time."""
        heartbeat = self._heartbeat
        assert heartbeat.every is not None
        every = _seconds(heartbeat.every, self._context())
        due = anyio.current_time() + (every * random.random() if heartbeat.jitter else every)  # noqa: S311 - jitter
        while True:
            await anyio.sleep_until(due)
            due = max(due + every, anyio.current_time())
            if not await self._beat():
                return

    async def _beat(self) -> bool:
        heartbeat, context = self._heartbeat, self._context()
        self._answered = anyio.Event()
        try:
            if heartbeat.compute is not None:
                self._compute(heartbeat.compute.compute(context))
            if heartbeat.send is not None:
                self._send(heartbeat.send.encode(context))
        except MissingCaptureError:
            # What it needs has not come yet: this beat is left out.
            return True
        self.last_context = context
        if heartbeat.expect is None:
            return True
        timeout = self._pong_timeout if heartbeat.timeout is None else _seconds(heartbeat.timeout, context)
        with anyio.move_on_after(timeout):
            await self._answered.wait()
        return self._answered.is_set() or self._is_backlogged()


async def watch_silence(
    seconds: float | Template,
    context: RenderContext,
    last_message: Callable[[], float],
    is_backlogged: Callable[[], bool],
) -> None:
    """Return when no message has come for some seconds.

    Args:
        seconds: Longest allowed silence.
        context: Values of the placeholders in it.
        last_message: Time of the last message, on the clock of the event loop.
        is_backlogged: True while messages wait for a slow consumer, which does not count as silence.
    """
    limit = _seconds(seconds, context)
    while True:
        ends = last_message() + limit
        if anyio.current_time() >= ends:
            if not is_backlogged():
                return
            ends = anyio.current_time() + limit
        await anyio.sleep_until(ends)


def _seconds(value: float | Template, context: RenderContext) -> float:
    return render_number(value, context) if isinstance(value, Template) else value
