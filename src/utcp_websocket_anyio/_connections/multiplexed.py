"""A connection that many exchanges share: one task reads and routes, one task sends.

Most exchanges are told apart by one value at one place of each message, such as ``{"id": "{{call_id}}"}``. The router
keeps these in a table by place and value, so that a message costs one look-up per distinct place and not one filter per
exchange; an exchange without such a value is offered everything. The table only narrows down: the exchange's own
filters decide, in `User.accept`, in the reader's task, before the next message is looked at.

While an exchange is still in its `before` steps it is offered everything, too: only when the steps are done is it
known which exchange a message is for that comes between two of them.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import anyio.lowlevel

from .._templates.filters import MISSING, lookup
from .._templates.received import Message, ResponseError
from .._wire import Interrupted
from .bulkhead import internal_error, log_internal_error
from .connection import NOBODY, Channel, Connection, User
from .outbox import Outgoing

if TYPE_CHECKING:
    from .._templates.plan import Path, ResumeChange
    from .._wire._loop import Event
    from ..errors import WebSocketError

__all__ = ["MultiplexedConnection", "Router"]

_log = logging.getLogger(__name__)


class MultiplexedConnection(Connection):
    """A connection that many exchanges share."""

    __slots__ = ("_moved", "_router")

    is_shared = True

    _router: Router | None
    _moved: set[SharedChannel] | None

    def _set_up(self) -> None:
        self._router = self._moved = None

    @property
    def is_in_use(self) -> bool:
        return self._router is not None and bool(len(self._router))

    def open_channel(self, user: User) -> SharedChannel:
        if self._error is not None and not self.has_kept:
            raise copy.copy(self._error)
        assert self._router is not None
        self.calls += 1
        channel = SharedChannel(self, self._router, user)
        if self._error is not None:
            # What the session has kept is served first.
            channel.end(copy.copy(self._error))
        return channel

    def moved(self, channel: SharedChannel) -> None:
        """A stream has moved to another connection. If nobody else is left, the connection can part."""
        if self._moved is None:
            self._moved = set()
        self._moved.add(channel)
        self.exchange_left()

    def exchange_left(self) -> None:
        assert self._router is not None
        if self._moved is not None and self._moved.issuperset(self._router.everyone()):
            self.part()

    async def drain(self) -> None:
        """Nothing to do: the reader discards what no exchange accepts."""

    def _start_reading(self) -> None:
        self._router = Router()
        self._run(self._keep_routing, self._router)

    def _ensure_reading(self) -> None:
        """The reader always reads."""

    def _deliver(self, message: Message) -> None:
        if self._router is None or self.is_over:
            self._keep_for_later(message)
        else:
            self._route(message, self._router)

    def _route(self, message: Message, router: Router) -> None:
        if self._keeps_messages and self._is_kept(message):
            return
        if not router.route(message) and self.trace is not None:
            self.trace("received", message.data, "skipped: it is for no call that is running")

    def _dismiss(self, error: WebSocketError) -> None:
        if self._router is not None:
            for channel in self._router.everyone():
                self._router.remove(channel)
                channel.fail(copy.copy(error))

    def _users(self) -> Iterable[User]:
        return () if self._router is None else self._router.everyone()

    async def _keep_routing(self, router: Router) -> None:
        # What came with the login; in a moment all who wait for the connection are its users.
        await anyio.lowlevel.checkpoint()
        while self._inbox:
            self._route(self._inbox.popleft(), router)
        while not self.is_over:
            await self._read()
            for data in self.wire.take_nowait():
                self._take_in(data)


class SharedChannel(Channel):
    """One exchange's part of a shared connection.

    Attributes:
        correlation: The place and value that every message for this exchange has; None: unknown.
    """

    __slots__ = ("_accepted", "_connection", "_earlier", "_error", "_outgoing", "_router", "_user", "correlation")

    def __init__(self, connection: MultiplexedConnection, router: Router, user: User) -> None:
        self.correlation: tuple[Path, Any] | None = None
        self._connection = connection
        self._router = router
        self._user = user
        self._accepted: Event | None = None
        self._error: WebSocketError | None = None
        self._outgoing: Outgoing | None = None
        self._earlier: tuple[Outgoing, ...] = ()  # unsent, and before `_outgoing`
        router.add(self)

    # As the router sees it

    def accept(self, message: Message) -> None:
        self._user.accept(message)
        self._wake()

    def fail(self, error: WebSocketError) -> None:
        self.end(error)
        self._user.fail(error)
        self._wake()

    def end(self, error: WebSocketError) -> None:
        """Say no more than this error, to who waits."""
        self._error = error

    def move(self, change: ResumeChange) -> None:
        self._user.move(change)

    @property
    def has_room(self) -> bool:
        """Do nothing: a shared connection is always read; messages that are not taken fail their own exchange only."""
        return True

    # As the exchange sees it

    async def send(self, data: str | bytes) -> None:
        if self._user is NOBODY:
            raise Interrupted
        if self._outgoing is not None and not self._outgoing.is_sent:
            self._earlier += (self._outgoing,)
        self._outgoing = self._connection.post(data)

    async def flush(self) -> None:
        if self._outgoing is not None:
            await self._outgoing.wait()
            if not self._outgoing.is_sent:
                self._raise()

    async def wait(self) -> None:
        if self._error is not None or self._user is NOBODY:
            self._raise()
        # The task that sends a request of several steps may wait beside the caller's.
        if self._accepted is None or self._accepted.is_set():
            self._accepted = self._connection.new_event()
        await self._accepted.wait()

    def take_nowait(self) -> deque[str | bytes] | None:
        return None

    def listen(self, correlation: tuple[Path, Any] | None) -> None:
        if correlation is not None:
            self._router.narrow(self, correlation)

    def part(self) -> None:
        self._connection.moved(self)

    def interrupt(self) -> None:
        if self._outgoing is not None:
            self._outgoing.finish()
        self._wake()

    def finish(self, *, withdraws: bool = True) -> None:
        self._router.remove(self)
        if withdraws and self._outgoing is not None:
            self._outgoing.withdraw()
            for outgoing in self._earlier:
                outgoing.withdraw()
        # No circle is left of a call that is over: the collector of circles costs more than the call.
        self._user = NOBODY

    def _raise(self) -> None:
        if self._error is not None and self._user is not NOBODY:
            raise copy.copy(self._error)
        raise Interrupted

    def _wake(self) -> None:
        if self._accepted is not None:
            self._accepted.set()


class Router:
    """The channels of one connection."""

    def __init__(self) -> None:
        self._everything: dict[int, SharedChannel] = {}
        self._by_value: dict[Path, dict[Any, list[SharedChannel]]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, channel: SharedChannel) -> None:
        """Offer every message to a channel from now on."""
        self._count += 1
        self._everything[id(channel)] = channel

    def narrow(self, channel: SharedChannel, correlation: tuple[Path, Any]) -> None:
        """Offer a channel only messages with a value at a place, if it is still there."""
        if self._everything.pop(id(channel), None) is None:
            return
        channel.correlation = path, value = correlation
        values = self._by_value.get(path)
        if values is None:
            values = self._by_value[path] = {}
        values.setdefault(value, []).append(channel)

    def remove(self, channel: SharedChannel) -> None:
        """Forget a channel. Does nothing if it is not there."""
        if channel.correlation is None:
            found = self._everything.pop(id(channel), None) is not None
        else:
            path, value = channel.correlation
            values = self._by_value.get(path, {})
            same_value = values.get(value, [])
            found = channel in same_value
            if found:
                same_value.remove(channel)
                if not same_value:
                    del values[value]
                    if not values:
                        del self._by_value[path]
        self._count -= found

    def route(self, message: Message) -> bool:
        """Offer a message to every exchange that it may be for; False if there is none."""
        candidates = self._candidates(message)
        for channel in candidates:
            try:
                channel.accept(message)
            except Exception as error:  # noqa: BLE001 - the bulkhead: it is that exchange's error only
                log_internal_error(_log, error, "offering a message to a call")
                self.remove(channel)
                channel.fail(internal_error(error, endpoint=None))
        return bool(candidates)

    def everyone(self) -> list[SharedChannel]:
        """All channels."""
        indexed = [c for values in self._by_value.values() for same in values.values() for c in same]
        return [*self._everything.values(), *indexed]

    def _candidates(self, message: Message) -> list[SharedChannel]:
        candidates = list(self._everything.values())
        if self._by_value:
            try:
                content = message.json()
            except ResponseError:
                return candidates
            for path, values in self._by_value.items():
                found = lookup(content, path)
                if found is not MISSING and not isinstance(found, (dict, list)):
                    candidates += values.get(found, ())
        return candidates
