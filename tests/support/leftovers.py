"""What must be gone after a test: sockets, tasks, and the objects of calls and connections."""

from __future__ import annotations

import gc
import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import anyio

from utcp_websocket_anyio._calls.base import BaseExchange
from utcp_websocket_anyio._calls.leg import Leg
from utcp_websocket_anyio._connections.connection import Channel, Connection
from utcp_websocket_anyio._wire import Wire

__all__ = ["nothing_is_left"]


@asynccontextmanager
async def nothing_is_left() -> AsyncIterator[None]:
    """What the block opens, starts and makes is gone after it, once everything has been closed."""
    sockets, tasks = open_sockets(), running_tasks()
    # Those of event loops that other tests have stopped are kept on purpose.
    before = objects()
    yield
    await until(lambda: open_sockets() <= sockets)
    await until(lambda: running_tasks() <= tasks)
    gc.collect()
    left = [one for one in objects() if not any(one is other for other in before)]
    assert not left, left


def open_sockets() -> int:
    """How many sockets this process has open. (Event loops keep descriptors of other kinds.)"""
    count = 0
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):  # that of the directory itself
            count += stat.S_ISSOCK(os.fstat(int(name)).st_mode)
    return count


def objects() -> list[object]:
    """What calls and connections consist of."""
    # By their types: to ask a dead proxy of another test's what it is an instance of is an error.
    kinds = (BaseExchange, Leg, Channel, Connection, Wire)
    return [one for one in gc.get_objects() if issubclass(type(one), kinds)]


def running_tasks() -> set[int]:
    return {task.id for task in anyio.get_running_tasks()}


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await anyio.sleep(0.005)
