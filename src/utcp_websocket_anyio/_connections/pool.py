"""The pool: which call may use which connection, which has to wait, and what happens to a connection afterwards.

Every decision is a synchronous method that changes the state between two checkpoints; only opening, closing and waiting
take time. A place in the pool (a *slot*) is taken before a connection is opened and given back when it is closed, so
that a connection in its closing handshake still counts. A waiter gets either a connection or a slot, in order of
arrival; one that is cancelled passes on what it was given.

What a new caller of an endpoint gets (`_EndpointConnections.claim`):

1. Others wait already: it waits behind them.
2. The endpoint's connection is shared and open: that one.
3. There are idle connections: the one used last, unless the caller cannot tell its own responses and the connection may
   get a stray one.
4. There is a free slot: the right to open a connection.
5. Otherwise it waits.

Two calls whose farewells (`on_end`) are the same do not share a connection: the first to leave would silence the other.
A *session* has one connection at a time, which is never replaced in silence: after its loss, all calls that waited for
it fail, and say so, or else the next one does.

A connection that is lost, or has to be left, is *replaced* by the first of its streams that comes to it; the others
take that one, and new calls of a shared endpoint wait for it. Where the streams open it in a way of their own (`resume`
has steps for that), no other will do for them: it is told by its *lineage*, which it shares with the one that it
replaces.

An idle connection is closed when it has been idle for its `keep_alive_timeout`, and the one idle longest when there are
more than `max_idle_connections` over all endpoints. One task, the *caretaker*, does that, and lets go of what
finalizers have left: they may run in any thread and at any moment, so they only leave a note and wake it.

The pool never looks into messages. It decides by a handful of predicates of a connection: `is_available`, `is_in_use`,
`has_unread_data`, `may_get_stray_response`.
"""

from __future__ import annotations

import copy
import enum
import errno
import itertools
import logging
import math
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import anyio
import anyio.lowlevel

from .._wire._loop import loop_clock, loop_events, loop_waker
from ..errors import WebSocketClosedError, WebSocketConnectionError, WebSocketError, WebSocketTimeoutError
from .bulkhead import log_internal_error
from .connection import MoveAskedError
from .deadlines import Deadlines
from .statistics import Statistics

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .._templates.placeholders import RenderContext
    from .._templates.plan import Endpoint, Plan
    from .._wire._loop import Event
    from .connection import Connection
    from .statistics import Counters

__all__ = ["Pool", "Replacement"]

_log = logging.getLogger(__name__)

_MAX_LOST_SESSIONS = 1000
_DESCRIPTORS_EXHAUSTED = (errno.EMFILE, errno.ENFILE)


class _Grant(enum.Enum):
    SLOT = enum.auto()


class Connect(Protocol):
    """Opens a connection to an endpoint, within the time that the plan allows."""

    def __call__(
        self,
        endpoint: Endpoint,
        plan: Plan,
        context: RenderContext,
        tasks: TaskGroup,
        *,
        carried: Mapping[str, Any] | None = None,
    ) -> Awaitable[Connection]:
        """Its tasks run in the given group."""


class Resuming(Protocol):
    """A stream between two connections."""

    def close(self, error: WebSocketClosedError) -> None:
        """Its connections are closed on this side. Must not wait."""


@dataclass(frozen=True, slots=True)
class Replacement:
    """What a stream that resumes needs in the place of the connection that it had.

    Attributes:
        replaced: The connection that it had.
        captured: Values that this one has captured.
        opens_its_own: True if the stream opens its connections by steps of its own, such as a login that resumes: one
            that was opened as calls open theirs will not do.
    """

    replaced: Connection
    captured: Mapping[str, Any]
    opens_its_own: bool

    def suits(self, connection: Connection) -> bool:
        """True if the stream can go on with a connection that it has not opened."""
        if not self.opens_its_own:
            return True
        # Another stream of the same connection has opened it.
        return connection.lineage is not None and connection.lineage is self.replaced.lineage


