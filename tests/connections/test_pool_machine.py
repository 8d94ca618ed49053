"""The pool against a model, in any order of events that hypothesis comes up with.

Pure: connections are stand-ins, and the event loop is turned by hand until nothing moves any more.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import anyio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.pool_fakes import FakeConnection, FakeEndpoint, FakePlan

from utcp_websocket_anyio import WebSocketClosedError, WebSocketConnectionError
from utcp_websocket_anyio._connections.pool import Pool
from utcp_websocket_anyio._connections.statistics import Counters

CAPACITY = 2


class PoolMachine(RuleBasedStateMachine):
    """One endpoint of a pool; the model is the queue of callers and the connections in their hands."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.pool: Pool
        self.end: asyncio.Event
        self.opening: deque[asyncio.Future[FakeConnection]] = deque()
        self.callers: deque[asyncio.Task[FakeConnection]] = deque()
        self.held: list[FakeConnection] = []
        self.open: list[FakeConnection] = []

    @initialize()
    def enter(self) -> None:
        self.end = asyncio.Event()
        self.host = self.loop.create_task(self.live())
        self.turn()

    def teardown(self) -> None:
        callers = list(self.callers)

        def end() -> None:
            self.let_close()
            self.end.set()

        self.turn(end)
        assert self.host.done()
        assert self.host.exception() is None
        assert all(isinstance(caller.exception(), WebSocketClosedError) for caller in callers)
        assert not self.pool._endpoints
        self.loop.close()

    async def live(self) -> None:
        async with anyio.create_task_group() as task_group:
            self.pool = Pool(task_group, cast(Any, self.connect), Counters())
            await self.end.wait()
            await self.pool.aclose()

    async def connect(self, endpoint: Any, plan: Any, context: Any, tasks: Any, *, carried: Any) -> FakeConnection:
        future: asyncio.Future[FakeConnection] = self.loop.create_future()
        self.opening.append(future)
        try:
            return await future
        finally:
            if future in self.opening:
                self.opening.remove(future)

    def turn(self, action: Callable[[], object] = lambda: None) -> None:
        """Do something in the event loop, and let everything happen that can."""

        async def turns() -> None:
            action()
            for _ in range(30):
                await asyncio.sleep(0)

        self.loop.run_until_complete(turns())
        while self.callers and self.callers[0].done():
            self.settle(self.callers.popleft())
        for caller in [caller for caller in self.callers if caller.done()]:
            self.callers.remove(caller)
            self.settle(caller)

    def settle(self, caller: asyncio.Task[FakeConnection]) -> None:
        if not caller.cancelled() and caller.exception() is None:
            connection = caller.result()
            assert connection not in self.held, "one connection, one exchange"
            assert connection.is_available
            self.held.append(connection)

    # What callers do

    @rule()
    def ask(self) -> None:
        acquire: Any = self.pool.acquire(
            cast(Any, FakeEndpoint()), cast(Any, FakePlan(max_connections=CAPACITY)), cast(Any, None), reject_stray=True
        )
        self.callers.append(self.loop.create_task(acquire))
        self.turn()

    @precondition(lambda self: self.callers)
    @rule(data=st.data())
    def lose_patience(self, data: st.DataObject) -> None:
        caller = data.draw(st.sampled_from(list(self.callers)))
        caller.cancel()
        self.turn()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), unanswered=st.booleans())
    def give_back(self, data: st.DataObject, unanswered: bool) -> None:
        connection = data.draw(st.sampled_from(self.held))
        self.held.remove(connection)
        endpoint = cast(Any, FakeEndpoint())
        self.turn(lambda: self.pool.release(cast(Any, connection), endpoint, unanswered=unanswered))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from(self.held))
        self.held.remove(connection)

        def retire() -> None:
            connection.may_close = anyio.Event()
            self.pool.retire(cast(Any, connection), "given up")

        self.turn(retire)

    # What the world does

    @precondition(lambda self: self.opening)
    @rule()
    def open_one(self) -> None:
        def opened() -> None:
            connection = FakeConnection(FakeEndpoint().settings)
            self.open.append(connection)
            self.opening.popleft().set_result(connection)

        self.turn(opened)

    @precondition(lambda self: self.opening)
    @rule()
    def refuse_one(self) -> None:
        self.opening.popleft().set_exception(WebSocketConnectionError("refused"))
        self.turn()

    @precondition(lambda self: any(connection.error is None for connection in self.open))
    @rule(data=st.data())
    def lose_one(self, data: st.DataObject) -> None:
        connection = data.draw(st.sampled_from([one for one in self.open if one.error is None]))
        if connection in self.held:
            self.held.remove(connection)

        def lose() -> None:
            connection.may_close.set()
            connection.die("lost")

        self.turn(lose)

    @precondition(lambda self: any(one.retired and one.error is None for one in self.open))
    @rule()
    def finish_closing(self) -> None:
        self.turn(self.let_close)

    def let_close(self) -> None:
        for connection in self.open:
            connection.may_close.set()

    @rule(noisy=st.booleans())
    def push_something(self, noisy: bool) -> None:
        for connection in self.open:
            connection.has_unread_data = noisy

    @rule()
    def deregister(self) -> None:
        self.held.clear()
        task = self.loop.create_task(self.pool.deregister("manual"))
        self.turn(self.let_close)
        assert task.done()
        assert not any(one.error is None for one in self.open)

    # What holds at any time

    @invariant()
    def never_more_connections_than_allowed(self) -> None:
        if not hasattr(self, "pool"):
            return
        alive = [connection for connection in self.open if connection.error is None]
        assert len(alive) + len(self.opening) <= CAPACITY

    @invariant()
    def no_caller_waits_while_a_connection_or_slot_is_free(self) -> None:
        if not hasattr(self, "pool"):
            return
        for site in self.pool._endpoints.values():
            assert len(site.connections) + site.slots_lent <= CAPACITY
            assert site.slots_lent == len(self.opening)
            if site.waiters:
                assert not site.idle
                assert len(site.connections) + site.slots_lent == CAPACITY
            assert len(site.waiters) == len(self.callers) - len(self.opening)
        assert self.pool._endpoints or not (self.callers or self.opening)


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
