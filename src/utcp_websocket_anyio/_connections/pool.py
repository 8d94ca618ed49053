"""The pool: who may use which connection, who has to wait, and what becomes of a connection afterwards.

Every decision is a synchronous method that changes the state between two checkpoints; only opening, closing and waiting
take time. A place in the pool (a *slot*) is taken before a connection is opened and given back when it is closed, so
that a connection in its closing handshake still counts. Whoever waits gets either a connection or a slot, in order of
arrival; whoever is cancelled passes on what it was given.

The pool never looks into messages. It decides by a handful of properties of a connection: usable, quiet, unanswered.
"""

from __future__ import annotations

import copy
import enum
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Literal

import anyio

from ..errors import WebSocketClosedError, WebSocketError, WebSocketTimeoutError
from .deadlines import Deadlines
from .statistics import Statistics

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from .._templates.plan import Endpoint, Plan
    from .connection import Connection
    from .statistics import Counters

__all__ = ["Pool"]


class _Grant(enum.Enum):
    SLOT = enum.auto()


class _Waiter:
    """A caller in the queue of an endpoint."""

    __slots__ = ("event", "outcome")

    def __init__(self) -> None:
        self.event = anyio.Event()
        self.outcome: Connection | Literal[_Grant.SLOT] | WebSocketError | None = None

    def settle(self, outcome: Connection | Literal[_Grant.SLOT] | WebSocketError) -> None:
        self.outcome = outcome
        self.event.set()