class _Waiter:
    """A caller in the queue of an endpoint.

    Attributes:
        arrival: A number larger than that of every caller who came before.
        deadline: Until when it waits, on the clock of the event loop.
        capacity: How many connections it allows.
        farewell: The message that it will send at its end.
        replaces: The connection that it had, if it is a stream that goes on.
        promised: The shared connection on which that is noted until its task runs.
    """

    __slots__ = ("arrival", "capacity", "deadline", "event", "farewell", "outcome", "promised", "replaces")

    def __init__(
        self,
        event: Event,
        arrival: int,
        capacity: int,
        deadline: float,
        farewell: Hashable,
        *,
        replaces: Replacement | None,
    ) -> None:
        self.arrival = arrival
        self.capacity = capacity
        self.deadline = deadline
        self.event = event
        self.farewell = farewell
        self.replaces = replaces
        self.promised: Connection | None = None
        self.outcome: Connection | Literal[_Grant.SLOT] | WebSocketError | None = None

    def resolve(self, outcome: Connection | Literal[_Grant.SLOT] | WebSocketError) -> None:
        self.outcome = outcome
        self.event.set()

    def expire(self) -> None:
        """Its time is up. What it is given before its task runs is still its own."""
        self.event.set()

    def redeem(self) -> None:
        """Its task runs: from now on it stands for itself."""
        if self.promised is not None:
            self.promised.drop_farewell(self.farewell)


class _EndpointConnections:
    """The connections to one endpoint, and the callers that wait for one."""

    __slots__ = (
        "connections",
        "endpoint",
        "excess",
        "idle",
        "is_shared",
        "opening",
        "resuming",
        "slots_lent",
        "waiters",
    )

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.is_shared = endpoint.settings.multiplex
        self.connections: set[Connection] = set()
        self.idle: list[Connection] = []
        self.slots_lent = 0
        self.excess = 0  # connections beyond those allowed: each has a replacement already
        self.opening: list[anyio.CancelScope] = []
        self.waiters: list[_Waiter] = []  # not a deque, which takes 760 bytes when it is empty
        self.resuming: list[Resuming] = []

    @property
    def is_unused(self) -> bool:
        return not (self.connections or self.slots_lent or self.waiters or self.resuming)

    def pick(
        self, *, reject_stray: bool, farewell: Hashable = None, replaces: Replacement | None = None
    ) -> Connection | None:
        """Take the connection that a new caller gets at once, if there is one. An exclusive one then is not idle."""
        if self.is_shared:
            if farewell is not None and any(waiter.farewell == farewell for waiter in self.waiters):
                return None
            for one in self.connections:
                if one.can_be_shared(farewell) and (replaces is None or replaces.suits(one)):
                    return one
            return None
        if self.waiters or not self.idle or (replaces is not None and replaces.opens_its_own):
            return None
        position = len(self.idle) - 1
        if reject_stray and self.idle[position].may_get_stray_response:
            # One without stray responses, if there is such; otherwise the caller gives it up for a new one.
            position = next((i for i, c in enumerate(self.idle) if not c.may_get_stray_response), position)
        return self.idle.pop(position)

    def lend_slot(self, capacity: int, *, replaces: bool = False) -> bool:
        """Take the right to open a connection, if one is left and has no waiter.

        Args:
            capacity: How many connections there may be.
            replaces: The new one comes in the place of another, which is left only when it is there.
        """
        if self.is_shared and (self.slots_lent or (self.is_being_replaced and not replaces)):
            # Calls that come while a connection to share is being opened share it.
            return False
        taken = len(self.connections) + self.slots_lent
        leaving = 0
        if replaces:
            leaving = sum(connection.is_leaving for connection in self.connections)
        elif self.waiters:
            return False
        if taken - leaving >= capacity:
            return False
        self.excess += taken >= capacity
        self.slots_lent += 1
        return True

    def free_slot(self) -> bool:
        """A connection is closed, or was not opened: give its slot to the first waiter; False if there is none."""
        if self.excess:
            # Its slot went to the one that has replaced it.
            self.excess -= 1
            return False
        if self.is_shared and self.resuming:
            # It is for a stream that goes on, before all calls.
            waiter = next((one for one in self.waiters if one.replaces is not None), None)
            if waiter is None:
                return False
            self.waiters.remove(waiter)
            self.waiters.insert(0, waiter)
        return self.pass_on(_Grant.SLOT)

    @property
    def is_being_replaced(self) -> bool:
        """True if there is no shared connection, because its streams are about to open another one."""
        return bool(self.resuming) and not any(connection.is_available for connection in self.connections)

    def pass_on(self, outcome: Connection | Literal[_Grant.SLOT]) -> bool:
        """Give the first waiter a connection or the slot of one; False if there is no waiter."""
        if not self.waiters:
            return False
        if outcome is _Grant.SLOT:
            self.slots_lent += 1
        self.waiters.pop(0).resolve(outcome)
        return True

    def enqueue(self, waiter: _Waiter) -> None:
        """Put a caller into the queue. One that could not use what it was given comes back to its old place."""
        position = len(self.waiters)
        while position and self.waiters[position - 1].arrival > waiter.arrival:
            position -= 1
        self.waiters.insert(position, waiter)

    def offer(self, connection: Connection) -> None:
        """Give a shared connection to all waiters that can share it.

        Their farewells are noted at once, or another caller might take their place before their tasks run.
        """
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not connection.can_be_shared(waiter.farewell):
                self.waiters.append(waiter)
                continue
            if waiter.farewell is not None:
                connection.plan_farewell(waiter.farewell)
                waiter.promised = connection
            waiter.resolve(connection)

    def opened(self, connection: Connection, farewell: Hashable) -> None:
        """Give a new shared connection to the waiters, and to the first of those that cannot share it a free slot."""
        if farewell is not None:
            # The caller that has opened it comes first.
            connection.plan_farewell(farewell)
        self.offer(connection)
        if farewell is not None:
            connection.drop_farewell(farewell)
        self.lend_to_waiter()

    def lend_to_waiter(self) -> None:
        """Give the first waiter for a shared connection a slot, if one is left."""
        taken = len(self.connections) + self.slots_lent
        if self.is_shared and self.waiters and not self.slots_lent and taken < self.waiters[0].capacity:
            self.pass_on(_Grant.SLOT)

    def fail_all(self, error: WebSocketError) -> None:
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.resolve(copy.copy(error))


