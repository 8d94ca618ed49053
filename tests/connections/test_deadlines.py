"""The clock of all deadlines: who is told, when, and who is not."""

from __future__ import annotations

import math
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
import trio
from support.backends import virtual_time

from utcp_websocket_anyio._connections.deadlines import Deadlines

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")]),
]


class Waiting:
    """Notes when it was told."""

    def __init__(self, seconds: float) -> None:
        self.deadline = trio.current_time() + seconds
        self.told: list[float] = []

    def expire(self) -> None:
        self.told.append(trio.current_time())


@asynccontextmanager
async def running() -> AsyncIterator[Deadlines]:
    deadlines = Deadlines()
    async with anyio.create_task_group() as task_group:
        task_group.start_soon(deadlines.run)
        await anyio.wait_all_tasks_blocked()
        yield deadlines
        task_group.cancel_scope.cancel()


async def test_each_deadline_expires_once_and_in_time() -> None:
    async with running() as deadlines:
        waiting = [Waiting(seconds) for seconds in (30, 10, 20, 10, math.inf)]
        for one in waiting:
            deadlines.add(one)
        await anyio.sleep(1000)
        assert [one.told for one in waiting] == [[pytest.approx(one.deadline)] for one in waiting[:4]] + [[]]


async def test_a_discarded_deadline_does_not_expire() -> None:
    async with running() as deadlines:
        left, stays = Waiting(10), Waiting(20)
        deadlines.add(left)
        deadlines.add(stays)
        deadlines.discard(left)
        deadlines.discard(left)
        await anyio.sleep(1000)
        assert left.told == []
        assert stays.told == [pytest.approx(stays.deadline)]


async def test_a_sooner_deadline_that_is_added_later_expires_in_time() -> None:
    async with running() as deadlines:
        late = Waiting(100)
        deadlines.add(late)
        await anyio.sleep(50)
        soon = Waiting(5)
        deadlines.add(soon)
        await anyio.sleep(10)
        assert late.told == []
        assert soon.told == [pytest.approx(soon.deadline)]


async def test_an_expired_item_may_be_added_again() -> None:
    async with running() as deadlines:

        class Beating(Waiting):
            def expire(self) -> None:
                super().expire()
                self.deadline += 10
                deadlines.add(self)

        beating = Beating(10)
        deadlines.add(beating)
        deadlines.add(Waiting(1000))
        began = trio.current_time()
        await anyio.sleep(35)
        assert [moment - began for moment in beating.told] == pytest.approx([10, 20, 30])


async def test_many_expiries_at_once_let_other_tasks_run() -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            if waiting[0].told and not waiting[-1].told:
                turns += 1
            await anyio.lowlevel.checkpoint()

    async with running() as deadlines, anyio.create_task_group() as task_group:
        waiting = [Waiting(10) for _ in range(1000)]
        for one in waiting:
            deadlines.add(one)
        await anyio.sleep(9.999)
        task_group.start_soon(others)
        while not all(one.told for one in waiting):
            await anyio.lowlevel.checkpoint()
            # The clock stands still while somebody runs.
            trio.lowlevel.current_clock().jump(0.001)  # type: ignore[attr-defined]  # the tests' MockClock
        task_group.cancel_scope.cancel()
    assert turns >= 5


async def test_discarded_items_are_not_kept_in_memory() -> None:
    async with running() as deadlines:
        left = Waiting(10)
        gone = weakref.ref(left)
        deadlines.add(left)
        deadlines.discard(left)
        del left
        assert gone() is None
        for _ in range(10_000):
            call = Waiting(10)
            deadlines.add(call)
            deadlines.discard(call)
        assert len(deadlines._heap) < 200


async def test_an_expiry_that_raises_is_logged_and_the_others_still_come(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Waiting):
        text = "se" + "cret"

        def expire(self) -> None:
            raise ZeroDivisionError(self.text)

    async with running() as deadlines:
        late = Waiting(20)
        deadlines.add(Broken(10))
        deadlines.add(late)
        await anyio.sleep(100)
        assert late.told == [pytest.approx(late.deadline)]
    (record,) = caplog.records
    assert "ZeroDivisionError" in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_a_long_row_of_calls_that_end_in_time_wakes_it_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def current_time() -> float:
        nonlocal looks
        looks += 1
        return trio.current_time()

    async with running() as deadlines:
        monkeypatch.setattr(anyio, "current_time", current_time)
        for _ in range(1000):
            call = Waiting(30)
            deadlines.add(call)
            await anyio.sleep(0.1)
            deadlines.discard(call)
    assert 0 < looks <= 5, "100 seconds of calls with 30 seconds each"