class _Site:
    """The connections to one endpoint, and who waits for one."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.shared = endpoint.settings.multiplex
        self.connections: set[Connection] = set()
        self.idle: list[Connection] = []
        self.slots_lent = 0
        self.opening: set[anyio.CancelScope] = set()
        self.waiters: deque[_Waiter] = deque()

    @property
    def is_unused(self) -> bool:
        return not (self.connections or self.slots_lent or self.waiters)

    def claim(self, capacity: int, *, clean: bool) -> Connection | Literal[_Grant.SLOT] | None:
        """Take what a new caller can have at once: a connection, the right to open one, or nothing."""
        if self.waiters:
            return None
        if self.shared:
            for connection in self.connections:
                if connection.usable:
                    return connection
        elif self.idle:
            position = len(self.idle) - 1
            if clean and self.idle[position].unanswered:
                position = next((i for i, c in enumerate(self.idle) if not c.unanswered), position)
            return self.idle.pop(position)
        if len(self.connections) + self.slots_lent < capacity:
            self.slots_lent += 1
            return _Grant.SLOT
        return None

    def pass_on(self, outcome: Connection | Literal[_Grant.SLOT]) -> bool:
        """Give the first waiter a connection or the slot of one; False if nobody waits."""
        if not self.waiters:
            return False
        if outcome is _Grant.SLOT:
            self.slots_lent += 1
        self.waiters.popleft().settle(outcome)
        return True

    def settle_all(self, outcome: Connection | WebSocketError) -> None:
        while self.waiters:
            waiter = self.waiters.popleft()
            waiter.settle(copy.copy(outcome) if isinstance(outcome, WebSocketError) else outcome)


class Pool:
    """All connections of one protocol object.

    Args:
        task_group: Where the tasks of the connections run. It belongs to the caller.
        connect: Opens a connection to an endpoint, within the time that the plan allows.
        counters: Where the bytes of closed connections are counted.

    Attributes:
        deadlines: Who ends calls whose time is up; whoever has the task group runs it there.
    """

    def __init__(
        self, task_group: TaskGroup, connect: Callable[[Endpoint, Plan], Awaitable[Connection]], counters: Counters
    ) -> None:
        self._task_group = task_group
        self._connect = connect
        self._counters = counters
        self._sites: dict[Endpoint, _Site] = {}
        self._later: deque[Callable[[], None]] = deque()
        self._closed = False
        self.deadlines = Deadlines()

    def __repr__(self) -> str:
        sites = list(self._sites.values())
        connections = sum(len(site.connections) for site in sites)
        idle = sum(len(site.idle) for site in sites)
        waiting = sum(len(site.waiters) for site in sites)
        return f"<Pool [Connections: {connections} open, {idle} idle | Calls: {waiting} waiting]>"

    def statistics(self) -> Statistics:
        """The pool's part of the statistics, and what was counted so far. It may be called from any thread."""
        # A copy is made in one step, which no other thread's change can interrupt.
        sites = list(self._sites.values())
        connections = [connection for site in sites for connection in list(site.connections)]
        states = Counter(connection.state for connection in connections)
        return Statistics(
            opening=sum(len(site.opening) for site in sites),
            idle=states["idle"],
            active=states["active"],
            closing=states["closing"],
            waiting=sum(len(site.waiters) for site in sites),
            calls=self._counters.calls,
            errors=self._counters.errors,
            reconnects=self._counters.reconnects,
            bytes_sent=self._counters.bytes_sent + sum(connection.wire.bytes_sent for connection in connections),
            bytes_received=self._counters.bytes_received + sum(c.wire.bytes_received for c in connections),
        )

    def claim(self, endpoint: Endpoint, plan: Plan, *, clean: bool) -> Connection | None:
        """An idle or shared connection that can be used at once, without waiting for anything."""
        site = self._sites.get(endpoint)
        if site is None or not (site.idle or site.shared):
            return None
        claimed = site.claim(0, clean=clean)
        if claimed is None or claimed is _Grant.SLOT:
            return None
        if claimed.usable and (site.shared or (claimed.quiet and not (clean and claimed.unanswered))):
            return claimed
        if not site.shared:
            site.idle.append(claimed)
        return None

    async def acquire(self, endpoint: Endpoint, plan: Plan, *, clean: bool) -> Connection:
        """A connection for one exchange, to be given back with `release` or `retire`; a shared one is not given back.

        Args:
            clean: Not a connection on which something may come that nobody asked for: an answer that was not awaited,
                or one message after another while it was idle.

        Raises:
            WebSocketTimeoutError: No connection became free, or could be opened, in time.
            WebSocketConnectionError: None could be opened.
            WebSocketClosedError: The pool was closed meanwhile.
        """
        deadline = anyio.current_time() + plan.timeout
        while self._later:
            self._later.popleft()()
        while True:
            self._check_open(endpoint)
            site = self._sites.get(endpoint)
            if site is None:
                site = self._sites[endpoint] = _Site(endpoint)
            granted = site.claim(plan.max_connections, clean=clean)
            if granted is None:
                granted = await self._wait(site, plan, deadline)
            if granted is _Grant.SLOT:
                return await self._open(site, plan)
            if site.shared:
                if granted.usable:
                    return granted
            elif await self._settled(site, granted, clean=clean):
                return granted

    def release(self, connection: Connection, endpoint: Endpoint, *, unanswered: bool = False) -> None:
        """Give back a connection whose exchange ended well, for the next one."""
        site = self._sites.get(endpoint)
        if site is None or self._closed or not connection.usable:
            self.retire(connection, "no longer needed")
            return
        connection.unanswered |= unanswered
        if not site.pass_on(connection):
            site.idle.append(connection)

    def retire(self, connection: Connection, why: str) -> None:
        """Give up a connection: it is closed in the background and never used again."""
        if connection.error is None and not connection.retired:
            connection.retire(why)
            self._task_group.start_soon(connection.aclose)

    def call_later(self, finish: Callable[[], None]) -> None:
        """Call a function when the pool is next used; for garbage collection, which may run in any thread."""
        self._later.append(finish)

    def give_up(self, manual: str) -> None:
        """Retire the idle connections of a manual."""
        for site in self._sites.values():
            if site.endpoint.manual == manual:
                for connection in list(site.idle):
                    self.retire(connection, "the registration failed")
                if site.shared:
                    for connection in list(site.connections):
                        self.retire(connection, "the registration failed")

    async def deregister(self, manual: str) -> None:
        """Close the connections of one manual and fail its calls; returns when they are closed."""
        await self._close_sites(
            [site for site in self._sites.values() if site.endpoint.manual == manual], "the manual was deregistered"
        )

    async def aclose(self) -> None:
        """Close every connection and fail every call; returns when all are closed. The pool stays closed."""
        self._closed = True
        await self._close_sites(list(self._sites.values()), "the protocol object was closed")

    async def abort(self) -> None:
        """Close every connection at once, but for the farewells that their endpoints need; bounded by these.

        It is for a block that was cancelled: what it awaits is shielded.
        """
        self._closed = True
        sites = list(self._sites.values())
        for site in sites:
            for connection in list(site.connections):
                if not connection.plan.on_close:
                    connection.abort("the protocol object was cancelled")
        with anyio.CancelScope(shield=True):
            await self._close_sites(sites, "the protocol object was cancelled")

    async def _close_sites(self, sites: Iterable[_Site], why: str) -> None:
        sites = list(sites)
        for site in sites:
            site.settle_all(WebSocketClosedError(why, code=1000, endpoint=site.endpoint.display_url))
            for scope in site.opening:
                scope.cancel()
            for connection in list(site.connections):
                self.retire(connection, why)
        for site in sites:
            for connection in list(site.connections):
                await connection.wait_closed()

    async def _wait(self, site: _Site, plan: Plan, deadline: float) -> Connection | Literal[_Grant.SLOT]:
        waiter = _Waiter()
        site.waiters.append(waiter)
        try:
            with anyio.CancelScope(deadline=deadline):
                await waiter.event.wait()
        except BaseException:
            self._leave_queue(site, waiter)
            raise
        outcome = waiter.outcome
        if outcome is None:
            self._leave_queue(site, waiter)
            raise WebSocketTimeoutError(
                f"no connection became free within {plan.timeout:g} s", phase="pool", endpoint=site.endpoint.display_url
            )
        if isinstance(outcome, WebSocketError):
            raise outcome
        return outcome

    def _leave_queue(self, site: _Site, waiter: _Waiter) -> None:
        """A caller stops waiting; what it was given meanwhile goes to the next."""
        outcome = waiter.outcome
        if outcome is None:
            site.waiters.remove(waiter)
            self._forget_unused(site)
        elif outcome is _Grant.SLOT:
            site.slots_lent -= 1
            self._slot_freed(site)
        elif not isinstance(outcome, WebSocketError) and not site.shared:
            self.release(outcome, site.endpoint)

    async def _settled(self, site: _Site, connection: Connection, *, clean: bool) -> bool:
        """Whether an idle connection can be used now; one that cannot is retired."""
        if not (connection.usable and connection.quiet):
            try:
                await connection.settle()
            except BaseException:
                self.release(connection, site.endpoint)
                raise
        if connection.usable and not (clean and (connection.unanswered or not connection.quiet)):
            return True
        self.retire(connection, "an answer that nobody awaits may still come")
        return False

    async def _open(self, site: _Site, plan: Plan) -> Connection:
        """Use a slot: open a connection, and tell those who wait for it when it is shared."""
        scope = anyio.CancelScope()
        site.opening.add(scope)
        connection: Connection | None = None
        try:
            self._check_open(site.endpoint)
            with scope:
                connection = await self._connect(site.endpoint, plan)
            if connection is None or scope.cancel_called:
                if connection is not None:
                    connection.abort("closed while connecting")
                raise WebSocketClosedError("closed while connecting", code=1000, endpoint=site.endpoint.display_url)
        except BaseException as error:
            site.slots_lent -= 1
            if site.shared and isinstance(error, WebSocketError):
                site.settle_all(error)
            self._slot_freed(site)
            raise
        finally:
            site.opening.discard(scope)
        site.slots_lent -= 1
        site.connections.add(connection)
        connection.on_lost = lambda lost: self._lost(site, lost)
        connection.start(self._task_group, self.deadlines)
        if site.shared:
            site.settle_all(connection)
        return connection

    def _lost(self, site: _Site, connection: Connection) -> None:
        site.connections.discard(connection)
        self._counters.bytes_sent += connection.wire.bytes_sent
        self._counters.bytes_received += connection.wire.bytes_received
        if connection in site.idle:
            site.idle.remove(connection)
        self._slot_freed(site)

    def _slot_freed(self, site: _Site) -> None:
        if not site.pass_on(_Grant.SLOT):
            self._forget_unused(site)

    def _forget_unused(self, site: _Site) -> None:
        if site.is_unused and self._sites.get(site.endpoint) is site:
            del self._sites[site.endpoint]

    def _check_open(self, endpoint: Endpoint) -> None:
        if self._closed:
            raise WebSocketClosedError("the protocol object is closed", code=1000, endpoint=endpoint.display_url)
