"""Waiting for a lull: until nobody has read a connection for a moment.

Between two calls in quick succession a task that reads in their place would cost two task switches a call; a connection
that nobody reads answers no ping. So the reader task of an exclusive connection waits for a lull before it reads.
"""

from __future__ import annotations

from collections.abc import Callable

import anyio

__all__ = ["MOMENT", "Lull"]

MOMENT = 0.05
"""Seconds without reads that make a lull."""

_LONGEST = 0.5


class Lull:
    """Tells one waiting task when others have stopped reading.

    Args:
        is_busy: Whether somebody is reading right now, or there is no room for what could be read.

    Attributes:
        reads: How often others have read; they count it up.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self.reads = 0
        self._seen = 0
        self._nudged = False
        self._attention: anyio.Event | None = None

    @property
    def has_come(self) -> bool:
        """Whether there was no read since the last wait."""
        return self.reads == self._seen

    def nudge(self) -> None:
        """End the wait now, unless somebody is busy reading."""
        self._nudged = True
        if self._attention is not None:
            self._attention.set()

    async def wait(self) -> None:
        """Wait for a moment without reads; longer, with growing pauses, while somebody is busy."""
        pause = MOMENT
        while True:
            self._seen = self.reads
            if not self._nudged:
                self._attention = anyio.Event()
                with anyio.move_on_after(pause):
                    await self._attention.wait()
                self._attention = None
            nudged, self._nudged = self._nudged, False
            if self._is_busy():
                pause = min(2 * pause, _LONGEST)
            elif nudged or self.has_come:
                return
            else:
                pause = MOMENT