class Pool:
    """All connections of one protocol object in one event loop.

    Args:
        task_group: Task group of the connections' tasks. It belongs to the caller.
        connect: Opens a connection to an endpoint, within the time that the plan allows; its tasks run in that group.
        counters: Counters of the bytes of closed connections.
        max_idle_connections: Number of connections that may be idle at once, over all endpoints.

    Attributes:
        deadlines: Ends calls, and waiting for a connection, when their time is up.
        clock: The clock of the event loop, in seconds.
    """

    def __init__(
        self,
        task_group: TaskGroup,
        connect: Connect,
        counters: Counters,
        *,
        max_idle_connections: int = 100,
    ) -> None:
        self._task_group = task_group
        self._connect = connect
        self.counters = counters
        self._max_idle = max_idle_connections
        self._endpoints: dict[Endpoint, _EndpointConnections] = {}
        # In the order in which they became idle, with the time at which they have been idle for too long.
        self._idle_until: dict[Connection, float] = {}
        self._notes: deque[Callable[[], None]] = deque()
        self._attention: anyio.Event | None = None
        self._next_look = math.inf
        self._arrivals = itertools.count()
        self._wake = loop_waker(self._call_caretaker)
        self._closed = False
        self._lost_sessions: dict[Endpoint, Connection] = {}
        self._resuming: dict[Resuming, _EndpointConnections] = {}
        self.clock = loop_clock()
        self._new_event = loop_events()
        self.deadlines = Deadlines()

    def __repr__(self) -> str:
        there = list(self._endpoints.values())
        connections = sum(len(each.connections) for each in there)
        idle = sum(len(each.idle) for each in there)
        waiting = sum(len(each.waiters) for each in there)
        return f"<Pool [Connections: {connections} open, {idle} idle | Calls: {waiting} waiting]>"

    def statistics(self) -> Statistics:
        """The pool's part of the statistics, and what was counted so far. It may be called from any thread."""
        there = list(self._endpoints.values())
        connections = [connection for each in there for connection in list(each.connections)]
        states = Counter(connection.state for connection in connections)
        return Statistics(
            opening=sum(len(each.opening) for each in there),
            idle=states["idle"],
            active=states["active"],
            closing=states["closing"],
            waiting=sum(len(each.waiters) for each in there),
            calls=self.counters.calls,
            errors=self.counters.errors,
            reconnects=self.counters.reconnects,
            resumes=self.counters.resumes,
            skipped=self.counters.skipped,
            bytes_sent=self.counters.bytes_sent + sum(connection.wire.bytes_sent for connection in connections),
            bytes_received=self.counters.bytes_received + sum(c.wire.bytes_received for c in connections),
        )

    async def run(self) -> None:
        """Watch deadlines and idle connections until cancelled."""
        self._task_group.start_soon(self.deadlines.run)
        while True:
            self._attention = anyio.Event()
            with anyio.CancelScope(deadline=self._next_look):
                if not self._notes:
                    await self._attention.wait()
            self._take_notes()
            self._close_idle()

    # Taking a connection

    def claim(self, endpoint: Endpoint, *, reject_stray: bool, farewell: Hashable = None) -> Connection | None:
        """An idle or shared connection that can be used at once, without waiting for anything."""
        there = self._endpoints.get(endpoint)
        if there is None:
            return None
        picked = there.pick(reject_stray=reject_stray, farewell=farewell)
        if picked is None or picked.is_shared:
            return picked
        if not self._is_usable(picked, reject_stray=reject_stray):
            # `acquire` looks closer.
            there.idle.append(picked)
            return None
        self._idle_until.pop(picked, None)
        return picked

    async def acquire(
        self,
        endpoint: Endpoint,
        plan: Plan,
        context: RenderContext,
        *,
        reject_stray: bool,
        farewell: Hashable = None,
        only_open: bool = False,
        replaces: Replacement | None = None,
    ) -> Connection | None:
        """A connection for one exchange, to be given back with `release` or `retire`, a shared one with `left`.

        Args:
            endpoint: Destination of the connection.
            plan: The limits of the call that asks.
            context: Arguments of the call.
            reject_stray: Excludes connections on which a response to an earlier request may come: the caller could not
                tell it from its own.
            farewell: Message that the call sends at its end; excludes shared connections on which another call will
                send the same one. None: it sends none.
            only_open: None is opened; if none is there, None is returned.
            replaces: The connection that the stream had which asks.

        Raises:
            WebSocketTimeoutError: No connection became free, or could be opened, in time.
            WebSocketConnectionError: None could be opened.
            WebSocketClosedError: The pool was closed meanwhile, or the session's connection was lost.
        """
        # Fixed before the loop: a caller may get a connection that is lost at once, and must not wait anew.
        deadline = self.clock() + plan.timeout
        capacity = 1 if endpoint.session is not None else plan.max_connections
        arrival = next(self._arrivals)
        lost: Connection | None = None
        while True:
            self._check_open(endpoint)
            if replaces is not None:
                # A stream that resumes knows of the loss, and keeps what its session has captured.
                self._lost_sessions.pop(endpoint, None)
            elif endpoint.session is not None:
                lost = lost or self._lost_sessions.get(endpoint)
                if lost is not None:
                    return self._after_loss(lost, endpoint, plan, only_open=only_open)
            there = self._endpoints.get(endpoint)
            if there is None and only_open:
                return None
            there = there or self._of_endpoint(endpoint)
            granted: Connection | Literal[_Grant.SLOT] | None = there.pick(
                reject_stray=reject_stray, farewell=farewell, replaces=replaces
            )
            if granted is None:
                if there.lend_slot(capacity, replaces=replaces is not None):
                    granted = _Grant.SLOT
                else:
                    if replaces is not None and there.idle:
                        self.retire(there.idle[0], "another one is needed in its place")
                    waiter = _Waiter(self._new_event(), arrival, capacity, deadline, farewell, replaces=replaces)
                    granted = await self._wait(there, waiter, plan)
            if granted is _Grant.SLOT:
                if only_open:
                    there.slots_lent -= 1
                    self._slot_freed(there)
                    return None
                return await self._open(there, plan, context, replaces, farewell)
            self._idle_until.pop(granted, None)
            if replaces is not None and not replaces.suits(granted):
                # Its caller tries again, and has its old place in the queue.
                if not granted.is_shared:
                    self.retire(granted, "another one is needed in its place")
            elif granted.is_shared:
                if granted.can_be_shared(farewell):
                    return granted
            elif endpoint.session is not None:
                # What came before this call is kept, and no answer to it.
                await self._drain(there, granted)
                if granted.is_available:
                    return granted
            elif self._is_usable(granted, reject_stray=reject_stray) or await self._made_usable(
                there, granted, reject_stray=reject_stray
            ):
                return granted
            if granted.error is not None and not granted.ends_session:
                # If it is a session's, it was lost while this call waited for it.
                lost = granted

    def session_endpoint(self, manual: str, session: str) -> Endpoint | None:
        """The endpoint of a session that has a connection, or had one that was lost; None: it has to be opened."""
        known = (*self._endpoints, *self._lost_sessions)
        return next((one for one in known if one.session == session and one.manual == manual), None)

    def _after_loss(self, lost: Connection, endpoint: Endpoint, plan: Plan, *, only_open: bool) -> Connection | None:
        """Serve a call that was made for a lost session: first the messages that it kept, then an error.

        The first call that is told of the loss ends it for those that are made afterwards.
        """
        listens = plan.message_filter is not None and not plan.request and not plan.before
        if listens and lost.has_kept:
            return lost
        if self._lost_sessions.get(endpoint) is lost:
            del self._lost_sessions[endpoint]
        if only_open:
            return None
        assert lost.error is not None
        code = lost.error.code if isinstance(lost.error, WebSocketClosedError) else 1006
        raise WebSocketClosedError(
            f"the connection of the session {endpoint.session!r} was closed: {lost.error.args[0]};"
            " the next call starts a new session",
            code=code,
            endpoint=endpoint.display_url,
        )

    def _is_usable(self, connection: Connection, *, reject_stray: bool) -> bool:
        """True if nothing stands against using an idle connection now."""
        if not connection.is_available or connection.has_unread_data:
            return False
        return not (reject_stray and connection.may_get_stray_response)

    async def _made_usable(self, there: _EndpointConnections, connection: Connection, *, reject_stray: bool) -> bool:
        """Discard what came while a connection was idle. One that cannot be used even then is retired."""
        await self._drain(there, connection)
        # With a filter of its own the caller can use even one on which messages keep arriving.
        if connection.is_available and not (
            reject_stray and (connection.may_get_stray_response or connection.has_unread_data)
        ):
            return True
        self.retire(connection, "a response to an earlier request may still arrive")
        return False

    async def _drain(self, there: _EndpointConnections, connection: Connection) -> None:
        if connection.is_available and connection.has_unread_data:
            try:
                await connection.drain()
            except BaseException:
                self._put_back(there, connection)
                raise

    async def _wait(
        self, there: _EndpointConnections, waiter: _Waiter, plan: Plan
    ) -> Connection | Literal[_Grant.SLOT]:
        there.enqueue(waiter)
        # Not with a cancel scope and its timer: they would take as long as all else that a call does.
        self.deadlines.add(waiter)
        try:
            await waiter.event.wait()
        except BaseException:
            self._leave_queue(there, waiter)
            raise
        finally:
            self.deadlines.discard(waiter)
        outcome = waiter.outcome
        if outcome is None:
            self._leave_queue(there, waiter)
            raise WebSocketTimeoutError(
                f"no connection became free within {plan.timeout:g} s (max_connections: {plan.max_connections})",
                phase="pool",
                endpoint=there.endpoint.display_url,
            )
        if isinstance(outcome, WebSocketError):
            raise outcome
        waiter.redeem()
        return outcome

    def _leave_queue(self, there: _EndpointConnections, waiter: _Waiter) -> None:
        """A caller stops waiting. What it was granted in the moment of its cancellation goes to the next one."""
        outcome = waiter.outcome
        if outcome is None:
            there.waiters.remove(waiter)
            self._forget_unused(there)
        elif outcome is _Grant.SLOT:
            there.slots_lent -= 1
            self._slot_freed(there)
        elif isinstance(outcome, WebSocketError):
            pass
        elif outcome.is_shared:
            waiter.redeem()
            there.offer(outcome)
        else:
            self._put_back(there, outcome)

    async def _open(
        self,
        there: _EndpointConnections,
        plan: Plan,
        context: RenderContext,
        replaces: Replacement | None,
        farewell: Hashable,
    ) -> Connection:
        """Use a slot: open a connection, and grant it to the waiters if it is shared."""
        scope = anyio.CancelScope()
        there.opening.append(scope)
        connection: Connection | None = None
        try:
            self._check_open(there.endpoint)
            with scope:
                connection = await self._connect_with_descriptors(there.endpoint, plan, context, replaces)
            # The pool may have been closed in the turn in which the connection was opened, too late to be cancelled.
            if connection is None or scope.cancel_called:
                if connection is not None:
                    connection.abort("closed while connecting")
                raise WebSocketClosedError("closed while connecting", code=1000, endpoint=there.endpoint.display_url)
            if connection.is_over:
                # Lost or given up with the last message of its login.
                connection.abort("closed while connecting")
                assert connection.error is not None
                raise copy.copy(connection.error)
        except BaseException as error:
            there.slots_lent -= 1
            if there.is_shared and isinstance(error, WebSocketError) and not isinstance(error, MoveAskedError):
                there.fail_all(error)
            self._slot_freed(there)
            raise
        finally:
            there.opening.remove(scope)
        there.slots_lent -= 1
        there.connections.add(connection)
        if replaces is not None:
            self._lost_sessions.pop(there.endpoint, None)
            connection.lineage = replaces.replaced.lineage = replaces.replaced.lineage or object()
        # Only now: a connection that is lost before it is here must not give back a slot twice.
        connection.on_lost = lambda lost: self._lost(there, lost)
        connection.on_leaving = self._leaving
        connection.on_farewell = there.offer
        if there.endpoint.session is not None:
            connection.begin_session()
        connection.start()
        if there.is_shared:
            there.opened(connection, farewell)
        return connection

    async def _connect_with_descriptors(
        self, endpoint: Endpoint, plan: Plan, context: RenderContext, replaces: Replacement | None
    ) -> Connection:
        """Connect; where the process has no file descriptor left, idle connections make room."""
        carried = None if replaces is None else replaces.captured
        while True:
            try:
                return await self._connect(endpoint, plan, context, self._task_group, carried=carried)
            except WebSocketConnectionError as error:
                if error.errno not in _DESCRIPTORS_EXHAUSTED or not self._idle_until:
                    raise
            for connection in list(self._idle_until)[: max(1, len(self._idle_until) // 2)]:
                connection.abort("closed to free a file descriptor")
            # The descriptors are free when the loop has closed the transports.
            await anyio.lowlevel.checkpoint()

    # Giving it back

    def release(
        self, connection: Connection, endpoint: Endpoint, *, unanswered: bool = False, keep_alive: float | None = None
    ) -> None:
        """Give back a connection whose exchange ended well, for the next one.

        Args:
            connection: An exclusive connection.
            endpoint: Destination of the connection.
            unanswered: True if a response to an earlier request may still come.
            keep_alive: Seconds of idleness after which it is closed; None: never.
        """
        there = self._endpoints.get(endpoint)
        if there is None or self._closed or endpoint.single_use or not connection.is_available:
            self.retire(connection, "no longer needed")
            return
        connection.keep_alive = keep_alive
        if unanswered:
            connection.may_get_stray_response = True
        if not there.waiters or not there.pass_on(connection):
            self._keep_idle(there, connection)

    def _put_back(self, there: _EndpointConnections, connection: Connection) -> None:
        """Give back a connection that its caller was granted and does not use."""
        if self._closed or not connection.is_available:
            self.retire(connection, "no longer needed")
        elif not there.pass_on(connection):
            self._keep_idle(there, connection)

    def _keep_idle(self, there: _EndpointConnections, connection: Connection) -> None:
        there.idle.append(connection)
        keep_alive = connection.keep_alive
        until = math.inf if keep_alive is None else self.clock() + keep_alive
        self._idle_until[connection] = until
        if until < self._next_look:
            # Not moved back when the connection is used again, or every call would wake the caretaker.
            self._next_look = until
            self._call_caretaker()
        if len(self._idle_until) > self._max_idle:
            self.retire(next(iter(self._idle_until)), "idle longest of too many")

    def left(self, connection: Connection, *, closes: bool = False) -> None:
        """An exchange has left a shared connection.

        Args:
            connection: A shared connection.
            closes: True to close it when the last exchange has left.
        """
        if closes:
            connection.leave()
        elif connection.is_leaving:
            self._leaving(connection)

    def _leaving(self, connection: Connection) -> None:
        """A connection takes no further exchange: it is closed when it is free."""
        if connection.is_in_use:
            connection.exchange_left()
        else:
            self.retire(connection, "the server asked for it")

    def retire(self, connection: Connection, why: str) -> None:
        """Close a connection in the background; it is never used again."""
        if connection.error is None and not connection.retired:
            # First the task, then the mark: nothing may count as retired before it is certain that it will be closed.
            self._task_group.start_soon(connection.aclose)
            connection.retire(why)
            self._no_longer_idle(connection)

    def _no_longer_idle(self, connection: Connection) -> None:
        if self._idle_until.pop(connection, None) is not None:
            for there in self._endpoints.values():
                if connection in there.idle:
                    there.idle.remove(connection)

    def call_later(self, finish: Callable[[], None]) -> None:
        """Make the caretaker call a function. Safe from any thread and in a finalizer."""
        self._notes.append(finish)
        self._wake()

    # Streams that go on

    def begin_resuming(self, stream: Resuming, endpoint: Endpoint) -> None:
        """A stream has lost its connection, or has to leave it."""
        self._resuming[stream] = there = self._of_endpoint(endpoint)
        there.resuming.append(stream)

    def end_resuming(self, stream: Resuming) -> None:
        """A stream has another connection, or has ended. Does nothing if it is not resuming."""
        there = self._resuming.pop(stream, None)
        if there is None:
            return
        there.resuming.remove(stream)
        if not there.resuming:
            for connection in there.connections:
                connection.forget_replayed()
            there.lend_to_waiter()
            self._forget_unused(there)

    # Closing

    def give_up(self, manual: str) -> None:
        """Retire the connections of a manual that no call uses."""
        for there in self._of(manual):
            for connection in list(there.connections):
                if not connection.is_in_use and not connection.is_over:
                    self.retire(connection, "the registration failed")

    async def deregister(self, manual: str) -> None:
        """Close the connections of one manual and fail its calls; returns when these connections are closed."""
        for endpoint in [one for one in self._lost_sessions if one.manual == manual]:
            del self._lost_sessions[endpoint]
        self._end_resuming("the manual was deregistered", manual)
        await self._close_all(self._of(manual), "the manual was deregistered", ends_sessions=True)

    async def aclose(self) -> None:
        """Close every connection and fail every call; returns when all are closed. The pool stays closed."""
        self._closed = True
        self._take_notes()
        self._end_resuming("the protocol object was closed")
        await self._close_all(list(self._endpoints.values()), "the protocol object was closed")

    async def abort(self) -> None:
        """Close all connections immediately, except those with `on_close` steps, which get `CLOSING_TIME`.

        For a block that was cancelled; what it awaits is shielded.
        """
        self._closed = True
        self._end_resuming("the protocol object was cancelled")
        there = list(self._endpoints.values())
        for each in there:
            for connection in list(each.connections):
                if not connection.settings.on_close:
                    connection.abort("the protocol object was cancelled")
        with anyio.CancelScope(shield=True):
            await self._close_all(there, "the protocol object was cancelled")

    def _end_resuming(self, why: str, manual: str | None = None) -> None:
        for stream in [one for one, there in self._resuming.items() if manual in (None, there.endpoint.manual)]:
            stream.close(WebSocketClosedError(why, code=1000))

    def _of_endpoint(self, endpoint: Endpoint) -> _EndpointConnections:
        there = self._endpoints.get(endpoint)
        if there is None:
            there = self._endpoints[endpoint] = _EndpointConnections(endpoint)
        return there

    def _of(self, manual: str) -> list[_EndpointConnections]:
        return [there for endpoint, there in self._endpoints.items() if endpoint.manual == manual]

    async def _close_all(
        self, endpoints: Iterable[_EndpointConnections], why: str, *, ends_sessions: bool = False
    ) -> None:
        # Only what is there now: a deregistration does not concern connections that are opened meanwhile.
        endpoints = list(endpoints)
        connections = [connection for there in endpoints for connection in there.connections]
        for there in endpoints:
            there.fail_all(WebSocketClosedError(why, code=1000, endpoint=there.endpoint.display_url))
            for scope in list(there.opening):
                scope.cancel()
        for connection in connections:
            connection.ends_session |= ends_sessions
            self.retire(connection, why)
        for connection in connections:
            await connection.wait_closed()

    def _lost(self, there: _EndpointConnections, connection: Connection) -> None:
        there.connections.discard(connection)
        self.counters.bytes_sent += connection.wire.bytes_sent
        self.counters.bytes_received += connection.wire.bytes_received
        self._idle_until.pop(connection, None)
        if connection in there.idle:
            there.idle.remove(connection)
        # Where there still is one, a stream has moved the session to it.
        is_last = there.endpoint.session is not None and not there.connections
        if is_last and not (connection.ends_session or self._closed):
            self._session_lost(there, connection)
        self._slot_freed(there)

    def _session_lost(self, there: _EndpointConnections, connection: Connection) -> None:
        """Keep a lost session: it must not be replaced in silence, and its next call gets an error.

        So does every call that waits for it; a stream that resumes knows of the loss, and goes on waiting.
        """
        self._lost_sessions[there.endpoint] = connection
        if len(self._lost_sessions) > _MAX_LOST_SESSIONS:
            del self._lost_sessions[next(iter(self._lost_sessions))]
        waiters, there.waiters = there.waiters, []
        for waiter in waiters:
            if waiter.replaces is None:
                waiter.resolve(connection)
            else:
                there.waiters.append(waiter)

    def _slot_freed(self, there: _EndpointConnections) -> None:
        if not there.free_slot():
            self._forget_unused(there)

    def _forget_unused(self, there: _EndpointConnections) -> None:
        if there.is_unused and self._endpoints.get(there.endpoint) is there:
            del self._endpoints[there.endpoint]

    def _check_open(self, endpoint: Endpoint) -> None:
        if self._closed:
            raise WebSocketClosedError("the protocol object is closed", code=1000, endpoint=endpoint.display_url)

    # The caretaker

    def _call_caretaker(self) -> None:
        if self._attention is not None:
            self._attention.set()

    def _take_notes(self) -> None:
        while self._notes:
            note = self._notes.popleft()
            try:
                note()
            except Exception as error:  # noqa: BLE001 - the bulkhead
                log_internal_error(_log, error, "letting go of a stream")

    def _close_idle(self) -> None:
        now = self.clock()
        if now < self._next_look:
            # Woken for a note, or to sleep until an earlier moment.
            return
        for connection, until in list(self._idle_until.items()):
            if until <= now:
                self.retire(connection, "idle for too long")
        self._next_look = min(self._idle_until.values(), default=math.inf)
