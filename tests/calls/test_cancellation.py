"""Cancellation at every step: an operation is cancelled after one turn of the event loop, after two, after three, …

After each, the pool has to be as if nothing had been, and the next call has to be right.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import anyio
import pytest
from support.peers import Peer, peer
from support.protocol import pool_of, template

from utcp_websocket_anyio import WebSocketCallTemplate, WebSocketCommunicationProtocol, WebSocketError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("both_exchanges")]

Operation = Callable[[WebSocketCommunicationProtocol, WebSocketCallTemplate], Awaitable[Any]]

TURNS = 400
"""More than any of the operations takes; the sweep ends where one was not cancelled any more."""


async def answer(peer: Peer) -> None:
    await peer.handshake()
    while True:
        request = await peer.receive_json()
        if request.get("type") == "utcp":
            await peer.send({"utcp_version": "1.0", "manual_version": "1.0", "tools": []})
        else:
            for part in range(request["parts"]):
                await peer.send({"id": request["id"], "n": request["n"], "part": part})


async def call(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    reply = await protocol.call_tool(None, "manual.t", {"n": 1, "parts": 1}, call_template)
    assert reply["n"] == 1


async def stream(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    parts = call_template.model_copy(update={"expected_responses": 3})
    async with aclosing(protocol.call_tool_streaming(None, "manual.t", {"n": 2, "parts": 3}, parts)) as items:
        assert [item["part"] async for item in items] == [0, 1, 2]


async def register(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    result = await protocol.register_manual(None, call_template)
    assert result.success


async def deregister(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    try:
        await protocol.call_tool(None, "manual.t", {"n": 3, "parts": 1}, call_template)
    finally:
        await protocol.deregister_manual(None, call_template)  # noqa: ASYNC102 - its own cancellation is tested


OPERATIONS = {operation.__name__: operation for operation in (call, stream, register, deregister)}
MODES: dict[str, dict[str, Any]] = {
    "exclusive": {"max_connections": 1},
    "multiplexed": {"multiplex": True, "message_filter": {"id": "{{uuid}}"}},
    "conversing": {
        "max_connections": 1,
        "on_connect": [{"send": {"parts": 1, "id": "login", "n": 0}, "expect": {"id": "login"}}],
        "before": [{"send": {"parts": 1, "id": "before", "n": 0}, "expect": {"id": "before"}}],
        "on_close": [{"send": {"parts": 1, "id": "bye", "n": 0}, "expect": {"id": "bye"}}],
    },
}


async def cancelled_after(turns: int, operation: Callable[[], Awaitable[Any]]) -> bool:
    """True if the operation was still running after `turns` turns, and was cancelled there."""
    ended = False

    async def operate() -> None:
        nonlocal ended
        await operation()
        ended = True

    async with anyio.create_task_group() as task_group:
        task_group.start_soon(operate)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
            if ended:
                break
        task_group.cancel_scope.cancel()
    return not ended


async def check(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    """Nobody waits, nothing is lent, and the next call is right."""
    pool = pool_of(protocol)
    assert all(not site.waiters and not site.slots_lent and not site.opening for site in pool._endpoints.values())
    await call(protocol, call_template)
    statistics = protocol.statistics()
    assert (statistics.waiting, statistics.opening, statistics.active) == (0, 0, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_an_operation_cancelled_at_any_step_leaves_nothing(operation: Operation, mode: str) -> None:
    with anyio.fail_after(50):
        async with peer(answer) as url:
            fields = {
                "message": {"id": "{{uuid}}", "n": "{{args.n}}", "parts": "{{args.parts}}"},
                "response_format": "json",
                **MODES[mode],
            }
            call_template = template(url, **fields)
            async with WebSocketCommunicationProtocol() as protocol:
                for fresh in (True, False):
                    for turns in range(TURNS):
                        under_way = await cancelled_after(turns, lambda: operation(protocol, call_template))
                        if turns > 0:
                            await check(protocol, call_template)
                        if fresh:
                            await protocol.deregister_manual(None, call_template)
                        if not under_way:
                            break
                    else:
                        raise AssertionError(f"not over after {TURNS} turns")
                    assert turns > 2


@pytest.mark.parametrize("mode", MODES)
async def test_leaving_the_block_cancelled_at_any_step_closes_everything(mode: str) -> None:
    fields = {
        "message": {"id": "{{uuid}}", "n": "{{args.n}}", "parts": "{{args.parts}}"},
        "response_format": "json",
        **MODES[mode],
    }
    protocols: list[WebSocketCommunicationProtocol] = []

    async def use(url: str) -> None:
        async with WebSocketCommunicationProtocol() as protocol:
            protocols.append(protocol)
            async with anyio.create_task_group() as task_group:
                for _ in range(3):
                    task_group.start_soon(call_or_fail, protocol, template(url, **fields))

    with anyio.fail_after(50):
        async with peer(answer) as url:
            for turns in range(1, TURNS):
                if not await cancelled_after(turns, lambda: use(url)):
                    break
                statistics = protocols[-1].statistics()
                assert (statistics.opening, statistics.idle, statistics.active, statistics.closing) == (0, 0, 0, 0)
            else:
                raise AssertionError(f"not over after {TURNS} turns")


async def call_or_fail(protocol: WebSocketCommunicationProtocol, call_template: WebSocketCallTemplate) -> None:
    with suppress(WebSocketError):
        await call(protocol, call_template)
