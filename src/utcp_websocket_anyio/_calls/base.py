"""What all exchanges have: a state, a deadline, an error that ended them, and a connection to give back."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING

from .._connections.steps import WaitNote
from ..errors import WebSocketError, WebSocketProtocolError, WebSocketTimeoutError

if TYPE_CHECKING:
    from .._connections.connection import Connection
    from .._connections.pool import Pool
    from .request import Request

__all__ = ["COMPLETE", "ENDED", "EXPIRED", "FAILED", "OPENING", "RUNNING", "BaseExchange", "State"]


class State(enum.IntEnum):
    """The progress of an exchange."""

    OPENING = enum.auto()
    """It waits for its connection, or runs its `before` steps."""

    RUNNING = enum.auto()
    """Its request is out, or on its way; messages are responses."""

    COMPLETE = enum.auto()
    """Every expected response has come, or a response that is an error."""

    ENDED = enum.auto()
    """It ended without error, before an expected count: by a message, silence, its duration or a close."""

    EXPIRED = enum.auto()
    """Its deadline has passed."""

    FAILED = enum.auto()
    """An error ended it."""


# Names of their own: each call asks many times, and looking up a member of an enum takes as long as a call.
OPENING, RUNNING, COMPLETE, ENDED, EXPIRED, FAILED = State


class BaseExchange:
    """An exchange of messages for one call.

    Args:
        request: The prepared call.
        pool: The pool that its connections come from.

    Attributes:
        deadline: When it expires, on the clock of the event loop.
        note: Record of what it waits for.
    """

    _timeout: float

    def __init__(self, request: Request, pool: Pool) -> None:
        self._request = request
        self._plan = request.plan
        self._endpoint = request.endpoint
        self._pool = pool
        self.note = WaitNote()
        self.deadline = math.inf
        self.state = OPENING
        self._failure: WebSocketError | None = None
        self._expected: int | None = 1

    def expire(self) -> None:
        """The deadline has passed."""
        raise NotImplementedError

    def _watch_deadline(self, seconds: float) -> None:
        if seconds < math.inf:
            pool = self._pool
            self.deadline = pool.clock() + seconds
            pool.deadlines.add(self)

    def _forget_deadline(self) -> None:
        if self.deadline < math.inf:
            self._pool.deadlines.discard(self)
            self.deadline = math.inf

    def _fail(self, error: WebSocketError) -> None:
        self.state = FAILED
        self._failure = error

    def _raise_or_end(self) -> None:
        """Raise why the exchange ended, if that is an error."""
        if self.state is EXPIRED:
            raise self._timed_out(self._timeout)
        if self._failure is not None:
            raise self._failure

    def _unreadable(self, reason: str) -> WebSocketProtocolError:
        return WebSocketProtocolError(reason, endpoint=self._endpoint.display_url)

    def _timed_out(self, seconds: float) -> WebSocketTimeoutError:
        return WebSocketTimeoutError(
            f"timed out after {seconds:g} s while waiting for {self.note.told()}",
            phase="response",
            endpoint=self._endpoint.display_url,
        )

    def _hand_back(self, connection: Connection, *, is_good: bool) -> None:
        """Give a connection back to the pool, or close it."""
        plan, pool = self._plan, self._pool
        closes = plan.close_after_response
        if closes:
            connection.ends_session = True
        if connection.is_shared:
            pool.left(connection, closes=closes)
        elif is_good and not closes:
            pool.release(connection, self._endpoint, unanswered=self._expected == 0, keep_alive=plan.keep_alive_timeout)
        else:
            is_over = self.state in (COMPLETE, ENDED)
            pool.retire(connection, "the call is over" if is_over else "closed after a failed call")
