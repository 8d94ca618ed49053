"""A connection that one exchange uses at a time.

A WebSocket that is not read answers no ping and notices no close, so a connection is always being read. But a task
between the wire and the caller that waits costs two task switches a call (50 µs against 77 on trio). So the exchange
reads in its own task, and others only read while it does not:

================================  ===========================================  ===================================
state                             where the wire pushes (asyncio)              elsewhere (trio), and with handlers
================================  ===========================================  ===================================
an exchange waits for a message   its own task                                 its own task
an exchange is away (a stream     the transport, into the wire's bounded       the background reader, after a
whose consumer is slow)           queue                                        moment, into the exchange's queue
idle                              the transport; `_discard` is called back     the background reader
closing, with a farewell          the closing task                             the closing task
================================  ===========================================  ===================================

The background reader waits for `QUIET_SECONDS` without a reader, because between two calls in quick succession it
would cost what it is there to save. If it is in the middle of a read when the next exchange comes, it hands over what
it gets.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Coroutine, Iterable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from .._wire import Interrupted
from .connection import NOBODY, Channel, Connection, User

if TYPE_CHECKING:
    from .._templates.plan import Path
    from .._templates.received import Message
    from ..errors import WebSocketError

__all__ = ["QUIET_SECONDS", "ExclusiveConnection"]

QUIET_SECONDS = 0.05
"""Seconds without a reader after which the background reader starts."""

_MAX_PAUSE = 0.5
_DRAIN_ROUNDS = 100


class ExclusiveConnection(Connection):
    """A connection that one exchange uses at a time."""

    __slots__ = ("_reader",)

    is_shared = False

    _reader: _BackgroundReader | None

    def _set_up(self) -> None:
        self._reader = None

    @property
    def is_in_use(self) -> bool:
        return self._user is not None

    def open_channel(self, user: User) -> ExclusiveChannel:
        self._user = user
        self.calls += 1
        while self._inbox:
            user.accept(self._inbox.popleft())
        return ExclusiveChannel(self, user)

    def end_use(self, user: User) -> None:
        """End an exclusive use. What comes from now on was not asked for."""
        if self._user is not user:
            return
        self._user = None
        if self._is_being_read:
            self.wake_readers()
        if self._reader is None and not self.is_over:
            # There may be something already.
            self.wire.set_data_callback(self._discard)

    def wake_readers(self) -> None:
        """Make every task that reads, or waits for one that does, look again at what it waits for."""
        if self._is_being_read:
            self.wire.interrupt()
            if self._has_read is not None:
                self._has_read.set()

    async def drain(self) -> None:
        for _ in range(_DRAIN_ROUNDS):
            if not self.is_available or not self.has_unread_data:
                break
            if self._reader is None:
                self._discard()
            else:
                self._reader.nudge()
            await anyio.lowlevel.checkpoint()

    def _start_reading(self) -> None:
        # Messages that arrived in one read with the end of the login are for the first user.
        if self._handles_messages or self._keeps_messages or not self.wire.set_data_callback(self._discard):
            self._reader = _BackgroundReader(self)
            self._run(self._reader.run)

    def _ensure_reading(self) -> None:
        if self._reader is not None and not self._is_being_read:
            self._reader.nudge()

    def _deliver(self, message: Message) -> None:
        if self._keeps_messages and self._is_kept(message):
            return
        if self._user is not None:
            self._user.accept(message)
        elif not self._is_started or self.is_over:
            self._keep_for_later(message)
        else:
            # Nobody asked for it, and more may be on its way.
            self.may_get_stray_response = True
            if self.trace is not None:
                self.trace("received", message.data, "discarded: no call is running")

    def _discard(self) -> None:
        """Throw away what came while the connection is idle. An exchange reads by itself; but it may be away."""
        if self.is_over or self._is_being_read:
            return
        if self.wire.closed is not None:
            self._fail_behind_messages(self.wire.closed)
        elif not self.is_in_use and self.wire.take_nowait():
            self.may_get_stray_response = True

    def _dismiss(self, error: WebSocketError) -> None:
        user = self._user
        if user is not None:
            self.end_use(user)
            user.fail(error)

    def exchange_left(self) -> None:
        """There never is another one."""

    def _users(self) -> Iterable[User]:
        return () if self._user is None else (self._user,)

    # For the background reader and the channel

    @property
    def is_being_read(self) -> bool:
        """True if a task is in `Wire.receive`."""
        return self._is_being_read

    @property
    def has_room(self) -> bool:
        """True if there is a taker for the next message."""
        return self._user is None or self._user.has_room

    def read_for(self, user: User) -> Coroutine[Any, Any, None]:
        """Read once for the user, or until another task has.

        Raises:
            Interrupted: The use has ended.
            WebSocketError: The connection is closed, and everything that came before was accepted.
        """
        if self._user is not user:
            raise Interrupted
        if self._error is not None:
            raise copy.copy(self._error)
        return self._read()

    async def read_once(self) -> None:
        """Read one message and take it in."""
        await self._read()

    def take_all_nowait(self) -> deque[str | bytes] | None:
        """Everything that has been received; None if each message has to be looked at."""
        looks = self._handles_messages or self.settings.incoming is not None or self.trace is not None
        return None if looks else self.wire.take_nowait()


class _BackgroundReader:
    """Reads an exclusive connection while no exchange does."""

    def __init__(self, connection: ExclusiveConnection) -> None:
        self._connection = connection
        self._nudged = anyio.Event()

    def nudge(self) -> None:
        """Read now, unless another task is reading."""
        self._nudged.set()

    async def run(self) -> None:
        """Read until the connection is over."""
        connection = self._connection
        while not connection.is_over:
            await self._until_needed()
            while self._may_read():
                await connection.read_once()
                if connection.is_in_use:
                    # An exchange has come, and is cheaper when it reads by itself.
                    break

    def _may_read(self) -> bool:
        connection = self._connection
        return not (connection.is_over or connection.is_being_read) and connection.has_room

    async def _until_needed(self) -> None:
        """Wait until there was no reader for a while, there is none now, and the next message has a taker."""
        pause = QUIET_SECONDS
        while not self._connection.is_over:
            reads = self._connection.reads
            with anyio.move_on_after(pause):
                await self._nudged.wait()
            nudged = self._nudged.is_set()
            if nudged:
                self._nudged = anyio.Event()
            if not self._may_read():
                pause = min(2 * pause, _MAX_PAUSE)  # a consumer is slow, or waits: look less often
            elif nudged or self._connection.reads == reads:
                return
            else:
                pause = QUIET_SECONDS


class ExclusiveChannel(Channel):
    """The use of an exclusive connection by one exchange."""

    __slots__ = ("_connection", "_user")

    def __init__(self, connection: ExclusiveConnection, user: User) -> None:
        self._connection = connection
        self._user = user

    # These two hand on a coroutine instead of awaiting it: each one more costs a call a third of a microsecond.

    def send(self, data: str | bytes) -> Coroutine[Any, Any, None]:
        return self._connection.send(data)

    async def flush(self) -> None:
        """Nothing is queued."""

    def wait(self) -> Coroutine[Any, Any, None]:
        return self._connection.read_for(self._user)

    def take_nowait(self) -> deque[str | bytes] | None:
        return self._connection.take_all_nowait()

    def listen(self, correlation: tuple[Path, Any] | None) -> None:
        """Every message is this exchange's."""

    def part(self) -> None:
        self._connection.part()

    def interrupt(self) -> None:
        # The use goes on: there may be a farewell to say.
        self._connection.wire.interrupt()
        self._connection.wake_readers()

    def finish(self, *, withdraws: bool = True) -> None:
        self._connection.end_use(self._user)
        # No circle is left of a call that is over: the collector of circles costs more than the call.
        self._user = NOBODY
