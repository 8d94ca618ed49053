"""A connection that one exchange uses at a time.

A WebSocket that nobody reads answers no ping and notices no close, so a connection is always being read. But a task
between the wire and the caller that waits costs two task switches a call (50 µs against 77 on trio). So the exchange
reads in its own task, and somebody else only reads while it does not:

================================  ===========================================  ===================================
state                             where the wire pushes (asyncio)              elsewhere (trio), and with handlers
================================  ===========================================  ===================================
an exchange waits for a message   its own task                                 its own task
an exchange is away (a stream     the transport, into the wire's bounded       the background reader, after a
whose consumer is slow)           queue                                        moment, into the bounded inbox
idle                              the transport; `_discard` is called back     the background reader
closing, with a farewell          the closing task                             the closing task
================================  ===========================================  ===================================

The background reader waits until nobody has read for `QUIET_SECONDS`, because between two calls in quick succession it
would cost what it is there to save. If it is in the middle of a read when the next exchange comes, it hands over what
it gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from .connection import Channel, Connection, User

if TYPE_CHECKING:
    from .._templates.plan import Path
    from .._templates.received import Message
    from ..errors import WebSocketError

__all__ = ["QUIET_SECONDS", "ExclusiveConnection"]

QUIET_SECONDS = 0.05
"""How long nobody must have read before the background reader does."""

_MAX_PAUSE = 0.5
_MAX_INBOX_MESSAGES = 16
_MAX_INBOX_BYTES = 256 * 1024
_DRAIN_ROUNDS = 100


class ExclusiveConnection(Connection):
    """A connection that one exchange uses at a time."""

    is_shared = False
    _background: _BackgroundReader | None = None

    @property
    def is_in_use(self) -> bool:
        return self._user is not None

    def open_channel(self, user: User) -> ExclusiveChannel:
        self._user = user
        self.calls += 1
        if self._background is None:
            self.wire.set_data_callback(None)
        return ExclusiveChannel(self, user)

    def end_use(self, user: User) -> None:
        """End an exclusive use. What comes from now on was not asked for."""
        if self._user is not user:
            return
        self._user = None
        if self._is_being_read:
            # The task that waits for this user has to leave the wire.
            self.wire.interrupt()
            if self._has_read is not None:
                self._has_read.set()
        if self._inbox:
            self._inbox.clear()
            self.may_get_stray_response = True
        if self._background is None and not self.is_over:
            self.wire.set_data_callback(self._discard)

    async def drain(self) -> None:
        for _ in range(_DRAIN_ROUNDS):
            if not self.is_available or not self.has_unread_data:
                break
            if self._background is None:
                self._discard()
            else:
                self._background.nudge()
            await anyio.lowlevel.checkpoint()

    def _start_reading(self) -> None:
        if self._handles_messages or not self.wire.set_data_callback(self._discard):
            self._background = _BackgroundReader(self)
            self._run(self._background.run)

    def _ensure_reading(self) -> None:
        if self._background is not None and not self._is_being_read:
            self._background.nudge()

    def _deliver(self, message: Message) -> None:
        if self._user is not None or self._background is None or self.is_over:
            self._inbox.append(message)
        else:
            # Nobody asked for it, and more may be on its way.
            self.may_get_stray_response = True

    def _discard(self) -> None:
        """Throw away what came while the connection is idle, and notice its end."""
        if self.is_in_use or self.is_over:
            return
        if self.wire.closed is not None:
            self.fail(self.wire.closed)
        elif self.wire.take_nowait():
            self.may_get_stray_response = True

    def _dismiss(self, error: WebSocketError) -> None:
        user = self._user
        if user is not None:
            self.end_use(user)
            user.fail(error)

    def _users(self) -> Iterable[User]:
        # The one user finds the error where it receives, behind what came before.
        return ()

    # For the background reader and the channel

    @property
    def is_being_read(self) -> bool:
        """True if a task is in `Wire.receive`."""
        return self._is_being_read

    @property
    def has_room(self) -> bool:
        """True if the inbox takes a further message."""
        inbox = self._inbox
        return len(inbox) < _MAX_INBOX_MESSAGES and sum(len(message.data) for message in inbox) < _MAX_INBOX_BYTES

    async def read_once(self) -> None:
        """Read one message and take it in."""
        await self._read()

    def pop_nowait(self) -> Message | None:
        """The first message of the inbox."""
        return self._inbox.popleft() if self._inbox else None

    def take_all_nowait(self) -> deque[str | bytes] | None:
        """Everything that has been received; None if each message has to be looked at."""
        return None if self._inbox or self._handles_messages else self.wire.take_nowait()


class _BackgroundReader:
    """Reads an exclusive connection while no exchange does."""

    def __init__(self, connection: ExclusiveConnection) -> None:
        self._connection = connection
        self._nudged = anyio.Event()

    def nudge(self) -> None:
        """Read now, unless somebody else is reading."""
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
        """Wait until nobody has read for a while, nobody reads now, and the inbox has room."""
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

    async def send(self, data: str | bytes) -> None:
        await self._connection.send(data)

    async def flush(self) -> None:
        """Nothing is queued."""

    async def wait(self) -> None:
        self._user.accept(await self._connection.receive(self._user))

    def take_in(self) -> None:
        while (message := self._connection.pop_nowait()) is not None:
            self._user.accept(message)

    def take_nowait(self) -> deque[str | bytes] | None:
        return self._connection.take_all_nowait()

    def listen(self, correlation: tuple[Path, Any] | None) -> None:
        """Every message is this exchange's."""

    def interrupt(self) -> None:
        self._connection.end_use(self._user)
        self._connection.wire.interrupt()

    def finish(self) -> None:
        self._connection.end_use(self._user)
