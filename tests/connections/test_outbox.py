"""What a connection has to send: what goes out together, and what does not go out at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from utcp_websocket_anyio._connections.outbox import Outbox

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def sending(outbox: Outbox) -> AsyncIterator[list[list[str | bytes]]]:
    """What is handed over at once, call by call."""
    sent: list[list[str | bytes]] = []

    async def send(messages: list[str | bytes]) -> None:
        sent.append(messages)
        await anyio.lowlevel.checkpoint()

    with anyio.fail_after(30):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(outbox.send_all, send)
            yield sent
            outbox.close()


async def test_what_has_come_together_is_sent_at_once_and_in_order() -> None:
    outbox = Outbox()
    async with sending(outbox) as sent:
        posted = [outbox.post(str(number)) for number in range(5)]
        await outbox.flush()
        assert sent == [["0", "1", "2", "3", "4"]]
        assert all(outgoing.is_sent and outgoing.is_done for outgoing in posted)
        outbox.post(b"later")
        await outbox.flush()
        assert sent[1:] == [[b"later"]]


async def test_only_so_much_is_sent_at_once() -> None:
    outbox = Outbox()
    async with sending(outbox) as sent:
        for _ in range(150):
            outbox.post("x")
        await outbox.flush()
        assert [len(messages) for messages in sent] == [64, 64, 22]
        sent.clear()
        for size in (40_000, 20_000, 10_000, 1_000_000, 1):
            outbox.post("x" * size)
        await outbox.flush()
        assert [[len(data) for data in messages] for messages in sent] == [[40_000, 20_000], [10_000], [1_000_000], [1]]


async def test_what_was_withdrawn_is_not_sent() -> None:
    outbox = Outbox()
    async with sending(outbox) as sent:
        first, second, third = (outbox.post(text) for text in ("first", "second", "third"))
        second.withdraw()
        await second.wait()
        await third.wait()
        assert sent == [["first", "third"]]
        assert (first.is_sent, second.is_sent, third.is_sent) == (True, False, True)
        only = outbox.post("only")
        only.withdraw()
        await outbox.flush()
        await anyio.wait_all_tasks_blocked()
        assert sent == [["first", "third"]]


async def test_what_cannot_be_sent_is_done_and_not_sent() -> None:
    outbox = Outbox()

    async def fail(messages: list[str | bytes]) -> None:
        raise KeyError(len(messages))

    posted = [outbox.post("a"), outbox.post("b")]
    with anyio.fail_after(30), pytest.raises(KeyError):
        await outbox.send_all(fail)
    for outgoing in posted:
        await outgoing.wait()
        assert outgoing.is_done
        assert not outgoing.is_sent
