"""A task group that raises one error, as it is."""

from __future__ import annotations

import anyio
import pytest

from utcp_websocket_anyio._connections.task_groups import single_error_task_group

pytestmark = pytest.mark.anyio


async def fail() -> None:
    raise KeyError("of a task")


async def test_an_error_of_the_block_comes_out_as_it_is_and_ends_the_tasks() -> None:
    error = LookupError("of the block")
    ended = False

    async def wait() -> None:
        nonlocal ended
        try:
            await anyio.sleep_forever()
        finally:
            ended = True

    with anyio.fail_after(30), pytest.raises(LookupError) as raised:
        async with single_error_task_group() as tasks:
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            raise error
    assert raised.value is error
    assert ended


async def test_an_error_of_a_task_comes_out_as_it_is_and_ends_the_block() -> None:
    with anyio.fail_after(30), pytest.raises(KeyError, match="of a task"):
        async with single_error_task_group() as tasks:
            tasks.start_soon(fail)
            await anyio.sleep_forever()


async def test_a_cancellation_of_its_own_scope_ends_at_the_block() -> None:
    with anyio.fail_after(30):
        async with single_error_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            tasks.cancel_scope.cancel()
            await anyio.sleep_forever()


async def test_a_cancellation_from_outside_passes_through() -> None:
    with anyio.fail_after(30), anyio.CancelScope() as scope:
        async with single_error_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
