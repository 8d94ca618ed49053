"""Registrations that fail or are cancelled, and what they leave alone."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from support.peers import Peer, peer
from support.protocol import entered, pool_of, template

from utcp_websocket_anyio._connections.task_groups import single_error_task_group

pytestmark = pytest.mark.anyio

SHARED: dict[str, Any] = {
    "multiplex": True,
    "message": {"id": "{{uuid}}"},
    "message_filter": {"id": "{{uuid}}"},
    "response_format": "json",
}


@pytest.mark.parametrize("fields", [{}, SHARED], ids=["own", "shared"])
async def test_a_cancelled_registration_leaves_the_manuals_running_calls_alone(fields: dict[str, Any]) -> None:
    released = anyio.Event()
    asked = anyio.Event()

    async def script(peer: Peer) -> None:
        async def answer(message: str) -> None:
            await released.wait()
            await peer.send(message)

        await peer.handshake()
        async with single_error_task_group() as answers:
            while True:
                message = await peer.receive_text()
                if "utcp" in message:
                    # Discovery is never answered.
                    asked.set()
                else:
                    answers.start_soon(answer, message)

    results: list[Any] = []
    async with peer(script) as url, entered() as protocol, anyio.create_task_group() as tasks:

        async def call() -> None:
            results.append(
                await protocol.call_tool(None, "manual.t", {}, template(url, **(fields or {"message": "x"})))
            )

        tasks.start_soon(call)
        while "1 open" not in repr(pool_of(protocol)):
            await anyio.sleep(0.001)
        with anyio.CancelScope() as scope:

            async def cancel() -> None:
                await asked.wait()
                scope.cancel()

            tasks.start_soon(cancel)
            await protocol.register_manual(None, template(url, **fields))
        assert scope.cancelled_caught
        await anyio.wait_all_tasks_blocked()
        released.set()
    assert len(results) == 1
