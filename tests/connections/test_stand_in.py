"""Who reads in the absence of a connection's user: when it does, when it does not, and how much."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest
from support.backends import virtual_time

from utcp_websocket_anyio._connections.stand_in import StandIn
from utcp_websocket_anyio._templates.received import Message

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.parametrize("anyio_backend", [pytest.param(virtual_time(), id="trio")]),
]


class Read:
    """A connection, as far as its stand-in knows it."""

    def __init__(self, *, is_in_use: bool) -> None:
        self.is_in_use = is_in_use
        self.is_being_read = False
        self.is_over = False
        self.retired = False
        self.attempts: list[float] = []
        self.send, self.receive = anyio.create_memory_object_stream[str](math.inf)

    async def read_one(self) -> Message:
        self.attempts.append(anyio.current_time())
        self.is_being_read = True
        try:
            return Message(await self.receive.receive())
        finally:
            self.is_being_read = False


@asynccontextmanager
async def standing_in(*, is_in_use: bool) -> AsyncIterator[tuple[StandIn, Read]]:
    connection = Read(is_in_use=is_in_use)
    stand_in = StandIn(cast("Any", connection))
    async with connection.send, connection.receive, anyio.create_task_group() as task_group:
        task_group.start_soon(stand_in.run)
        await anyio.wait_all_tasks_blocked()
        yield stand_in, connection
        task_group.cancel_scope.cancel()


async def test_an_idle_connection_is_read_at_once_and_what_comes_is_nobodys() -> None:
    async with standing_in(is_in_use=False) as (stand_in, connection):
        for _ in range(100):
            connection.send.send_nowait("news")
        await anyio.wait_all_tasks_blocked()
        assert len(connection.attempts) == 101
        assert not stand_in.inbox


async def test_it_leaves_a_user_alone_who_reads() -> None:
    async with standing_in(is_in_use=True) as (stand_in, connection):
        for _ in range(100):
            await anyio.sleep(0.04)
            stand_in.others_have_read()
        assert not connection.attempts
        connection.is_being_read = True
        await anyio.sleep(100)
        assert not connection.attempts
        connection.is_being_read = False
        await anyio.sleep(1)
        assert len(connection.attempts) == 1


@pytest.mark.parametrize("pause", [0.001, 0.1, 10])
async def test_what_it_reads_for_a_user_who_is_away_is_bounded(pause: float) -> None:
    async with standing_in(is_in_use=True) as (stand_in, connection):
        for number in range(100):
            connection.send.send_nowait(f"{number}")
            await anyio.sleep(pause)
        await anyio.sleep(100)
        assert [message.data for message in stand_in.inbox] == [f"{number}" for number in range(16)]
        while len(stand_in.inbox) > 3:
            stand_in.inbox.popleft()
        await anyio.sleep(100)
        assert [message.data for message in stand_in.inbox] == [f"{number}" for number in range(13, 29)]


async def test_large_messages_count_by_their_length() -> None:
    async with standing_in(is_in_use=True) as (stand_in, connection):
        for _ in range(10):
            connection.send.send_nowait("x" * 100_000)
        await anyio.sleep(100)
        assert len(stand_in.inbox) == 3


async def use(stand_in: StandIn, connection: Read) -> None:
    connection.is_in_use = True
    connection.send.send_nowait("answer")
    await anyio.wait_all_tasks_blocked()
    if stand_in.inbox:
        stand_in.inbox.popleft()
    connection.is_in_use = False


async def test_it_stays_where_a_connection_is_used_now_and_then() -> None:
    async with standing_in(is_in_use=False) as (stand_in, connection):
        for number in range(2, 10):
            await anyio.sleep(1)
            await use(stand_in, connection)
            assert len(connection.attempts) == number, "the next read began at once"


async def test_it_goes_where_one_call_follows_the_other() -> None:
    async with standing_in(is_in_use=False) as (stand_in, connection):
        await anyio.sleep(1)
        for _ in range(2):
            await use(stand_in, connection)
        connection.is_in_use = True
        before = len(connection.attempts)
        connection.send.send_nowait("read by the user itself")
        await anyio.sleep(0.01)
        assert len(connection.attempts) == before
        assert not stand_in.inbox
