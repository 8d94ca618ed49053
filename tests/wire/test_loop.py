"""The services of an event loop: its events."""

from __future__ import annotations

import anyio
import pytest

from utcp_websocket_anyio._wire._loop import loop_events

pytestmark = pytest.mark.anyio


async def test_an_event_wakes_every_task_that_waits_for_it() -> None:
    event = loop_events()()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await event.wait()
        woken.append(number)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(wait, number)
            await anyio.wait_all_tasks_blocked()
            assert not woken
            assert not event.is_set()
            event.set()
            event.set()
            assert event.is_set()
        assert sorted(woken) == [0, 1, 2]
        await event.wait()


async def test_cancelling_one_who_waits_for_an_event_harms_no_other() -> None:
    event = loop_events()()
    woken: list[str] = []

    async def wait(name: str, scope: anyio.CancelScope) -> None:
        with scope:
            await event.wait()
            woken.append(name)

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            scopes = [anyio.CancelScope() for _ in range(3)]
            for name, scope in zip("abc", scopes, strict=True):
                tasks.start_soon(wait, name, scope)
            await anyio.wait_all_tasks_blocked()
            scopes[1].cancel()
            await anyio.wait_all_tasks_blocked()
            assert not event.is_set()
            event.set()
        assert sorted(woken) == ["a", "c"]


async def test_who_is_cancelled_and_woken_in_one_turn_is_cancelled() -> None:
    event = loop_events()()
    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(event.wait)
            tasks.start_soon(event.wait)
            await anyio.wait_all_tasks_blocked()
            event.set()
            tasks.cancel_scope.cancel()
    assert event.is_set()
