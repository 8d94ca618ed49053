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

    def __init__(self, seconds: float, *, slack: float = 0) -> None:
        self.deadline = trio.current_time() + seconds
        self.slack = slack
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


async def test_each_is_told_once_at_its_deadline() -> None:
    async with running() as deadlines:
        waiting = [Waiting(seconds) for seconds in (30, 10, 20, 10, math.inf)]
        for one in waiting:
            deadlines.add(one)
        await anyio.sleep(1000)
        assert [one.told for one in waiting] == [[pytest.approx(one.deadline)] for one in waiting[:4]] + [[]]


async def test_who_left_is_not_told() -> None:
    async with running() as deadlines:
        left, stays = Waiting(10), Waiting(20)
        deadlines.add(left)
        deadlines.add(stays)
        deadlines.discard(left)
        deadlines.discard(left)
        await anyio.sleep(1000)
        assert left.told == []
        assert stays.told == [pytest.approx(stays.deadline)]


async def test_who_comes_later_with_a_sooner_deadline_is_told_in_time() -> None:
    async with running() as deadlines:
        late = Waiting(100)
        deadlines.add(late)
        await anyio.sleep(50)
        soon = Waiting(5)
        deadlines.add(soon)
        await anyio.sleep(10)
        assert late.told == []
        assert soon.told == [pytest.approx(soon.deadline)]


async def test_who_is_told_may_come_back() -> None:
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


async def test_who_is_patient_is_told_with_another_whose_time_is_up() -> None:
    async with running() as deadlines:
        began = trio.current_time()
        patient = [Waiting(10.0 + 0.1 * number, slack=1) for number in range(20)]
        for one in patient:
            deadlines.add(one)
        await anyio.sleep(1000)
    moments = [one.told[0] - began for one in patient]
    assert all(one.deadline - 1 <= one.told[0] <= one.deadline + 0.001 for one in patient)
    assert len({round(moment, 3) for moment in moments}) == 2


async def test_many_at_once_leave_others_their_turns() -> None:
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
            trio.lowlevel.current_clock().jump(0.001)  # type: ignore[attr-defined]
        task_group.cancel_scope.cancel()
    assert turns >= 5


async def test_who_left_is_not_kept() -> None:
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
        assert len(deadlines._deadlines) < 200


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
