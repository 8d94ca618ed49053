"""From a command, which is synchronous, to what it does, and back: by its end, or by Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio
import anyio.abc
import click

from .._connections.task_groups import single_error_task_group
from .failures import INTERRUPTED

__all__ = ["beside", "run"]

Result = TypeVar("Result")


def run(function: Callable[[], Awaitable[Result]], *, backend: str) -> Result:
    """Run it until it ends or a signal comes, which cancels it.

    Args:
        backend: ``"asyncio"`` or ``"trio"``.

    Raises:
        click.exceptions.Exit: A signal came.
    """
    try:
        return anyio.run(_until_signal, function, backend=backend)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


@asynccontextmanager
async def beside(function: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
    """Run a function in the background of a block, whose errors come out as themselves and not in a group."""
    async with single_error_task_group() as task_group:
        task_group.start_soon(function)
        yield
        task_group.cancel_scope.cancel()


async def _until_signal(function: Callable[[], Awaitable[Result]]) -> Result:
    # Signal handlers belong to the main thread, and Windows has none that an event loop could wait for.
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return await function()
    results: list[Result] = []
    received: list[int] = []
    try:
        async with single_error_task_group() as task_group:
            await task_group.start(_wait_for_signal, task_group.cancel_scope, received)
            results.append(await function())
            task_group.cancel_scope.cancel()
    except Exception:
        if not received:
            raise
        # It is what the cancellation has made of the function.
    if received:
        raise click.exceptions.Exit(128 + received[0])
    return results[0]


async def _wait_for_signal(  # noqa: ASYNC114 - started in one place
    scope: anyio.CancelScope,
    received: list[int],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            received.append(number)
            scope.cancel()
