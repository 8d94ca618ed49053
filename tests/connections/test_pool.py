"""The pool decides which call gets which connection: tested on its own, with connections that only have a state."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint
from support.pool_fakes import FakeConnection, FakeConnectionSettings, FakeEndpoint, FakePlan

from utcp_websocket_anyio._connections.pool import Pool
from utcp_websocket_anyio._connections.statistics import Counters
from utcp_websocket_anyio.errors import (
    WebSocketClosedError,
    WebSocketConnectionError,
    WebSocketError,
    WebSocketTimeoutError,
)

pytestmark = pytest.mark.anyio


@dataclass
class Opener:
    """Stands for the connector: opens at once, or fails, or waits to be told."""

    opened: list[FakeConnection] = field(default_factory=list)
    failure: WebSocketError | None = None
    gate: anyio.Event | None = None
    attempts: int = 0

    async def __call__(
        self, endpoint: FakeEndpoint, plan: FakePlan, context: Any, tasks: Any, *, carried: Any
    ) -> FakeConnection:
        self.attempts += 1
        if self.gate is None:
            await checkpoint()
        else:
            await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        connection = FakeConnection(endpoint.settings)
        self.opened.append(connection)
        return connection


@asynccontextmanager
async def pool_with(opener: Opener) -> AsyncIterator[Pool]:
    with anyio.fail_after(10):
        async with anyio.create_task_group() as task_group:
            pool = Pool(task_group, cast(Any, opener), Counters())
            task_group.start_soon(pool.run)
            yield pool
            await pool.aclose()
            assert repr(pool) == "<Pool [Connections: 0 open, 0 idle | Calls: 0 waiting]>"
            assert not pool._endpoints
            task_group.cancel_scope.cancel()


async def get(pool: Pool, endpoint: Any, plan: Any = None, *, reject_stray: bool = True) -> Any:
    plan = plan or FakePlan()
    connection = pool.claim(endpoint, reject_stray=reject_stray)
    return connection or await pool.acquire(endpoint, plan, cast(Any, None), reject_stray=reject_stray)


async def test_a_released_connection_is_used_again() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint)
        pool.release(first, endpoint)
        assert repr(pool) == "<Pool [Connections: 1 open, 1 idle | Calls: 0 waiting]>"
        assert await get(pool, endpoint) is first
        pool.release(first, endpoint)
        assert opener.attempts == 1


async def test_connections_are_never_shared_across_endpoints() -> None:
    opener = Opener()
    mine, other = cast(Any, FakeEndpoint()), cast(Any, FakeEndpoint(manual="other"))
    async with pool_with(opener) as pool:
        first = await get(pool, mine)
        pool.release(first, mine)
        second = await get(pool, other)
        assert second is not first
        pool.release(second, other)


async def test_waiting_callers_are_served_in_order() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    served: list[int] = []
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint, FakePlan(max_connections=1))

        async def caller(number: int) -> None:
            connection = await get(pool, endpoint, FakePlan(max_connections=1))
            served.append(number)
            await checkpoint()
            pool.release(connection, endpoint)

        async with anyio.create_task_group() as callers:
            for number in range(5):
                callers.start_soon(caller, number)
                await anyio.wait_all_tasks_blocked()
            pool.release(first, endpoint)
        assert served == [0, 1, 2, 3, 4]
        assert opener.attempts == 1


async def test_a_newcomer_does_not_overtake_a_waiter() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    served: list[str] = []
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint, plan)

        async def caller(name: str) -> None:
            connection = await get(pool, endpoint, plan)
            served.append(name)
            pool.release(connection, endpoint)

        async with anyio.create_task_group() as callers:
            callers.start_soon(caller, "waiting")
            await anyio.wait_all_tasks_blocked()
            pool.release(first, endpoint)
            await caller("newcomer")
        assert served == ["waiting", "newcomer"]


async def test_a_waiter_that_was_given_a_dead_connection_keeps_its_place() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    served: list[int] = []
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint, FakePlan(max_connections=1))

        async def caller(number: int) -> None:
            connection = await get(pool, endpoint, FakePlan(max_connections=1))
            served.append(number)
            await anyio.wait_all_tasks_blocked()
            pool.release(connection, endpoint)

        async with anyio.create_task_group() as callers:
            for number in range(4):
                callers.start_soon(caller, number)
                await anyio.wait_all_tasks_blocked()
            pool.release(first, endpoint)
            first.die()
        # The second got the place of the dead one; then it is the first's turn again.
        assert served == [1, 0, 2, 3]


class Leaving:
    """Callers of one shared endpoint, each of whom will send the same farewell when it leaves."""

    def __init__(self, pool: Pool, max_connections: int) -> None:
        self.pool = pool
        self.endpoint = cast(Any, FakeEndpoint(settings=FakeConnectionSettings(multiplex=True)))
        self.plan = FakePlan(max_connections=max_connections)
        self.served: list[Any] = []

    async def get(self, name: Any) -> Any:
        connection: Any = self.pool.claim(self.endpoint, reject_stray=False, farewell="bye")
        if connection is None:
            connection = await self.pool.acquire(
                self.endpoint, cast(Any, self.plan), cast(Any, None), reject_stray=False, farewell="bye"
            )
        assert "bye" not in connection.farewells, "the first to leave would silence the other"
        connection.plan_farewell("bye")
        self.served.append(name)
        return connection

    async def get_and_leave(self, name: Any) -> None:
        connection = await self.get(name)
        try:
            await checkpoint()
        finally:
            connection.say_farewell("bye")


async def test_a_waiter_for_a_farewell_is_not_overtaken_by_who_comes_when_it_is_said() -> None:
    async with pool_with(Opener()) as pool, anyio.create_task_group() as callers:
        leaving = Leaving(pool, max_connections=1)
        connection = await leaving.get("first")
        callers.start_soon(leaving.get_and_leave, "waiter")
        await anyio.wait_all_tasks_blocked()
        connection.say_farewell("bye")
        # The waiter's task has not run yet.
        await leaving.get_and_leave("newcomer")
        assert leaving.served == ["first", "waiter", "newcomer"]
        assert not connection.farewells


async def test_a_waiter_that_is_cancelled_passes_on_its_turn_to_say_a_farewell() -> None:
    async with pool_with(Opener()) as pool, anyio.create_task_group() as callers:
        leaving = Leaving(pool, max_connections=1)
        connection = await leaving.get("first")
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(leaving.get_and_leave, "cancelled")
            await anyio.wait_all_tasks_blocked()
            callers.start_soon(leaving.get_and_leave, "next")
            await anyio.wait_all_tasks_blocked()
            connection.say_farewell("bye")
            cancelled.cancel_scope.cancel()
        await leaving.get_and_leave("last")
        # Where it was cancelled too late, it is served before it notices.
        assert [name for name in leaving.served if name != "cancelled"] == ["first", "next", "last"]
        assert not connection.farewells


@pytest.mark.parametrize("max_connections", [1, 2, 3])
async def test_callers_that_cannot_share_a_connection_are_served_in_order(max_connections: int) -> None:
    opener = Opener(gate=anyio.Event())
    async with pool_with(opener) as pool:
        leaving = Leaving(pool, max_connections)
        async with anyio.create_task_group() as callers:
            for number in range(8):
                callers.start_soon(leaving.get_and_leave, number)
                await anyio.wait_all_tasks_blocked()
            assert opener.gate is not None
            opener.gate.set()
        # Those who are served in the same turn come in any order.
        assert all(abs(number - place) < max_connections for place, number in enumerate(leaving.served))
        assert len(leaving.served) == 8
        assert opener.attempts <= max_connections


async def test_no_more_than_max_connections_are_open_or_opening() -> None:
    opener, endpoint = Opener(gate=anyio.Event()), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=3)
    async with pool_with(opener) as pool:

        async def caller() -> None:
            connection = await get(pool, endpoint, plan)
            await anyio.wait_all_tasks_blocked()
            pool.release(connection, endpoint)

        async with anyio.create_task_group() as callers:
            for _ in range(10):
                callers.start_soon(caller)
            await anyio.wait_all_tasks_blocked()
            assert opener.attempts == 3
            assert opener.gate is not None
            opener.gate.set()
        assert opener.attempts == 3


async def test_waiting_too_long_is_a_timeout_of_phase_pool() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1, timeout=0.01)
    async with pool_with(opener) as pool:
        connection = await get(pool, endpoint, plan)
        with pytest.raises(WebSocketTimeoutError) as caught:
            await get(pool, endpoint, plan)
        assert caught.value.phase == "pool"
        pool.release(connection, endpoint)


async def test_a_connection_in_its_closing_handshake_still_counts() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint, plan)
        first.may_close = anyio.Event()
        pool.retire(first, "the exchange failed")
        async with anyio.create_task_group() as callers:
            second: list[Any] = []

            async def caller() -> None:
                second.append(await get(pool, endpoint, plan))

            callers.start_soon(caller)
            await anyio.wait_all_tasks_blocked()
            assert not second
            first.may_close.set()
        assert second[0] is not first
        pool.release(second[0], endpoint)


async def test_a_cancelled_waiter_passes_on_the_connection_it_was_given() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint, plan)
        got: list[Any] = []
        async with anyio.create_task_group() as callers:
            scope = anyio.CancelScope()

            async def cancelled() -> None:
                with scope:
                    # Whether the cancellation comes first or the connection, it must not be lost.
                    connection = await get(pool, endpoint, plan)
                    try:
                        await checkpoint()
                    finally:
                        pool.release(connection, endpoint)

            async def patient() -> None:
                got.append(await get(pool, endpoint, plan))

            callers.start_soon(cancelled)
            await anyio.wait_all_tasks_blocked()
            callers.start_soon(patient)
            await anyio.wait_all_tasks_blocked()
            # Given and cancelled between the same two checkpoints:
            pool.release(first, endpoint)
            scope.cancel()
        assert got == [first]
        pool.release(first, endpoint)


async def test_a_cancelled_waiter_passes_on_the_slot_it_was_given() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint, plan)
        async with anyio.create_task_group() as callers:
            scope = anyio.CancelScope()

            async def cancelled() -> None:
                with scope:
                    await get(pool, endpoint, plan)

            callers.start_soon(cancelled)
            await anyio.wait_all_tasks_blocked()
            first.die()
            scope.cancel()
        second = await get(pool, endpoint, plan)
        assert second is not first
        pool.release(second, endpoint)


async def test_cancelled_while_connecting_leaves_the_slot_to_the_next() -> None:
    opener, endpoint = Opener(gate=anyio.Event()), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    async with pool_with(opener) as pool:
        async with anyio.create_task_group() as callers:
            callers.start_soon(get, pool, endpoint, plan)
            await anyio.wait_all_tasks_blocked()
            callers.cancel_scope.cancel()
        opener.gate = None
        pool.release(await get(pool, endpoint, plan), endpoint)


async def test_a_failed_attempt_leaves_its_slot_to_the_next_waiter() -> None:
    opener, endpoint = Opener(gate=anyio.Event(), failure=WebSocketConnectionError("no")), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    failures: list[BaseException] = []
    async with pool_with(opener) as pool:

        async def caller() -> None:
            try:
                await get(pool, endpoint, plan)
            except WebSocketConnectionError as error:
                failures.append(error)

        async with anyio.create_task_group() as callers:
            callers.start_soon(caller)
            callers.start_soon(caller)
            await anyio.wait_all_tasks_blocked()
            assert opener.gate is not None
            opener.gate.set()
        assert len(failures) == 2
        assert opener.attempts == 2


async def test_a_connection_found_dead_is_replaced() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint)
        pool.release(first, endpoint)
        first.die()
        second = await get(pool, endpoint)
        assert second is not first
        pool.release(second, endpoint)
        second.has_unread_data = True
        second.error = WebSocketClosedError("found while settling")
        third = await get(pool, endpoint, FakePlan(max_connections=5))
        assert third is not second
        second.error = None
        second.die()
        pool.release(third, endpoint)


async def test_after_an_unanswered_request_only_a_call_that_expects_no_answer_gets_the_connection() -> None:
    opener, endpoint = Opener(), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    async with pool_with(opener) as pool:
        first = await get(pool, endpoint, plan)
        pool.release(first, endpoint, unanswered=True)
        assert await get(pool, endpoint, plan, reject_stray=False) is first
        pool.release(first, endpoint)
        second = await get(pool, endpoint, plan, reject_stray=True)
        assert second is not first
        assert first.retired
        pool.release(second, endpoint)


async def test_a_shared_connection_is_opened_once_for_all_callers_that_come_meanwhile() -> None:
    opener = Opener(gate=anyio.Event())
    endpoint = cast(Any, FakeEndpoint(settings=FakeConnectionSettings(multiplex=True)))
    plan = FakePlan(max_connections=1)
    got: list[Any] = []
    async with pool_with(opener) as pool:

        async def caller() -> None:
            got.append(await get(pool, endpoint, plan))

        async with anyio.create_task_group() as callers:
            for _ in range(5):
                callers.start_soon(caller)
            await anyio.wait_all_tasks_blocked()
            assert opener.gate is not None
            opener.gate.set()
        assert got == [opener.opened[0]] * 5


async def test_when_the_opener_of_a_shared_connection_is_cancelled_the_next_caller_opens_it() -> None:
    opener = Opener(gate=anyio.Event())
    endpoint = cast(Any, FakeEndpoint(settings=FakeConnectionSettings(multiplex=True)))
    plan = FakePlan(max_connections=1)
    got: list[Any] = []
    async with pool_with(opener) as pool:
        async with anyio.create_task_group() as callers:
            scope = anyio.CancelScope()

            async def leader() -> None:
                with scope:
                    await get(pool, endpoint, plan)

            async def follower() -> None:
                got.append(await get(pool, endpoint, plan))

            callers.start_soon(leader)
            await anyio.wait_all_tasks_blocked()
            callers.start_soon(follower)
            callers.start_soon(follower)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert opener.gate is not None
            opener.gate.set()
        assert opener.attempts == 2
        assert got == [opener.opened[0]] * 2


async def test_when_a_shared_connection_cannot_be_opened_every_waiter_fails() -> None:
    opener = Opener(gate=anyio.Event(), failure=WebSocketConnectionError("no"))
    endpoint = cast(Any, FakeEndpoint(settings=FakeConnectionSettings(multiplex=True)))
    failures: list[BaseException] = []
    async with pool_with(opener) as pool:

        async def caller() -> None:
            try:
                await get(pool, endpoint, FakePlan(max_connections=1))
            except WebSocketConnectionError as error:
                failures.append(error)

        async with anyio.create_task_group() as callers:
            for _ in range(4):
                callers.start_soon(caller)
            await anyio.wait_all_tasks_blocked()
            assert opener.gate is not None
            opener.gate.set()
        assert opener.attempts == 1
        assert len({id(error) for error in failures}) == 4


async def test_deregistering_closes_the_connections_of_that_manual_only() -> None:
    opener = Opener()
    mine, other = cast(Any, FakeEndpoint()), cast(Any, FakeEndpoint(manual="other"))
    async with pool_with(opener) as pool:
        first, second = await get(pool, mine), await get(pool, other)
        pool.release(first, mine)
        pool.release(second, other)
        await pool.deregister("manual")
        await pool.deregister("unknown")
        assert first.closed.is_set()
        assert not second.closed.is_set()
        assert await get(pool, other) is second
        pool.release(second, other)


async def test_closing_fails_callers_that_wait_or_connect() -> None:
    opener, endpoint = Opener(gate=anyio.Event()), cast(Any, FakeEndpoint())
    plan = FakePlan(max_connections=1)
    failures: list[BaseException] = []
    async with pool_with(opener) as pool:

        async def caller() -> None:
            try:
                await get(pool, endpoint, plan)
            except WebSocketClosedError as error:
                failures.append(error)

        async with anyio.create_task_group() as callers:
            callers.start_soon(caller)
            callers.start_soon(caller)
            await anyio.wait_all_tasks_blocked()
            await pool.aclose()
        assert len(failures) == 2
        with pytest.raises(WebSocketClosedError):
            await get(pool, endpoint, plan)


async def test_a_cancelled_block_aborts_all_connections_except_those_with_a_farewell() -> None:
    opener = Opener()
    plain, polite = (
        cast(Any, FakeEndpoint()),
        cast(Any, FakeEndpoint(settings=FakeConnectionSettings(on_close=("bye",)))),
    )
    async with pool_with(opener) as pool:
        first, second = await get(pool, plain), await get(pool, polite)
        second.may_close = anyio.Event()
        async with anyio.create_task_group() as task_group:
            task_group.start_soon(pool.abort)
            await anyio.wait_all_tasks_blocked()
            assert first.closed.is_set()
            assert not second.closed.is_set()
            second.may_close.set()
        assert second.closed.is_set()
